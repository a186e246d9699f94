//! The official Python client, unmodified, through a full life of every kind of resource (`life.py`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const REQUIREMENTS: &str = include_str!("requirements.txt");
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGR66U8LQqBQUTkpdM4TBWfJtFKHJwnVZKi4q1YpJOqR one";
/// Seconds: installing takes a few, the life some more.
const DEADLINE: &str = "180";

fn succeed(what: &str, program: &Path, prepare: impl FnOnce(&mut Command)) -> String {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", DEADLINE]).arg(program);
    prepare(&mut command);
    let output = command.output().unwrap_or_else(|e| panic!("{what}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{what} ({}; `scripts/setup` installs what is missing): {}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// The interpreter of an environment that has the client. It is made once, in the cache.
fn interpreter() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../.cache");
    let cache = std::env::var_os("HK_DR_CACHE").map_or_else(|| PathBuf::from(own), PathBuf::from);
    fs::create_dir_all(&cache).unwrap();
    let dir = cache.join("python-hcloud-2.27.0");
    // Two test runs may want it at the same time.
    let lock = File::create(cache.join("python-hcloud.lock")).unwrap();
    lock.lock().unwrap();
    let (python, complete) = (dir.join("bin/python"), dir.join("complete"));
    if fs::read_to_string(&complete).is_ok_and(|made_of| made_of == REQUIREMENTS) {
        return python;
    }
    succeed("make an environment for Python", Path::new("python3"), |c| {
        c.args(["-m", "venv", "--clear"]).arg(&dir);
    });
    succeed("install the official client", &python, |c| {
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"];
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/requirements.txt");
        c.args(pip).args(["--require-hashes", "--only-binary", ":all:", "--requirement"]).arg(list);
    });
    fs::write(&complete, REQUIREMENTS).unwrap();
    python
}

/// Lives it against an API.
pub fn live(endpoint: &str, token: &str) {
    let python = interpreter();
    let files = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["life.example.com".to_owned()]).unwrap();
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let told = succeed("the client's life", &python, |c| {
        c.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/life.py"))
            .env("HCLOUD_ENDPOINT", endpoint)
            .env("HCLOUD_TOKEN", token)
            .env("LIFE_CERTIFICATE", file("chain.pem", &made.cert.pem()))
            .env("LIFE_KEY", file("key.pem", &made.signing_key.serialize_pem()))
            .env("LIFE_SSH_KEY", file("key.pub", KEY))
            .env("NO_PROXY", "*")
            .env("PYTHONDONTWRITEBYTECODE", "1");
    });
    assert!(told.contains("life is complete"), "{told}");
    println!("{told}");
}
