//! Where the demo plays: a lab of its own, and a scratch directory with the Git directory, the identity and the notes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use hk_lab::control::{self, Tether};
use hk_lab::{LabInfo, LabOptions};
use tokio::process::{Child, Command};

use super::DemoError;

/// The cluster that the demo builds.
pub const CLUSTER_YAML: &str = include_str!("../../examples/demo/cluster.yaml");
/// What the lab gives every command at the operator's place, and the ordinary commands must not need: after `keys init`
/// it is all in `secrets.yaml.age`.
const CREDENTIALS: [&str; 6] =
    ["HCLOUD_ENDPOINT", "HCLOUD_TOKEN", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"];
/// How much of a failed command's output is shown.
const TAIL_LINES: usize = 25;

/// What to set up.
#[derive(Debug, Clone)]
pub struct StageOptions {
    pub lab: LabOptions,
    /// This program.
    pub program: PathBuf,
}

/// A running lab and, below its disks, the scratch directory. [`Stage::strike`] removes both; if this process is killed, the
/// lab's guardian does.
pub struct Stage {
    pub lab: LabInfo,
    options: StageOptions,
    scratch: PathBuf,
    tether: Tether,
}

impl Stage {
    /// Starts the lab and makes the Git directory. Blocks while it does. After an error nothing is left.
    pub fn set(options: StageOptions, progress: &mut dyn FnMut(&str)) -> Result<Self, DemoError> {
        let mut daemon = std::process::Command::new(&options.program);
        daemon.args(["lab", "daemon"]);
        let (lab, tether) = control::up_tethered(&options.lab, daemon, progress)?;
        let scratch = lab.disks.join("demo");
        let stage = Self { lab, options, scratch, tether };
        match stage.make_scratch() {
            Ok(()) => Ok(stage),
            Err(failed) => {
                stage.strike()?;
                Err(failed)
            }
        }
    }

    fn make_scratch(&self) -> Result<(), DemoError> {
        use std::os::unix::fs::DirBuilderExt;
        for dir in ["git", "logs", "notes"] {
            let path = self.scratch.join(dir);
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|e| DemoError::io(format!("make {}", path.display()), &e))?;
        }
        Ok(())
    }

    /// Writes `cluster.yaml`, makes keys, and commits both: what a team would have in Git.
    pub async fn make_git_directory(&self) -> Result<(), DemoError> {
        let path = self.git().join("cluster.yaml");
        std::fs::write(&path, CLUSTER_YAML).map_err(|e| DemoError::io(format!("write {}", path.display()), &e))?;
        let (first, second) = (self.identity(), self.scratch.join("identity-of-a-colleague.txt"));
        let arguments =
            ["keys", "init", "--new-identity", &text(&first), "--new-identity", &text(&second)].map(str::to_owned);
        let mut keys = self.at_operator(&arguments, false);
        finish(keys.output().await, "hk-dr keys init", None)?;
        for arguments in [
            &["init", "--quiet", "--initial-branch=main"][..],
            &["add", "--all"],
            &[
                "-c",
                "user.name=hk-dr demo",
                "-c",
                "user.email=demo@localhost",
                "commit",
                "--quiet",
                "-m",
                "Declare the demo's cluster",
            ],
        ] {
            let mut git = Command::new("git");
            git.arg("-C").arg(self.git()).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
            // The caller's own repository is not meant.
            for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
                git.env_remove(name);
            }
            finish(git.output().await, &format!("git {}", arguments.join(" ")), None)?;
        }
        Ok(())
    }

    /// The Git directory.
    pub fn git(&self) -> PathBuf {
        self.scratch.join("git")
    }

    /// The age identity.
    pub fn identity(&self) -> PathBuf {
        self.scratch.join("identity.txt")
    }

    /// hk-dr's local state, which the loss takes.
    pub fn state(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// A file of the demo itself, which measures with it; hk-dr knows nothing of it.
    pub fn note(&self, name: &str) -> PathBuf {
        self.scratch.join("notes").join(name)
    }

    /// Runs a command of hk-dr at the operator's place and returns what it wrote to standard output.
    ///
    /// # Errors
    /// It did not succeed; the error has the last lines of its output.
    pub fn run<'s, const N: usize>(
        &'s self,
        arguments: [&str; N],
    ) -> impl Future<Output = Result<Vec<u8>, DemoError>> + use<'s, N> {
        let arguments = arguments.map(str::to_owned);
        async move {
            let doing = format!("hk-dr {}", arguments[..N.min(2)].join(" "));
            let log = self.log(&arguments)?;
            let mut command = self.at_operator(&arguments, true);
            command.stderr(log.0);
            finish(command.output().await, &doing, Some(&log.1))
        }
    }

    /// Starts a command of hk-dr at the operator's place. It ends with the returned value.
    pub fn start<const N: usize>(&self, arguments: [&str; N]) -> Result<Child, DemoError> {
        let arguments = arguments.map(str::to_owned);
        let log = self.log(&arguments)?;
        let mut command = self.at_operator(&arguments, true);
        command.stdout(Stdio::null()).stderr(log.0);
        command.spawn().map_err(|e| DemoError::io("start hk-dr", &e))
    }

    fn log(&self, arguments: &[String]) -> Result<(File, PathBuf), DemoError> {
        let name = arguments[..arguments.len().min(2)].join("-").replace('/', "_");
        let path = self.scratch.join("logs").join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&path);
        Ok((file.map_err(|e| DemoError::io(format!("write {}", path.display()), &e))?, path))
    }

    fn at_operator(&self, arguments: &[String], without_credentials: bool) -> Command {
        let mut command = Command::new(&self.options.program);
        command.args(["lab", "exec", "--name", &self.lab.name, "--from", "operator", "--", "/usr/bin/env"]);
        if without_credentials {
            command.args(CREDENTIALS.iter().flat_map(|name| ["-u", name]));
        }
        command
            .arg(&self.options.program)
            .arg("-C")
            .arg(self.git())
            .arg("--identity")
            .arg(self.identity())
            .arg("--state")
            .arg(self.state())
            .arg("--cache")
            .arg(&self.options.lab.cache_dir)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Removes everything. Blocks until nothing is left.
    pub fn strike(self) -> Result<(), DemoError> {
        Ok(control::down(&self.lab.name)?)
    }

    /// Leaves everything as it is and says how to look around, a line each.
    pub fn keep(self) -> Vec<String> {
        let name = self.lab.name.clone();
        let (git, identity, state) = (self.git(), self.identity(), self.state());
        if let Err(error) = self.tether.cut() {
            return vec![format!("the lab {name} could not be kept: {error}")];
        }
        let program = self.options.program.display();
        let kubectl = std::fs::read_dir(self.options.lab.cache_dir.join("artifacts"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("kubectl-")));
        let mut lines = vec![
            format!("the lab {name} is up; the Git directory, identity and state are in {}", self.scratch.display()),
            format!(
                "  {program} lab exec --name {name} --from operator -- {program} -C {} --identity {} --state {} plan",
                git.display(),
                identity.display(),
                state.display()
            ),
            format!("  {program} lab exec --name {name} demo-m1 -- bash"),
        ];
        if let Some(kubectl) = kubectl {
            lines.push(format!(
                "  {program} lab exec --name {name} demo-m1 -- systemctl status   (kubectl for your own kubeconfig: {})",
                kubectl.display()
            ));
        }
        lines.push(format!("  {program} lab down --name {name}   ends it, and removes all of this"));
        lines
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn finish(
    output: std::io::Result<std::process::Output>,
    doing: &str,
    log: Option<&Path>,
) -> Result<Vec<u8>, DemoError> {
    let output = output.map_err(|e| DemoError::io(format!("run {doing}"), &e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut error = DemoError::new(format!("{doing} ended with {}", output.status));
    let logged = log.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    for text in [&output.stdout, &output.stderr, &logged] {
        let text = String::from_utf8_lossy(text);
        let lines: Vec<&str> = text.lines().collect();
        error.hints.extend(lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| (*line).to_owned()));
    }
    Err(error)
}
