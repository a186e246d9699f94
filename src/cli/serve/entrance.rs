//! Where the status page listens, what it shows itself with, and who may come in.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use secrecy::SecretString;
use tokio::net::TcpListener;

use crate::cli::{CliError, Context, ExitKind};
use crate::config::Range;
use crate::serve::{Door, Tls, TlsListener};

/// What `vpn` stands for in an address.
const VPN: &str = "vpn:";

/// An address, or the way to find one out.
#[derive(Debug, Clone)]
pub struct Listen(String);

impl FromStr for Listen {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

/// TLS of its own. Without it, put the page behind the VPN or a proxy that speaks TLS.
#[derive(Debug, clap::Args)]
pub struct TlsArgs {
    /// The page's certificate, with those between it and its CA, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The CA of clients that may come in by their certificate instead of the token, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_clients: Option<PathBuf>,
}

/// All of it.
pub struct Entrance {
    pub listen: SocketAddr,
    pub tls: Option<Tls>,
    pub door: Door,
}

/// An open door.
pub enum Listening {
    Plain(TcpListener),
    Tls(TlsListener),
}

impl TlsArgs {
    /// Reads the files.
    pub fn load(&self) -> Result<Option<Tls>, CliError> {
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        let clients = self.tls_clients.as_deref().map(read).transpose()?;
        Ok(Some(Tls { chain: read(cert)?, key: SecretString::from(read(key)?), clients }))
    }
}

impl Listen {
    /// The address.
    pub fn address(&self, context: &Context) -> Result<SocketAddr, CliError> {
        let wrong = |why: String| {
            CliError::new(ExitKind::Usage, why)
                .hint("nothing was begun; --listen takes an address and a port, such as 127.0.0.1:8440 or vpn:8440")
        };
        let Some(port) = self.0.strip_prefix(VPN) else {
            return self.0.parse().map_err(|_| wrong(format!("`{}` is no address with a port", self.0)));
        };
        let port: u16 = port.parse().map_err(|_| wrong(format!("`{port}` is no port")))?;
        let cluster = crate::cli::load_cluster(context)?;
        let Some(vpn) = &cluster.vpn else { return Err(wrong(format!("cluster {} has no VPN", cluster.name))) };
        let own = toward(vpn.address).map_err(|e| wrong(format!("this machine has no way to {}: {e}", vpn.address)))?;
        let within =
            |range: &str| matches!((own, range.parse::<Range>()), (IpAddr::V4(own), Ok(range)) if range.contains(own));
        if !within(&vpn.range) && !within(&cluster.network.range) {
            return Err(wrong(format!("this machine is not in the VPN: it would go to {} from {own}", vpn.address)));
        }
        Ok(SocketAddr::new(own, port))
    }
}

/// The address from which this machine reaches another one. Sends nothing.
fn toward(other: Ipv4Addr) -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((other, 9))?;
    Ok(socket.local_addr()?.ip())
}

fn read(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|e| {
        CliError::new(ExitKind::Credentials, format!("cannot read {}: {e}", path.display())).hint("nothing was begun")
    })
}
