//! Where runs are kept on this machine: one directory a run, with its plan, its journal and the `cluster.yaml` it was
//! planned from.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::journal::{Event, FileJournal, Journal, JournalError, Mirrored, RunState};
use crate::plan::Plan;
use crate::ports::{ErrorCode, PortError, PortResult};

const GIVEN_UP_FILE: &str = "given-up";

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

    /// Brings this machine's copy of a run up to what the bucket has of it, where that is more: the run was begun or continued
    /// elsewhere. Only for whoever holds the lease on the cluster.
    ///
    /// # Errors
    /// The files can't be written, or the bucket's plan is another one.
    pub fn adopt(&self, id: &str, mirrored: &Mirrored) -> PortResult<RunDir> {
        let run = self.open(id);
        if !run.dir.join("plan.json").is_file() {
            let failed = |e: std::io::Error| local(&format!("writing {}", run.dir.display()), &e);
            DirBuilder::new().recursive(true).mode(0o700).create(&run.dir).map_err(failed)?;
            // The plan goes last: a directory without one is no run.
            for (name, bytes) in [("cluster.yaml", &mirrored.cluster_yaml), ("plan.json", &mirrored.plan)] {
                crate::secrets::write_file(&run.dir.join(name), 0o600, bytes, true)?;
            }
        }
        let journal = |e: JournalError| PortError::new(ErrorCode::Local, e.to_string());
        let here =
            if run.journal().exists() { FileJournal::read(&run.journal()).map_err(journal)? } else { Vec::new() };
        let common = here.iter().zip(&mirrored.events).take_while(|(here, there)| here == there).count();
        if common == mirrored.events.len() {
            return Ok(run);
        }
        if common < here.len() {
            // Events of a process that died before anybody else heard of them; whoever continued elsewhere went on without.
            let aside = run.file("journal.superseded.jsonl");
            std::fs::rename(run.journal(), &aside).map_err(|e| local(&format!("writing {}", aside.display()), &e))?;
        }
        let (mut file, there) = FileJournal::open(&run.journal()).map_err(journal)?;
        for event in mirrored.events.iter().skip(there.len()) {
            file.append(event).map_err(journal)?;
        }
        Ok(run)
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

    /// Why this run will not be continued, where that could not be recorded in its journal: another version wrote it.
    pub fn given_up(&self) -> PortResult<Option<String>> {
        let path = self.dir.join(GIVEN_UP_FILE);
        match std::fs::read_to_string(&path) {
            Ok(reason) => Ok(Some(reason.trim().to_owned())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(local(&format!("reading {}", path.display()), &e)),
        }
    }

    /// Notes that this run will not be continued, beside a journal that can't be written to.
    pub fn give_up(&self, reason: &str) -> PortResult<()> {
        crate::secrets::write_file(&self.dir.join(GIVEN_UP_FILE), 0o600, reason.as_bytes(), true)
    }

    /// The texts of plan and declaration, as the bucket gets them.
    pub fn texts(&self) -> PortResult<(Vec<u8>, Vec<u8>)> {
        let read = |path: PathBuf| std::fs::read(&path).map_err(|e| local(&format!("reading {}", path.display()), &e));
        Ok((read(self.dir.join("plan.json"))?, read(self.cluster_yaml())?))
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
            FileJournal::read(&path)
                .map_err(|e| PortError::new(ErrorCode::Corrupt, e.to_string()).hint(other_version(&plan.id)))?
        } else {
            Vec::new()
        };
        let state = RunState::replay(plan, &events)
            .map_err(|e| PortError::new(ErrorCode::Corrupt, e.to_string()).hint(other_version(&plan.id)))?;
        Ok((events, state))
    }
}

/// What to choose from where a run can't be read.
pub fn other_version(run: &str) -> String {
    format!(
        "nothing was touched; continue with the hk-dr that wrote it, or give the run up with `hk-dr abort {run} --abandon` and \
         plan again: a new plan finds what is there"
    )
}

fn local(doing: &str, error: &std::io::Error) -> PortError {
    PortError::new(ErrorCode::Local, format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Body, JOURNAL_FORMAT};

    fn event(seq: u64, version: &str) -> Event {
        Event {
            seq,
            at: "2026-11-23T03:00:00Z".parse().unwrap(),
            format: JOURNAL_FORMAT,
            binary_version: version.into(),
            body: Body::RunResumed,
        }
    }

    fn mirrored(events: &[Event]) -> Mirrored {
        Mirrored { plan: "{}".into(), cluster_yaml: "x".into(), events: events.to_vec() }
    }

    #[test]
    fn what_the_bucket_knows_of_a_run_is_brought_here_and_never_cut() {
        let state = tempfile::tempdir().unwrap();
        let runs = Runs::of(state.path(), "demo");
        let events: Vec<Event> = (0..4).map(|seq| event(seq, "1")).collect();
        let read = |run: &RunDir| FileJournal::read(&run.journal()).unwrap();
        // A machine that knew nothing of it.
        let run = runs.adopt("r1", &mirrored(&events[..2])).unwrap();
        assert_eq!(read(&run), events[..2]);
        assert_eq!(runs.ids().unwrap(), ["r1"]);
        // The bucket has more, then less: what is here already stays.
        assert_eq!(read(&runs.adopt("r1", &mirrored(&events)).unwrap()), events);
        assert_eq!(read(&runs.adopt("r1", &mirrored(&events[..1])).unwrap()), events);
        // It was continued elsewhere from event 3 on: what only this machine knew is put aside.
        let other = [&events[..3], &[event(3, "2"), event(4, "2")]].concat();
        let run = runs.adopt("r1", &mirrored(&other)).unwrap();
        assert_eq!(read(&run), other);
        assert!(run.file("journal.superseded.jsonl").exists());
    }
}
