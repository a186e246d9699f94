//! Who can open backups: recipients and identities of age, its plugins among them.

mod ask;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use age::x25519;

pub use ask::{Ask, ask_with};
use ask::{Asked, unlock};

use crate::ports::{ErrorCode, PortError, PortResult};

/// Largest identity or recipients file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Anything that encrypts or decrypts; shared, as threads that seal and open have their own copies.
type AnyRecipient = Arc<dyn age::Recipient + Send + Sync>;
type AnyIdentity = Arc<dyn age::Identity + Send + Sync>;

/// Public keys that backups are encrypted to: two at least, since one may be lost.
#[derive(Clone)]
pub struct Recipients {
    keys: Vec<(String, AnyRecipient)>,
}

impl std::fmt::Debug for Recipients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(name, _)| name)).finish()
    }
}

impl Recipients {
    /// Parses a recipients file: one `age1…` a line, `#` begins a comment. Fewer than two different ones are refused.
    pub fn parse(text: &str) -> PortResult<Self> {
        let mut keys: Vec<(String, AnyRecipient)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, key) = recipient(line).map_err(|e| e.context(format!("line {}", number + 1)))?;
            if !keys.iter().any(|(known, _)| *known == name) {
                keys.push((name, key));
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
        age::Encryptor::with_recipients(self.keys.iter().map(|(_, key)| key.as_ref() as &dyn age::Recipient))
            .map_err(|e| PortError::new(ErrorCode::Invalid, format!("encrypt to the recipients: {e}")))
    }
}

/// One line of a recipients file: a key of age's own, or one that a plugin on this machine knows (`age1NAME1…`).
fn recipient(line: &str) -> PortResult<(String, AnyRecipient)> {
    let wrong = match x25519::Recipient::from_str(line) {
        Ok(key) => return Ok((key.to_string(), Arc::new(key))),
        Err(wrong) => wrong,
    };
    let Ok(key) = age::plugin::Recipient::from_str(line) else {
        return Err(PortError::new(ErrorCode::Invalid, format!("not an age recipient ({wrong})"))
            .hint("a recipient looks like age1…; `age-keygen -y IDENTITY_FILE` prints it"));
    };
    let plugin = age::plugin::RecipientPluginV1::new(key.plugin(), std::slice::from_ref(&key), &[], Asked);
    let plugin = plugin.map_err(|_| no_plugin(key.plugin()))?;
    Ok((key.to_string(), Arc::new(plugin)))
}

fn no_plugin(name: &str) -> PortError {
    PortError::new(ErrorCode::Invalid, format!("age-plugin-{name} is not on this machine, and a key needs it"))
        .hint(format!("nothing was touched; install age-plugin-{name} where PATH finds it, or use another key"))
}

/// Secret keys that open backups.
#[derive(Clone)]
pub struct Identities {
    keys: Vec<AnyIdentity>,
    /// Public halves, as far as they are known: those of plugins are not.
    public: Vec<String>,
    /// Where they came from, for messages.
    source: String,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identities({} from {})", self.keys.len(), self.source)
    }
}

/// Whether the text of an identity file is itself encrypted.
fn is_sealed(text: &[u8]) -> bool {
    text.starts_with(b"-----BEGIN AGE") || text.starts_with(b"age-encryption.org/")
}

impl Identities {
    /// Parses the text of an age identity file.
    pub fn parse(text: &str, source: &str) -> PortResult<Self> {
        let mut found = Self { keys: Vec::new(), public: Vec::new(), source: source.to_owned() };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Ok(key) = x25519::Identity::from_str(line) {
                found.public.push(key.to_public().to_string());
                found.keys.push(Arc::new(key));
            } else if let Ok(key) = age::plugin::Identity::from_str(line) {
                let plugin = age::plugin::IdentityPluginV1::new(key.plugin(), std::slice::from_ref(&key), Asked);
                found.keys.push(Arc::new(plugin.map_err(|_| no_plugin(key.plugin()))?));
            } else {
                // The reason must not repeat the line: it may be a secret with a typing error.
                let message = format!("{source}: line {} is not an age identity", number + 1);
                return Err(PortError::new(ErrorCode::Invalid, message).hint(
                    "an identity file has lines that begin with AGE-SECRET-KEY-1 or AGE-PLUGIN-; `age-keygen` makes one",
                ));
            }
        }
        if found.keys.is_empty() {
            return Err(PortError::new(ErrorCode::Invalid, format!("{source} holds no age identity"))
                .hint("an identity file has lines that begin with AGE-SECRET-KEY-1"));
        }
        Ok(found)
    }

    /// Reads an age identity file. One that is protected with a passphrase (`age -p`) is opened with what [`ask_with`]
    /// gives, once in this process.
    pub fn load(path: &Path) -> PortResult<Self> {
        let bytes = zeroize::Zeroizing::new(read_bytes(path, "identity")?);
        let source = path.display().to_string();
        if is_sealed(&bytes) {
            return unlock(&bytes, &source);
        }
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| PortError::new(ErrorCode::Invalid, format!("{source} is not text, so no identity file")))?;
        Self::parse(text, &source)
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
        self.keys.iter().map(|key| key.as_ref() as &dyn age::Identity)
    }

    /// Whether one of the recipients belongs to these identities, as far as their public halves are known.
    pub fn open_one_of(&self, recipients: &[String]) -> bool {
        self.public.iter().any(|key| recipients.contains(key))
    }

    /// The error for an object that none of these identities opens.
    pub(crate) fn refused(&self, key: &str, recipients: &[String]) -> PortError {
        PortError::new(ErrorCode::Unauthorized, format!("no identity in {} opens {key}", self.source))
            .hint(format!("nothing was changed; it opens with the identity of one of: {}", recipients.join(", ")))
    }
}

fn read(path: &Path, what: &str) -> PortResult<String> {
    String::from_utf8(read_bytes(path, what)?)
        .map_err(|_| PortError::new(ErrorCode::Invalid, format!("{} is not text, so no {what} file", path.display())))
}

fn read_bytes(path: &Path, what: &str) -> PortResult<Vec<u8>> {
    let failed = |e: std::io::Error| {
        let code = if e.kind() == std::io::ErrorKind::NotFound { ErrorCode::Invalid } else { ErrorCode::Local };
        PortError::new(code, format!("read the {what} file {}: {e}", path.display()))
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(PortError::new(ErrorCode::Invalid, format!("{} is too large for a {what} file", path.display())));
    }
    std::fs::read(path).map_err(failed)
}
