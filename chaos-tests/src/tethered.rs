//! Labs of tests: they end with the test's process, however that ends, so that a test that is killed leaves nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use hk_lab::LabOptions;
use hk_lab::control::{self, Tether};

fn below_home(named: &str, usual: &str) -> PathBuf {
    let named = std::env::var_os(named).map(PathBuf::from);
    named.unwrap_or_else(|| PathBuf::from(std::env::var("HOME").expect("a home")).join(usual))
}

/// Where pinned binaries are.
pub fn cache_dir() -> PathBuf {
    below_home("HK_DR_CACHE", ".cache/hk-dr")
}

/// The program under test: built beside the test that asks.
pub fn hk_dr() -> PathBuf {
    let here = std::env::current_exe().expect("this test has a path");
    let path = here.parent().and_then(Path::parent).expect("deps/..").join("hk-dr");
    assert!(path.exists(), "{} is not built: run `make test` or `cargo build` first", path.display());
    path
}

/// Starts a lab. Its disks lie where those of other labs do: a scratch directory may be in memory.
pub fn lab_up(name: &str) -> Tether {
    let state_dir = below_home("HK_DR_STATE", ".local/state/hk-dr");
    let options = LabOptions { name: name.to_owned(), cache_dir: cache_dir(), state_dir };
    let mut daemon = Command::new(hk_dr());
    daemon.args(["lab", "daemon"]);
    let (_, tether) = control::up_tethered(&options, daemon, &mut |line| println!("{line}")).expect("lab up");
    tether
}
