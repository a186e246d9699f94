//! What answers at public addresses, as someone outside sees it: TCP connections to ports, a bounded number at a time.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Ports that something of a cluster listens on somewhere, or that are looked for first by whoever means harm.
pub const NOTABLE: [(u16, u16); 12] = [
    (21, 25),
    (53, 53),
    (80, 80),
    (111, 111),
    (443, 443),
    (2375, 2382),
    (6443, 6444),
    (8080, 8081),
    (9090, 9100),
    (10245, 10260),
    (30000, 30010),
    (51820, 51820),
];

/// How a port answered. Silence is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// It takes connections.
    Open,
    /// It refuses them: nothing listens, but no firewall is in front of it either.
    Refused,
}

/// A port that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Answer {
    pub address: Ipv4Addr,
    pub port: u16,
    pub manner: Manner,
}

/// How thorough a scan is.
#[derive(Debug, Clone, Copy)]
pub struct Thoroughness {
    /// All 65,535 ports instead of [`NOTABLE`].
    pub all: bool,
    /// After this long without an answer a port counts as silent.
    pub patience: Duration,
    /// Connections under way at once; each takes a file descriptor.
    pub at_once: usize,
}

/// Tries every port of every address.
///
/// # Errors
/// When this machine can't make the connections (descriptors, ports): silence would mean nothing then.
pub async fn scan(addresses: &[Ipv4Addr], how: Thoroughness) -> std::io::Result<BTreeSet<Answer>> {
    let notable = || NOTABLE.iter().flat_map(|(first, last)| *first..=*last).collect::<Vec<_>>();
    let ports: Vec<u16> = if how.all { (1..=u16::MAX).collect() } else { notable() };
    // Port by port over all addresses: no address gets all the packets at once.
    let targets = ports.iter().flat_map(|port| addresses.iter().map(|address| (*address, *port)));
    let mut tries = futures::stream::iter(targets)
        .map(|(address, port)| async move { (address, port, knock((address, port).into(), how.patience).await) })
        .buffer_unordered(how.at_once.max(1));
    let mut answers = BTreeSet::new();
    while let Some((address, port, found)) = tries.next().await {
        answers.extend(found?.map(|manner| Answer { address, port, manner }));
    }
    Ok(answers)
}

async fn knock(to: SocketAddr, patience: Duration) -> std::io::Result<Option<Manner>> {
    match timeout(patience, TcpStream::connect(to)).await {
        Ok(Ok(_)) => Ok(Some(Manner::Open)),
        Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused => Ok(Some(Manner::Refused)),
        // What is on the way says that there is none.
        Ok(Err(e))
            if matches!(e.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::TimedOut) =>
        {
            Ok(None)
        }
        Ok(Err(e)) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted) => {
            Ok(Some(Manner::Refused))
        }
        Ok(Err(e)) => Err(e),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_listens_is_open_and_one_that_does_not_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.77:443").await.unwrap();
        let how = Thoroughness { all: false, patience: Duration::from_secs(5), at_once: 100 };
        let answers = scan(&[Ipv4Addr::new(127, 0, 0, 77)], how).await.unwrap();
        let open: Vec<u16> = answers.iter().filter(|a| a.manner == Manner::Open).map(|a| a.port).collect();
        assert_eq!(open, [443]);
        assert!(answers.iter().any(|a| a.port == 2379 && a.manner == Manner::Refused));
        drop(listener);
    }
}
