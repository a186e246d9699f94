use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{HashAlg, PrivateKey, PublicKey};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::ports::{ErrorCode, PortError, PortResult};

/// An Ed25519 key pair in OpenSSH's forms.
#[derive(Clone)]
pub struct KeyPair {
    /// The unencrypted private key as PEM (`-----BEGIN OPENSSH PRIVATE KEY-----`), with a newline at its end.
    pub private: SecretString,
    /// `ssh-ed25519 AAAA…`, without comment.
    pub public: String,
    /// SHA-256 fingerprint in the form [`crate::ports::Host`] wants: base64 without padding and without `SHA256:`.
    pub fingerprint: String,
}

/// Makes a new Ed25519 key pair, for logging in or as a machine's host key.
pub fn keypair() -> PortResult<KeyPair> {
    let mut seed = Zeroizing::new([0u8; 32]);
    rand::fill(&mut seed[..]);
    let pair = Ed25519Keypair::from_seed(&seed);
    let private = PrivateKey::new(KeypairData::from(pair), "").map_err(|e| invalid("make an SSH key", &e))?;
    let pem = private.to_openssh(LineEnding::LF).map_err(|e| invalid("write an SSH key", &e))?;
    let public = private.public_key().to_openssh().map_err(|e| invalid("write an SSH key", &e))?;
    Ok(KeyPair {
        fingerprint: of_key(private.public_key()),
        public: public.trim_end().to_owned(),
        private: SecretString::from(pem.as_str()),
    })
}

/// The SHA-256 fingerprint of a public key in OpenSSH's form: base64 without padding, as `ssh-keygen -l` prints it behind
/// `SHA256:`.
pub fn fingerprint(public_key: &str) -> PortResult<String> {
    let key = PublicKey::from_openssh(public_key.trim()).map_err(|e| invalid("read an SSH public key", &e))?;
    Ok(of_key(&key))
}

/// The public part of a private key, in OpenSSH's form without comment.
pub fn public_key(private: &SecretString) -> PortResult<String> {
    let public = private_key(private)?.public_key().to_openssh().map_err(|e| invalid("write an SSH key", &e))?;
    Ok(public.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

pub(super) fn of_key(key: &PublicKey) -> String {
    let shown = key.fingerprint(HashAlg::Sha256).to_string();
    shown.strip_prefix("SHA256:").unwrap_or(&shown).to_owned()
}

pub(super) fn private_key(openssh: &SecretString) -> PortResult<PrivateKey> {
    let key = PrivateKey::from_openssh(openssh.expose_secret()).map_err(|e| {
        invalid("read the cluster's SSH private key", &e).hint(
            "it must be an unencrypted Ed25519 key in OpenSSH's format, as `ssh-keygen -t ed25519 -N ''` makes it",
        )
    })?;
    if key.is_encrypted() {
        return Err(PortError::new(ErrorCode::Invalid, "the cluster's SSH private key is protected by a passphrase")
            .hint("store it without one: it lies in secrets.yaml.age, which is encrypted already"));
    }
    Ok(key)
}

fn invalid(doing: &str, error: &dyn std::fmt::Display) -> PortError {
    PortError::new(ErrorCode::Invalid, format!("could not {doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_reads_back_and_its_fingerprint_is_the_public_keys() {
        let pair = keypair().unwrap();
        let read = private_key(&pair.private).unwrap();
        assert_eq!(read.public_key().to_openssh().unwrap().trim_end(), pair.public);
        assert_eq!(fingerprint(&pair.public).unwrap(), pair.fingerprint);
        assert_eq!(pair.fingerprint.len(), 43);
        assert_ne!(keypair().unwrap().public, pair.public);
    }

    #[test]
    fn fingerprint_is_the_one_that_ssh_keygen_prints() {
        let public = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKWJXX+CsmFG5UMyZKDICSyPzfPT1Ihp+Fl/ROKA/Czq comment";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pub");
        std::fs::write(&file, public).unwrap();
        let shown = std::process::Command::new("ssh-keygen").arg("-lf").arg(&file).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&format!("SHA256:{} ", fingerprint(public).unwrap())), "{shown}");
    }

    #[test]
    fn what_is_no_key_is_refused_with_a_hint() {
        let error = private_key(&SecretString::from("not a key")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
        assert!(error.hint.is_some());
    }
}
