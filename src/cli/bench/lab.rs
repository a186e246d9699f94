//! The lab: from the order of a server to sshd's banner, one and twenty at once; what fifty servers take idle; and how
//! fast the API is read meanwhile. All of it as seen from the operator's desk.

use std::process::{Command, Stdio};

use super::tethered::TetheredLab;
use super::{Bench, Goal};
use crate::cli::{CliError, Context, ExitKind};

pub mod desk;

pub(super) const LAB: Bench = Bench {
    name: "lab",
    figures: &[
        Goal { name: "server_until_sshd", unit: "s", at_most: 1.0 },
        Goal { name: "twenty_servers_until_sshd", unit: "s", at_most: 10.0 },
        Goal { name: "fifty_idle_servers", unit: "MiB", at_most: 2048.0 },
        Goal { name: "two_thousand_api_reads", unit: "s", at_most: 1.0 },
        Goal { name: "api_reads_p99", unit: "ms", at_most: 20.0 },
    ],
    run,
};

/// The best of so many counts for one server, as the one least disturbed by others.
const ROUNDS: u32 = 3;
/// Connections that read at once, and how much all of them read. A project may ask 3,600 times at once, as at Hetzner.
const READERS: u32 = 8;
const READS: u32 = 3_000;
/// What the lab's API has to answer within a second.
const READS_A_SECOND: f64 = 2_000.0;

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let lab = TetheredLab::up("bench", context.state_dir(), context)?;
    let mut one = f64::INFINITY;
    for round in 1..=ROUNDS {
        one = one.min(lab.order(1, &format!("one{round}"))?);
    }
    let twenty = lab.order(20, "twenty")?;
    lab.order(50 - 20 - ROUNDS, "rest")?;
    let memory = lab.memory_mib()?;
    let (reads, p99) = lab.read()?;
    Ok(vec![one, twenty, memory, reads, p99])
}

impl TetheredLab {
    /// Seconds until so many servers that are ordered at once have shown their SSH banner.
    fn order(&self, count: u32, prefix: &str) -> Result<f64, CliError> {
        let said = self.at_the_desk(&["order", &count.to_string(), prefix])?;
        said.as_f64().ok_or_else(|| failed(format!("{count} servers were ordered, and the answer was {said}")))
    }

    /// Seconds that two thousand reads take, and milliseconds within which 99 of 100 are answered.
    fn read(&self) -> Result<(f64, f64), CliError> {
        let said = self.at_the_desk(&["read", &READERS.to_string(), &READS.to_string()])?;
        let figure = |name: &str| said[name].as_f64().unwrap_or(f64::NAN);
        let (seconds, p99) = (figure("seconds"), figure("p99_ms"));
        eprintln!("  {READS} reads over {READERS} connections: {:.0} a second", f64::from(READS) / seconds);
        Ok((seconds * READS_A_SECOND / f64::from(READS), p99))
    }

    /// Runs a task of `desk` there; what it measured.
    fn at_the_desk(&self, task: &[&str]) -> Result<serde_json::Value, CliError> {
        let output = Command::new(&self.program)
            .args(["lab", "exec", "--name", &self.name, "--from", "operator", "--"])
            .arg(&self.program)
            .arg("bench-desk")
            .args(task)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| failed(format!("a command at the operator's desk: {e}")))?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            failed(format!("{} at the operator's desk ({}): {said}", task.join(" "), output.status))
        })
    }

    /// All that the lab's machines hold, the kernel's caches of their files included.
    fn memory_mib(&self) -> Result<f64, CliError> {
        let top = "/sys/fs/cgroup";
        let group = format!("hk-dr-lab/{}", self.name);
        let files = [format!("{top}/memory/{group}/memory.usage_in_bytes"), format!("{top}/{group}/memory.current")];
        let read = |file: &String| std::fs::read_to_string(file).ok()?.trim().parse::<f64>().ok();
        let bytes =
            files.iter().find_map(read).ok_or_else(|| failed(format!("{} cannot be read", files.join(" or "))))?;
        Ok(bytes / f64::from(1 << 20))
    }
}

fn failed(what: String) -> CliError {
    CliError::new(ExitKind::Failed, format!("the lab's bench: {what}"))
}
