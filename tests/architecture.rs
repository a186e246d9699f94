//! The house's rules that neither the compiler nor clippy checks. Each failure names the file, the line and the rule.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Files are to stay under about 500 lines; this leaves room for a last test. Longer ones are split by what they are
/// about. A file listed here says why it may be longer.
const LINES_MAX: usize = 550;
const LONGER: [(&str, &str); 0] = [];

/// Words that read a clock, a file, the environment or the network. `std::env!` and `env!` are compile-time.
const IMPURE: [&str; 12] = [
    "async fn",
    ".await",
    "Timestamp::now",
    "Zoned::now",
    "SystemTime",
    "Instant::now",
    "std::fs",
    "File::",
    "std::env::",
    "std::net::Tcp",
    "std::process",
    "tokio::",
];

const PROVIDERS: [&str; 5] = ["hetzner", "hcloud", "aws_sdk", "crate::s3", "hk_lab"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A source file's path from the root, and its lines of code: without comments, and up to the tests at its end.
struct Source {
    path: String,
    lines: Vec<(usize, String)>,
}

fn sources(folder: &str) -> Vec<Source> {
    let (mut found, mut tests) = (Vec::new(), Vec::new());
    let start = root().join(folder);
    let mut pending: Vec<PathBuf> = vec![start.clone(), start.with_extension("rs")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") && path.exists() {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned()));
            let code = lines
                .take_while(|(_, line)| *line != "mod tests {")
                .filter(|(_, line)| !line.trim_start().starts_with("//"))
                .collect();
            tests.extend(test_modules(&path, &text));
            found.push((path, Source { path: name, lines: code }));
        }
    }
    found.retain(|(path, _)| !tests.iter().any(|test| path.starts_with(test) || *path == test.with_extension("rs")));
    found.into_iter().map(|(_, source)| source).collect()
}

/// Paths, without extension, of the modules that a file declares for tests only.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let folder = path.parent().unwrap();
    let folder = if ["mod", "lib", "main"].contains(&stem) { folder.to_owned() } else { folder.join(stem) };
    let lines: Vec<_> = text.lines().collect();
    let declared = lines.windows(2).filter(|pair| pair[0].trim() == "#[cfg(test)]").filter_map(|pair| {
        let (_, name) = pair[1].split_once("mod ")?;
        name.strip_suffix(';').map(|name| folder.join(name))
    });
    declared.collect()
}

/// Fails with every line of `folders` that contains one of `words`.
fn forbid(rule: &str, folders: &[&str], words: &[&str], except: &[&str]) {
    let mut broken = String::new();
    for source in folders.iter().flat_map(|folder| sources(folder)) {
        if except.iter().any(|e| source.path.starts_with(e)) {
            continue;
        }
        for (number, line) in &source.lines {
            for word in words.iter().filter(|word| mentions(line, word)) {
                let _ = write!(broken, "\n  {}:{number}: {word}", source.path);
            }
        }
    }
    assert!(broken.is_empty(), "{rule}{broken}");
}

/// Whether the word occurs, not as the end of a longer one.
fn mentions(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !word.starts_with(char::is_alphabetic) || !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

#[test]
fn config_and_plan_are_pure() {
    let rule = "config and plan never await, read a clock, a file or the environment: pass the value in";
    forbid(rule, &["src/config", "src/plan"], &IMPURE, &[]);
}

#[test]
fn the_journals_types_are_pure() {
    let rule = "the journal's events and transitions do no I/O; its store does";
    forbid(rule, &["src/journal/event", "src/journal/run"], &IMPURE, &[]);
}

#[test]
fn engine_and_steps_name_no_provider() {
    forbid("engine and steps reach the world through ports only", &["src/engine", "src/steps"], &PROVIDERS, &[]);
}

#[test]
fn ports_name_no_adapter() {
    let adapters =
        ["crate::hetzner", "crate::s3", "crate::ssh", "crate::etcd", "crate::kube", "crate::steps", "crate::engine"];
    forbid("ports know nobody", &["src/ports"], &adapters, &[]);
}

#[test]
fn nobody_knows_the_command_line() {
    let rooms = [
        "artifacts",
        "backup",
        "bolt",
        "config",
        "distribution",
        "engine",
        "etcd",
        "hetzner",
        "journal",
        "kube",
        "plan",
        "ports",
        "report",
        "s3",
        "secrets",
        "ssh",
        "steps",
    ];
    let rooms: Vec<_> = rooms.iter().map(|room| format!("src/{room}")).collect();
    let rooms: Vec<_> = rooms.iter().map(String::as_str).collect();
    forbid(
        "the command line calls the rooms, never the other way",
        &rooms,
        &["crate::cli::", "super::cli::", "crate::cli;"],
        &[],
    );
}

#[test]
fn only_the_command_line_prints_or_reads_the_environment() {
    let words =
        ["println!", "eprintln!", "print!", "eprint!", "dbg!", "std::env::var", "env::var(", "env::vars", "env::args"];
    forbid("only src/cli prints or reads the environment", &["src"], &words, &["src/cli"]);
}

#[test]
fn the_lab_shares_no_code_with_hk_dr() {
    let manifest = std::fs::read_to_string(root().join("lab/Cargo.toml")).unwrap();
    for line in manifest.lines() {
        assert!(!line.trim_start().starts_with("hk-dr") && !line.contains("path = \"..\""), "lab/Cargo.toml: {line}");
    }
    forbid("a mistake shared by client and emulator would hide in both", &["lab/src"], &["hk_dr::"], &[]);
}

#[test]
fn no_file_is_too_long() {
    let mut long = String::new();
    for folder in ["src", "lab/src", "chaos-tests/src", "tests", "lab/tests", "chaos-tests/tests"] {
        let mut pending = vec![root().join(folder)];
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                let lines = std::fs::read_to_string(&path).unwrap().lines().count();
                if lines > LINES_MAX && !LONGER.iter().any(|(file, _)| *file == name) {
                    let _ = write!(long, "\n  {name}: {lines} lines");
                }
            }
        }
    }
    assert!(long.is_empty(), "at most {LINES_MAX} lines a file: split it by what it is about{long}");
}

#[test]
fn no_room_is_called_utils() {
    let mut pending = vec![root().join("src"), root().join("lab/src"), root().join("chaos-tests/src")];
    while let Some(path) = pending.pop() {
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let vague = ["util", "utils", "misc", "helper", "helpers", "common"];
        assert!(!vague.contains(&stem.as_str()), "{} says nothing about what is in it", path.display());
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
}
