use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

/// So many failed tries in a row make an address silent.
const SILENT_AFTER: u32 = 3;
/// So many good ones in a row make a worker one that an address may go to.
const WELL_AFTER: u32 = 2;
/// After a move an address is left alone for so long: routes and connections settle.
const SETTLE: Duration = Duration::from_secs(5);
/// The most moves of one address within [`MOVES_WITHIN`]. Where that does not help, moving is not what is needed.
const MOVES_MAX: usize = 6;
const MOVES_WITHIN: Duration = Duration::from_secs(600);

/// A worker that an address may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id in the cloud.
    pub server: u64,
    pub name: String,
    /// Its own public address.
    pub address: Ipv4Addr,
}

/// A floating IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floating {
    pub id: u64,
    pub name: String,
    pub address: Ipv4Addr,
    /// The server it is routed to.
    pub holder: Option<u64>,
}

/// What should be done about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Move(Move),
    /// It should move and can't; for people.
    Stuck {
        name: String,
        why: String,
    },
}

/// An address that should be routed elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub id: u64,
    pub name: String,
    pub to: Candidate,
    /// For people.
    pub reason: String,
}

/// Remembers what was seen of each address. Pure: the time is a parameter, from any beginning that stays the same.
#[derive(Debug, Default)]
pub struct Judge {
    seen: BTreeMap<Ipv4Addr, Streak>,
    moved: BTreeMap<u64, VecDeque<Duration>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Streak {
    good: u32,
    bad: u32,
}

impl Judge {
    /// Whether an address took a connection.
    pub fn saw(&mut self, address: Ipv4Addr, answered: bool) {
        let streak = self.seen.entry(address).or_default();
        *streak = match answered {
            true => Streak { good: streak.good.saturating_add(1), bad: 0 },
            false => Streak { good: 0, bad: streak.bad.saturating_add(1) },
        };
    }

    /// An address was routed elsewhere: what was seen of it before says nothing any more.
    pub fn moved(&mut self, floating: &Floating, now: Duration) {
        self.seen.remove(&floating.address);
        self.moved.entry(floating.id).or_default().push_back(now);
    }

    /// Forgets what exists no more.
    pub fn keep(&mut self, floating: &[Floating], candidates: &[Candidate]) {
        let known =
            |a: &Ipv4Addr| floating.iter().any(|f| f.address == *a) || candidates.iter().any(|c| c.address == *a);
        self.seen.retain(|address, _| known(address));
        self.moved.retain(|id, _| floating.iter().any(|f| f.id == *id));
    }

    /// Whether one of them may have to move: worth a fresh look at the cloud.
    pub fn suspects(&self, floating: &[Floating], candidates: &[Candidate]) -> bool {
        floating.iter().any(|f| self.trouble(f, candidates).is_some())
    }

    /// Who should move where.
    pub fn judge(&mut self, now: Duration, floating: &[Floating], candidates: &[Candidate]) -> Vec<Verdict> {
        let mut held: BTreeMap<u64, usize> = BTreeMap::new();
        for holder in floating.iter().filter_map(|f| f.holder) {
            *held.entry(holder).or_default() += 1;
        }
        let mut verdicts = Vec::new();
        for address in floating {
            let Some(reason) = self.trouble(address, candidates) else { continue };
            let moves = self.moved.entry(address.id).or_default();
            while moves.front().is_some_and(|at| now.saturating_sub(*at) > MOVES_WITHIN) {
                moves.pop_front();
            }
            if moves.back().is_some_and(|at| now.saturating_sub(*at) < SETTLE) {
                continue;
            }
            if moves.len() >= MOVES_MAX {
                let why =
                    format!("{reason}, but it moved {MOVES_MAX} times within {} s already", MOVES_WITHIN.as_secs());
                verdicts.push(Verdict::Stuck { name: address.name.clone(), why });
                continue;
            }
            let well = |c: &&Candidate| {
                Some(c.server) != address.holder && self.seen.get(&c.address).is_some_and(|s| s.good >= WELL_AFTER)
            };
            let best = candidates.iter().filter(well).min_by_key(|c| (held.get(&c.server).copied(), &c.name));
            let Some(to) = best else {
                let why = format!("{reason}, but no other worker answers at 443");
                verdicts.push(Verdict::Stuck { name: address.name.clone(), why });
                continue;
            };
            *held.entry(to.server).or_default() += 1;
            verdicts.push(Verdict::Move(Move { id: address.id, name: address.name.clone(), to: to.clone(), reason }));
        }
        verdicts
    }

    /// Why an address should not stay where it is.
    fn trouble(&self, address: &Floating, candidates: &[Candidate]) -> Option<String> {
        let Some(holder) = address.holder else { return Some("it is routed to nothing".into()) };
        let Some(holder) = candidates.iter().find(|c| c.server == holder) else {
            return Some(format!("server {holder}, to which it is routed, is no running worker"));
        };
        let streak = self.seen.get(&address.address).copied().unwrap_or_default();
        (streak.bad >= SILENT_AFTER).then(|| {
            let itself = self.seen.get(&holder.address).copied().unwrap_or_default();
            match itself.good {
                0 => format!("{} does not answer", holder.name),
                // Not configured inside, or routed elsewhere than the cloud says.
                _ => format!("{} answers at its own address but not at this one", holder.name),
            }
        })
    }
}
