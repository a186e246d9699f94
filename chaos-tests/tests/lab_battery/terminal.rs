//! A person at a real terminal, who is asked before each step.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{Lab, hk_dr, succeeded};

const RUNBOOK: &str = "apiVersion: hk-dr/v1\nkind: Runbook\nname: look\nsummary: Takes a snapshot and writes.\n\
                       masters: all\nsteps:\n  - verb: snapshot.take\n  - verb: cluster.verify\n";

/// Says yes to the plan and its first step, and no to the next: that one is not begun, and the run can be resumed.
pub fn step_by_step(lab: &Lab) {
    let dir = lab.dir.path().join("git/runbooks");
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("look.yaml"), RUNBOOK).expect("written");
    let command = format!(
        "'{hk}' lab exec --name {name} --from operator -- '{hk}' runbook run look --step -C '{git}' --state '{state}' \
         --identity '{identity}'",
        hk = hk_dr().display(),
        name = lab.name,
        git = lab.path("git"),
        state = lab.path("state"),
        identity = lab.path("identity"),
    );
    // util-linux' script gives it a pseudo-terminal, and types what comes in.
    let mut script = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is part of every Debian");
    script.stdin.take().expect("piped").write_all(b"y\ny\nn\n").expect("typed");
    let output = script.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("--- at a terminal\n{text}");
    for says in ["Go on?", "? take a snapshot (because", "✓ take a snapshot", "was not permitted; it was not begun"] {
        assert!(text.contains(says), "nothing about {says} in: {text}");
    }
    assert!(!text.contains("✓ write through"), "{text}");
    assert_eq!(output.status.code(), Some(8), "a run that can be resumed: {text}");
    succeeded(&lab.operator(&["resume"], None), "resume");

    // Without a terminal nobody can be asked, and nothing is begun.
    let refused = lab.operator(&["runbook", "run", "look", "--step", "--yes"], None);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nobody can be asked here before each step"));
}
