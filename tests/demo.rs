//! The demo from end to end, in a lab of its own. Needs root, like every lab.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program with directories of this test's own, on a real file system.
fn hk_dr(state: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hk-dr"));
    command.arg("--state").arg(state.path()).args(arguments).stdin(Stdio::null());
    command
}

fn state() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory for state")
}

fn lab_is_up(state: &tempfile::TempDir, name: &str) -> bool {
    let output = hk_dr(state, &["lab", "status", "--json"]).output().expect("lab status runs");
    let value: Value = serde_json::from_slice(&output.stdout).expect("lab status answers JSON");
    value["labs"].as_array().expect("a list of labs").iter().any(|lab| lab["name"] == name)
}

/// What labs and the demo keep on the disk below a state directory.
fn left_in(state: &tempfile::TempDir) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state.path().join("labs")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The stories are told one after the other: two cores don't carry two clusters.
#[test]
fn everything_is_lost_and_brought_back_and_nothing_is_left_behind() {
    full_story();
    let interrupted = ended_story("-TERM");
    assert_eq!(interrupted.code(), Some(1), "an interrupted demo is no success");
    ended_story("-KILL");
}

fn full_story() {
    let state = state();
    let report = state.path().join("report.json");
    let name = format!("test-demo-{}", std::process::id());
    let path = report.display().to_string();
    let output = hk_dr(&state, &["demo", "--name", &name, "--json", &path]).output().expect("the demo runs");
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].map(String::from_utf8_lossy).join("\n");
    assert!(output.status.success(), "the demo failed:\n{said}");
    assert!(said.contains("ok: true"), "{said}");

    let report: Value = serde_json::from_slice(&std::fs::read(&report).expect("the report")).expect("JSON");
    assert_eq!(report["ok"], true);
    let phases: Vec<&str> =
        report["phases"].as_array().expect("phases").iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(phases, ["lab", "build", "use", "snapshot", "lose", "rebuild", "prove"]);
    let checks = report["checks"].as_array().expect("checks");
    assert!(checks.len() >= 12, "{checks:?}");
    let count = |name: &str| report["objects"][name].as_u64().expect("a number of objects");
    assert_eq!(count("lost"), 0);
    assert_eq!(count("compared"), count("equal") + count("expected"));
    // 30 Secrets, 100 ConfigMaps, and what every cluster has.
    assert!(count("compared") > 200 && count("equal") > count("expected"), "{}", report["objects"]);
    let seconds = |name: &str| report[name].as_f64().expect("seconds");
    assert!(seconds("rto_seconds") > 0.0 && seconds("rto_pod_seconds") > 0.0 && seconds("build_pod_seconds") > 0.0);
    // Canaries are written once a second and the loss comes a moment after the snapshot: something was lost, not much.
    assert!(seconds("rpo_seconds") > 0.0);
    assert!(!lab_is_up(&state, &name), "the lab is still there");
    assert_eq!(left_in(&state), Vec::<PathBuf>::new());
}

/// A demo that is ended while its lab runs. A killed one can't clean up: the lab's guardian does, a moment later.
#[expect(clippy::disallowed_methods, reason = "this test has a thread of its own and no runtime")]
fn ended_story(signal: &str) -> std::process::ExitStatus {
    let state = state();
    let name = format!("test-stop{}-{}", signal.to_lowercase(), std::process::id());
    let mut demo = hk_dr(&state, &["demo", "--name", &name]).stderr(Stdio::null()).spawn().expect("the demo starts");
    let end = Instant::now() + Duration::from_secs(120);
    while !lab_is_up(&state, &name) {
        assert!(Instant::now() < end, "no lab came up");
        assert!(demo.try_wait().expect("the demo's state").is_none(), "the demo ended early");
        std::thread::sleep(Duration::from_millis(100));
    }
    let killed = Command::new("kill").arg(signal).arg(demo.id().to_string()).status().expect("kill runs");
    assert!(killed.success());
    let status = demo.wait().expect("the demo ends");
    let end = Instant::now() + if signal == "-KILL" { Duration::from_secs(60) } else { Duration::ZERO };
    while lab_is_up(&state, &name) || !left_in(&state).is_empty() {
        assert!(Instant::now() < end, "left behind: the lab or {:?}", left_in(&state));
        std::thread::sleep(Duration::from_millis(100));
    }
    status
}
