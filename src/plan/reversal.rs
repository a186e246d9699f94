//! How the effect of each kind of step is taken back: what a person wants to know before agreeing to a plan.

/// What becomes of a step's effect when the run is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reversal {
    /// It leaves nothing that would have to be undone.
    Nothing,
    /// It can be undone so.
    By(&'static str),
    /// It can't be undone; this is why that is bearable.
    Never(&'static str),
}

/// How a step of this kind is undone.
pub fn reversal(kind: &str) -> Reversal {
    match kind {
        "control_plane.stop" => Reversal::By("start the API server, controller manager and scheduler"),
        "ssh_key.authorize" => Reversal::By("take the new key off the server"),
        "ssh_key.revoke" => Reversal::By("add the old key to the server again, while it is kept"),
        "controllers.stop" => Reversal::By("start controller manager and scheduler"),
        "worker.stop" => Reversal::By("start kubelet and proxy"),
        "node.drain" => Reversal::By("let pods be scheduled there again: kubectl uncordon"),
        "binaries.install" => {
            Reversal::By("the version before is kept on the machine; declare it in Git, then hk-dr build")
        }
        "etcd.stop" => Reversal::By("mount the volume and start etcd: its data stays where it is"),
        "server.power_off" => Reversal::By("switch the server on"),
        "volume.detach" => Reversal::By("attach the volume to the same server"),
        "volume.attach" => Reversal::By("detach the volume"),
        "volume.provide" => Reversal::By("delete the new volume"),
        "volume.retire" => Reversal::By("give the volume its old name"),
        "network.create" | "placement_group.create" | "ssh_key.create" => {
            Reversal::By("delete it: nothing else uses it")
        }
        "server.create" => Reversal::By("delete the new server"),
        "server.fence" => {
            Reversal::Never("the server's own disk is gone; all it held is made anew, etcd's data is elsewhere")
        }
        "member.remove" => Reversal::Never("the member's data is of no use any more; the other members have all of it"),
        "member.add" => Reversal::By("remove the new member"),
        "etcd.restore" | "etcd.restore_taken" => {
            Reversal::Never("the new cluster begins; the old volumes are kept under other names")
        }
        "volume.delete" => Reversal::Never("its data is then only in the backups"),
        "backups.delete" => Reversal::Never("nothing can bring the cluster back then"),
        "network.delete" | "placement_group.delete" | "ssh_key.delete" => Reversal::By("hk-dr build"),
        "cluster.clean" => Reversal::Never("what named dead servers is gone; relaxed webhooks are put back later"),
        _ => Reversal::Nothing,
    }
}

/// How a step of this plan is undone. A restore beside servers that stay leaves the old volumes as they were.
pub fn reversal_in(plan: &super::Plan, step: &super::Step) -> Reversal {
    let copy = plan.runbook.as_ref().is_some_and(|r| super::works_on_copy(&r.runbook));
    if copy && plan.purpose == super::Purpose::Runbook {
        return match (step.kind.as_str(), reversal(&step.kind)) {
            (_, Reversal::Nothing) | ("copy.discard", _) => Reversal::Nothing,
            _ => Reversal::By("hk-dr abort deletes the copy"),
        };
    }
    let servers_stay = !plan.steps.iter().any(|s| matches!(s.kind.as_str(), "server.fence" | "server.create"));
    match step.kind.as_str() {
        "etcd.restore" | "cluster.clean" if plan.purpose == super::Purpose::Runbook && servers_stay => {
            Reversal::By("stop etcd and attach the old volume under its old name (hk-dr abort)")
        }
        kind => reversal(kind),
    }
}

/// The first step after which there is no way back but forward.
pub fn point_of_no_return(plan: &super::Plan) -> Option<&super::Step> {
    plan.steps.iter().find(|step| matches!(reversal_in(plan, step), Reversal::Never(_)))
}
