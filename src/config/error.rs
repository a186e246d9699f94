use std::fmt;
use std::sync::Arc;

use miette::{Diagnostic, NamedSource, SourceSpan};
use serde_saphyr::Location;

/// More problems than this are not listed: the first ones explain the rest.
const PROBLEMS_MAX: usize = 20;

/// A file of the Git directory is wrong. Shows every problem with its place.
#[derive(Debug, Diagnostic)]
pub struct ConfigError {
    pub file: String,
    #[related]
    pub problems: Vec<Problem>,
}

/// One problem: what is wrong, where, and what to write instead.
#[derive(Debug, Diagnostic)]
pub struct Problem {
    pub message: String,
    #[help]
    pub hint: Option<String>,
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
    #[source_code]
    text: NamedSource<Arc<String>>,
    #[label]
    span: SourceSpan,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "{} has a problem", self.file),
            count => write!(f, "{} has {count} problems", self.file),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}
impl std::error::Error for Problem {}

impl ConfigError {
    /// One line a problem, `file:line:column: message (hint)`: for logs and machine-readable output.
    pub fn plain(&self) -> String {
        let lines: Vec<_> = self
            .problems
            .iter()
            .map(|p| {
                let hint = p.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
                format!("{}:{}:{}: {}{hint}", self.file, p.line, p.column, p.message)
            })
            .collect();
        lines.join("\n")
    }
}

/// Collects problems.
pub(super) struct Report {
    text: Arc<String>,
    file: String,
    problems: Vec<Problem>,
}

impl Report {
    pub(super) fn new(text: &str, file: &str) -> Self {
        Self { text: Arc::new(text.to_owned()), file: file.to_owned(), problems: Vec::new() }
    }

    /// The file's name without its folder.
    pub(super) fn file_name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(&self.file)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn add(&mut self, at: Location, message: impl Into<String>, hint: impl Into<Option<String>>) {
        if self.problems.len() >= PROBLEMS_MAX {
            return;
        }
        // What begins at the place, up to the end of its line: a whole block underlined says nothing.
        let start = byte_offset(&self.text, at.line(), at.column());
        let rest = self.text.get(start..).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        let length =
            at.span().byte_len().and_then(|l| usize::try_from(l).ok()).unwrap_or(1).clamp(1, line.len().max(1));
        self.problems.push(Problem {
            message: message.into(),
            hint: hint.into(),
            line: at.line(),
            column: at.column(),
            text: NamedSource::new(&self.file, self.text.clone()),
            span: (start, length.min(rest.len())).into(),
        });
    }

    /// What the YAML reader says.
    pub(super) fn yaml(&mut self, error: &serde_saphyr::Error) {
        // Without its own snippet: ours shows the place.
        let message = error.without_snippet().to_string();
        let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
        let message = message.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        self.add(error.location().unwrap_or(Location::UNKNOWN), message, None);
    }

    pub(super) fn finish(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() { Ok(()) } else { Err(self.into_error()) }
    }

    pub(super) fn into_error(mut self) -> ConfigError {
        self.problems.sort_by_key(|p| (p.line, p.column));
        ConfigError { file: self.file, problems: self.problems }
    }
}

/// Lines and columns count from 1; an unknown place is the beginning.
fn byte_offset(text: &str, line: u64, column: u64) -> usize {
    let (line, column) = (usize::try_from(line).unwrap_or(1), usize::try_from(column).unwrap_or(1));
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let within: usize = text[start..].chars().take(column.saturating_sub(1)).map(char::len_utf8).sum();
    start + within
}
