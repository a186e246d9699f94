//! The cluster's keys: made once, kept in the recovery set, never replaced by a rebuild. Certificates for servers are
//! issued from the saved CAs whenever a server's files are rendered, so a new address needs no new CA.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use base64::Engine as _;
use jiff::{Timestamp, ToSpan};
use rand::TryRngCore as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::Cluster;

mod leaves;
mod vpn;

use leaves::Subject;
pub use leaves::{MasterLeaves, WorkerLeaves};
pub use vpn::{VPN_SLOTS, VpnKeys, wireguard_pair};

/// Files by path relative to the set's root, each with its Unix mode.
pub type RecoverySet = BTreeMap<String, (u32, Vec<u8>)>;

/// Validity of a CA in days: ten years. It is replaced by a rotation, never by its end.
const CA_DAYS: i64 = 3650;
/// Validity of a certificate that hk-dr makes for one of its own runs.
const OWN_DAYS: i64 = 1;
/// Certificates begin a little before they are made, because clocks of servers differ.
const BACKDATE_HOURS: i64 = 1;

/// Why keys or certificates can't be made or taken over. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The recovery set lacks what a cluster can't be brought back without.
    #[error("the recovery set is incomplete: it lacks {}", .0.join(", "))]
    Incomplete(Vec<String>),
    /// A file of the recovery set is not what its name says.
    #[error("{path} in the recovery set is unusable: {reason}")]
    Unusable { path: String, reason: String },
    /// A certificate could not be issued.
    #[error("cannot issue the certificate for {subject}: {reason}")]
    Issue { subject: String, reason: String },
    /// The kernel gives no random numbers.
    #[error("no random numbers from the system: {0}")]
    Random(String),
}

/// A CA: its certificate and its key.
#[derive(Clone)]
pub struct Authority {
    pub cert_pem: String,
    pub key_pem: SecretString,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Leaf {
    pub cert_pem: String,
    pub key_pem: SecretString,
}

/// All long-lived secrets of a cluster. They leave memory only as a [`RecoverySet`] (which is encrypted before it is
/// stored) and in the files of masters.
#[derive(Clone)]
pub struct ClusterSecrets {
    pub etcd_ca: Authority,
    pub kubernetes_ca: Authority,
    pub front_proxy_ca: Authority,
    /// Signs service-account tokens. ECDSA P-256, not RSA: every token use is one verification on the API server and
    /// every pod start one signature, both an order of magnitude cheaper, and tokens are shorter. ES256 is in every JWT
    /// library that reads RS256.
    pub service_account_key: SecretString,
    /// SPKI PEM of the above.
    pub service_account_public: String,
    /// The API server's EncryptionConfiguration with its key. secretbox (XSalsa20-Poly1305) rather than aescbc: it is
    /// authenticated, so a flipped bit is an error and not another plaintext. No `identity` fallback: an unencrypted
    /// Secret must not be readable, or nobody would notice it.
    pub encryption_config: SecretString,
    /// Of sets from before there was a VPN: none.
    vpn: Option<VpnKeys>,
    /// What etcd's cluster token begins with. Not secret; kept so that a token of this cluster is recognised.
    pub etcd_token_base: String,
}

const ETCD_CA: (&str, &str) = ("pki/etcd-ca.crt", "pki/etcd-ca.key");
const KUBERNETES_CA: (&str, &str) = ("pki/ca.crt", "pki/ca.key");
const FRONT_PROXY_CA: (&str, &str) = ("pki/front-proxy-ca.crt", "pki/front-proxy-ca.key");
const SA_KEY: &str = "pki/sa.key";
const SA_PUBLIC: &str = "pki/sa.pub";
const ENCRYPTION: &str = "kubernetes/encryption.yaml";
const TOKEN_BASE: &str = "etcd/token-base";

impl ClusterSecrets {
    /// Makes fresh secrets for a new cluster.
    pub fn generate(cluster: &Cluster, now: Timestamp) -> Result<Self, PkiError> {
        let service_account = new_key("service-account key")?;
        Ok(Self {
            etcd_ca: Authority::generate(&format!("{} etcd", cluster.name), now)?,
            kubernetes_ca: Authority::generate(&format!("{} kubernetes", cluster.name), now)?,
            front_proxy_ca: Authority::generate(&format!("{} front-proxy", cluster.name), now)?,
            service_account_public: service_account.public_key_pem(),
            service_account_key: SecretString::from(service_account.serialize_pem()),
            encryption_config: encryption_config()?,
            vpn: Some(VpnKeys::generate()?),
            etcd_token_base: format!("{}-{}", cluster.name, hex(&random::<8>()?[..])),
        })
    }

    /// The secrets as files. Whoever holds them holds the cluster: encrypt before storing.
    pub fn to_recovery_set(&self) -> RecoverySet {
        let mut set = RecoverySet::new();
        let mut put = |path: &str, mode: u32, text: &str| {
            set.insert(path.to_owned(), (mode, text.as_bytes().to_vec()));
        };
        for (paths, authority) in
            [(ETCD_CA, &self.etcd_ca), (KUBERNETES_CA, &self.kubernetes_ca), (FRONT_PROXY_CA, &self.front_proxy_ca)]
        {
            put(paths.0, 0o644, &authority.cert_pem);
            put(paths.1, 0o600, authority.key_pem.expose_secret());
        }
        put(SA_KEY, 0o600, self.service_account_key.expose_secret());
        put(SA_PUBLIC, 0o644, &self.service_account_public);
        put(ENCRYPTION, 0o600, self.encryption_config.expose_secret());
        put(TOKEN_BASE, 0o644, &self.etcd_token_base);
        for (path, text) in self.vpn.iter().flat_map(VpnKeys::to_files) {
            put(path, 0o600, &text);
        }
        set
    }

    /// Takes the secrets from a recovery set: all of them, or an error that names what is missing or unusable. Other
    /// files in the set are ignored.
    pub fn from_recovery_set(set: &RecoverySet) -> Result<Self, PkiError> {
        let wanted = [
            ETCD_CA.0,
            ETCD_CA.1,
            KUBERNETES_CA.0,
            KUBERNETES_CA.1,
            FRONT_PROXY_CA.0,
            FRONT_PROXY_CA.1,
            SA_KEY,
            SA_PUBLIC,
            ENCRYPTION,
            TOKEN_BASE,
        ];
        let missing: Vec<String> = wanted
            .iter()
            .filter(|path| set.get(**path).is_none_or(|(_, bytes)| bytes.is_empty()))
            .map(|path| (*path).to_owned())
            .collect();
        if !missing.is_empty() {
            return Err(PkiError::Incomplete(missing));
        }
        let text = |path: &str| -> Result<String, PkiError> {
            let bytes = set.get(path).map(|(_, bytes)| bytes.clone()).unwrap_or_default();
            String::from_utf8(bytes).map_err(|_| unusable(path, "it is not text"))
        };
        let authority = |paths: (&str, &str)| -> Result<Authority, PkiError> {
            let authority = Authority { cert_pem: text(paths.0)?, key_pem: SecretString::from(text(paths.1)?) };
            authority.check().map_err(|reason| unusable(paths.0, reason))?;
            Ok(authority)
        };
        let secrets = Self {
            etcd_ca: authority(ETCD_CA)?,
            kubernetes_ca: authority(KUBERNETES_CA)?,
            front_proxy_ca: authority(FRONT_PROXY_CA)?,
            service_account_key: SecretString::from(text(SA_KEY)?),
            service_account_public: text(SA_PUBLIC)?,
            encryption_config: SecretString::from(text(ENCRYPTION)?),
            etcd_token_base: text(TOKEN_BASE)?,
            vpn: match set.contains_key(vpn::FILES[0]) {
                true => Some(VpnKeys::from_files(&text(vpn::FILES[0])?, &text(vpn::FILES[1])?)?),
                false => None,
            },
        };
        let key = KeyPair::from_pem(secrets.service_account_key.expose_secret())
            .map_err(|e| unusable(SA_KEY, e.to_string()))?;
        if key.public_key_pem().trim() != secrets.service_account_public.trim() {
            return Err(unusable(SA_PUBLIC, "it does not belong to pki/sa.key"));
        }
        Ok(secrets)
    }

    /// The VPN's keys.
    ///
    /// # Errors
    /// When the set was made by an hk-dr that knew no VPN.
    pub fn vpn_keys(&self) -> Result<&VpnKeys, PkiError> {
        self.vpn.as_ref().ok_or_else(|| PkiError::Incomplete(vpn::FILES.map(String::from).to_vec()))
    }

    /// A fresh etcd cluster token. Each restore takes a new one (`incarnation` names it: the run's id, say), so that a
    /// member from before can't join the new cluster or be joined.
    pub fn etcd_token(&self, incarnation: &str) -> String {
        format!("{}-{incarnation}", self.etcd_token_base)
    }

    /// SHA-256 over everything long-lived, in hex. Tells whether two sets are the same without showing either.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (path, (_, bytes)) in self.to_recovery_set() {
            let bytes = Zeroizing::new(bytes);
            hash.update((path.len() as u64).to_be_bytes());
            hash.update(path.as_bytes());
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(&bytes[..]);
        }
        hex(&hash.finalize())
    }
}

impl Authority {
    fn generate(common_name: &str, now: Timestamp) -> Result<Self, PkiError> {
        let failed = |e: rcgen::Error| PkiError::Issue { subject: common_name.into(), reason: e.to_string() };
        let key = new_key(common_name)?;
        let mut params = params(common_name, None, now, CA_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { cert_pem: certificate.pem(), key_pem: SecretString::from(key.serialize_pem()) })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, String> {
        let key = KeyPair::from_pem(self.key_pem.expose_secret()).map_err(|e| e.to_string())?;
        Issuer::from_ca_cert_pem(&self.cert_pem, key).map_err(|e| e.to_string())
    }

    /// The key is readable and is the one the certificate speaks of.
    fn check(&self) -> Result<(), String> {
        let issuer = self.issuer()?;
        let der = certificate_der(&self.cert_pem)?;
        // The certificate holds the public key as its own bytes; a search is enough to tell a foreign key.
        let public = issuer.key().public_key_raw();
        if der.windows(public.len()).any(|window| window == public) {
            Ok(())
        } else {
            Err("the certificate belongs to another key than the one beside it".into())
        }
    }

    fn issue_for(&self, subject: &Subject, now: Timestamp, days: i64) -> Result<Leaf, PkiError> {
        let failed = |reason: String| PkiError::Issue { subject: subject.common_name.clone(), reason };
        let key = new_key(&subject.common_name)?;
        let mut params = params(&subject.common_name, subject.organisation.as_deref(), now, days)?;
        for name in &subject.names {
            let name = name.as_str().try_into().map_err(|e: rcgen::Error| failed(e.to_string()))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(subject.addresses.iter().map(|a| SanType::IpAddress(IpAddr::V4(*a))));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if subject.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if subject.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let issuer = self.issuer().map_err(failed)?;
        let certificate = params.signed_by(&key, &issuer).map_err(|e| failed(e.to_string()))?;
        Ok(Leaf { cert_pem: certificate.pem(), key_pem: SecretString::from(key.serialize_pem()) })
    }
}

fn params(
    common_name: &str,
    organisation: Option<&str>,
    now: Timestamp,
    days: i64,
) -> Result<CertificateParams, PkiError> {
    let failed = |reason: String| PkiError::Issue { subject: common_name.into(), reason };
    let moment = |at: Result<Timestamp, jiff::Error>| {
        let at = at.map_err(|e| failed(e.to_string()))?;
        time::OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|e| failed(e.to_string()))
    };
    let mut params = CertificateParams::default();
    params.not_before = moment(now.checked_sub(BACKDATE_HOURS.hours()))?;
    params.not_after = moment(now.checked_add((days * 24).hours()))?;
    // Random and positive: some verifiers refuse a serial number seen before under the same issuer.
    let mut serial = random::<16>()?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial[..]));
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    Ok(params)
}

fn new_key(subject: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|e| PkiError::Issue { subject: subject.into(), reason: e.to_string() })
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, PkiError> {
    let mut bytes = Zeroizing::new([0; N]);
    rand::rngs::OsRng.try_fill_bytes(&mut bytes[..]).map_err(|e| PkiError::Random(e.to_string()))?;
    Ok(bytes)
}

fn encryption_config() -> Result<SecretString, PkiError> {
    let key = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(&random::<32>()?[..]));
    Ok(SecretString::from(format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n  - resources: [secrets]\n    \
         providers:\n      - secretbox:\n          keys:\n            - name: key1\n              secret: {}\n",
        key.as_str()
    )))
}

fn certificate_der(pem: &str) -> Result<Vec<u8>, String> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    base64::engine::general_purpose::STANDARD.decode(body).map_err(|e| e.to_string())
}

fn unusable(path: &str, reason: impl Into<String>) -> PkiError {
    PkiError::Unusable { path: path.into(), reason: reason.into() }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribution::tests_support::{demo, noon};

    #[test]
    fn secrets_survive_the_recovery_set() {
        let secrets = ClusterSecrets::generate(&demo(), noon()).unwrap();
        let back = ClusterSecrets::from_recovery_set(&secrets.to_recovery_set()).unwrap();
        assert_eq!(secrets.fingerprint(), back.fingerprint());
    }

    #[test]
    fn an_incomplete_recovery_set_is_refused_with_the_names_of_what_is_missing() {
        let mut set = ClusterSecrets::generate(&demo(), noon()).unwrap().to_recovery_set();
        set.remove("pki/sa.key");
        set.insert("pki/ca.key".into(), (0o600, Vec::new()));
        let error = ClusterSecrets::from_recovery_set(&set).err().unwrap().to_string();
        assert_eq!(error, "the recovery set is incomplete: it lacks pki/ca.key, pki/sa.key");
    }

    #[test]
    fn keys_of_another_cluster_are_refused() {
        let mut set = ClusterSecrets::generate(&demo(), noon()).unwrap().to_recovery_set();
        let other = ClusterSecrets::generate(&demo(), noon()).unwrap().to_recovery_set();
        set.insert("pki/ca.key".into(), other["pki/ca.key"].clone());
        let error = ClusterSecrets::from_recovery_set(&set).err().unwrap().to_string();
        assert!(error.contains("pki/ca.crt") && error.contains("another key"), "{error}");
        let mut set = ClusterSecrets::generate(&demo(), noon()).unwrap().to_recovery_set();
        set.insert("pki/sa.pub".into(), other["pki/sa.pub"].clone());
        assert!(ClusterSecrets::from_recovery_set(&set).is_err());
    }

    #[test]
    fn tokens_differ_by_incarnation_and_keep_the_clusters_base() {
        let secrets = ClusterSecrets::generate(&demo(), noon()).unwrap();
        let (a, b) = (secrets.etcd_token("run1"), secrets.etcd_token("run2"));
        assert_ne!(a, b);
        assert!(a.starts_with("demo-") && a.ends_with("-run1"));
    }

    #[test]
    fn files_that_are_secret_are_readable_by_their_owner_only() {
        for (path, (mode, _)) in ClusterSecrets::generate(&demo(), noon()).unwrap().to_recovery_set() {
            let public = path.ends_with(".crt") || path.ends_with(".pub") || path == "etcd/token-base";
            assert_eq!(mode, if public { 0o644 } else { 0o600 }, "{path}");
        }
    }
}
