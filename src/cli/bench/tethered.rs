//! The lab of a measurement.

use std::path::PathBuf;
use std::process::Command;

use hk_lab::LabOptions;
use hk_lab::control::{self, Tether};

use crate::cli::{CliError, Context, ExitKind};

/// A lab that ends with the measurement, however that ends.
pub(super) struct TetheredLab {
    pub name: String,
    /// This program, which is also run inside the lab.
    pub program: PathBuf,
    _tether: Tether,
}

impl TetheredLab {
    /// Starts one of its own name, with its disks below `state_dir`.
    pub fn up(kind: &str, state_dir: PathBuf, context: &Context) -> Result<Self, CliError> {
        let program = std::env::current_exe()
            .map_err(|e| CliError::new(ExitKind::Failed, format!("this program is not found: {e}")))?;
        let name = format!("{kind}-{}", std::process::id());
        let options = LabOptions { name: name.clone(), cache_dir: context.cache_dir(), state_dir };
        let mut daemon = Command::new(&program);
        daemon.args(["lab", "daemon"]);
        let (_, tether) = control::up_tethered(&options, daemon, &mut |line| eprintln!("  {line}"))?;
        Ok(Self { name, program, _tether: tether })
    }
}

impl Drop for TetheredLab {
    fn drop(&mut self) {
        if let Err(error) = control::down(&self.name) {
            eprintln!("the lab {} is still there: {error}", self.name);
        }
    }
}
