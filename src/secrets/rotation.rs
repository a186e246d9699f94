//! The cluster's SSH key changes in `secrets.yaml.age`: for a while the file has both, so that every command reaches every
//! server wherever the rotation was interrupted.

use std::path::Path;

use secrecy::{ExposeSecret, SecretString};

use super::{Plain, SECRETS_FILE, open, read, seal_plain, write_file};
use crate::backup::{Identities, Recipients};
use crate::ports::{ErrorCode, PortError, PortResult};

/// The new key comes first, the one servers know stays beside it. What else is in the file stays as it is.
///
/// # Errors
/// `Conflict` while an earlier rotation has not ended; as [`super::Secrets::load`].
pub fn begin(dir: &Path, identity: &Path, recipients: &Recipients, new: &SecretString) -> PortResult<()> {
    change(dir, identity, recipients, |plain| {
        if plain.ssh_previous_private_key.is_some() {
            let message = "an SSH key's rotation is under way already";
            return Err(PortError::new(ErrorCode::Conflict, message).hint("`hk-dr keys rotate ssh` continues it"));
        }
        plain.ssh_previous_private_key = plain.ssh_private_key.replace(new.expose_secret().to_owned());
        Ok(())
    })
}

/// The old key is forgotten. Does nothing where there is none.
///
/// # Errors
/// As [`super::Secrets::load`].
pub fn end(dir: &Path, identity: &Path, recipients: &Recipients) -> PortResult<()> {
    change(dir, identity, recipients, |plain| {
        zeroize::Zeroize::zeroize(&mut plain.ssh_previous_private_key);
        plain.ssh_previous_private_key = None;
        Ok(())
    })
}

/// Encrypts the file anew, to other recipients; its content stays.
///
/// # Errors
/// As [`super::Secrets::load`]; the file is then as it was.
pub fn reseal(dir: &Path, identities: &Identities, recipients: &Recipients) -> PortResult<()> {
    let path = dir.join(SECRETS_FILE);
    let plain = open(&read(&path)?, &path, identities)?;
    write_file(&path, 0o644, &seal_plain(&plain, recipients)?, true)
}

fn change(
    dir: &Path,
    identity: &Path,
    recipients: &Recipients,
    how: impl FnOnce(&mut Plain) -> PortResult<()>,
) -> PortResult<()> {
    let path = dir.join(SECRETS_FILE);
    let mut plain = open(&read(&path)?, &path, &Identities::load(identity)?)?;
    how(&mut plain)?;
    write_file(&path, 0o644, &seal_plain(&plain, recipients)?, true)
}

#[cfg(test)]
mod tests {
    use super::super::{Overrides, Secrets, seal};
    use super::*;

    #[test]
    fn both_keys_are_at_hand_until_the_rotation_ends_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let identity = age::x25519::Identity::generate();
        let other = age::x25519::Identity::generate();
        let path = dir.path().join("identity");
        write_file(&path, 0o600, identity.to_string().expose_secret().as_bytes(), false).unwrap();
        let recipients = Recipients::parse(&format!("{}\n{}\n", identity.to_public(), other.to_public())).unwrap();
        let values = Overrides { cloud_token: Some("token".to_owned().into()), ..Overrides::default() };
        let sealed = seal(&values, &"old".to_owned().into(), &recipients).unwrap();
        write_file(&dir.path().join(SECRETS_FILE), 0o644, &sealed, false).unwrap();
        // What the environment says is of this command only, and must not get into the file.
        let elsewhere = || Overrides { s3_access_key: Some("mine".to_owned().into()), ..Overrides::default() };
        let keys = || {
            let secrets = Secrets::load(dir.path(), Some(&path), elsewhere()).unwrap();
            let keys = secrets.ssh_private_keys().unwrap();
            keys.into_iter().map(|k| k.expose_secret().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(keys(), ["old"]);
        begin(dir.path(), &path, &recipients, &"new".to_owned().into()).unwrap();
        assert_eq!(keys(), ["new", "old"]);
        let again = begin(dir.path(), &path, &recipients, &"third".to_owned().into()).unwrap_err();
        assert_eq!(again.code, ErrorCode::Conflict);
        assert_eq!(keys(), ["new", "old"], "the key that servers know is never lost");
        for _ in 0..2 {
            end(dir.path(), &path, &recipients).unwrap();
            assert_eq!(keys(), ["new"]);
        }
        let secrets = Secrets::load(dir.path(), Some(&path), Overrides::default()).unwrap();
        assert_eq!(secrets.cloud_token().unwrap().expose_secret(), "token");
        assert!(secrets.s3_access_key().is_err());
    }
}
