//! Metrics of servers and load balancers: rates, made of what the machine room counts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::cloud::{Cloud, now};
use super::error::{ApiError, ApiResult};
use super::input::path_id;
use super::listing::{Listing, one};
use super::server::Status;
use crate::backend::Counters;

/// How many samples of each are remembered: two hours of them.
const SAMPLES_MAX: usize = 720;
/// Seconds between samples.
pub const EVERY_SECONDS: i64 = 10;
/// Most points of an answer.
const POINTS_MAX: i64 = 500;
/// How many there are at most if no step is asked for.
const POINTS: i64 = 200;

/// What was counted when, by kind and id.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<(&'static str, u64), VecDeque<(Timestamp, Counters)>>);

impl Samples {
    fn add(&mut self, kind: &'static str, id: u64, at: Timestamp, counters: Counters) {
        let samples = self.0.entry((kind, id)).or_default();
        // Counters begin anew when a machine does.
        if samples.back().is_some_and(|(_, before)| counters.cpu_seconds < before.cpu_seconds) {
            samples.clear();
        }
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back((at, counters));
    }

    fn of(&self, kind: &'static str, id: u64) -> Vec<(Timestamp, Counters)> {
        self.0.get(&(kind, id)).map(|s| s.iter().copied().collect()).unwrap_or_default()
    }

    pub fn forget(&mut self, kind: &'static str, id: u64) {
        self.0.remove(&(kind, id));
    }
}

/// A series: its name, and its value at the later of two samples that lie some seconds apart.
type Series = (&'static str, fn(&Counters, &Counters, f64) -> f64);

const CPU: [Series; 1] = [("cpu", |a, b, s| (b.cpu_seconds - a.cpu_seconds) / s * 100.0)];
const DISK: [Series; 4] = [
    ("disk.0.iops.read", |a, b, s| rate(a.disk_reads, b.disk_reads, s)),
    ("disk.0.iops.write", |a, b, s| rate(a.disk_writes, b.disk_writes, s)),
    ("disk.0.bandwidth.read", |a, b, s| rate(a.disk_read_bytes, b.disk_read_bytes, s)),
    ("disk.0.bandwidth.write", |a, b, s| rate(a.disk_written_bytes, b.disk_written_bytes, s)),
];
const NETWORK: [Series; 4] = [
    ("network.0.pps.in", |a, b, s| rate(a.network_in_packets, b.network_in_packets, s)),
    ("network.0.pps.out", |a, b, s| rate(a.network_out_packets, b.network_out_packets, s)),
    ("network.0.bandwidth.in", |a, b, s| rate(a.network_in_bytes, b.network_in_bytes, s)),
    ("network.0.bandwidth.out", |a, b, s| rate(a.network_out_bytes, b.network_out_bytes, s)),
];
const OPEN: [Series; 1] = [("open_connections", |_, b, _| b.open_connections as f64)];
const CONNECTIONS: [Series; 1] = [("connections_per_second", |a, b, s| rate(a.connections, b.connections, s))];
const REQUESTS: [Series; 1] = [("requests_per_second", |a, b, s| rate(a.requests, b.requests, s))];
const BANDWIDTH: [Series; 2] = [
    ("bandwidth.in", |a, b, s| rate(a.network_in_bytes, b.network_in_bytes, s)),
    ("bandwidth.out", |a, b, s| rate(a.network_out_bytes, b.network_out_bytes, s)),
];

fn rate(before: u64, after: u64, seconds: f64) -> f64 {
    after.saturating_sub(before) as f64 / seconds
}

impl Cloud {
    /// Takes a sample of everything that runs, or of one thing. What cannot be counted is left out.
    pub(super) async fn sample(&self, only: Option<(&'static str, u64)>) {
        let all: Vec<(&'static str, u64)> = {
            let state = self.state();
            let servers = state.servers.values().filter(|s| s.status == Status::Running).map(|s| ("server", s.id));
            servers.chain(state.load_balancers.keys().map(|id| ("load_balancer", *id))).collect()
        };
        for (kind, id) in all.into_iter().filter(|one| only.is_none_or(|only| only == *one)) {
            let counted = match kind {
                "server" => self.backend.machine_counters(id).await,
                _ => self.backend.balancer_counters(id).await,
            };
            if let Ok(counters) = counted {
                self.state().made().samples.add(kind, id, now(), counters);
            }
        }
    }
}

/// The period a request asks for, in seconds since 1970, and the least seconds between points.
fn period(listing: &Listing) -> ApiResult<(i64, i64, i64)> {
    let time = |name: &str| -> ApiResult<i64> {
        let text = listing.first(name).ok_or_else(|| ApiError::field(name, "is required"))?;
        let wrong = |_| ApiError::field(name, format!("'{text}' is no time in ISO 8601 form"));
        // In a query an unescaped plus sign of a time zone has become a space.
        text.replace(' ', "+").parse::<Timestamp>().map(Timestamp::as_second).map_err(wrong)
    };
    let (start, end) = (time("start")?, time("end")?);
    if end < start {
        return Err(ApiError::field("end", "must not be before 'start'"));
    }
    let least = |points: i64| ((end - start) as u64).div_ceil(points as u64).max(1) as i64;
    let step = match listing.first("step") {
        None => least(POINTS),
        Some(text) => {
            let wrong = || ApiError::field("step", "must be a number of seconds from 1");
            let step = text.parse::<f64>().ok().map(|s| s as i64).filter(|s| *s >= 1).ok_or_else(wrong)?;
            step.max(least(POINTS_MAX))
        }
    };
    Ok((start, end, step))
}

fn values(samples: &[(Timestamp, Counters)], (start, end, step): (i64, i64, i64), series: &Series) -> Vec<Value> {
    let mut values = Vec::new();
    let mut last: Option<i64> = None;
    for pair in samples.windows(2) {
        let [(before, a), (at, b)] = pair else { continue };
        let seconds = at.duration_since(*before).as_secs_f64();
        let at = at.as_second();
        if seconds <= 0.0 || at < start || at > end || last.is_some_and(|l| at < l + step) {
            continue;
        }
        last = Some(at);
        values.push(json!([at, format!("{}", (series.1)(a, b, seconds))]));
    }
    values
}

async fn answer(
    cloud: &Cloud,
    kind: &'static str,
    id: u64,
    listing: &Listing,
    known: impl Fn(&str) -> Option<&'static [Series]>,
) -> ApiResult {
    let period = period(listing)?;
    // Given several times or with commas between.
    let types: Vec<&str> = listing.all("type").flat_map(|t| t.split(',')).collect();
    if types.is_empty() {
        return Err(ApiError::field("type", "is required"));
    }
    cloud.sample(Some((kind, id))).await;
    let samples = cloud.state().made().samples.of(kind, id);
    let mut all = json!({});
    for name in types {
        let series = known(name).ok_or_else(|| ApiError::field("type", format!("there are no metrics '{name}'")))?;
        for one in series {
            all[one.0] = json!({"values": values(&samples, period, one)});
        }
    }
    let (start, end, step) = period;
    let time = |second: i64| Timestamp::from_second(second).map(super::cloud::time_json).unwrap_or_default();
    Ok(one("metrics", json!({"start": time(start), "end": time(end), "step": step, "time_series": all})))
}

pub async fn of_server(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, listing: Listing) -> ApiResult {
    let id = path_id(&id)?;
    cloud.look().server(id)?;
    answer(&cloud, "server", id, &listing, |name| match name {
        "cpu" => Some(&CPU),
        "disk" => Some(&DISK),
        "network" => Some(&NETWORK),
        _ => None,
    })
    .await
}

pub async fn of_balancer(Shared(cloud): Shared<Arc<Cloud>>, Path(id): Path<String>, listing: Listing) -> ApiResult {
    let id = path_id(&id)?;
    cloud.look().balancer(id)?;
    answer(&cloud, "load_balancer", id, &listing, |name| match name {
        "open_connections" => Some(&OPEN),
        "connections_per_second" => Some(&CONNECTIONS),
        "requests_per_second" => Some(&REQUESTS),
        "bandwidth" => Some(&BANDWIDTH),
        _ => None,
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_made_of_two_samples() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let mut samples = Samples::default();
        for (second, cpu_seconds) in [(100, 0.0), (110, 5.0), (120, 25.0), (130, 1.0)] {
            samples.add("server", 1, at(second), Counters { cpu_seconds, ..Counters::default() });
        }
        // The machine began anew: what it counted before says nothing any more.
        assert_eq!(samples.of("server", 1).len(), 1);
        samples.add("server", 1, at(140), Counters { cpu_seconds: 2.0, ..Counters::default() });
        let of = samples.of("server", 1);
        assert_eq!(values(&of, (0, 1000, 1), &CPU[0]), [json!([140, "10"])]);
        assert!(values(&of, (0, 139, 1), &CPU[0]).is_empty());
    }
}
