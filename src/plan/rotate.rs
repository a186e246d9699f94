//! One SSH key takes another's place on every server.

use super::draft::{Basis, Draft};
use super::params::{SshKeyAuthorize, SshKeyCreate, SshKeyDelete, SshKeyRevoke};
use super::{Plan, PlanError, Purpose};

const REASON: &str = "the SSH key is rotated";

/// From the key `before` to the key `now`, both in OpenSSH's form: added everywhere, registered for servers to come, and
/// only then is the old one taken away.
pub fn plan_ssh_rotation(basis: &Basis<'_>, before: &str, now: &str) -> Result<Plan, PlanError> {
    let mut draft = Draft::bare(basis);
    authorize(&mut draft, now, &[])?;
    let everywhere = draft.ids();
    revoke(&mut draft, before, now, &everywhere.iter().map(String::as_str).collect::<Vec<_>>());
    Ok(draft.finish(Purpose::SshRotation))
}

/// Adds the new key on every server; returns the steps' ids.
pub(super) fn authorize(draft: &mut Draft<'_>, now: &str, needs: &[&str]) -> Result<Vec<String>, PlanError> {
    let inventory = draft.basis.inventory;
    if let Some((name, why)) = inventory.silent.iter().next() {
        return Err(PlanError::Unbuildable {
            reason: format!("{name} does not answer ({why}): it would keep the old key"),
            hint: "nothing was touched; bring it back or remove it (`hk-dr status`), then rotate again".into(),
        });
    }
    let mut ids = Vec::new();
    for server in &inventory.servers {
        let params = SshKeyAuthorize { server: server.name.clone(), public_key: now.to_owned() };
        let title = format!("let the new SSH key log in to {} too, and try it", server.name);
        let id = format!("authorize/{}", server.name);
        draft.add(&id, &params, needs, title, REASON, 120);
        ids.push(id);
    }
    Ok(ids)
}

/// Registers the new key in the cloud, then takes the old one off every server; returns the last steps' ids.
pub(super) fn revoke(draft: &mut Draft<'_>, before: &str, now: &str, needs: &[&str]) -> Vec<String> {
    let (basis, mut needs) = (draft.basis, needs.to_vec());
    let inventory = basis.inventory;
    let words = |key: &str| key.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    let registered = inventory.ssh_key.as_ref();
    if let Some(key) = registered.filter(|k| words(&k.public_key) != words(now)) {
        let params = SshKeyDelete { id: key.id, name: key.name.clone() };
        draft.add("ssh-key-delete", &params, &needs, "take the old SSH key out of the cloud", REASON, 120);
        needs.push("ssh-key-delete");
    }
    if registered.is_none_or(|k| words(&k.public_key) != words(now)) {
        let (name, labels) = (basis.cluster.name.clone(), draft.labels());
        let params = SshKeyCreate { name, public_key: now.to_owned(), labels };
        draft.add("ssh-key", &params, &needs, "register the new SSH key for servers to come", REASON, 120);
        needs.push("ssh-key");
    }
    let mut ids = Vec::new();
    for server in &inventory.servers {
        let params = SshKeyRevoke { server: server.name.clone(), public_key: before.to_owned(), kept: now.to_owned() };
        let title = format!("take the old SSH key off {} and prove that it is refused", server.name);
        let id = format!("revoke/{}", server.name);
        draft.add(&id, &params, &needs, title, REASON, 120);
        ids.push(id);
    }
    ids
}
