use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;

use age::x25519;

use crate::ports::{ErrorCode, PortError, PortResult};

/// Largest identity or recipients file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Public keys that backups are encrypted to: two at least, since one may be lost.
#[derive(Debug, Clone)]
pub struct Recipients {
    keys: Vec<(String, x25519::Recipient)>,
}

impl Recipients {
    /// Parses a recipients file: one `age1…` a line, `#` begins a comment. Fewer than two different ones are refused.
    pub fn parse(text: &str) -> PortResult<Self> {
        let mut seen = BTreeSet::new();
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = x25519::Recipient::from_str(line).map_err(|why| {
                PortError::new(ErrorCode::Invalid, format!("line {}: not an age recipient ({why})", number + 1))
                    .hint("a recipient looks like age1…; `age-keygen -y IDENTITY_FILE` prints it")
            })?;
            if seen.insert(key.to_string()) {
                keys.push((key.to_string(), key));
            }
        }
        if keys.len() < 2 {
            let message = format!("{} different age recipient(s), but at least two are needed", keys.len());
            return Err(PortError::new(ErrorCode::Invalid, message).hint(
                "nothing was touched; add a second recipient whose identity is kept elsewhere: with one alone, a lost \
                 file makes every backup unreadable",
            ));
        }
        Ok(Self { keys })
    }

    /// Reads a recipients file.
    pub fn load(path: &Path) -> PortResult<Self> {
        let text = read(path, "recipients")?;
        Self::parse(&text).map_err(|e| e.context(path.display()))
    }

    /// The public keys.
    pub fn names(&self) -> Vec<String> {
        self.keys.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn encryptor(&self) -> PortResult<age::Encryptor> {
        age::Encryptor::with_recipients(self.keys.iter().map(|(_, key)| key as &dyn age::Recipient))
            .map_err(|e| PortError::new(ErrorCode::Invalid, format!("encrypt to the recipients: {e}")))
    }
}

/// Secret keys that open backups.
#[derive(Clone)]
pub struct Identities {
    keys: Vec<x25519::Identity>,
    /// Where they came from, for messages.
    source: String,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identities({} from {})", self.keys.len(), self.source)
    }
}

impl Identities {
    /// Parses the text of an age identity file.
    pub fn parse(text: &str, source: &str) -> PortResult<Self> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.starts_with("-----BEGIN AGE") || line.starts_with("age-encryption.org/") {
                return Err(PortError::new(ErrorCode::Invalid, format!("{source} is itself encrypted"))
                    .hint("decrypt it first: `age -d FILE > PLAIN` into a directory in memory, and pass that"));
            }
            // The reason must not repeat the line: it may be a secret with a typing error.
            let key = x25519::Identity::from_str(line).map_err(|_| {
                PortError::new(ErrorCode::Invalid, format!("{source}: line {} is not an age identity", number + 1))
                    .hint("an identity file has lines that begin with AGE-SECRET-KEY-1; `age-keygen` makes one")
            })?;
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(PortError::new(ErrorCode::Invalid, format!("{source} holds no age identity"))
                .hint("an identity file has lines that begin with AGE-SECRET-KEY-1"));
        }
        Ok(Self { keys, source: source.to_owned() })
    }

    /// Reads an age identity file.
    pub fn load(path: &Path) -> PortResult<Self> {
        let text = zeroize::Zeroizing::new(read(path, "identity")?);
        Self::parse(&text, &path.display().to_string())
    }

    /// Loads the identity file of the command line; says what to do if none was given.
    pub fn load_given(path: Option<&Path>) -> PortResult<Self> {
        path.map_or_else(
            || {
                Err(PortError::new(ErrorCode::Unauthorized, "no age identity was given; snapshots are encrypted")
                    .hint("pass --identity FILE or set HK_DR_IDENTITY to the file that begins AGE-SECRET-KEY-1"))
            },
            Self::load,
        )
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.keys.iter().map(|key| key as &dyn age::Identity)
    }

    /// Whether one of the recipients belongs to these identities.
    pub(super) fn open_one_of(&self, recipients: &[String]) -> bool {
        self.keys.iter().any(|key| recipients.contains(&key.to_public().to_string()))
    }

    /// The error for an object that none of these identities opens.
    pub(crate) fn refused(&self, key: &str, recipients: &[String]) -> PortError {
        PortError::new(ErrorCode::Unauthorized, format!("no identity in {} opens {key}", self.source))
            .hint(format!("nothing was changed; it opens with the identity of one of: {}", recipients.join(", ")))
    }
}

fn read(path: &Path, what: &str) -> PortResult<String> {
    let failed = |e: std::io::Error| {
        let code = if e.kind() == std::io::ErrorKind::NotFound { ErrorCode::Invalid } else { ErrorCode::Local };
        PortError::new(code, format!("read the {what} file {}: {e}", path.display()))
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(PortError::new(ErrorCode::Invalid, format!("{} is too large for a {what} file", path.display())));
    }
    std::fs::read_to_string(path).map_err(failed)
}
