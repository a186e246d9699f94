//! The life of the real cluster: certificates renewed, workers that come and go, versions that change, and the API that
//! takes writes meanwhile.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{DEMO, Lab, hk_dr, succeeded, unique};

/// Writes an object every fifth of a second, through whichever master takes it, until a file appears. Prints what was
/// acknowledged and what was not.
const WRITER: &str = r#"
n=0
while [ ! -e "$STOP" ]; do
  n=$((n + 1)); done=refused
  for master in m1 m2 m3; do
    "$KUBECTL" --kubeconfig "$KUBECONFIG" --context "demo-$master" --request-timeout 2s \
      create configmap "life-$n" >/dev/null 2>&1 && { done=acknowledged; break; }
  done
  echo "life-$n $done"
  sleep 0.2
done
"#;

/// A client of the API that goes on whatever happens.
struct Writer<'a> {
    lab: &'a Lab,
    child: Child,
}

pub fn kubectl() -> PathBuf {
    chaos_tests::tethered::cache_dir().join("artifacts/kubectl-1.35.4")
}

fn at_operator(lab: &Lab) -> Command {
    let mut command = Command::new(hk_dr());
    command.args(["lab", "exec", "--name", &lab.name, "--from", "operator", "--", "env"]);
    command.arg(format!("KUBECTL={}", kubectl().display())).arg(format!("KUBECONFIG={}", lab.path("kubeconfig")));
    command.arg(format!("STOP={}", lab.path("stop")));
    command
}

impl<'a> Writer<'a> {
    fn start(lab: &'a Lab) -> Self {
        let _ = std::fs::remove_file(lab.path("stop"));
        succeeded(&lab.operator(&["kubeconfig", "--to", &lab.path("kubeconfig")], None), "kubeconfig");
        let child = at_operator(lab).args(["sh", "-c", WRITER]).stdout(Stdio::piped()).spawn().expect("a writer");
        Self { lab, child }
    }

    /// Every write but one in a hundred was acknowledged, and all that were are there.
    fn served(self, during: &str) {
        std::fs::write(self.lab.path("stop"), "").expect("written");
        let output = self.child.wait_with_output().expect("the writer ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let acknowledged: Vec<&str> = text.lines().filter_map(|line| line.strip_suffix(" acknowledged")).collect();
        let tried = text.lines().count();
        let there = at_operator(self.lab)
            .args([
                "sh",
                "-c",
                "\"$KUBECTL\" get configmaps -o name && \"$KUBECTL\" delete configmaps --all >/dev/null",
            ])
            .output()
            .expect("kubectl starts");
        succeeded(&there, "kubectl get");
        let there = String::from_utf8_lossy(&there.stdout).into_owned();
        let lost: Vec<_> =
            acknowledged.iter().filter(|name| !there.lines().any(|line| line == format!("configmap/{name}"))).collect();
        println!("{during}: {} of {tried} writes acknowledged, {} lost", acknowledged.len(), lost.len());
        assert!(lost.is_empty(), "lost during {during}: {lost:?}");
        assert!(tried > 5 && acknowledged.len() * 100 >= tried * 99, "{during}: {text}");
    }
}

fn declare(lab: &Lab, changes: &[(&str, &str)]) {
    let mut text = DEMO.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    std::fs::write(lab.path("git/cluster.yaml"), text).expect("written");
}

fn answer(lab: &Lab, args: &[&str]) -> Value {
    let output = lab.operator(args, None);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{args:?}: no JSON ({e}): {}", String::from_utf8_lossy(&output.stderr)))
}

#[expect(clippy::disallowed_methods, reason = "this test has a thread of its own and no runtime")]
fn days_left(lab: &Lab) -> Vec<(String, i64)> {
    // A machine that was just switched on again does not answer at once.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let found = loop {
        let found = answer(lab, &["certificates", "--json"]);
        if found["silent"] == serde_json::json!([]) {
            break found;
        }
        assert!(std::time::Instant::now() < end, "{}", found["silent"]);
        std::thread::sleep(std::time::Duration::from_secs(1));
    };
    let rows = found["certificates"].as_array().expect("certificates").clone();
    rows.iter()
        .filter(|row| !row["place"].as_str().expect("a place").ends_with("ca.crt"))
        .map(|row| (format!("{} {}", row["server"], row["place"]), row["days_left"].as_i64().expect("days")))
        .collect()
}

fn builds(lab: &Lab, args: &[&str]) {
    succeeded(&lab.operator(&[&["build", "--yes"], args].concat(), None), "build");
    let again = answer(lab, &["build", "--yes", "--json"]);
    assert_eq!(again["changed"], false, "a second build had something to do");
}

/// On the living cluster, which is as before afterwards.
pub fn live(lab: &Lab) {
    certificates(lab);
    workers(lab);
    ssh_key(lab);
}

/// sshd itself says which key it takes.
fn ssh_key(lab: &Lab) {
    let public = || std::fs::read_to_string(lab.path("git/ssh.pub")).expect("readable");
    let old = public();
    let attempt = |event: usize| lab.operator(&["keys", "rotate", "ssh", "--yes"], Some(event));
    // It dies before the first server has forgotten the old key: both are at hand, and everything works.
    println!("killed in the middle of a rotation: {}", attempt(9).status);
    assert_ne!(public(), old);
    let drift = lab.operator(&["drift"], None);
    let text = String::from_utf8_lossy(&drift.stdout).into_owned();
    assert!(text.contains("SSH key") && text.contains("hk-dr resume") && text.contains("1 difference."), "{text}");
    succeeded(&lab.operator(&["resume"], None), "resume");
    succeeded(&lab.operator(&["drift"], None), "drift");
    let plain = Command::new("age")
        .args(["-d", "-i", &lab.path("identity"), &lab.path("git/secrets.yaml.age")])
        .output()
        .expect("age is installed");
    let text = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(text.contains("sshPrivateKey") && !text.contains("Previous"), "the old key is still kept");
    // A second one, to its end: refused is what servers say of the key that worked a moment ago.
    let run = lab.operator(&["keys", "rotate", "ssh", "--yes"], None);
    succeeded(&run, "keys rotate ssh");
    succeeded(&lab.operator(&["drift"], None), "drift");
}

fn certificates(lab: &Lab) {
    let before = days_left(lab);
    for shown in
        ["\"demo-m1\" \"port 6443\"", "\"demo-m2\" \"port 2380\"", "\"demo-w1\" \"port 10250\"", "scheduler.conf"]
    {
        assert!(before.iter().any(|(place, _)| place.contains(shown)), "{shown} is not in {before:?}");
    }
    assert!(before.iter().all(|(_, days)| (363..=365).contains(days)), "{before:?}");

    declare(lab, &[("fallbackLocations", "certificates: {validDays: 500, renewBeforeDays: 400}\nfallbackLocations")]);
    let plan = lab.operator(&["plan"], None);
    let text = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.status.code() == Some(2) && text.contains("because its first certificate ends"), "{text}");
    let writer = Writer::start(lab);
    builds(lab, &[]);
    writer.served("renewal of all certificates");
    let after = days_left(lab);
    assert!(after.iter().all(|(_, days)| *days >= 498), "{after:?}");
    assert_eq!(after.len(), before.len());
    declare(lab, &[]);
}

fn workers(lab: &Lab) {
    let w2 = "10.0.0.21}\n  - {name: w2, location: nbg1, type: cx23, address: 10.0.0.22}\n";
    declare(lab, &[("10.0.0.21}\n", w2)]);
    builds(lab, &[]);
    assert!(unique(lab, "servers").contains_key("demo-w2"));
    let listed = answer(lab, &["workers", "list", "--json"]);
    assert_eq!(listed["workers"][1]["state"], "ready", "{listed}");

    declare(lab, &[]);
    let plan = lab.operator(&["plan"], None);
    assert!(
        String::from_utf8_lossy(&plan.stdout).contains("demo-w2 (cx23, nbg1) is declared nowhere and stays"),
        "{plan:?}"
    );
    builds(lab, &[]);
    assert!(unique(lab, "servers").contains_key("demo-w2"), "it went without being told to");
    builds(lab, &["--remove-workers"]);
    assert!(!unique(lab, "servers").contains_key("demo-w2"));
    succeeded(&lab.operator(&["drift"], None), "drift");
}

/// The parts of a cluster's life that are too long for the suite: about three minutes and a build of another etcd.
#[test]
#[ignore = "boots a cluster of its own and builds another etcd; cargo test -p chaos-tests --test lab_battery -- --ignored --nocapture"]
fn a_cluster_lives_through_certificates_workers_and_versions() {
    let lab = Lab::up();
    lab.declare();
    succeeded(&lab.operator(&["build", "--yes"], None), "build");
    live(&lab);
    pools(&lab);
    versions(&lab);
}

/// Workers as a pool: it takes the place of a single one, grows in type, and shrinks, each drained before it goes.
fn pools(lab: &Lab) {
    const SINGLE: &str = "workers:\n  - {name: w1, location: nbg1, type: cx23, address: 10.0.0.21}\n";
    let pool = |count: u32, kind: &str| {
        let words = format!("{{name: web, location: nbg1, type: {kind}, count: {count}, firstAddress: 10.0.0.31}}");
        declare(lab, &[(SINGLE, &format!("workers:\n  pools:\n    - {words}\n"))]);
    };
    let workers = || {
        let servers = lab.api("servers").into_iter().filter(|s| s["labels"]["hk-dr/role"] == "worker");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut found: Vec<_> = servers.map(|s| (text(&s["name"]), text(&s["server_type"]["name"]))).collect();
        found.sort();
        found
    };
    let named = |names: &[&str], kind: &str| -> Vec<_> {
        names.iter().map(|name| (format!("demo-{name}"), kind.to_owned())).collect()
    };
    pool(2, "cx23");
    builds(lab, &["--remove-workers"]);
    assert_eq!(workers(), named(&["web-1", "web-2"], "cx23"));

    pool(2, "cx33");
    let plan = String::from_utf8_lossy(&lab.operator(&["plan"], None).stdout).into_owned();
    assert!(plan.contains("demo-web-2 stays as it is: its type is cx23, declared is cx33"), "{plan}");
    let writer = Writer::start(lab);
    builds(lab, &["--replace-workers"]);
    writer.served("a pool's change of type");
    assert_eq!(workers(), named(&["web-1", "web-2"], "cx33"));

    pool(1, "cx33");
    builds(lab, &["--remove-workers"]);
    assert_eq!(workers(), named(&["web-1"], "cx33"));
    declare(lab, &[]);
    builds(lab, &["--remove-workers"]);
    assert_eq!(workers(), named(&["w1"], "cx23"));
    succeeded(&lab.operator(&["drift"], None), "drift");
}

/// etcd one patch back and forward again: both ways master by master, with a snapshot first.
fn versions(lab: &Lab) {
    // The operator's place has no way to Go's modules.
    succeeded(&lab.host(&["artifacts", "fetch", "etcd-3.6.15", "etcdutl-3.6.15"]), "artifacts fetch");
    for declared in ["3.6.15", "3.6.16"] {
        declare(lab, &[("version: 3.6.16", &format!("version: {declared}"))]);
        let plan = lab.operator(&["plan"], None);
        let text = String::from_utf8_lossy(&plan.stdout).into_owned();
        assert!(text.contains(&format!("→ {declared}: one master after the other")), "{text}");
        assert!(text.contains("take a snapshot and read it back"), "{text}");
        let writer = Writer::start(lab);
        builds(lab, &[]);
        writer.served(&format!("etcd's change to {declared}"));
        assert_ne!(answer(lab, &["status", "--json"])["health"], "down");
        succeeded(&lab.operator(&["drift"], None), "drift");
    }
}

/// What a newcomer types, as it is written.
#[test]
#[ignore = "boots a cluster of its own; cargo test -p chaos-tests --test lab_battery -- --ignored --nocapture tutorial"]
fn the_tutorial_of_a_sandbox_works_as_it_is_written() {
    let home = tempfile::Builder::new().prefix("hk-dr-tutorial-").tempdir().expect("a home");
    let name = format!("tutorial-{}", std::process::id());
    let play = home.path().join("play");
    let init = Command::new(hk_dr()).arg("init").arg(&play).args(["--sandbox", &name]).output().expect("hk-dr starts");
    succeeded(&init, "init");
    let readme = std::fs::read_to_string(play.join("README.md")).expect("a README");
    let (mut script, mut inside) = (String::from("set -eux\n"), false);
    for line in readme.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => script += &format!("{command}\n"),
            _ => {}
        }
    }
    assert!(script.matches("desk ").count() > 8, "{script}");
    let path = format!("{}:{}", hk_dr().parent().expect("a folder").display(), std::env::var("PATH").expect("a PATH"));
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).current_dir(&play).env("HOME", home.path()).env("PATH", path);
    // Where binaries are kept may be said by the environment only: this home is new.
    bash.env("HK_DR_CACHE", kubectl().parent().and_then(|p| p.parent()).expect("the cache"));
    let output = bash.output().expect("bash starts");
    let _ = Command::new(hk_dr()).args(["lab", "down", "--delete", "--name", &name]).env("HOME", home.path()).output();
    succeeded(&output, "the tutorial");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Nothing to do: the cluster is as Git declares it."), "{text}");
}
