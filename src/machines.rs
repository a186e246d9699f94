//! The machines of the cluster, through a shell: the scripts of the distribution, and what their exit codes mean.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;

use crate::distribution::initial_cluster_of;
use crate::distribution::upstream::{self, Install, NOT_READY, Probe, REFUSED, Role};
use crate::ports::{
    Binary, ByteStream, CertificateFound, ErrorCode, EtcdRestore, Host, Machines, NodeProbe, Output, PortError,
    PortResult, RemoteFile, Service, Shell,
};

const QUICK: Duration = Duration::from_secs(60);
const PACKAGES: Duration = Duration::from_secs(300);
const TRANSFER: Duration = Duration::from_secs(1800);

/// [`Machines`] over a [`Shell`].
pub struct ShellMachines {
    shell: Arc<dyn Shell>,
}

impl ShellMachines {
    /// Uses this shell for everything.
    pub fn new(shell: Arc<dyn Shell>) -> Self {
        Self { shell }
    }

    async fn run(&self, host: &Host, doing: &str, script: &str, deadline: Duration) -> PortResult<Output> {
        let output = self.shell.run(host, script, deadline).await.map_err(|e| e.context(doing))?;
        checked(host, doing, output)
    }
}

/// Algorithm and key, which become a part of a script: nothing else may be in them.
fn key_words(public_key: &str) -> PortResult<String> {
    let words: Vec<&str> = public_key.split_whitespace().take(2).collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || "+/=-@.".contains(c);
    if words.len() == 2 && words.iter().all(|w| w.chars().all(plain)) {
        return Ok(words.join(" "));
    }
    Err(PortError::new(ErrorCode::Invalid, "this is no SSH public key in OpenSSH's form"))
}

/// One line of what [`upstream::certificates_script`] printed.
fn certificate(host: &Host, line: &str) -> PortResult<CertificateFound> {
    let strange = || {
        PortError::new(ErrorCode::Invalid, format!("{} answered with no certificate: {line:?}", host.name))
            .hint("nothing was changed; look at the machine's openssl")
    };
    let mut parts = line.splitn(3, '\t');
    let (place, until, subject) = (parts.next(), parts.next(), parts.next());
    Ok(CertificateFound {
        place: place.ok_or_else(strange)?.to_owned(),
        until: until.and_then(|t| t.parse().ok()).ok_or_else(strange)?,
        subject: subject.unwrap_or_default().to_owned(),
    })
}

fn checked(host: &Host, doing: &str, output: Output) -> PortResult<Output> {
    let code = match output.status {
        0 => return Ok(output),
        REFUSED => ErrorCode::Invalid,
        NOT_READY => ErrorCode::Locked,
        _ => ErrorCode::ServerError,
    };
    // The last lines say what failed; a bound keeps the journal small.
    let stderr = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = stderr.lines().rev().take(5).collect();
    let said = tail.into_iter().rev().collect::<Vec<_>>().join(" | ");
    Err(PortError::new(code, format!("{doing} on {} ended with status {}: {said}", host.name, output.status)))
}

#[async_trait]
impl Machines for ShellMachines {
    async fn wait_ready(&self, host: &Host, deadline: Duration) -> PortResult<()> {
        self.shell.wait_ready(host, deadline).await.map_err(|e| e.context(format!("reaching {}", host.name)))
    }

    async fn probe(&self, host: &Host, role: Role) -> PortResult<NodeProbe> {
        let output = self.run(host, "looking around", &upstream::probe_script(role), QUICK).await?;
        let probe: Probe = serde_json::from_slice(&output.stdout).map_err(|e| {
            PortError::new(ErrorCode::Invalid, format!("{} answered the probe with something else: {e}", host.name))
        })?;
        Ok(NodeProbe {
            config_digest: probe.node.as_ref().map(|n| n.config_digest.clone()),
            active_units: probe.units.iter().filter(|(_, s)| *s == "active").map(|(u, _)| u.clone()).collect(),
            etcd_data: probe.etcd_data,
            certificates_until: probe.certificates_until.and_then(|t| t.parse().ok()),
            versions: probe.versions,
            stale: probe.stale,
            front_addresses: probe.front,
        })
    }

    async fn certificates(&self, host: &Host, master: bool) -> PortResult<Vec<CertificateFound>> {
        let role = if master { Role::Master } else { Role::Worker };
        let doing = "looking at certificates";
        let output = self.run(host, doing, &upstream::certificates_script(role), QUICK).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(|line| certificate(host, line)).collect()
    }

    async fn install(&self, host: &Host, binaries: &[(Binary, SecretString)]) -> PortResult<()> {
        let items: Vec<Install> = binaries
            .iter()
            .map(|(binary, url)| Install {
                path: binary.path.clone(),
                mode: binary.mode,
                sha256: binary.sha256.clone(),
                url: url.clone(),
            })
            .collect();
        let script = upstream::install_script(&items);
        self.run(host, "installing binaries", &script, TRANSFER).await.map(|_| ())
    }

    async fn configure(&self, host: &Host, files: &[RemoteFile]) -> PortResult<()> {
        self.shell.put_files(host, files).await.map_err(|e| e.context(format!("configuring {}", host.name)))
    }

    async fn prepare_worker(&self, host: &Host) -> PortResult<()> {
        self.run(host, "installing packages", &upstream::worker_packages_script(), PACKAGES).await?;
        self.run(host, "loading images", &upstream::prepare_worker_script(), PACKAGES).await.map(|_| ())
    }

    async fn mount_etcd_volume(&self, host: &Host, device: &str) -> PortResult<()> {
        let script = upstream::format_and_mount_script(device);
        self.run(host, "mounting etcd's volume", &script, PACKAGES).await.map(|_| ())
    }

    async fn restore_etcd(
        &self,
        host: &Host,
        restore: &EtcdRestore,
        cluster_token: &str,
        snapshot: ByteStream,
    ) -> PortResult<()> {
        let own = restore.members.iter().find(|(name, _)| *name == restore.member).ok_or_else(|| {
            PortError::new(ErrorCode::Invalid, format!("{} is not among the restore's members", restore.member))
        })?;
        let restore_script = upstream::EtcdRestore {
            id: restore.id.clone(),
            name: restore.member.clone(),
            address: own.1,
            initial_cluster: initial_cluster_of(&restore.members),
            token: cluster_token.to_owned(),
            bump_revision: restore.bump_revision,
        };
        let digest = Some(restore.snapshot_sha256.as_str()).filter(|digest| !digest.is_empty());
        let command = upstream::receive_snapshot_command(&restore_script, digest);
        let output = self.shell.feed(host, &command, snapshot, TRANSFER).await;
        let doing = "receiving the snapshot";
        checked(host, doing, output.map_err(|e| e.context(doing))?)?;
        let script = upstream::etcd_restore_script(&restore_script);
        self.run(host, "restoring etcd's data", &script, TRANSFER).await.map(|_| ())
    }

    async fn etcd_restored(&self, host: &Host, restore: &EtcdRestore) -> PortResult<bool> {
        let output = self.run(host, "looking for restored data", &upstream::probe_script(Role::Master), QUICK).await?;
        let probe: Probe = serde_json::from_slice(&output.stdout).map_err(|e| {
            PortError::new(ErrorCode::Invalid, format!("{} answered the probe with something else: {e}", host.name))
        })?;
        Ok(probe.restored.is_some_and(|r| r.id == restore.id))
    }

    async fn start(&self, host: &Host, service: Service) -> PortResult<()> {
        let script = match service {
            Service::Etcd => upstream::start_etcd_script(),
            Service::ApiServer => upstream::start_apiserver_script(),
            Service::Controllers => upstream::start_controllers_script(),
            Service::Worker => upstream::start_worker_script(),
            Service::Vpn => upstream::apply_vpn_script(),
        };
        self.run(host, &format!("starting {}", service.units().join(" and ")), &script, QUICK).await.map(|_| ())
    }

    async fn stop(&self, host: &Host, services: &[Service]) -> PortResult<()> {
        let units: Vec<&str> = services.iter().flat_map(|s| s.units()).copied().collect();
        let script = upstream::stop_script(&units);
        self.run(host, &format!("stopping {}", units.join(", ")), &script, PACKAGES).await.map(|_| ())
    }

    async fn carry(&self, host: &Host, addresses: &[Ipv4Addr]) -> PortResult<()> {
        let script = upstream::carry_script(addresses);
        self.run(host, "configuring floating IPs", &script, QUICK).await.map(|_| ())
    }

    async fn unmount_etcd_volume(&self, host: &Host) -> PortResult<()> {
        let script = upstream::unmount_script();
        self.run(host, "unmounting etcd's volume", &script, QUICK).await.map(|_| ())
    }

    async fn authorize(&self, host: &Host, public_key: &str) -> PortResult<()> {
        let script = upstream::authorize_script(&key_words(public_key)?);
        self.run(host, "adding an SSH key", &script, QUICK).await.map(|_| ())
    }

    async fn revoke(&self, host: &Host, public_key: &str, kept: &str) -> PortResult<()> {
        let script = upstream::revoke_script(&key_words(public_key)?, &key_words(kept)?);
        self.run(host, "removing an SSH key", &script, QUICK).await.map(|_| ())
    }

    async fn accepts(&self, host: &Host, public_key: &str) -> PortResult<bool> {
        self.shell.accepts(host, public_key).await
    }

    fn forget(&self, host: &Host) {
        self.shell.forget(host);
    }
}
