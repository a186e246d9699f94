//! What follows from the state and has to be made so in the machine room: the rules that filter each machine's traffic,
//! and what each load balancer serves. Labels, servers and addresses change both, at any time; so it is not the change
//! that is handed over but what should be, whenever it differs from what was handed over last.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use super::cloud::{Cloud, now};
use super::firewall::Effective;
use super::metrics::{self, Samples};
use super::server::Status;
use crate::backend::{BalancerSpec, Effect, TargetHealth};

/// How often what failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Wakes the upkeep, and lets one of its kind work at a time, so that an older wish never overtakes a younger.
#[derive(Debug, Default)]
pub struct Upkeep {
    changed: Notify,
    firewalls: tokio::sync::Mutex<()>,
    pub(super) balancers: tokio::sync::Mutex<()>,
}

/// What the machine room was made to do, and what it told.
#[derive(Debug, Default)]
pub struct Made {
    /// What filters each machine's traffic.
    pub filtering: BTreeMap<u64, Effective>,
    /// What each load balancer is.
    balancing: BTreeMap<u64, BalancerSpec>,
    /// What the health checks of each load balancer saw last.
    pub health: BTreeMap<u64, Vec<TargetHealth>>,
    pub samples: Samples,
}

impl Made {
    pub fn forget_server(&mut self, id: u64) {
        self.filtering.remove(&id);
        self.samples.forget("server", id);
    }

    pub fn forget_balancer(&mut self, id: u64) {
        self.balancing.remove(&id);
        self.health.remove(&id);
        self.samples.forget("load_balancer", id);
    }
}

impl Cloud {
    /// Something may have changed that others depend on.
    pub fn changed(&self) {
        self.upkeep.changed.notify_one();
    }

    /// Follows the changes until the cloud is gone.
    pub(super) fn keep_up(self: &Arc<Self>) {
        let cloud = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut sampled = now();
            while let Some(changed) = round(&cloud, &mut sampled).await {
                // Either is fine: the next round looks at everything.
                let _ = tokio::time::timeout(AGAIN, changed.upkeep.changed.notified()).await;
            }
        });
    }

    /// Makes the rules of one machine, or of all, what they should be. The first failure is returned, the others are
    /// still tried.
    pub(super) async fn settle_firewalls(&self, only: Option<u64>) -> Effect {
        let _turn = self.upkeep.firewalls.lock().await;
        let due: Vec<_> = {
            let state = self.look();
            let made = state.made();
            let there = state.servers.values().filter(|s| s.has_machine && s.status != Status::Deleting);
            there
                .filter(|s| only.is_none_or(|id| id == s.id))
                .map(|s| (s.id, state.wanted_rules(s)))
                .filter(|(id, wanted)| made.filtering.get(id).cloned().unwrap_or_default() != *wanted)
                .collect()
        };
        let mut result = Ok(());
        for (id, wanted) in due {
            let set = self.effect(self.backend.set_firewall(id, wanted.rules.as_deref())).await;
            if set.is_ok() {
                let state = self.state();
                state.made().filtering.insert(id, wanted);
                state.common.changes.note_unkept();
            }
            result = result.and(set);
        }
        result
    }
}

impl Cloud {
    /// Makes one load balancer, or all, what they should be.
    pub(super) async fn settle_balancers(&self, only: Option<u64>) -> Effect {
        let _turn = self.upkeep.balancers.lock().await;
        let due: Vec<BalancerSpec> = {
            let state = self.look();
            let made = state.made();
            let asked = state.load_balancers.values().filter(|b| only.is_none_or(|id| id == b.tag.id));
            let wanted = asked.map(|b| state.wanted_balancer(b));
            wanted.filter(|spec| made.balancing.get(&spec.id) != Some(spec)).collect()
        };
        let mut result = Ok(());
        for spec in due {
            let set = self.effect(self.backend.set_balancer(&spec)).await;
            if set.is_ok() {
                self.state().made().balancing.insert(spec.id, spec);
            }
            result = result.and(set);
        }
        result
    }
}

/// One round; returns the cloud if it is still there.
async fn round(cloud: &Weak<Cloud>, sampled: &mut Timestamp) -> Option<Arc<Cloud>> {
    let cloud = cloud.upgrade()?;
    // What fails is tried again in the next round, and told by the firewall's status or the load balancer's health.
    let _ = cloud.settle_firewalls(None).await;
    let _ = cloud.settle_balancers(None).await;
    cloud.expire_rescues().await;
    if now().duration_since(*sampled) >= SignedDuration::from_secs(metrics::EVERY_SECONDS) {
        *sampled = now();
        cloud.sample(None).await;
    }
    Some(cloud)
}
