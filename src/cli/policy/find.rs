use std::path::PathBuf;

use crate::cli::{CliError, Context, ExitKind};
use crate::config::{Policy, load_policy};

/// A policy's text and where it is from.
pub struct Found {
    pub name: String,
    pub path: PathBuf,
    pub text: String,
}

/// The policies of the Git directory, by name.
pub fn all(context: &Context) -> Result<Vec<Found>, CliError> {
    let dir = context.global.dir.join("policies");
    let failed = |path: &std::path::Path, e: std::io::Error| {
        CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", path.display())).hint("nothing was touched")
    };
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(&dir, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| failed(&dir, e))?.path();
        if path.extension().is_some_and(|e| e == "yaml")
            && let Some(name) = path.file_stem().map(|s| s.to_string_lossy().into_owned())
        {
            found.push(Found { name, text: std::fs::read_to_string(&path).map_err(|e| failed(&path, e))?, path });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Checks one's form and rules, and that it has its file's name: that is how the bucket and people know it.
pub fn check(found: &Found) -> Result<Policy, CliError> {
    let policy = load_policy(&found.text, &found.path.display().to_string()).map_err(|error| CliError {
        kind: ExitKind::Usage,
        message: error.plain(),
        hints: vec!["nothing was touched".into()],
        report: Some(miette::Report::new(error)),
    })?;
    if policy.name != found.name {
        let message = format!("{} holds a policy named {}", found.path.display(), policy.name);
        return Err(CliError::new(ExitKind::Usage, message).hint(format!("write `name: {}`", found.name)));
    }
    Ok(policy)
}

/// All of them, checked.
pub fn load_all(context: &Context) -> Result<Vec<Policy>, CliError> {
    all(context)?.iter().map(check).collect()
}
