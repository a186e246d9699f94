//! The lab's machines: from the order to an answer of sshd, one and twenty at once, and what fifty of them take idle.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use hk_lab::LabOptions;
use hk_lab::control::{self, Tether};

use super::{Bench, Goal};
use crate::cli::{CliError, Context, ExitKind};

pub(super) const LAB: Bench = Bench {
    name: "lab",
    figures: &[
        Goal { name: "server_until_sshd", unit: "s", at_most: 1.0 },
        Goal { name: "twenty_servers_until_sshd", unit: "s", at_most: 10.0 },
        Goal { name: "fifty_idle_servers", unit: "MiB", at_most: 2048.0 },
    ],
    run,
};

/// The best of so many counts for one server, as the one least disturbed by others.
const ROUNDS: u32 = 3;

/// At the operator's desk: orders $1 servers at once, asks each until sshd answers, prints how long all of it took.
const ORDER: &str = r#"
set -eu
count=$1 prefix=$2
begun=$EPOCHREALTIME
one() {
  ip=$(printf 'header = "Authorization: Bearer %s"\n' "$HCLOUD_TOKEN" |
    curl -sS --fail -K - -H 'Content-Type: application/json' "$HCLOUD_ENDPOINT/servers" \
      -d "{\"name\":\"$prefix-$1\",\"server_type\":\"cx23\",\"image\":\"debian-12\",\"location\":\"fsn1\"}" |
    grep -o '203\.0\.113\.[0-9]*' | head -n 1)
  until timeout 1 bash -c "exec 3<>/dev/tcp/$ip/22; head -c 4 <&3" 2>/dev/null | grep -q SSH-; do sleep 0.02; done
}
for i in $(seq "$count"); do one "$i" & done
wait
awk "BEGIN { print $EPOCHREALTIME - $begun }"
"#;

/// A lab that ends with the bench.
struct Lab {
    name: String,
    program: PathBuf,
    _tether: Tether,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = control::down(&self.name) {
            eprintln!("the lab {} is still there: {error}", self.name);
        }
    }
}

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let program = std::env::current_exe().map_err(|e| failed(format!("this program is not found: {e}")))?;
    let name = format!("bench-{}", std::process::id());
    let options = LabOptions { name: name.clone(), cache_dir: context.cache_dir(), state_dir: context.state_dir() };
    let mut daemon = Command::new(&program);
    daemon.args(["lab", "daemon"]);
    let (_, tether) = control::up_tethered(&options, daemon, &mut |line| eprintln!("  {line}"))?;
    let lab = Lab { name, program, _tether: tether };
    let mut one = f64::INFINITY;
    for round in 1..=ROUNDS {
        one = one.min(lab.order(1, &format!("one{round}"))?);
    }
    let twenty = lab.order(20, "twenty")?;
    lab.order(50 - 20 - ROUNDS, "rest")?;
    Ok(vec![one, twenty, lab.memory_mib()?])
}

impl Lab {
    fn order(&self, count: u32, prefix: &str) -> Result<f64, CliError> {
        let output = Command::new(&self.program)
            .args(["lab", "exec", "--name", &self.name, "--from", "operator", "--"])
            .args(["timeout", "120", "bash", "-c", ORDER, "order", &count.to_string(), prefix])
            .stdin(Stdio::null())
            .output()
            .map_err(|e| failed(format!("a command at the operator's desk: {e}")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().map_err(|_| {
            failed(format!(
                "{count} servers did not come up ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ))
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
