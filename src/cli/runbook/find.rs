use std::path::{Path, PathBuf};

use crate::cli::{CliError, Context, ExitKind};
use crate::config::{Runbook, SHIPPED, load_runbook};

/// A runbook's text and where it is from.
pub struct Found {
    pub name: String,
    /// None: it comes with hk-dr.
    pub path: Option<PathBuf>,
    pub text: String,
}

/// All runbooks, by name. One in the Git directory replaces the shipped one of the same name.
pub fn all(context: &Context) -> Result<Vec<Found>, CliError> {
    let mut found: Vec<Found> = SHIPPED
        .iter()
        .map(|(name, text)| Found { name: (*name).to_owned(), path: None, text: (*text).to_owned() })
        .collect();
    let dir = context.global.dir.join("runbooks");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", dir.display()))),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "yaml")
            && let Some(name) = path.file_stem().map(|s| s.to_string_lossy().into_owned())
        {
            let text = read(&path)?;
            found.retain(|f| f.name != name);
            found.push(Found { name, path: Some(path), text });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn read(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|e| {
        CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", path.display())).hint("nothing was touched")
    })
}

/// One runbook by its name or path.
pub fn one(name: &str, context: &Context) -> Result<Found, CliError> {
    if name.contains('/') || name.ends_with(".yaml") {
        let path = PathBuf::from(name);
        return Ok(Found { name: name.to_owned(), text: read(&path)?, path: Some(path) });
    }
    let all = all(context)?;
    let names: Vec<String> = all.iter().map(|f| f.name.clone()).collect();
    all.into_iter().find(|f| f.name == name).ok_or_else(|| {
        CliError::new(ExitKind::Usage, format!("there is no runbook {name}"))
            .hint(format!("nothing was touched; there are: {}", names.join(", ")))
    })
}

/// Reads and checks one.
pub fn load(name: &str, context: &Context) -> Result<Runbook, CliError> {
    check(&one(name, context)?)
}

/// Checks its form and its rules.
pub fn check(found: &Found) -> Result<Runbook, CliError> {
    let file =
        found.path.as_ref().map_or_else(|| format!("{}.yaml (shipped)", found.name), |p| p.display().to_string());
    load_runbook(&found.text, &file).map_err(|error| CliError {
        kind: ExitKind::Usage,
        message: error.plain(),
        hints: vec!["nothing was touched".into()],
        report: Some(miette::Report::new(error)),
    })
}
