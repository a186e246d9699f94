//! Who lives in a lab, as files that `lab exec` and `lab status` read from outside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Attempt, LabError};

/// One machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resident {
    pub id: u64,
    pub name: String,
    /// Its init, as the outer namespace numbers it; none while it is off.
    pub leader: Option<i32>,
    /// Files of the control groups; who writes "0" to them belongs to the machine.
    pub entrances: Vec<PathBuf>,
}

/// A directory with one file a machine.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Self, LabError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).attempt(|| format!("make {}", dir.display()))?;
        Ok(Self { dir })
    }

    pub(crate) fn write(&self, resident: &Resident) -> Result<(), LabError> {
        let text = serde_json::to_vec(resident).map_err(|error| LabError::new(error.to_string()))?;
        let (draft, path) = (self.dir.join(format!(".{}", resident.id)), self.path(resident.id));
        fs::write(&draft, text).attempt(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &path).attempt(|| format!("write {}", path.display()))
    }

    pub(crate) fn remove(&self, id: u64) -> Result<(), LabError> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).attempt(|| format!("remove machine {id} from the registry"))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

/// All machines, by id.
pub(crate) fn read(dir: &Path) -> Vec<Resident> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter(|e| e.file_name().to_string_lossy().ends_with(".json"));
    let mut all: Vec<Resident> = files.filter_map(|e| serde_json::from_slice(&fs::read(e.path()).ok()?).ok()).collect();
    all.sort_by_key(|r| r.id);
    all
}
