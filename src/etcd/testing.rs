//! A real etcd on loopback, with mutual TLS, for this crate's tests.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use secrecy::SecretString;

use crate::ports::{ClientTls, Etcd};

/// A pinned binary, or a panic that says how to get it.
pub(crate) fn pinned(name: &str) -> PathBuf {
    let cache = std::env::var_os("HK_DR_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"), PathBuf::from);
    let path = cache.join("artifacts").join(name);
    assert!(path.exists(), "{} is missing: run `make setup`, or set HK_DR_CACHE to where it is", path.display());
    path
}

/// A port that nothing used a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A CA with a server certificate for `SERVER_NAME` (and 127.0.0.1) and a client certificate, in files and in memory.
pub(crate) struct Pki {
    pub(crate) dir: tempfile::TempDir,
    ca_pem: String,
    client: (String, String),
}

pub(crate) const SERVER_NAME: &str = "server.test";

impl Pki {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("hk-dr-pki-").tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name.push(DnType::CommonName, "test CA");
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let leaf = |usage: ExtendedKeyUsagePurpose, name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned(), "localhost".to_owned()]).unwrap();
            params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
            params.distinguished_name.push(DnType::CommonName, name);
            params.distinguished_name.push(DnType::OrganizationName, "system:masters");
            params.extended_key_usages = vec![usage];
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        let server = leaf(ExtendedKeyUsagePurpose::ServerAuth, "server");
        let client = leaf(ExtendedKeyUsagePurpose::ClientAuth, "client");
        let sa = KeyPair::generate().unwrap();
        for (name, content) in [
            ("ca.crt", &ca_pem),
            ("server.crt", &server.0),
            ("server.key", &server.1),
            ("client.crt", &client.0),
            ("client.key", &client.1),
            ("sa.key", &sa.serialize_pem()),
            ("sa.pub", &sa.public_key_pem()),
        ] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        Self { dir, ca_pem, client }
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(crate) fn client(&self) -> ClientTls {
        ClientTls {
            ca_pem: self.ca_pem.clone(),
            cert_pem: self.client.0.clone(),
            key_pem: SecretString::from(self.client.1.as_str()),
            server_name: SERVER_NAME.into(),
        }
    }
}

/// A process that ends with its value.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One etcd member of one cluster.
pub(crate) struct Server {
    pub(crate) pki: Pki,
    pub(crate) client_port: u16,
    _dir: tempfile::TempDir,
    _process: Process,
}

impl Server {
    pub(crate) async fn start() -> Self {
        // A port may be taken by another test between being found and being used.
        for _ in 0..5 {
            if let Some(server) = Self::try_start().await {
                return server;
            }
        }
        panic!("etcd did not start");
    }

    async fn try_start() -> Option<Self> {
        let pki = Pki::new();
        let dir = tempfile::Builder::new().prefix("hk-dr-etcd-").tempdir().unwrap();
        let (client_port, peer_port) = (free_port(), free_port());
        let (client, peer) = (format!("https://127.0.0.1:{client_port}"), format!("https://127.0.0.1:{peer_port}"));
        let process = Command::new(pinned("etcd-3.6.16"))
            .args(["--name=m1", "--log-level=error", "--client-cert-auth", "--peer-client-cert-auth"])
            .arg(format!("--data-dir={}", dir.path().join("data").display()))
            .args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")])
            .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
            .arg(format!("--initial-cluster=m1={peer}"))
            .args([format!("--cert-file={}", pki.file("server.crt")), format!("--key-file={}", pki.file("server.key"))])
            .args([format!("--trusted-ca-file={}", pki.file("ca.crt"))])
            .args([format!("--peer-cert-file={}", pki.file("server.crt"))])
            .args([format!("--peer-key-file={}", pki.file("server.key"))])
            .args([format!("--peer-trusted-ca-file={}", pki.file("ca.crt"))])
            .arg("--unsafe-no-fsync")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { pki, client_port, _dir: dir, _process: Process(process) };
        let etcd = server.client().await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            if etcd.status("m1").await.is_ok_and(|status| status.leader_id != 0) {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        None
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.client_port)
    }

    pub(crate) async fn client(&self) -> super::EtcdClient {
        let members = [("m1".to_owned(), self.url())];
        super::EtcdClient::direct(&members, Some(&self.pki.client())).await.unwrap()
    }
}
