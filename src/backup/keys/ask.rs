//! What only a person can say while a key is used: the passphrase of an identity file, a plugin's PIN.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Mutex, OnceLock, PoisonError};

use age::secrecy::SecretString;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{FILE_BYTES_MAX, Identities};
use crate::ports::{ErrorCode, PortError, PortResult};

/// Work that scrypt may cost, as a power of two: 16 times that of `age -p`, seconds and 4 GiB at most.
const WORK_MAX: u8 = 22;

/// Asks a person, or whatever stands in for one.
pub trait Ask: Send + Sync {
    /// Something a person should know or do, such as touching a key.
    fn say(&self, message: &str);
    /// None: there is nobody to ask.
    fn confirm(&self, question: &str) -> Option<bool>;
    /// What may be seen while it is typed.
    fn line(&self, what: &str) -> Option<String>;
    /// What may not.
    fn passphrase(&self, what: &str) -> Option<SecretString>;
}

/// There is one terminal in a process, and one person at it.
static ASK: OnceLock<Box<dyn Ask>> = OnceLock::new();

/// Identity files that were opened, by the digest of what they hold: a command reads its identity several times, and nobody
/// should type as often, or wait for scrypt.
static OPENED: Mutex<Option<HashMap<[u8; 32], Identities>>> = Mutex::new(None);

/// Says who is asked from now on. Without this, nobody is; a second call changes nothing.
pub fn ask_with(ask: Box<dyn Ask>) {
    drop(ASK.set(ask));
}

/// The callbacks of age's plugins.
#[derive(Clone, Copy)]
pub(super) struct Asked;

impl age::Callbacks for Asked {
    fn display_message(&self, message: &str) {
        if let Some(ask) = ASK.get() {
            ask.say(message);
        }
    }

    fn confirm(&self, message: &str, yes: &str, no: Option<&str>) -> Option<bool> {
        ASK.get()?.confirm(&format!("{message} (yes: {yes}; no: {})", no.unwrap_or("no")))
    }

    fn request_public_string(&self, description: &str) -> Option<String> {
        ASK.get()?.line(description)
    }

    fn request_passphrase(&self, description: &str) -> Option<SecretString> {
        ASK.get()?.passphrase(description)
    }
}

/// Opens an identity file that is protected with a passphrase.
pub(super) fn unlock(sealed: &[u8], source: &str) -> PortResult<Identities> {
    let digest: [u8; 32] = Sha256::digest(sealed).into();
    let known =
        OPENED.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|all| all.get(&digest).cloned());
    if let Some(known) = known {
        return Ok(known);
    }
    let asked = ASK.get().and_then(|ask| ask.passphrase(&format!("Passphrase of {source}")));
    let passphrase = asked.ok_or_else(|| {
        PortError::new(ErrorCode::Unauthorized, format!("{source} is protected with a passphrase, and nobody gave it"))
            .hint("nothing was touched; run this at a terminal, or pass --passphrase-file FILE (or HK_DR_PASSPHRASE_FILE)")
    })?;
    let opened = open(sealed, source, passphrase)?;
    OPENED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(digest, opened.clone());
    Ok(opened)
}

fn open(sealed: &[u8], source: &str, passphrase: SecretString) -> PortResult<Identities> {
    let damaged = |e: &dyn std::fmt::Display| {
        PortError::new(ErrorCode::Invalid, format!("{source} cannot be opened: {e}"))
            .hint("nothing was touched; it must be an identity file that `age -p` encrypted")
    };
    let decryptor = age::Decryptor::new_buffered(age::armor::ArmoredReader::new(sealed)).map_err(|e| damaged(&e))?;
    if !decryptor.is_scrypt() {
        return Err(PortError::new(
            ErrorCode::Invalid,
            format!("{source} is encrypted to a key, not with a passphrase"),
        )
        .hint("nothing was touched; decrypt it into a directory in memory (`age -d -i KEY FILE`) and pass that"));
    }
    let mut key = age::scrypt::Identity::new(passphrase);
    key.set_max_work_factor(WORK_MAX);
    let reader = decryptor.decrypt(std::iter::once(&key as &dyn age::Identity)).map_err(|e| match e {
        age::DecryptError::DecryptionFailed | age::DecryptError::KeyDecryptionFailed => {
            PortError::new(ErrorCode::Unauthorized, format!("the passphrase does not open {source}"))
                .hint("nothing was touched; try again")
        }
        other => damaged(&other),
    })?;
    let mut text = Zeroizing::new(String::new());
    reader.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|e| damaged(&e))?;
    Identities::parse(&text, source)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn passphrase(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    /// As `age -p`, with less work.
    fn sealed(plain: &str) -> Vec<u8> {
        let mut key = age::scrypt::Recipient::new(passphrase("correct horse"));
        key.set_work_factor(2);
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&key as &dyn age::Recipient)).unwrap();
        let mut writer = encryptor.wrap_output(Vec::new()).unwrap();
        writer.write_all(plain.as_bytes()).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn the_right_passphrase_opens_and_another_one_is_told_so() {
        use age::secrecy::ExposeSecret;
        let identity = age::x25519::Identity::generate();
        let file = sealed(&format!("# mine\n{}\n", identity.to_string().expose_secret()));
        let opened = open(&file, "mine.age", passphrase("correct horse")).unwrap();
        assert!(opened.open_one_of(&[identity.to_public().to_string()]));
        let wrong = open(&file, "mine.age", passphrase("battery staple")).unwrap_err();
        assert_eq!(wrong.code, ErrorCode::Unauthorized, "{wrong}");
        let no_identity = open(&sealed("hello"), "mine.age", passphrase("correct horse")).unwrap_err();
        assert!(no_identity.code == ErrorCode::Invalid && !no_identity.message.contains("hello"), "{no_identity}");
        let cut = open(&file[..file.len() - 3], "mine.age", passphrase("correct horse")).unwrap_err();
        assert_eq!(cut.code, ErrorCode::Invalid, "{cut}");
        // Nobody is there to ask in tests.
        let nobody = unlock(&file, "mine.age").unwrap_err();
        assert!(nobody.hint.unwrap().contains("--passphrase-file"));
    }
}
