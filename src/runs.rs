//! Where runs are kept on this machine: one directory a run, with its plan, its journal and the `cluster.yaml` it was
//! planned from.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::journal::{Event, FileJournal, RunState};
use crate::plan::Plan;
use crate::ports::{ErrorCode, PortError, PortResult};

/// The runs of one cluster.
pub struct Runs {
    dir: PathBuf,
}

/// One run's directory.
pub struct RunDir {
    dir: PathBuf,
}

impl Runs {
    /// Below the state directory.
    pub fn of(state: &Path, cluster: &str) -> Self {
        Self { dir: state.join(cluster).join("runs") }
    }

    /// Makes the directory of a run and writes its plan, durably.
    pub fn create(&self, plan: &Plan, cluster_yaml: &str) -> PortResult<RunDir> {
        let dir = self.dir.join(&plan.id);
        let failed = |e: std::io::Error| local(&format!("writing the plan to {}", dir.display()), &e);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
        let text = serde_json::to_vec_pretty(plan).map_err(|e| failed(e.into()))?;
        for (name, bytes) in [("cluster.yaml", cluster_yaml.as_bytes()), ("plan.json", &text)] {
            let path = dir.join(name);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
            file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        for parent in [&dir, &self.dir] {
            File::open(parent).and_then(|d| d.sync_all()).map_err(failed)?;
        }
        Ok(RunDir { dir })
    }

    /// Ids of all runs, oldest first.
    pub fn ids(&self) -> PortResult<Vec<String>> {
        let mut ids = Vec::new();
        match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(ids),
            Err(e) => return Err(local(&format!("reading {}", self.dir.display()), &e)),
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.map_err(|e| local(&format!("reading {}", self.dir.display()), &e))?;
                    // A directory without a plan is a run that died before it began.
                    if entry.path().join("plan.json").is_file() {
                        ids.push(entry.file_name().to_string_lossy().into_owned());
                    }
                }
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// A run by its id.
    pub fn open(&self, id: &str) -> RunDir {
        RunDir { dir: self.dir.join(id) }
    }
}

impl RunDir {
    /// The journal's path.
    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal.jsonl")
    }

    /// A file of this run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The path of the declaration the run was planned from.
    pub fn cluster_yaml(&self) -> PathBuf {
        self.dir.join("cluster.yaml")
    }

    /// The plan.
    pub fn plan(&self) -> PortResult<Plan> {
        let path = self.dir.join("plan.json");
        let text = std::fs::read(&path).map_err(|e| local(&format!("reading {}", path.display()), &e))?;
        serde_json::from_slice(&text).map_err(|e| {
            PortError::new(ErrorCode::Corrupt, format!("{} is not a plan this version reads: {e}", path.display()))
                .hint("nothing was touched; plan again with `hk-dr build` or `hk-dr rebuild`")
        })
    }

    /// The events so far, and what they add up to.
    pub fn replay(&self, plan: &Plan) -> PortResult<(Vec<Event>, RunState)> {
        let path = self.journal();
        let events = if path.exists() {
            FileJournal::read(&path).map_err(|e| PortError::new(ErrorCode::Corrupt, e.to_string()))?
        } else {
            Vec::new()
        };
        let state = RunState::replay(plan, &events).map_err(|e| {
            PortError::new(ErrorCode::Corrupt, e.to_string())
                .hint("nothing was touched; use the hk-dr that wrote it, or plan again")
        })?;
        Ok((events, state))
    }
}

fn local(doing: &str, error: &std::io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("{doing}: {error}"))
}
