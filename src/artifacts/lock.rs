use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::ports::{ErrorCode, PortError, PortResult};

const EMBEDDED: &str = include_str!("../../artifacts.lock");

/// What `artifacts.lock` pins.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    format: u32,
    /// The toolchain that the digests of builds hold for.
    pub toolchain: Toolchain,
    /// In the order of the file.
    #[serde(rename = "artifact")]
    pub artifacts: Vec<Artifact>,
}

/// A Go toolchain and the platform it builds for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Toolchain {
    /// As `go env GOVERSION` prints it.
    pub go: String,
    /// `<os>/<architecture>`, in Go's words.
    pub platform: String,
}

/// One pinned file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    pub name: String,
    pub version: String,
    #[serde(default)]
    pub kind: Kind,
    /// Obtained only when a cluster declares it, not with all the others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_demand: bool,
    /// The project's official archive.
    pub release: Option<Release>,
    /// How it is built.
    pub go: GoBuild,
}

/// What the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One statically linked executable.
    #[default]
    Executable,
    /// An OCI image layout in a tar file.
    Images,
}

/// An official archive or file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub url: String,
    /// Path of the file inside the `.tar.gz` behind the URL; none if the URL is the file itself.
    pub member: Option<String>,
    /// Digest of what is behind the URL; without it the source is not used.
    pub sha256: Option<String>,
}

/// A build from one of the embedded wrapper modules.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct GoBuild {
    /// Folder below `tools/go`.
    pub module: String,
    /// Import path of the command.
    pub package: String,
    /// Packages that Kubernetes' version is stamped into.
    #[serde(default)]
    pub stamp: Vec<String>,
    /// Digest of the result with the pinned toolchain; without it go.sum alone vouches for it.
    pub sha256: Option<String>,
}

impl Lock {
    /// The lock that this binary was built with.
    pub fn embedded() -> Self {
        Self::parse(EMBEDDED).expect("the embedded artifacts.lock is checked by a test")
    }

    /// Reads a lock.
    ///
    /// # Errors
    /// `Invalid` if it is not TOML of this format, a name occurs twice, or a digest is not 64 lower-case hex digits.
    pub fn parse(text: &str) -> PortResult<Self> {
        let invalid = |message: String| PortError::new(ErrorCode::Invalid, format!("artifacts.lock: {message}"));
        let lock: Self = toml::from_str(text).map_err(|e| invalid(e.to_string()))?;
        if lock.format != 1 {
            return Err(invalid(format!("format {} is not known to this version of hk-dr", lock.format)));
        }
        for (index, artifact) in lock.artifacts.iter().enumerate() {
            if lock.artifacts[..index].iter().any(|other| other.file_name() == artifact.file_name()) {
                return Err(invalid(format!("{} is listed twice", artifact.file_name())));
            }
            // Both become a file's name.
            if [&artifact.name, &artifact.version].iter().any(|part| part.is_empty() || part.contains(['/', '\0'])) {
                return Err(invalid(format!("{:?} cannot be a file's name", artifact.file_name())));
            }
            let digests = [artifact.go.sha256.as_ref(), artifact.release.as_ref().and_then(|r| r.sha256.as_ref())];
            for digest in digests.into_iter().flatten() {
                if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                    return Err(invalid(format!("{}: {digest:?} is not a SHA-256 in hex", artifact.name)));
                }
            }
        }
        Ok(lock)
    }

    /// The artifact of this name and version.
    ///
    /// # Errors
    /// `NotFound`, with the versions there are.
    pub fn get(&self, name: &str, version: &str) -> PortResult<&Artifact> {
        self.artifacts.iter().find(|a| a.name == name && a.version == version).ok_or_else(|| {
            let known: Vec<_> = self.artifacts.iter().filter(|a| a.name == name).map(|a| a.version.as_str()).collect();
            let error = PortError::new(
                ErrorCode::NotFound,
                format!("{name} {version} is not pinned in this hk-dr's artifacts.lock"),
            );
            if known.is_empty() {
                error.hint("`hk-dr artifacts list` shows what is pinned")
            } else {
                error.hint(format!("pinned of {name}: {}", known.join(", ")))
            }
        })
    }

    /// The artifact of this name, for names that occur once, those obtained on demand aside.
    ///
    /// # Errors
    /// `NotFound` if there is none or more than one.
    pub fn by_name(&self, name: &str) -> PortResult<&Artifact> {
        let mut matching = self.artifacts.iter().filter(|a| a.name == name && !a.on_demand);
        match (matching.next(), matching.next()) {
            (Some(artifact), None) => Ok(artifact),
            (None, _) => {
                Err(PortError::new(ErrorCode::NotFound, format!("{name} is not in this hk-dr's artifacts.lock"))
                    .hint("`hk-dr artifacts list` shows what is pinned"))
            }
            _ => Err(PortError::new(ErrorCode::NotFound, format!("several versions of {name} are pinned"))
                .hint("say which one: NAME-VERSION")),
        }
    }
}

impl Artifact {
    /// The name in the cache and in mirrors.
    pub fn file_name(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// Digests the file itself may have: of the build with the pinned toolchain, and of a release that is not an archive.
    pub fn pinned_digests(&self) -> Vec<&str> {
        let released = self.release.as_ref().filter(|r| r.member.is_none()).and_then(|r| r.sha256.as_deref());
        self.go.sha256.as_deref().into_iter().chain(released).collect()
    }

    /// The official archive, if it is pinned and the file must be unpacked from it.
    pub fn pinned_archive(&self) -> Option<(&Release, &str, &str)> {
        let release = self.release.as_ref()?;
        Some((release, release.member.as_deref()?, release.sha256.as_deref()?))
    }

    /// Identifies everything the lock says about this artifact. A digest recorded in the cache is believed only while
    /// this has not changed.
    pub fn recipe(&self) -> String {
        let text = serde_json::to_vec(self).expect("strings and lists always serialize");
        crate::artifacts::download::hex(&Sha256::digest(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_lock_pins_every_binary_of_a_cluster() {
        let lock = Lock::parse(EMBEDDED).unwrap();
        for (name, version) in [
            ("etcd", "3.6.16"),
            ("etcdctl", "3.6.16"),
            ("etcdutl", "3.6.16"),
            ("kube-apiserver", "1.35.4"),
            ("kube-controller-manager", "1.35.4"),
            ("kube-scheduler", "1.35.4"),
            ("kubelet", "1.35.4"),
            ("kube-proxy", "1.35.4"),
            ("kubectl", "1.35.4"),
            ("versitygw", "1.8.0"),
            ("demo-images", "1"),
        ] {
            let artifact = lock.get(name, version).unwrap();
            assert!(!artifact.pinned_digests().is_empty(), "{name} has no pinned digest");
        }
    }

    #[test]
    fn an_unpinned_version_names_the_pinned_one() {
        let error = Lock::embedded().get("kubelet", "1.30.0").unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert_eq!(error.hint.as_deref(), Some("pinned of kubelet: 1.35.4"));
    }

    #[test]
    fn a_malformed_digest_is_refused() {
        let text = EMBEDDED.replacen("sha256 = \"", "sha256 = \"X", 1);
        assert_eq!(Lock::parse(&text).unwrap_err().code, ErrorCode::Invalid);
    }

    #[test]
    fn a_changed_entry_changes_the_recipe() {
        let mut artifact = Lock::embedded().artifacts[0].clone();
        let before = artifact.recipe();
        artifact.go.package.push('x');
        assert_ne!(before, artifact.recipe());
    }
}
