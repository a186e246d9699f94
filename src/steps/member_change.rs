use std::sync::Arc;

use async_trait::async_trait;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::{MemberAdd, MemberRemove};
use crate::ports::{ErrorCode, Etcd, Member, PortError, PortResult};

/// Takes a member out of etcd's membership.
pub struct MemberRemoveStep;

/// Adds a member to etcd's membership.
pub struct MemberAddStep;

/// The other members, one of them that answers, and the membership it tells.
async fn ask(
    cx: &StepContext<'_>,
    through: &std::collections::BTreeMap<String, String>,
) -> PortResult<(Arc<dyn Etcd>, String, Vec<Member>)> {
    let etcd = cx.etcd(through).await?;
    let mut last = PortError::new(ErrorCode::Unreachable, "no other etcd member is known");
    for member in etcd.members() {
        match etcd.member_list(&member).await {
            Ok(members) => return Ok((etcd, member, members)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[async_trait]
impl StepKind for MemberRemoveStep {
    type Params = MemberRemove;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &MemberRemove) -> PortResult<Observed<()>> {
        let (_, _, members) = ask(cx, &params.through).await?;
        Ok(if members.iter().any(|m| m.id == params.id) { Observed::Absent } else { Observed::Done(()) })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &MemberRemove) -> PortResult<()> {
        let (etcd, member, _) = ask(cx, &params.through).await?;
        etcd.member_remove(&member, params.id).await
    }
}

#[async_trait]
impl StepKind for MemberAddStep {
    type Params = MemberAdd;
    type Output = u64;

    async fn observe(&self, cx: &StepContext<'_>, params: &MemberAdd) -> PortResult<Observed<u64>> {
        let (_, _, members) = ask(cx, &params.through).await?;
        let there = members.iter().find(|m| m.peer_urls.contains(&params.peer_url));
        Ok(there.map_or(Observed::Absent, |m| Observed::Done(m.id)))
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &MemberAdd) -> PortResult<u64> {
        let (etcd, member, _) = ask(cx, &params.through).await?;
        etcd.member_add(&member, &params.peer_url).await
    }
}
