//! What HAProxy says about itself over its stats socket.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::config::service_of;
use crate::error::{Attempt, LabError};

/// It answers in a fraction of a millisecond.
const DEADLINE: Duration = Duration::from_secs(5);
/// A few hundred bytes for each service and target.
const ANSWER_MAX: u64 = 8 << 20;

/// Connections and requests of all services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub open: u64,
    pub connections: u64,
    pub requests: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    pub load: Load,
    /// By listen port and address; `None`: not checked yet.
    pub targets: Vec<(u16, IpAddr, Option<bool>)>,
}

/// Sends one command and reads the answer.
pub(super) async fn ask(socket: &Path, question: &str) -> Result<String, LabError> {
    let talk = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.take(ANSWER_MAX).read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let late = |_| std::io::Error::other("no answer within 5 s");
    tokio::time::timeout(DEADLINE, talk)
        .await
        .map_err(late)
        .and_then(|answer| answer)
        .attempt(|| format!("ask haproxy: {question}"))
}

/// Reads the answer to `show stat`: comma-separated lines below a line of names.
pub(super) fn parse(text: &str) -> Stats {
    let mut stats = Stats::default();
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().trim_start_matches("# ").split(',').collect();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |name: &str| {
            names.iter().position(|n| *n == name).and_then(|index| fields.get(index)).copied().unwrap_or_default()
        };
        let number = |name: &str| field(name).parse::<u64>().unwrap_or_default();
        let Some(port) = service_of(field("pxname")) else { continue };
        match field("svname") {
            "FRONTEND" => {
                stats.load.open += number("scur");
                stats.load.connections += number("stot");
                stats.load.requests += number("req_tot");
            }
            name => {
                let Ok(target) = name.parse() else { continue };
                // "* " before it: the next check runs.
                let checked = !matches!(field("check_status").trim_start_matches("* "), "" | "INI" | "UNK");
                stats.targets.push((port, target, checked.then(|| field("status").starts_with("UP"))));
            }
        }
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_services_are_told_apart() {
        let text = "# pxname,svname,scur,stot,status,check_status,req_tot,\n\
                    front-80,FRONTEND,2,10,OPEN,,25,\n\
                    service-80,10.0.0.2,1,7,UP,L4OK,,\n\
                    service-80,10.0.0.3,0,3,DOWN,* L4TOUT,,\n\
                    service-80,2001:db8::1,0,0,UP 1/3,L7STS,,\n\
                    service-80,10.0.0.4,0,0,UP,INI,,\n\
                    service-80,BACKEND,1,10,UP,,25,\n\
                    redirect,FRONTEND,5,5,OPEN,,5,\n";
        let stats = parse(text);
        assert_eq!(stats.load, Load { open: 2, connections: 10, requests: 25 });
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(
            stats.targets,
            [
                (80, ip("10.0.0.2"), Some(true)),
                (80, ip("10.0.0.3"), Some(false)),
                (80, ip("2001:db8::1"), Some(true)),
                (80, ip("10.0.0.4"), None),
            ]
        );
    }
}
