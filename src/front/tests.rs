use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::time::{Instant, sleep};

use super::*;
use crate::config::Cluster;
use crate::hetzner::FakeCloud;
use crate::ports::{Cloud, Front, Labels, ServerSpec, SystemClock};
use crate::s3::MemoryStore;

const WWW: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);

fn candidate(number: u8) -> Candidate {
    Candidate { server: number.into(), name: format!("w{number}"), address: Ipv4Addr::new(203, 0, 113, number) }
}

fn www(holder: Option<u64>) -> Floating {
    Floating { id: 7, name: "www".into(), address: WWW, holder }
}

/// What is tried in a round: the address, then the workers.
fn round(judge: &mut Judge, address: bool, workers: &[(u8, bool)]) {
    judge.saw(WWW, address);
    for (number, answered) in workers {
        judge.saw(candidate(*number).address, *answered);
    }
}

fn moves(verdicts: Vec<Verdict>) -> Vec<String> {
    let one = |verdict| match verdict {
        Verdict::Move(m) => format!("to {}: {}", m.to.name, m.reason),
        Verdict::Stuck { why, .. } => format!("stuck: {why}"),
    };
    verdicts.into_iter().map(one).collect()
}

#[test]
fn silence_must_last_and_somebody_must_answer() {
    let (workers, mut judge) = ([candidate(1), candidate(2)], Judge::default());
    let at = Duration::from_secs;
    for second in 1..=2 {
        round(&mut judge, false, &[(1, false), (2, true)]);
        assert!(judge.judge(at(second), &[www(Some(1))], &workers).is_empty());
    }
    round(&mut judge, false, &[(1, false), (2, true)]);
    assert_eq!(moves(judge.judge(at(3), &[www(Some(1))], &workers)), ["to w2: w1 does not answer"]);
    // The watcher's own network is away: nobody answers, nothing moves.
    let mut judge = Judge::default();
    for second in 1..=20 {
        round(&mut judge, false, &[(1, false), (2, false)]);
        let found = moves(judge.judge(at(second), &[www(Some(1))], &workers));
        assert!(found.iter().all(|m| m.starts_with("stuck")), "{found:?}");
    }
}

#[test]
fn an_address_that_its_holder_lacks_moves_although_the_holder_is_well() {
    let (workers, mut judge) = ([candidate(1), candidate(2)], Judge::default());
    for _ in 0..3 {
        round(&mut judge, false, &[(1, true), (2, true)]);
    }
    let found = moves(judge.judge(Duration::from_secs(3), &[www(Some(1))], &workers));
    assert_eq!(found, ["to w2: w1 answers at its own address but not at this one"]);
}

#[test]
fn an_address_without_a_running_worker_moves_as_soon_as_one_is_known_to_be_well() {
    let (workers, mut judge) = ([candidate(2)], Judge::default());
    judge.saw(candidate(2).address, true);
    assert!(moves(judge.judge(Duration::ZERO, &[www(None)], &workers))[0].starts_with("stuck"));
    judge.saw(candidate(2).address, true);
    assert_eq!(moves(judge.judge(Duration::ZERO, &[www(None)], &workers)), ["to w2: it is routed to nothing"]);
    assert_eq!(moves(judge.judge(Duration::ZERO, &[www(Some(9))], &workers)).len(), 1);
}

proptest! {
    #[test]
    fn moves_are_few_and_only_to_who_answered_last(seen in prop::collection::vec(any::<[bool; 4]>(), 1..400)) {
        let workers = [candidate(1), candidate(2), candidate(3)];
        let (mut judge, mut address, mut moved) = (Judge::default(), www(Some(1)), 0);
        for (second, [itself, one, two, three]) in seen.into_iter().enumerate() {
            round(&mut judge, itself, &[(1, one), (2, two), (3, three)]);
            let now = Duration::from_secs(second as u64);
            for verdict in judge.judge(now, &[address.clone()], &workers) {
                if let Verdict::Move(wanted) = verdict {
                    let answered = [one, two, three][usize::try_from(wanted.to.server).unwrap() - 1];
                    prop_assert!(answered && !itself && Some(wanted.to.server) != address.holder);
                    judge.moved(&address, now);
                    address.holder = Some(wanted.to.server);
                    moved += 1;
                }
            }
        }
        prop_assert!(moved <= 6, "{} moves in less than ten minutes", moved);
    }
}

/// The world's view in memory: servers that are dead, and the address behind whoever has it.
#[derive(Clone, Default)]
struct Street {
    dead: Arc<Mutex<BTreeSet<Ipv4Addr>>>,
    cloud: FakeCloud,
}

#[async_trait]
impl Knock for Street {
    async fn answers(&self, to: SocketAddr, _: Duration) -> bool {
        let SocketAddr::V4(to) = to else { return false };
        let servers = self.cloud.servers("").await.unwrap();
        let addresses: BTreeMap<u64, Option<Ipv4Addr>> = servers.iter().map(|s| (s.id, s.public_ipv4)).collect();
        let floating = self.cloud.floating_ips("").await.unwrap().into_iter().find(|f| f.address == *to.ip());
        let real = match floating {
            Some(f) => f.server.and_then(|id| addresses.get(&id).copied().flatten()),
            None => Some(*to.ip()),
        };
        real.is_some_and(|a| !self.dead.lock().unwrap().contains(&a))
    }
}

async fn street(cluster: &Cluster) -> (Street, Vec<(u64, Ipv4Addr)>) {
    let street = Street::default();
    let labels: Labels = [("hk-dr/cluster".to_owned(), cluster.name.clone())].into();
    let mut workers = Vec::new();
    for name in ["private-w1", "private-w2"] {
        let spec = ServerSpec {
            name: name.into(),
            server_type: "cx23".into(),
            image: "debian-12".into(),
            location: "fsn1".into(),
            ssh_keys: Vec::new(),
            placement_group: None,
            labels: labels.clone(),
            public_ipv4: true,
            start: true,
            user_data: String::new(),
        };
        let made = street.cloud.create_server(&spec).await.unwrap();
        workers.push((made.id, made.public_ipv4.unwrap()));
    }
    let www = street.cloud.create_floating_ip("private-www", "fsn1", &labels).await.unwrap();
    street.cloud.assign_floating_ip(www.id, workers[0].0).await.unwrap();
    (street, workers)
}

fn watch(cluster: &Cluster, street: &Street, store: &MemoryStore, holder: &str) -> Watch {
    Watch {
        cluster: cluster.clone(),
        cloud: Arc::new(street.cloud.clone()),
        store: Arc::new(store.clone()),
        clock: Arc::new(SystemClock),
        knock: Arc::new(street.clone()),
        holder: holder.into(),
        round: Duration::from_millis(20),
    }
}

#[tokio::test]
async fn of_two_watchers_one_moves_a_dead_holders_address_once() {
    let cluster = crate::config::parse(include_str!("../../examples/private/cluster.yaml"), "cluster.yaml").unwrap();
    let (street, workers) = street(&cluster).await;
    let store = MemoryStore::new();
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let tasks: Vec<_> = ["one", "two"]
        .into_iter()
        .map(|holder| {
            let (watch, said) = (watch(&cluster, &street, &store, holder), Arc::clone(&said));
            tokio::spawn(async move {
                let tell = |event| {
                    if let Watched::Said(text) = event {
                        said.lock().unwrap().push(text);
                    }
                };
                watch.run(tell).await;
            })
        })
        .collect();
    sleep(Duration::from_millis(300)).await;
    street.dead.lock().unwrap().insert(workers[0].1);
    let died = Instant::now();
    while street.cloud.floating_ips("").await.unwrap()[0].server != Some(workers[1].0) {
        assert!(died.elapsed() < Duration::from_secs(30), "not moved: {:?}", said.lock().unwrap());
        sleep(Duration::from_millis(20)).await;
    }
    // It comes back to life: the address stays where it is well.
    street.dead.lock().unwrap().clear();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(*said.lock().unwrap(), ["private-www goes to private-w2: private-w1 does not answer"]);
    let moves = street.cloud.calls().into_iter().filter(|c| c.what == "assign_floating_ip").count();
    assert_eq!(moves, 2, "the first assignment and one move");
    tasks.into_iter().for_each(|task| task.abort());
}
