//! The person at the terminal, or the file that stands in for one.

use std::io::IsTerminal;
use std::path::PathBuf;

use age::secrecy::SecretString;

use super::Context;
use crate::backup::Ask;

/// A passphrase is a line.
const PASSPHRASE_BYTES_MAX: usize = 4 << 10;

/// Asks on standard error, so that what is printed stays clean.
pub(super) struct Terminal {
    passphrase_file: Option<PathBuf>,
}

impl Terminal {
    pub fn of(context: &Context) -> Self {
        Self { passphrase_file: context.global.passphrase_file.clone() }
    }

    fn there() -> Option<console::Term> {
        (std::io::stdin().is_terminal() && std::io::stderr().is_terminal()).then(console::Term::stderr)
    }
}

impl Ask for Terminal {
    fn say(&self, message: &str) {
        eprintln!("{message}");
    }

    fn confirm(&self, question: &str) -> Option<bool> {
        Some(self.line(question)?.trim().eq_ignore_ascii_case("yes"))
    }

    fn line(&self, what: &str) -> Option<String> {
        let terminal = Self::there()?;
        eprint!("{what}: ");
        terminal.read_line().ok()
    }

    fn passphrase(&self, what: &str) -> Option<SecretString> {
        if let Some(file) = &self.passphrase_file {
            let text = match std::fs::read_to_string(file) {
                Ok(text) if text.len() <= PASSPHRASE_BYTES_MAX => zeroize::Zeroizing::new(text),
                Ok(_) => {
                    eprintln!("warning: {} is too large for a passphrase", file.display());
                    return None;
                }
                Err(e) => {
                    eprintln!("warning: the passphrase cannot be read from {}: {e}", file.display());
                    return None;
                }
            };
            return Some(SecretString::from(text.lines().next().unwrap_or_default().to_owned()));
        }
        let terminal = Self::there()?;
        eprint!("{what}: ");
        let line = terminal.read_secure_line().ok()?;
        Some(SecretString::from(line))
    }
}
