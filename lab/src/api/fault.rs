//! Faults of the cloud, set through `/_lab/faults`: small and general, so that tests and drills can compose them. Those of
//! the API strike here; those of machines, disks and networks are handed to the backend; those of S3 to its proxy.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use crate::backend::{Impairment, LinkEnd, LinkFault, RoomFaults};

/// A fault that is set.
#[derive(Debug, Clone)]
pub struct Fault {
    pub id: u64,
    pub kind: Kind,
    /// How many requests it still strikes; none: until it is lifted.
    pub remaining: Option<u64>,
    /// How many requests it struck.
    pub struck: u64,
    /// How likely it strikes a request that fits, with the seed of its dice.
    pub chance: Option<(f64, u64)>,
    /// When it lifts itself.
    pub until: Option<jiff::Timestamp>,
    dice: StdRng,
}

impl Fault {
    pub fn new(id: u64, kind: Kind) -> Self {
        Self { id, kind, remaining: None, struck: 0, chance: None, until: None, dice: StdRng::seed_from_u64(0) }
    }

    /// Strikes with a probability. The same seed strikes the same requests of a series.
    pub fn with_chance(mut self, probability: f64, seed: u64) -> Self {
        self.chance = Some((probability, seed));
        self.dice = StdRng::seed_from_u64(seed);
        self
    }
}

/// What a fault does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// Nothing can be created in a location.
    LocationUnavailable { location: String },
    /// Requests are refused with a code before anything happens.
    ApiError {
        code: String,
        #[serde(default)]
        message: String,
        #[serde(flatten)]
        requests: Requests,
    },
    /// The work is done, but the client is told that a gateway gave up waiting.
    LostAnswer {
        #[serde(flatten)]
        requests: Requests,
    },
    /// Answers take their time.
    SlowAnswer {
        delay_ms: u64,
        #[serde(flatten)]
        requests: Requests,
    },
    /// No request of the hour is left.
    RateLimitExhausted,
    /// Actions end in error before they have an effect. `command` as in `action.command`; `*` stands for anything.
    ActionError {
        command: String,
        #[serde(default)]
        message: String,
    },
    /// Actions run until the fault is lifted; then they go on.
    ActionStuck { command: String },
    /// Servers of the location stand still; nothing there starts.
    LocationFrozen { location: String },
    /// The location has no power. Servers that ran boot when it is back.
    LocationOff { location: String },
    /// Nothing passes between a location and another one, `others` or the `internet`.
    LinkCut { location: String, to: String },
    /// Packets get lost there.
    LinkLoss { location: String, to: String, percent: f64 },
    /// What is above this rate is dropped there, in each direction.
    LinkRate { location: String, to: String, kbit: u32 },
    /// Packets take this much longer there, in each direction.
    LinkDelay { location: String, to: String, delay_ms: u32 },
    /// The volume answers I/O errors.
    VolumeError { volume: u64 },
    /// The server's root disk has no free space.
    DiskFull { server: u64 },
    /// The server's wall clock is this much ahead (or behind, if negative).
    ClockSkew { server: u64, offset_ms: i64 },
    /// S3 answers an error before anything happens.
    S3Error {
        code: String,
        #[serde(default = "s3_status")]
        status: u16,
        #[serde(flatten)]
        requests: Requests,
    },
    /// S3's answers take their time.
    S3Slow {
        delay_ms: u64,
        #[serde(flatten)]
        requests: Requests,
    },
    /// Bodies that S3 sends break off after half.
    S3Truncated {
        #[serde(flatten)]
        requests: Requests,
    },
    /// One bit of each body that S3 sends is wrong.
    S3Corrupt {
        #[serde(flatten)]
        requests: Requests,
    },
    /// S3 refuses whatever would change something.
    S3ReadOnly,
}

/// All names a kind may have, for messages.
pub const KINDS: [&str; 21] = [
    "location_unavailable",
    "api_error",
    "lost_answer",
    "slow_answer",
    "rate_limit_exhausted",
    "action_error",
    "action_stuck",
    "location_frozen",
    "location_off",
    "link_cut",
    "link_loss",
    "link_rate",
    "link_delay",
    "volume_error",
    "disk_full",
    "clock_skew",
    "s3_error",
    "s3_slow",
    "s3_truncated",
    "s3_corrupt",
    "s3_read_only",
];

fn s3_status() -> u16 {
    500
}

impl Kind {
    /// The location it is about.
    pub fn location(&self) -> Option<&str> {
        match self {
            Kind::LocationUnavailable { location }
            | Kind::LocationFrozen { location }
            | Kind::LocationOff { location }
            | Kind::LinkCut { location, .. }
            | Kind::LinkLoss { location, .. }
            | Kind::LinkRate { location, .. }
            | Kind::LinkDelay { location, .. } => Some(location),
            _ => None,
        }
    }

    /// The other end of a link.
    pub fn to(&self) -> Option<&str> {
        match self {
            Kind::LinkCut { to, .. }
            | Kind::LinkLoss { to, .. }
            | Kind::LinkRate { to, .. }
            | Kind::LinkDelay { to, .. } => Some(to),
            _ => None,
        }
    }

    /// Those that strike single requests do so once unless told otherwise: a forgotten one would hang whatever runs next.
    pub fn strikes_once(&self) -> bool {
        self.requests().is_some() || matches!(self, Kind::ActionError { .. })
    }

    /// Whether single requests or actions are struck, so that they can be counted and diced for.
    pub fn strikes_requests(&self) -> bool {
        self.strikes_once() || matches!(self, Kind::LocationUnavailable { .. } | Kind::ActionStuck { .. })
    }

    fn requests(&self) -> Option<&Requests> {
        match self {
            Kind::ApiError { requests, .. }
            | Kind::LostAnswer { requests }
            | Kind::SlowAnswer { requests, .. }
            | Kind::S3Error { requests, .. }
            | Kind::S3Slow { requests, .. }
            | Kind::S3Truncated { requests }
            | Kind::S3Corrupt { requests } => Some(requests),
            _ => None,
        }
    }

    fn fits(&self, method: &str, path: &str) -> bool {
        self.requests().is_some_and(|requests| requests.matches(method, path))
    }

    fn is_of_s3(&self) -> bool {
        matches!(
            self,
            Kind::S3Error { .. }
                | Kind::S3Slow { .. }
                | Kind::S3Truncated { .. }
                | Kind::S3Corrupt { .. }
                | Kind::S3ReadOnly
        )
    }
}

/// Which requests a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// `GET`, `POST` …; none: any.
    #[serde(default)]
    pub method: Option<String>,
    /// Path below `/v1` (or of S3: `/bucket/key`) in which `*` stands for anything, such as `/servers/*/actions/*`.
    #[serde(default = "anything")]
    pub path: String,
}

fn anything() -> String {
    "*".to_owned()
}

impl Requests {
    fn matches(&self, method: &str, path: &str) -> bool {
        self.method.as_deref().is_none_or(|m| m.eq_ignore_ascii_case(method)) && glob(&self.path, path)
    }
}

/// Whether the text fits a pattern in which `*` stands for any text, slashes included.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// The faults that are set, in the order they were set.
#[derive(Debug, Default)]
pub struct Faults {
    set: Vec<Fault>,
}

impl Faults {
    pub fn add(&mut self, fault: Fault) {
        self.set.push(fault);
    }

    /// Whether there was such a fault.
    pub fn lift(&mut self, id: u64) -> bool {
        let before = self.set.len();
        self.set.retain(|f| f.id != id);
        self.set.len() != before
    }

    pub fn clear(&mut self) {
        self.set.clear();
    }

    pub fn all(&self) -> &[Fault] {
        &self.set
    }

    /// Takes one strike of the first fault that `strikes` and whose dice agree.
    fn strike(&mut self, strikes: impl Fn(&Kind) -> bool) -> Option<(u64, Kind)> {
        let mut fitting = self.set.iter_mut().filter(|f| f.remaining != Some(0) && strikes(&f.kind));
        let fault = fitting.find_map(|f| {
            let dice = f.chance.is_none_or(|(probability, _)| f.dice.random_bool(probability.clamp(0.0, 1.0)));
            dice.then_some(f)
        })?;
        fault.remaining = fault.remaining.map(|n| n - 1);
        fault.struck += 1;
        Some((fault.id, fault.kind.clone()))
    }

    /// The refusal for a request, if a fault strikes it.
    pub fn refusal(&mut self, method: &str, path: &str) -> Option<ApiError> {
        let strikes = |kind: &Kind| match kind {
            Kind::RateLimitExhausted => true,
            Kind::ApiError { .. } => kind.fits(method, path),
            _ => false,
        };
        match self.strike(strikes)?.1 {
            Kind::ApiError { code, message, .. } => Some(ApiError::new(code, message)),
            Kind::RateLimitExhausted => {
                Some(ApiError::new("rate_limit_exceeded", "limit of requests per hour reached"))
            }
            _ => None,
        }
    }

    /// How long this request's answer is held back, in milliseconds.
    pub fn delay(&mut self, method: &str, path: &str) -> Option<u64> {
        match self.strike(|kind| matches!(kind, Kind::SlowAnswer { .. }) && kind.fits(method, path))?.1 {
            Kind::SlowAnswer { delay_ms, .. } => Some(delay_ms),
            _ => None,
        }
    }

    /// Whether this request's answer gets lost.
    pub fn loses_answer(&mut self, method: &str, path: &str) -> bool {
        self.strike(|kind| matches!(kind, Kind::LostAnswer { .. }) && kind.fits(method, path)).is_some()
    }

    /// Whether the location has capacity; counts a strike if not.
    pub fn unavailable(&mut self, location: &str) -> bool {
        self.strike(|kind| matches!(kind, Kind::LocationUnavailable { location: l } if l == location)).is_some()
    }

    /// As `unavailable`, without counting.
    pub fn is_unavailable(&self, location: &str) -> bool {
        self.set.iter().any(|f| {
            f.remaining != Some(0) && matches!(&f.kind, Kind::LocationUnavailable { location: l } if l == location)
        })
    }

    /// What becomes of an action that is about to run.
    pub fn fate(&mut self, command: &str) -> Fate {
        let strikes = |kind: &Kind| match kind {
            Kind::ActionError { command: c, .. } | Kind::ActionStuck { command: c } => glob(c, command),
            _ => false,
        };
        match self.strike(strikes) {
            Some((_, Kind::ActionError { message, .. })) => Fate::Fails(message),
            Some((fault, _)) => Fate::Hangs { fault },
            None => Fate::Runs,
        }
    }

    /// What happens to a request to S3.
    pub fn of_s3(&mut self, method: &str, path: &str) -> Option<Kind> {
        let writes = !matches!(method, "GET" | "HEAD");
        let strikes = |kind: &Kind| match kind {
            Kind::S3ReadOnly => writes,
            Kind::S3Truncated { .. } | Kind::S3Corrupt { .. } => method == "GET" && kind.fits(method, path),
            _ => kind.is_of_s3() && kind.fits(method, path),
        };
        self.strike(strikes).map(|(_, kind)| kind)
    }

    /// What machines, disks and networks suffer from.
    pub fn of_the_room(&self) -> RoomFaults {
        let mut room = RoomFaults::default();
        for fault in &self.set {
            match &fault.kind {
                Kind::LocationFrozen { location } => room.frozen.push(location.clone()),
                Kind::LocationOff { location } => room.dark.push(location.clone()),
                Kind::LinkCut { location, to } => room.links.push(link(location, to, Impairment::Cut)),
                Kind::LinkLoss { location, to, percent } => {
                    room.links.push(link(location, to, Impairment::Loss { percent: *percent }));
                }
                Kind::LinkRate { location, to, kbit } => {
                    room.links.push(link(location, to, Impairment::Rate { kbit: *kbit }));
                }
                Kind::LinkDelay { location, to, delay_ms } => {
                    room.links.push(link(location, to, Impairment::Delay { milliseconds: *delay_ms }));
                }
                Kind::VolumeError { volume } => room.broken_volumes.push(*volume),
                Kind::DiskFull { server } => room.full_disks.push(*server),
                Kind::ClockSkew { server, offset_ms } => room.skewed_clocks.push((*server, *offset_ms)),
                kind if kind.is_of_s3() => room.object_store = true,
                _ => {}
            }
        }
        room
    }
}

fn link(location: &str, to: &str, impairment: Impairment) -> LinkFault {
    let to = match to {
        "internet" => LinkEnd::Internet,
        "others" => LinkEnd::Others,
        other => LinkEnd::Location(other.to_owned()),
    };
    LinkFault { location: location.to_owned(), to, impairment }
}

/// What becomes of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Runs,
    Fails(String),
    /// Until the fault is lifted.
    Hangs {
        fault: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("/servers", "/servers", true),
            ("/servers", "/servers/1", false),
            ("/servers*", "/servers/1", true),
            ("/servers/*/actions/*", "/servers/1/actions/poweron", true),
            ("/servers/*/actions/*", "/servers/1", false),
            ("*", "/anything", true),
            ("*/actions/attach", "/volumes/3/actions/attach", true),
            ("*/actions/attach", "/volumes/3/actions/attach_to_network", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn the_same_seed_strikes_the_same_requests() {
        let series = |seed| {
            let requests = Requests { method: None, path: "*".into() };
            let kind = Kind::LostAnswer { requests };
            let mut faults = Faults::default();
            faults.add(Fault::new(1, kind).with_chance(0.3, seed));
            (0..200).map(|_| faults.loses_answer("POST", "/servers")).collect::<Vec<_>>()
        };
        assert_eq!(series(7), series(7));
        assert_ne!(series(7), series(8));
        let struck = series(7).iter().filter(|s| **s).count();
        assert!((30..90).contains(&struck), "{struck} of 200 at 30%");
    }

    #[test]
    fn every_kind_has_its_name_in_the_list() {
        for name in KINDS {
            let error = serde_json::from_value::<Kind>(serde_json::json!({"kind": name})).map(|_| ()).err();
            assert!(error.is_none_or(|e| !e.to_string().contains("unknown variant")), "{name}");
        }
    }
}
