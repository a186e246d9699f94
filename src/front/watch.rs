use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::judge::{Candidate, Floating, Judge, Verdict};
use crate::config::{Cluster, INGRESS_PORT};
use crate::distribution::server_name;
use crate::lease::{Claim, Lease, LeaseError};
use crate::plan::{OWNER_LABEL, floating_ip_name};
use crate::ports::{Clock, Cloud, ErrorCode, ObjectStore, PortResult, ServerStatus};

/// Between two rounds of tries.
pub const ROUND: Duration = Duration::from_secs(1);
/// How long a connection may take. Below a round: a kernel's second attempt comes after one.
const PATIENCE: Duration = Duration::from_millis(900);
/// How old what is known of the cloud may be while all is well: two requests each time, 120 an hour of 3600.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// And while something is not.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How often the lease is renewed, or asked for.
const LEASE_EVERY: Duration = Duration::from_secs(5);
/// How long a dead watcher is waited for.
const LEASE_TTL: Duration = Duration::from_secs(20);
/// A request to the cloud or the bucket must not hold a round up for longer.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// A slow bucket must not hold a round up.
const RENEW_WITHIN: Duration = Duration::from_secs(1);
const LEASE_NAME: &str = "front";

/// Tries whether an address takes connections.
#[async_trait]
pub trait Knock: Send + Sync {
    async fn answers(&self, to: SocketAddr, patience: Duration) -> bool;
}

/// By TCP, from where this process runs.
pub struct TcpKnock;

#[async_trait]
impl Knock for TcpKnock {
    async fn answers(&self, to: SocketAddr, patience: Duration) -> bool {
        matches!(timeout(patience, TcpStream::connect(to)).await, Ok(Ok(_)))
    }
}

/// What a watcher needs.
pub struct Watch {
    pub cluster: Cluster,
    pub cloud: Arc<dyn Cloud>,
    pub store: Arc<dyn ObjectStore>,
    pub clock: Arc<dyn Clock>,
    pub knock: Arc<dyn Knock>,
    /// Who watches, for people.
    pub holder: String,
    /// Between two rounds of tries; [`ROUND`] unless time is to pass faster.
    pub round: Duration,
}

/// What happened, for whoever runs the watcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// A round is over: the watcher lives.
    Round,
    /// For people.
    Said(String),
}

struct Known {
    at: Instant,
    floating: Vec<Floating>,
    candidates: Vec<Candidate>,
}

/// Whether this watcher may move addresses.
enum Right {
    Held { lease: Box<Lease>, renewed: Instant },
    Not { asked: Instant },
}

impl Watch {
    /// Watches until the future is dropped. Nothing is left half done: a move is one request.
    pub async fn run(&self, mut tell: impl FnMut(Watched) + Send) {
        let begun = Instant::now();
        let mut judge = Judge::default();
        let mut known: Option<Known> = None;
        let mut right: Option<Right> = None;
        let mut last_said = String::new();
        let mut say = move |text: String, tell: &mut (dyn FnMut(Watched) + Send)| {
            // What goes on is said once.
            if text != last_said {
                tell(Watched::Said(text.clone()));
                last_said = text;
            }
        };
        let mut next = begun;
        loop {
            sleep_until(next).await;
            next = (next + self.round).max(Instant::now());
            if let Err(error) = self.keep_right(&mut right).await {
                say(format!("the bucket can't be asked who watches: {error}"), &mut tell);
            }
            let suspicious = known.as_ref().is_some_and(|k| judge.suspects(&k.floating, &k.candidates));
            let every = if suspicious { LOOK_AGAIN } else { LOOK_EVERY };
            if known.as_ref().is_none_or(|k| k.at.elapsed() >= every) {
                match self.look().await {
                    Ok(found) => {
                        judge.keep(&found.floating, &found.candidates);
                        known = Some(found);
                    }
                    // What was known goes on being watched; a move is refused by the cloud if it is wrong by now.
                    Err(error) => say(format!("the cloud can't be asked: {error}"), &mut tell),
                }
            }
            tell(Watched::Round);
            let Some(known) = &mut known else { continue };
            self.try_all(&mut judge, known).await;
            if !matches!(right, Some(Right::Held { .. })) {
                continue;
            }
            for verdict in judge.judge(begun.elapsed(), &known.floating, &known.candidates) {
                match verdict {
                    Verdict::Stuck { name, why } => say(format!("{name} stays: {why}"), &mut tell),
                    Verdict::Move(wanted) => {
                        let Some(address) = known.floating.iter_mut().find(|f| f.id == wanted.id) else { continue };
                        // Counted before it is known whether it came about: no loop of requests.
                        judge.moved(address, begun.elapsed());
                        let moving = self.cloud.assign_floating_ip(wanted.id, wanted.to.server);
                        match timeout(ASK_WITHIN, moving).await {
                            Ok(Ok(())) => {
                                address.holder = Some(wanted.to.server);
                                let text = format!("{} goes to {}: {}", wanted.name, wanted.to.name, wanted.reason);
                                tell(Watched::Said(text));
                            }
                            Ok(Err(error)) => say(format!("{} could not be moved: {error}", wanted.name), &mut tell),
                            Err(_) => say(format!("{} could not be moved: no answer in time", wanted.name), &mut tell),
                        }
                    }
                }
            }
        }
    }

    async fn try_all(&self, judge: &mut Judge, known: &Known) {
        let addresses: Vec<Ipv4Addr> =
            known.floating.iter().map(|f| f.address).chain(known.candidates.iter().map(|c| c.address)).collect();
        let tries = addresses
            .iter()
            .map(|address| async { (*address, self.knock.answers((*address, INGRESS_PORT).into(), PATIENCE).await) });
        for (address, answered) in futures::future::join_all(tries).await {
            judge.saw(address, answered);
        }
    }

    /// Floating IPs that are declared, and workers that run.
    async fn look(&self) -> PortResult<Known> {
        let selector = format!("{OWNER_LABEL}=={}", self.cluster.name);
        let asked = async { tokio::try_join!(self.cloud.servers(&selector), self.cloud.floating_ips(&selector)) };
        let (servers, floating) = timeout(ASK_WITHIN, asked)
            .await
            .unwrap_or_else(|_| Err(crate::ports::PortError::new(ErrorCode::Timeout, "no answer in time")))?;
        let declared = |name: &str| self.cluster.workers.iter().any(|w| server_name(&self.cluster, &w.name) == name);
        let candidates = servers
            .into_iter()
            .filter(|s| s.status == ServerStatus::Running && declared(&s.name))
            .filter_map(|s| Some(Candidate { server: s.id, name: s.name, address: s.public_ipv4? }))
            .collect();
        let names: Vec<String> =
            self.cluster.floating_ips().iter().map(|config| floating_ip_name(&self.cluster, config)).collect();
        let floating = floating
            .into_iter()
            .filter(|f| names.contains(&f.name))
            .map(|f| Floating { id: f.id, name: f.name, address: f.address, holder: f.server })
            .collect();
        Ok(Known { at: Instant::now(), floating, candidates })
    }

    /// Acquires or renews the lease. While the bucket is away, who held it last goes on: a fight over an address costs a few
    /// moves, an address at a dead server costs everything.
    async fn keep_right(&self, right: &mut Option<Right>) -> PortResult<()> {
        let (store, clock) = (self.store.as_ref(), self.clock.as_ref());
        match right {
            Some(Right::Held { lease, renewed }) if renewed.elapsed() >= LEASE_EVERY => {
                *renewed = Instant::now();
                match timeout(RENEW_WITHIN, lease.renew(store, clock)).await {
                    Ok(Err(error)) if error.code == ErrorCode::Conflict => {
                        *right = Some(Right::Not { asked: Instant::now() });
                        Err(error)
                    }
                    Ok(other) => other,
                    Err(_) => Ok(()),
                }
            }
            Some(Right::Held { .. }) => Ok(()),
            Some(Right::Not { asked }) if asked.elapsed() < LEASE_EVERY => Ok(()),
            _ => {
                let claim = Claim {
                    cluster: self.cluster.name.clone(),
                    name: LEASE_NAME.into(),
                    holder: self.holder.clone(),
                    seat: self.holder.clone(),
                    purpose: "watch over floating IPs".into(),
                    ttl: LEASE_TTL,
                    by_force: false,
                };
                *right = Some(Right::Not { asked: Instant::now() });
                match timeout(ASK_WITHIN, Lease::acquire(store, &claim, clock)).await {
                    Ok(Ok(lease)) => {
                        *right = Some(Right::Held { lease: Box::new(lease), renewed: Instant::now() });
                        Ok(())
                    }
                    // Another watches; this one stands by.
                    Ok(Err(LeaseError::Held(_))) | Err(_) => Ok(()),
                    Ok(Err(LeaseError::Port(error))) => Err(error),
                }
            }
        }
    }
}
