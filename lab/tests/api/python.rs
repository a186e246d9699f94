//! The official Python client, unmodified, through a full life of every kind of resource. The same script can be pointed at
//! any lab: `HCLOUD_ENDPOINT=… HCLOUD_TOKEN=… python lab/tests/python/life.py`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tokio::process::Command;

use crate::balancers::certificate;
use crate::client::{KEY_ONE, Lab};

const REQUIREMENTS: &str = include_str!("../python/requirements.txt");
/// Installing takes seconds, the life a few more.
const DEADLINE: Duration = Duration::from_secs(180);

async fn run(command: &mut Command) -> Output {
    let name = format!("{command:?}");
    command.kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.unwrap_or_else(|_| panic!("{name} hangs"));
    output.unwrap_or_else(|e| panic!("{name}: {e}; `scripts/setup` installs what is missing"))
}

#[track_caller]
fn succeed(what: &str, output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{what}: {}\n{}", text(&output.stdout), text(&output.stderr));
}

/// The interpreter of an environment that has the client. It is made once, in the cache.
async fn interpreter() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../.cache");
    let cache = std::env::var_os("HK_DR_CACHE").map_or_else(|| PathBuf::from(own), PathBuf::from);
    fs::create_dir_all(&cache).unwrap();
    let dir = cache.join("python-hcloud-2.27.0");
    // Two test runs may want it at the same time.
    let lock = File::create(cache.join("python-hcloud.lock")).unwrap();
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.unwrap().unwrap();
    let (python, complete) = (dir.join("bin/python"), dir.join("complete"));
    if fs::read_to_string(&complete).is_ok_and(|made_of| made_of == REQUIREMENTS) {
        return python;
    }
    let made = run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir)).await;
    succeed("make an environment for Python (Debian: python3-venv)", &made);
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/requirements.txt");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let mut install = Command::new(&python);
    install.args(pip).args(["--require-hashes", "--only-binary", ":all:", "--requirement"]).arg(list);
    succeed("install the official client", &run(&mut install).await);
    fs::write(&complete, REQUIREMENTS).unwrap();
    drop(lock);
    python
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_lives_a_full_life() {
    let python = interpreter().await;
    let lab = Lab::start().await;
    let files = tempfile::tempdir().unwrap();
    let (chain, key) = certificate("life.example.com");
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/life.py");
    let mut life = Command::new(python);
    life.arg(script)
        .env("HCLOUD_ENDPOINT", &lab.served.endpoint)
        .env("HCLOUD_TOKEN", &lab.served.token)
        .env("LIFE_CERTIFICATE", file("chain.pem", &chain))
        .env("LIFE_KEY", file("key.pem", &key))
        .env("LIFE_SSH_KEY", file("key.pub", KEY_ONE))
        .env("NO_PROXY", "*")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let output = run(&mut life).await;
    succeed("the client's life", &output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("life is complete"));
}
