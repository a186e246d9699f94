//! What ends a run midway on the real cluster, and what a recovery suspends and lets act again.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::everyday::{answer, ssh};
use super::life::kubectl;
use super::runbooks::evidence;
use super::{Lab, hk_dr, refused, succeeded, unique, whole};

/// Stops a master and waits for a person, who does not come.
const LONG: &str = "apiVersion: hk-dr/v1\nkind: Runbook\nname: long\nsummary: Stops a master and waits.\nmasters: chosen\n\
                    guards: {majorityStays: true}\nonFailure: unwind\nabortWhen: {runSeconds: 10}\nsteps:\n\
                    - verb: masters.stop\n- verb: manual\n  text: look at it\n- verb: masters.start\n- verb: cluster.verify\n";

/// A run that takes longer than its runbook allows is ended, and the master that it stopped serves again.
pub fn ended_midway(lab: &Lab) {
    let dir = lab.dir.path().join("git/runbooks");
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("long.yaml"), LONG).expect("written");
    let servers = unique(lab, "servers");
    let run = lab.operator(&["runbook", "run", "long", "--server", "m2", "--yes"], None);
    refused(&run, 1, &["it takes longer than 10 s (abortWhen)"]);
    let found = evidence(lab);
    assert_eq!((&found["runbook"], &found["verdict"]), (&json!("long"), &json!("failed")), "{}", found["reasons"]);
    assert_eq!(found["recovery_point"]["lost"], 0, "{}", found["reasons"]);
    assert_eq!(unique(lab, "servers"), servers);
    succeeded(&ssh(lab, "m2", "systemctl is-active --quiet etcd kube-apiserver"), "m2 serves again");
    whole(lab);
}

pub fn kube(lab: &Lab, args: &[&str]) -> Output {
    let (config, program) = (lab.path("kubeconfig-gitops"), kubectl().display().to_string());
    let place = ["lab", "exec", "--name", &lab.name, "--from", "operator", "--", &program, "--kubeconfig", &config];
    Command::new(hk_dr()).args(place).args(args).output().expect("kubectl starts")
}

/// Something that acts on what Git says, as far as a recovery can tell.
pub fn deploy_gitops(lab: &Lab) {
    let config = lab.path("kubeconfig-gitops");
    succeeded(&lab.operator(&["kubeconfig", "--to", &config], None), "kubeconfig");
    succeeded(
        &kube(lab, &["create", "deployment", "gitops", "--image", "registry.k8s.io/pause:3.10", "--replicas", "2"]),
        "gitops",
    );
    succeeded(&kube(lab, &["label", "deployment", "gitops", "hk-dr/suspend-in-recovery=true"]), "its label");
    succeeded(&kube(lab, &["rollout", "status", "deployment", "gitops", "--timeout", "60s"]), "it runs");
}

/// The recovery suspended it, as its journal tells, and let it act again at the end.
pub fn gitops_acts_again(lab: &Lab) {
    let config = lab.path("kubeconfig-gitops");
    succeeded(&lab.operator(&["kubeconfig", "--to", &config], None), "kubeconfig");
    let runs = std::fs::read_dir(lab.path("state") + "/demo/runs").expect("runs").flatten();
    let newest = runs.map(|r| r.path().join("journal.jsonl")).filter(|p| p.exists()).max().expect("a journal");
    let journal = std::fs::read_to_string(newest).expect("readable");
    assert!(journal.contains("default/gitops"), "nothing about it in the journal: {journal}");
    let found: Value = answer(&kube(lab, &["get", "deployment", "gitops", "-o", "json"]));
    assert_eq!(found["spec"]["replicas"], 2, "{found}");
    assert_eq!(found["metadata"]["annotations"]["hk-dr/suspended-replicas"], Value::Null, "{found}");
    succeeded(&kube(lab, &["rollout", "status", "deployment", "gitops", "--timeout", "60s"]), "it runs again");
    succeeded(&lab.operator(&["gitops"], None), "nothing is suspended");
    succeeded(&kube(lab, &["delete", "deployment", "gitops"]), "its end");
}
