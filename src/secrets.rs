//! What Git needs but must not show: `secrets.yaml.age`, beside cluster.yaml, encrypted to the team's recipients.
//! Nothing here reads the environment: what it says comes in as [`Overrides`] and wins over the file.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::backup::{Identities, Recipients};
use crate::ports::{ErrorCode, PortError, PortResult};
use crate::sign::SigningKey;

pub mod rotation;

/// The file's name in the Git directory.
pub const SECRETS_FILE: &str = "secrets.yaml.age";
/// Largest file that is read, in bytes; a real one has two thousand.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the environment says. Each value that is there wins over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `HCLOUD_TOKEN`
    pub cloud_token: Option<SecretString>,
    /// `HCLOUD_ENDPOINT`
    pub cloud_endpoint: Option<String>,
    /// `AWS_ACCESS_KEY_ID`
    pub s3_access_key: Option<SecretString>,
    /// `AWS_SECRET_ACCESS_KEY`
    pub s3_secret_key: Option<SecretString>,
    /// `AWS_ENDPOINT_URL`
    pub s3_endpoint: Option<String>,
}

/// The team's secrets, as far as they are known. What is missing is an error only when it is asked for: listing
/// snapshots needs no SSH key.
#[derive(Clone)]
pub struct Secrets {
    values: Overrides,
    ssh_private_key: Option<SecretString>,
    signing_key: Option<SecretString>,
    /// The key that servers knew before, until its rotation has ended.
    ssh_previous_private_key: Option<SecretString>,
    /// Access key and secret key of further buckets, by the copy's name.
    copies: std::collections::BTreeMap<String, (SecretString, SecretString)>,
    /// Why the file could not add anything.
    absent: Option<PortError>,
    /// What a person should know and nothing depends on.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(…)")
    }
}

/// The plain text of the file.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plain {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hcloud_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hcloud_endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s3_access_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s3_secret_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s3_endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ssh_private_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signing_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ssh_previous_private_key: Option<String>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    copies: std::collections::BTreeMap<String, PlainCopy>,
}

/// The credential of a further bucket.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PlainCopy {
    s3_access_key: String,
    s3_secret_key: String,
}

impl Drop for PlainCopy {
    fn drop(&mut self) {
        self.s3_access_key.zeroize();
        self.s3_secret_key.zeroize();
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        for value in [
            &mut self.hcloud_token,
            &mut self.s3_access_key,
            &mut self.s3_secret_key,
            &mut self.ssh_private_key,
            &mut self.signing_key,
            &mut self.ssh_previous_private_key,
        ] {
            value.zeroize();
        }
    }
}

impl Secrets {
    /// Reads `secrets.yaml.age` in `dir` with the identity, and lets the overrides win.
    ///
    /// # Errors
    /// `Unauthorized` if the identity does not open the file, `Corrupt` if the file is damaged, `Invalid` if its content
    /// or the identity file has not the right form. A missing file or identity is no error yet: see [`Self::cloud_token`].
    pub fn load(dir: &Path, identity: Option<&Path>, overrides: Overrides) -> PortResult<Self> {
        let path = dir.join(SECRETS_FILE);
        let mut secrets = Self {
            values: overrides,
            ssh_private_key: None,
            ssh_previous_private_key: None,
            signing_key: None,
            copies: Default::default(),
            absent: None,
            warnings: Vec::new(),
        };
        let sealed = match read(&path) {
            Ok(sealed) => sealed,
            Err(error) if error.code == ErrorCode::NotFound => {
                secrets.absent = Some(error);
                return Ok(secrets);
            }
            Err(error) => return Err(error),
        };
        let Some(identity) = identity else {
            let message = format!("{} is encrypted, and no age identity was given", path.display());
            secrets.absent = Some(
                PortError::new(ErrorCode::Unauthorized, message)
                    .hint("pass --identity FILE, or set HK_DR_IDENTITY to the file that begins AGE-SECRET-KEY-1"),
            );
            return Ok(secrets);
        };
        secrets.warnings.extend(permission_warning(identity));
        let identities = Identities::load(identity)?;
        let plain = open(&sealed, &path, &identities)?;
        secrets.fill(&plain);
        Ok(secrets)
    }

    fn fill(&mut self, plain: &Plain) {
        let secret = |text: &Option<String>| text.clone().map(SecretString::from);
        let values = &mut self.values;
        values.cloud_token = values.cloud_token.take().or_else(|| secret(&plain.hcloud_token));
        values.cloud_endpoint = values.cloud_endpoint.take().or_else(|| plain.hcloud_endpoint.clone());
        values.s3_access_key = values.s3_access_key.take().or_else(|| secret(&plain.s3_access_key));
        values.s3_secret_key = values.s3_secret_key.take().or_else(|| secret(&plain.s3_secret_key));
        values.s3_endpoint = values.s3_endpoint.take().or_else(|| plain.s3_endpoint.clone());
        self.ssh_private_key = secret(&plain.ssh_private_key);
        self.ssh_previous_private_key = secret(&plain.ssh_previous_private_key);
        self.signing_key = secret(&plain.signing_key);
        let pair = |copy: &PlainCopy| (copy.s3_access_key.clone().into(), copy.s3_secret_key.clone().into());
        self.copies = plain.copies.iter().map(|(name, copy)| (name.clone(), pair(copy))).collect();
    }

    /// Access key and secret key of a further bucket.
    ///
    /// # Errors
    /// Says how they get into the file.
    pub fn copy_keys(&self, name: &str) -> PortResult<(&SecretString, &SecretString)> {
        let pair = self.copies.get(name).map(|(access, secret)| (access, secret));
        if pair.is_none()
            && let Some(absent) = &self.absent
        {
            return Err(absent.clone().context(format!("the credential of copy {name} is not known")));
        }
        pair.ok_or_else(|| {
            let message = format!("the credential of copy {name} is not known: {SECRETS_FILE} has none");
            PortError::new(ErrorCode::Unauthorized, message).hint(format!(
                "nothing was touched; with its keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: hk-dr keys bucket {name}"
            ))
        })
    }

    /// The key that signs backups and evidence, if there is one and the file could be opened.
    ///
    /// # Errors
    /// It is there and has not the right form.
    pub fn signing_key(&self) -> PortResult<Option<SigningKey>> {
        self.signing_key.as_ref().map(SigningKey::parse).transpose()
    }

    /// The cloud's API token.
    ///
    /// # Errors
    /// Says where it could have come from.
    pub fn cloud_token(&self) -> PortResult<&SecretString> {
        self.wanted(self.values.cloud_token.as_ref(), "the cloud's API token", "hcloudToken", Some("HCLOUD_TOKEN"))
    }

    /// The cloud API's address, if it is not Hetzner's own.
    pub fn cloud_endpoint(&self) -> Option<&str> {
        self.values.cloud_endpoint.as_deref()
    }

    /// The bucket's access key.
    ///
    /// # Errors
    /// Says where it could have come from.
    pub fn s3_access_key(&self) -> PortResult<&SecretString> {
        let key = self.values.s3_access_key.as_ref();
        self.wanted(key, "the bucket's access key", "s3AccessKey", Some("AWS_ACCESS_KEY_ID"))
    }

    /// The bucket's secret key.
    ///
    /// # Errors
    /// Says where it could have come from.
    pub fn s3_secret_key(&self) -> PortResult<&SecretString> {
        let key = self.values.s3_secret_key.as_ref();
        self.wanted(key, "the bucket's secret key", "s3SecretKey", Some("AWS_SECRET_ACCESS_KEY"))
    }

    /// The bucket's endpoint, where it differs from the one in cluster.yaml.
    pub fn s3_endpoint(&self) -> Option<&str> {
        self.values.s3_endpoint.as_deref()
    }

    /// The cluster's private SSH key in OpenSSH's form.
    ///
    /// # Errors
    /// Says where it could have come from.
    pub fn ssh_private_key(&self) -> PortResult<&SecretString> {
        self.wanted(self.ssh_private_key.as_ref(), "the cluster's SSH key", "sshPrivateKey", None)
    }

    /// The key whose place that one takes, while a rotation is under way.
    pub fn ssh_previous_private_key(&self) -> Option<&SecretString> {
        self.ssh_previous_private_key.as_ref()
    }

    /// All keys that a server may accept, the newest first.
    ///
    /// # Errors
    /// As [`Self::ssh_private_key`].
    pub fn ssh_private_keys(&self) -> PortResult<Vec<&SecretString>> {
        Ok([self.ssh_private_key()?].into_iter().chain(self.ssh_previous_private_key()).collect())
    }

    fn wanted<'a>(
        &self,
        value: Option<&'a SecretString>,
        what: &str,
        field: &str,
        variable: Option<&str>,
    ) -> PortResult<&'a SecretString> {
        if let Some(value) = value {
            return Ok(value);
        }
        if let Some(absent) = &self.absent {
            return Err(absent.clone().context(format!("{what} is not known")));
        }
        let hint = variable.map_or(String::new(), |variable| format!(", or set {variable}"));
        let message = format!("{what} is not known: {SECRETS_FILE} has no {field}");
        Err(PortError::new(ErrorCode::Unauthorized, message)
            .hint(format!("nothing was touched; make the file anew with `hk-dr keys init`{hint}")))
    }
}

/// Encrypts secrets to all recipients, as ASCII-armoured age: Git shows text, and `age -d` opens it.
///
/// # Errors
/// Only if encryption itself fails.
pub fn seal(values: &Overrides, ssh_private_key: &SecretString, recipients: &Recipients) -> PortResult<Vec<u8>> {
    let exposed = |secret: &Option<SecretString>| secret.as_ref().map(|s| s.expose_secret().to_owned());
    let plain = Plain {
        hcloud_token: exposed(&values.cloud_token),
        hcloud_endpoint: values.cloud_endpoint.clone(),
        s3_access_key: exposed(&values.s3_access_key),
        s3_secret_key: exposed(&values.s3_secret_key),
        s3_endpoint: values.s3_endpoint.clone(),
        ssh_private_key: Some(ssh_private_key.expose_secret().to_owned()),
        signing_key: None,
        ssh_previous_private_key: None,
        copies: Default::default(),
    };
    seal_plain(&plain, recipients)
}

/// Puts a signing key into `secrets.yaml.age` in `dir`, in place of the one it has, and encrypts it anew to `recipients`.
/// What the environment says is left out of it.
///
/// # Errors
/// As [`Secrets::load`]; the file is then as it was.
pub fn keep_signing_key(
    dir: &Path,
    identities: &Identities,
    recipients: &Recipients,
    key: &SigningKey,
) -> PortResult<()> {
    let path = dir.join(SECRETS_FILE);
    let mut plain = open(&read(&path)?, &path, identities)?;
    plain.signing_key.zeroize();
    plain.signing_key = Some(key.to_text()?.expose_secret().to_owned());
    write_file(&path, 0o644, &seal_plain(&plain, recipients)?, true)
}

/// Puts the credential of a further bucket into `secrets.yaml.age` in `dir`, and encrypts it anew to `recipients`.
///
/// # Errors
/// As [`keep_signing_key`].
pub fn keep_copy_keys(
    dir: &Path,
    identities: &Identities,
    recipients: &Recipients,
    name: &str,
    (access, secret): (&SecretString, &SecretString),
) -> PortResult<()> {
    let path = dir.join(SECRETS_FILE);
    let mut plain = open(&read(&path)?, &path, identities)?;
    let (s3_access_key, s3_secret_key) = (access.expose_secret().to_owned(), secret.expose_secret().to_owned());
    plain.copies.insert(name.to_owned(), PlainCopy { s3_access_key, s3_secret_key });
    write_file(&path, 0o644, &seal_plain(&plain, recipients)?, true)
}

fn seal_plain(plain: &Plain, recipients: &Recipients) -> PortResult<Vec<u8>> {
    let failed =
        |e: &dyn std::fmt::Display| PortError::new(ErrorCode::Local, format!("cannot encrypt the secrets: {e}"));
    let text = Zeroizing::new(serde_saphyr::to_string(plain).map_err(|e| failed(&e))?);
    let armor =
        age::armor::ArmoredWriter::wrap_output(Vec::new(), age::armor::Format::AsciiArmor).map_err(|e| failed(&e))?;
    let mut writer = recipients.encryptor()?.wrap_output(armor).map_err(|e| failed(&e))?;
    writer.write_all(text.as_bytes()).map_err(|e| failed(&e))?;
    writer.finish().and_then(age::armor::ArmoredWriter::finish).map_err(|e| failed(&e))
}

fn open(sealed: &[u8], path: &Path, identities: &Identities) -> PortResult<Plain> {
    let damaged = |e: &dyn std::fmt::Display| {
        PortError::new(ErrorCode::Corrupt, format!("{} is damaged: {e}", path.display()))
            .hint("nothing was touched; take the file from an earlier commit: `git log -- secrets.yaml.age`")
    };
    let decryptor = age::Decryptor::new_buffered(age::armor::ArmoredReader::new(sealed)).map_err(|e| damaged(&e))?;
    let mut reader = decryptor.decrypt(identities.keys()).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys => identities.refused(&path.display().to_string(), &recipients_beside(path)),
        other => damaged(&other),
    })?;
    let mut text = Zeroizing::new(String::new());
    reader.read_to_string(&mut text).map_err(|e| damaged(&e))?;
    // The reader's message quotes what it read: only the place is told.
    serde_saphyr::from_str(&text).map_err(|e| {
        let line = e.location().map_or(String::new(), |at| format!(" (line {})", at.line()));
        PortError::new(ErrorCode::Invalid, format!("the content of {} has not the right form{line}", path.display()))
            .hint("its fields: hcloudToken, hcloudEndpoint, s3AccessKey, s3SecretKey, s3Endpoint, sshPrivateKey, sshPreviousPrivateKey, signingKey")
    })
}

/// Whom the file is encrypted for, as far as Git says: age itself does not write it down.
fn recipients_beside(path: &Path) -> Vec<String> {
    let file = path.with_file_name("recipients.txt");
    let recipients = Recipients::load(&file).map(|r| r.names()).unwrap_or_default();
    if recipients.is_empty() { vec!["(no readable recipients.txt beside it)".into()] } else { recipients }
}

fn read(path: &Path) -> PortResult<Vec<u8>> {
    let failed = |e: std::io::Error| {
        if e.kind() == std::io::ErrorKind::NotFound {
            PortError::new(ErrorCode::NotFound, format!("there is no {}", path.display()))
                .hint("`hk-dr keys init` makes it; if this is not the Git directory, name that with -C DIR")
        } else {
            PortError::new(ErrorCode::Local, format!("cannot read {}: {e}", path.display()))
        }
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(PortError::new(ErrorCode::Invalid, format!("{} is larger than 1 MiB", path.display())));
    }
    Ok(bytes)
}

fn permission_warning(identity: &Path) -> Option<String> {
    let mode = std::fs::metadata(identity).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        let shown = identity.display();
        format!("{shown} opens every backup, and others on this machine can read it (mode {mode:o}): chmod 600 {shown}")
    })
}

/// Writes a file that appears whole or not at all. An existing one is kept unless `replace`.
///
/// # Errors
/// `Conflict` if the file exists and may not be replaced.
pub fn write_file(path: &Path, mode: u32, content: &[u8], replace: bool) -> PortResult<()> {
    let failed =
        |e: &dyn std::fmt::Display| PortError::new(ErrorCode::Local, format!("cannot write {}: {e}", path.display()));
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let mut file = tempfile::Builder::new()
        .prefix(".hk-dr-")
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(&dir)
        .map_err(|e| failed(&e))?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(|e| failed(&e))?;
    if replace {
        file.persist(path).map_err(|e| failed(&e.error))?;
    } else {
        file.persist_noclobber(path).map_err(|e| {
            if e.error.kind() == std::io::ErrorKind::AlreadyExists {
                PortError::new(ErrorCode::Conflict, format!("{} exists already and was not touched", path.display()))
            } else {
                failed(&e.error)
            }
        })?;
    }
    std::fs::File::open(&dir).and_then(|dir| dir.sync_all()).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests;
