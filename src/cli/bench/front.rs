//! The whole cluster, private and with its front: how long until it is there, how many requests that takes, what a second
//! build changes, and how long users wait when the holder of the floating IP dies.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::tethered::TetheredLab;
use super::{Bench, Goal};
use crate::cli::{CliError, Context, ExitKind};

pub(super) const FRONT: Bench = Bench {
    name: "front",
    figures: &[
        Goal { name: "full_cluster_until_pod_answers", unit: "s", at_most: 30.0 },
        Goal { name: "cloud_calls_of_the_whole_build", unit: "", at_most: 60.0 },
        Goal { name: "cloud_writes_of_a_second_build", unit: "", at_most: 0.0 },
        Goal { name: "floating_ip_holder_dead", unit: "s", at_most: 10.0 },
    ],
    run,
};

/// How long the watcher may take to know who is well before the holder dies.
const WATCHED: Duration = Duration::from_secs(5);

struct Lab {
    lab: TetheredLab,
    cache: PathBuf,
    dir: tempfile::TempDir,
}

/// A process that ends with the bench.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(context: &Context) -> Result<Vec<f64>, CliError> {
    let dir = tempfile::tempdir().map_err(|e| failed(e.to_string()))?;
    let lab = TetheredLab::up("bench-front", dir.path().join("lab-state"), context)?;
    let lab = Lab { lab, cache: context.cache_dir(), dir };
    let git = lab.dir.path().join("git");
    std::fs::create_dir(&git)
        .and_then(|()| std::fs::write(git.join("cluster.yaml"), include_str!("../../../examples/private/cluster.yaml")))
        .map_err(|e| failed(format!("writing {}: {e}", git.display())))?;
    let (identity, second) = (lab.path("identity"), lab.path("second"));
    lab.hk_dr(&["keys", "init", "--new-identity", &identity, "--new-identity", &second], false)?;

    let begun = Instant::now();
    let mut build = Background(lab.start(&["build", "--yes", "--json", "--quiet"], Stdio::piped())?);
    let arrived: Value = json(&lab.hk_dr(&["demo-probe", "front"], true)?)?;
    let until_answered = begun.elapsed().as_secs_f64();
    eprintln!("  answers at {}, {} Nodes are ready", arrived["addresses"], arrived["nodes"]);
    let built = output(&mut build)?;
    eprintln!("  {} reads and {} writes", built["cloud"]["reads"], built["cloud"]["writes"]);
    for (call, times) in built["cloud"]["calls"].as_object().into_iter().flatten() {
        eprintln!("  {times:>4} {call}");
    }
    let count = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let calls = count(&built["cloud"]["reads"]) + count(&built["cloud"]["writes"]);
    let again: Value = json(&lab.hk_dr(&["build", "--yes", "--json", "--quiet"], true)?)?;
    Ok(vec![until_answered, calls, count(&again["cloud"]["writes"]), lab.holder_dies()?])
}

impl Lab {
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn at(&self, place: &str) -> Command {
        let mut command = Command::new(&self.lab.program);
        command.args(["lab", "exec", "--name", &self.lab.name, "--from", place, "--"]).stdin(Stdio::null());
        command
    }

    fn command(&self, args: &[&str], identity: bool) -> Command {
        let mut command = self.at("operator");
        command.arg(&self.lab.program).args(args);
        command.args(["-C", &self.path("git"), "--state", &self.path("state"), "--cache"]).arg::<&Path>(&self.cache);
        if identity {
            command.args(["--identity", &self.path("identity")]);
        }
        command
    }

    fn hk_dr(&self, args: &[&str], identity: bool) -> Result<Vec<u8>, CliError> {
        answer(&mut self.command(args, identity), &format!("hk-dr {}", args.join(" ")))
    }

    fn start(&self, args: &[&str], stdout: Stdio) -> Result<Child, CliError> {
        let child = self.command(args, true).stdout(stdout).spawn();
        child.map_err(|e| failed(format!("a command at the operator's desk: {e}")))
    }

    fn shell(&self, place: &str, script: &str) -> Result<Vec<u8>, CliError> {
        answer(self.at(place).args(["sh", "-c", script]), "a command in the lab")
    }

    fn api(&self, what: &str) -> Result<Value, CliError> {
        json(&self.shell("operator", &format!("curl -fsS {TOKEN} $HCLOUD_ENDPOINT/{what}"))?)
    }

    /// Seconds without an answer at the floating IP, as somebody on the internet counts them.
    fn holder_dies(&self) -> Result<f64, CliError> {
        let _watcher = Background(self.start(&["front", "watch"], Stdio::null())?);
        std::thread::sleep(WATCHED);
        let floating = self.api("floating_ips")?;
        let address = &floating["floating_ips"][0];
        let ip = address["ip"].as_str().ok_or_else(|| failed("there is no floating IP".into()))?;
        let script = format!(
            "lost=; end=$(($(date +%s) + 60)); while [ $(date +%s) -lt $end ]; do now=$(date +%s%N)\n\
             if curl -fs -o /dev/null -m 0.4 http://{ip}:443/; then\n\
             [ -z \"$lost\" ] || {{ echo $(((now - lost) / 1000000)); exit 0; }}\n\
             else [ -n \"$lost\" ] || lost=$now; fi; sleep 0.1; done; echo 'no answer came back within 60 s' >&2; exit 1"
        );
        let mut user = self.at("internet");
        user.args(["sh", "-c", &script]).stdout(Stdio::piped());
        let mut user = Background(user.spawn().map_err(|e| failed(format!("a user on the internet: {e}")))?);
        let power_off = format!(
            "curl -fsS -o /dev/null -X POST {TOKEN} -H 'Content-Type: application/json' -d '{{}}' \
             $HCLOUD_ENDPOINT/servers/{}/actions/poweroff",
            address["server"]
        );
        self.shell("operator", &power_off)?;
        let milliseconds = output(&mut user)?;
        Ok(milliseconds.as_f64().unwrap_or(f64::NAN) / 1000.0)
    }
}

const TOKEN: &str = "-H \"Authorization: Bearer $HCLOUD_TOKEN\"";

/// What a process said when it ended.
fn output(process: &mut Background) -> Result<Value, CliError> {
    use std::io::Read as _;
    let mut said = Vec::new();
    if let Some(stdout) = process.0.stdout.as_mut() {
        stdout.read_to_end(&mut said).map_err(|e| failed(format!("reading what a command says: {e}")))?;
    }
    let status = process.0.wait().map_err(|e| failed(format!("waiting for a command: {e}")))?;
    if !status.success() {
        return Err(failed(format!("a command ended with {status}")));
    }
    json(&said)
}

fn answer(command: &mut Command, what: &str) -> Result<Vec<u8>, CliError> {
    let output = command.output().map_err(|e| failed(format!("{what}: {e}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{what} ended with {}: {}", output.status, said.trim())))
}

fn json(text: &[u8]) -> Result<Value, CliError> {
    serde_json::from_slice(text)
        .map_err(|e| failed(format!("{e} in what should be JSON: {:.200}", String::from_utf8_lossy(text))))
}

fn failed(what: String) -> CliError {
    CliError::new(ExitKind::Failed, format!("the bench of the front: {what}"))
}
