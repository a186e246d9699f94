//! The service as commands and processes, on booted machines and a real S3 server: two instances share the policies of a
//! cluster, and lose what they need. Needs root; waits for minutes that cron names, so it is run by hand:
//! `cargo test -p chaos-tests --test service -- --ignored --nocapture`.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use chaos_tests::tethered::{hk_dr, lab_up};
use hk_lab::control::Tether;
use serde_json::Value;

#[path = "service/listen.rs"]
mod listen;
#[path = "service/unit.rs"]
mod unit;
#[path = "service/volumes.rs"]
mod volumes;

const DEMO: &str = include_str!("../../examples/demo/cluster.yaml");
const POLICY: &str = "apiVersion: hk-dr/v1
kind: Policy
name: quick
summary: Everything, often.
timeZone: Europe/Berlin
targets: {recoveryPointSeconds: 120, recoverySeconds: 120, snapshotAgeHours: 1, drillAgeDays: 1}
log: {}
retention: {allHours: 1}
schedules:
  - {name: snapshot, action: snapshot.take, verify: true, cron: '* * * * *'}
  - {name: prune, action: snapshot.prune, cron: '* * * * *'}
  - {name: one-master, action: runbook.run, runbooks: [volume-reattach], servers: [m1, m2, m3], cron: '* * * * *'}
  - {name: asked, action: runbook.run, runbooks: [volume-reattach], servers: [m1], cron: '0 0 1 1 *', approval: required}
";
/// Two runs of a cron that names minutes, and a drill.
const SOON: Duration = Duration::from_secs(240);

struct Lab {
    name: String,
    dir: tempfile::TempDir,
    _tether: Tether,
}

/// A `hk-dr serve` at the operator's place.
struct Instance<'a> {
    lab: &'a Lab,
    port: u16,
    child: Child,
}

fn succeeded(output: &Output, what: &str) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} ended with {}\n{said}\n{error}", output.status);
    said
}

#[expect(clippy::disallowed_methods, reason = "this test has a thread of its own and no runtime")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks until there is an answer.
fn until<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask() {
            println!("{:6.1} s for {what}", begun.elapsed().as_secs_f64());
            return found;
        }
        assert!(begun.elapsed() < within, "{what}: not within {within:?}");
        pause(Duration::from_millis(300));
    }
}

impl Lab {
    /// Both tests of this file may run at once.
    fn up(about: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("hk-dr-service-").tempdir().expect("a scratch directory");
        let name = format!("service-{about}-{}", std::process::id());
        let lab = Self { _tether: lab_up(&name), name, dir };
        std::fs::create_dir_all(lab.dir.path().join("git/policies")).expect("a directory");
        std::fs::write(lab.path("git/cluster.yaml"), DEMO).expect("written");
        std::fs::write(lab.path("git/policies/quick.yaml"), POLICY).expect("written");
        let (one, two) = (lab.path("identity"), lab.path("second-identity"));
        let keys = ["keys", "init", "--new-identity", &one, "--new-identity", &two, "-C", &lab.path("git")];
        succeeded(
            &lab.at(&["--from", "operator"]).arg(hk_dr()).args(keys).output().expect("hk-dr starts"),
            "keys init",
        );
        succeeded(&lab.hk_dr(&["build", "--yes", "--quiet"]), "build");
        lab
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Something at a place of the lab.
    fn at(&self, place: &[&str]) -> Command {
        let mut command = Command::new(hk_dr());
        command.args(["lab", "exec", "--name", &self.name]).args(place).arg("--");
        command
    }

    fn hk_dr(&self, args: &[&str]) -> Output {
        let mut command = self.at(&["--from", "operator"]);
        command.arg(hk_dr()).args(args).args(["-C", &self.path("git"), "--state", &self.path("state")]);
        command.args(["--identity", &self.path("identity")]).output().expect("hk-dr starts")
    }

    fn shell(&self, place: &[&str], script: &str) -> Output {
        self.at(place).args(["sh", "-c", script]).output().expect("hk-dr starts")
    }

    fn fault(&self, args: &[&str]) {
        let add = ["lab", "fault", "add", "--name", &self.name];
        succeeded(&Command::new(hk_dr()).args(add).args(args).output().expect("hk-dr starts"), "a fault");
    }

    fn serve(&self, state: &str, port: u16) -> Instance<'_> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("serve.log"));
        let mut command = self.at(&["--from", "operator"]);
        command.args(["env", "HK_DR_LEASE_SECONDS=8", "HK_DR_SECRET_SERVE_TOKEN=sesame"]).arg(hk_dr());
        command.args(["serve", "--lease", "8", "--look", "1", "--listen", &format!("127.0.0.1:{port}")]);
        command.args(["-C", &self.path("git"), "--state", state, "--identity", &self.path("identity")]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a log")).spawn();
        let instance = Instance { lab: self, port, child: child.expect("hk-dr starts") };
        until("an instance that is ready", Duration::from_secs(60), || instance.get("readyz").0.then_some(()));
        instance
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", std::fs::read_to_string(self.dir.path().join("serve.log")).unwrap_or_default());
        }
        let _ = Command::new(hk_dr()).args(["lab", "down", "--delete", "--name", &self.name]).output();
    }
}

impl Instance<'_> {
    /// Whether the answer was a success, and what it said.
    fn get(&self, path: &str) -> (bool, String) {
        let url = format!("http://127.0.0.1:{}/{path}", self.port);
        let args = ["curl", "-sS", "-m", "5", "-w", "\n%{http_code}", &url];
        let output = self.lab.at(&["--from", "operator"]).args(args).output().expect("hk-dr starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap_or(("", ""));
        (code == "200", body.to_owned())
    }

    fn status(&self) -> Option<Value> {
        let (good, text) = self.get("api/status");
        if good { serde_json::from_str(&text).ok() } else { None }
    }

    /// What it says of one schedule.
    fn schedule(&self, name: &str) -> Option<Value> {
        let status = self.status()?;
        status["clusters"][0]["schedules"].as_array()?.iter().find(|s| s["name"] == name).cloned()
    }

    /// Its process, as the lab counts them.
    fn pid(&self) -> String {
        let holder = self.status().expect("it answers")["holder"].as_str().expect("a holder").to_owned();
        holder.rsplit_once('/').and_then(|(_, rest)| rest.split('-').next()).expect("a process").to_owned()
    }

    fn signal(&self, signal: &str) {
        succeeded(&self.lab.shell(&["--from", "operator"], &format!("kill -{signal} {}", self.pid())), signal);
    }

    /// Steps done of the drill that runs here.
    fn steps_done(&self) -> Option<usize> {
        let status = self.status()?;
        let steps = status["clusters"][0]["running"][0]["steps"].as_array()?;
        Some(steps.iter().filter(|step| step[1] == "done").count())
    }

    /// The newest run of a schedule that ended with success, later than the one that is known.
    fn success(&self, schedule: &str, known: &Value) -> Value {
        until(&format!("a success of {schedule}"), SOON, || {
            let past = self.schedule(schedule)?["book"]["past"].as_array()?.clone();
            past.into_iter()
                .rev()
                .find(|run| run["outcome"] == "succeeded" && run["at"].as_str() > known["at"].as_str())
        })
    }
}

impl Drop for Instance<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The survivor takes the drill over, finishes it by its journal, and the evidence says so.
fn one_dies_in_a_drill(lab: &Lab) {
    let (one, two) = (lab.serve(&lab.path("one"), 8441), lab.serve(&lab.path("two"), 8442));
    let one_has_it = until("a drill with a few steps done", SOON, || {
        let done = |i: &Instance<'_>| i.steps_done().is_some_and(|done| done >= 3);
        if done(&one) { Some(true) } else { done(&two).then_some(false) }
    });
    let (dying, survivor) = if one_has_it { (one, two) } else { (two, one) };
    dying.signal("KILL");
    drop(dying);
    let run = survivor.success("one-master", &Value::Null);
    let evidence = until("its evidence", Duration::from_secs(30), || {
        let status = survivor.status()?;
        let drills = status["clusters"][0]["drills"].as_array()?.clone();
        drills.into_iter().find(|drill| drill["run"] == run["run"] && drill["resumed"].as_u64() >= Some(1))
    });
    assert_eq!(evidence["recovery_point"]["lost"], 0, "{evidence}");
    let (good, page) = survivor.get(&format!("evidence/demo/{}", run["run"].as_str().expect("a run")));
    assert!(good && page.contains("<svg"), "{page}");
    // The right to the cluster is free again, and nothing is missing or there twice.
    survivor.signal("TERM");
    let plan = lab.hk_dr(&["build", "--yes", "--json"]);
    let plan: Value = serde_json::from_str(&succeeded(&plan, "a build after it")).expect("JSON");
    assert_eq!(plan["changed"], false, "{plan}");
}

/// What needs the bucket waits, is said, and goes on.
fn the_bucket_is_away(lab: &Lab, instance: &Instance<'_>) {
    lab.fault(&["s3-error", "InternalError", "--for", "45s"]);
    let why = until("not ready", Duration::from_secs(60), || {
        let (good, text) = instance.get("readyz");
        (!good && !text.is_empty()).then_some(text)
    });
    assert!(why.contains("demo:"), "{why}");
    assert!(instance.get("healthz").0);
    let (_, page) = instance.get("");
    assert!(page.contains("The bucket can't be read"), "{page}");
    assert!(instance.get("metrics").1.contains("hk_dr_bucket_up{cluster=\"demo\"} 0.0"));
    until("ready again", SOON, || instance.get("readyz").0.then_some(()));
    instance.success("snapshot", &last(instance, "snapshot"));
}

/// The page with a real life behind it, as a picture for the docs: `HK_DR_KEEP_SCREENSHOT=FILE`.
fn its_picture(lab: &Lab, instance: &Instance<'_>) {
    let Ok(to) = std::env::var("HK_DR_KEEP_SCREENSHOT") else { return };
    let url = format!("http://127.0.0.1:{}/", instance.port);
    let mut browser = lab.at(&["--from", "operator"]);
    browser.args(["chromium-headless-shell", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    browser.args(["--hide-scrollbars", "--window-size=1100,1250", &format!("--screenshot={to}"), &url]);
    succeeded(&browser.output().expect("hk-dr starts"), "a picture");
}

/// Every master was replaced by now or soon is: the log follows them to their new addresses.
fn the_log_goes_on(instance: &Instance<'_>) {
    let covered = |i: &Instance<'_>| i.status()?["clusters"][0]["log"]["covered_revision"].as_i64();
    let before = until("the log", SOON, || covered(instance));
    for master in 1..=3 {
        instance.success("one-master", &last(instance, "one-master"));
        println!("master {master} of 3 was replaced");
    }
    let after = until("the log behind it", SOON, || covered(instance).filter(|after| *after > before));
    until("a recovery point within its target", SOON, || {
        let (_, metrics) = instance.get("metrics");
        let line = metrics.lines().find(|l| l.starts_with("hk_dr_recovery_point_seconds{"))?.to_owned();
        line.rsplit(' ').next()?.parse::<f64>().ok().filter(|seconds| *seconds < 30.0)
    });
    println!("the log went on from revision {before} to {after}");
}

/// A drill that has begun is ended before the process goes.
fn it_stops_at_a_safe_point(lab: &Lab, mut instance: Instance<'_>) {
    until("a drill", SOON, || instance.steps_done().filter(|done| *done >= 2));
    instance.signal("TERM");
    until("the end of the service", SOON, || instance.child.try_wait().expect("waited"));
    let runs: Value = serde_json::from_str(&succeeded(&lab.hk_dr(&["runs", "--json"]), "runs")).expect("JSON");
    assert!(!runs.to_string().contains("\"open\""), "{runs}");
    let plan: Value =
        serde_json::from_str(&succeeded(&lab.hk_dr(&["build", "--yes", "--json"]), "build")).expect("JSON");
    assert_eq!(plan["changed"], false, "{plan}");
}

/// A state directory without room: what needs it fails and says so, the rest goes on, and it recovers.
fn its_disk_is_full(lab: &Lab) {
    // Mounted in the lab, which has mounts of its own.
    let small = lab.path("small");
    let at_desk = |script: &str| succeeded(&lab.shell(&["--from", "operator"], script), script);
    at_desk(&format!("mkdir {small} && mount -t tmpfs -o size=256k tmpfs {small}"));
    at_desk(&format!("! head -c 400k /dev/zero > {small}/ballast"));
    let instance = lab.serve(&small, 8444);
    let failed = until("what needs the disk fails", SOON, || {
        let past = instance.schedule("snapshot")?["book"]["past"].as_array()?.clone();
        past.into_iter().rev().find(|run| run["outcome"] == "failed")
    });
    let note = failed["note"].as_str().unwrap_or_default().to_owned();
    assert!(note.contains("No space left"), "{note}");
    assert!(instance.get("healthz").0 && instance.get("readyz").0 && instance.get("").0, "it lives and shows it");
    at_desk(&format!("rm {small}/ballast && mount -o remount,size=512m {small}"));
    instance.success("snapshot", &last(&instance, "snapshot"));
    instance.signal("KILL");
}

/// The newest run of a schedule that ended.
fn last(instance: &Instance<'_>, schedule: &str) -> Value {
    let schedule = instance.schedule(schedule).unwrap_or_default();
    let past = schedule["book"]["past"].as_array().and_then(|past| past.last().cloned());
    past.unwrap_or_default()
}

#[test]
#[ignore = "waits for minutes that cron names: cargo test -p chaos-tests --test service -- --ignored --nocapture"]
fn policies_are_run_whatever_is_lost() {
    let lab = Lab::up("shared");
    one_dies_in_a_drill(&lab);
    let instance = lab.serve(&lab.path("state"), 8443);
    the_bucket_is_away(&lab, &instance);
    the_log_goes_on(&instance);
    its_picture(&lab, &instance);
    assert!(instance.success("prune", &Value::Null)["note"].as_str().is_some_and(|note| note.contains("kept")));
    it_stops_at_a_safe_point(&lab, instance);
    for args in
        [&["report", "verify"][..], &["report", "--json"], &["policy", "validate"], &["policy", "next", "--json"]]
    {
        succeeded(&lab.hk_dr(args), &args.join(" "));
    }
}

#[test]
#[ignore = "waits for minutes that cron names: cargo test -p chaos-tests --test service -- --ignored --nocapture"]
fn volumes_are_backed_up_proven_and_pruned_by_policies() {
    volumes::by_policies(&Lab::up("volumes"));
}

#[test]
#[ignore = "waits for minutes that cron names: cargo test -p chaos-tests --test service -- --ignored --nocapture"]
fn a_full_disk_and_a_process_that_hangs_are_outlived() {
    let lab = Lab::up("alone");
    its_disk_is_full(&lab);
    unit::runs_under_systemd(&lab);
}
