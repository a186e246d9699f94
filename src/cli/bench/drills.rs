//! Drills on a real cluster in the lab: how long the API is away, and how many writes fail while one master is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::tethered::TetheredLab;
use super::{Bench, Goal};
use crate::cli::{CliError, Context, ExitKind};

pub(super) const DRILLS: Bench = Bench {
    name: "drills",
    figures: &[
        Goal { name: "masters_offline_online_in_place", unit: "s", at_most: 10.0 },
        Goal { name: "masters_to_other_location", unit: "s", at_most: 13.0 },
        Goal { name: "volume_reattach", unit: "s", at_most: 8.0 },
        Goal { name: "volume_reattach_failed_writes", unit: "%", at_most: 1.0 },
    ],
    run,
};

/// A lab that ends with the bench.
struct Lab {
    lab: TetheredLab,
    cache: PathBuf,
    dir: tempfile::TempDir,
}

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let dir = tempfile::tempdir().map_err(|e| failed(e.to_string()))?;
    let lab = TetheredLab::up("bench-drills", dir.path().join("lab-state"), context)?;
    let lab = Lab { lab, cache: context.cache_dir(), dir };
    let git = lab.dir.path().join("git");
    let cluster = include_str!("../../../examples/demo/cluster.yaml");
    std::fs::create_dir(&git)
        .and_then(|()| std::fs::write(git.join("cluster.yaml"), cluster))
        .map_err(|e| failed(format!("writing {}: {e}", git.display())))?;
    let (identity, second) = (lab.path("identity"), lab.path("second"));
    lab.operator(&["keys", "init", "--new-identity", &identity, "--new-identity", &second], false)?;
    lab.operator(&["build", "--yes", "--quiet"], true)?;
    let in_place = lab.drill(&["masters-online-offline-online"])?;
    let elsewhere = lab.drill(&["masters-to-other-location"])?;
    let reattached = lab.drill(&["volume-reattach", "--server", "m2"])?;
    let away = |evidence: &Value| evidence["recovery"]["seconds"].as_f64().unwrap_or(f64::NAN);
    let failed_writes = 100.0 - reattached["writes"]["percent"].as_f64().unwrap_or(f64::NAN);
    Ok(vec![away(&in_place), away(&elsewhere), away(&reattached), failed_writes])
}

impl Lab {
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Its standard output. A verdict other than `passed` is a result too.
    fn operator(&self, args: &[&str], identity: bool) -> Result<Vec<u8>, CliError> {
        let mut command = Command::new(&self.lab.program);
        command
            .args(["lab", "exec", "--name", &self.lab.name, "--from", "operator", "--"])
            .arg(&self.lab.program)
            .args(args);
        command.args(["-C", &self.path("git"), "--state", &self.path("state"), "--cache"]).arg::<&Path>(&self.cache);
        if identity {
            command.args(["--identity", &self.path("identity")]);
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|e| failed(format!("a command at the operator's desk: {e}")))?;
        if output.status.success() || output.status.code() == Some(ExitKind::Differs as i32) {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(failed(format!("hk-dr {} ended with {}: {}", args.join(" "), output.status, said.trim())))
    }

    fn drill(&self, choice: &[&str]) -> Result<Value, CliError> {
        let args = [&["runbook", "run", "--yes", "--json", "--quiet"], choice].concat();
        let output = self.operator(&args, true)?;
        serde_json::from_slice(&output).map_err(|e| failed(format!("the evidence of {} is no JSON: {e}", choice[0])))
    }
}

fn failed(what: String) -> CliError {
    CliError::new(ExitKind::Failed, format!("the drills' bench: {what}"))
}
