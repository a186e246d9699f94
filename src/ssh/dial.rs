use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;

use super::{SshMemberFile, SshShell};
use crate::distribution::upstream::ETCD_DATA_DIR;
use crate::etcd::EtcdClient;
use crate::kube::KubeClient;
use crate::ports::{ClientTls, Dialer, Etcd, EtcdEndpoint, Host, Kube, PortResult};

const ETCD_PORT: u16 = 2379;
const KUBE_PORT: u16 = 6443;

/// [`Dialer`] through forwarded ports of one [`SshShell`]. A connection to a machine is made when the first call needs
/// it and made anew when it was lost; a machine that is down fails the calls to it, not the dialing.
#[derive(Clone)]
pub struct SshDialer {
    shell: SshShell,
    pub(super) etcd_port: u16,
    pub(super) kube_port: u16,
    /// The backend file's path on each member's machine.
    etcd_file: String,
}

impl SshDialer {
    /// Dials through this shell's key and port.
    pub fn new(shell: SshShell) -> Self {
        let etcd_file = format!("{ETCD_DATA_DIR}/member/snap/db");
        Self { shell, etcd_port: ETCD_PORT, kube_port: KUBE_PORT, etcd_file }
    }
}

#[async_trait]
impl Dialer for SshDialer {
    async fn etcd(&self, members: &[EtcdEndpoint], tls: &ClientTls) -> PortResult<Arc<dyn Etcd>> {
        let mut client = EtcdClient::empty();
        for member in members {
            let remote = SocketAddr::from((member.address, self.etcd_port));
            let (forward, trouble) = self.shell.forward_lazily(&member.host, remote).await?;
            let url = format!("https://{}", forward.local);
            client
                .add(&member.name, &url, Some(tls), Some(forward.guard), Some(Arc::new(move || trouble.last())))
                .await?;
            let file = SshMemberFile::new(self.shell.clone(), member.host.clone(), self.etcd_file.clone());
            client.with_file(&member.name, Arc::new(file));
        }
        Ok(Arc::new(client))
    }

    async fn kube(&self, host: &Host, tls: &ClientTls) -> PortResult<Arc<dyn Kube>> {
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, self.kube_port));
        let (forward, trouble) = self.shell.forward_lazily(host, remote).await?;
        let url = format!("https://{}", forward.local);
        Ok(Arc::new(KubeClient::new(&url, tls, Some(forward.guard), Some(Arc::new(move || trouble.last())))?))
    }
}
