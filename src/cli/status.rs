mod volumes;

use std::fmt::Write as _;

use jiff::{Timestamp, Unit};
use serde::Serialize;

use super::{CliError, Context, ExitKind};
use crate::backup::{Catalog, Entry, Proof};
use crate::distribution::server_name;
use crate::distribution::upstream::VPN_UNITS;
use crate::drawing::look_for_drift;
use crate::drill::{Evidence, Verdict};
use crate::plan::{Drift, Inventory};
use crate::ports::{ObjectStore, PortResult, ServerStatus};
use crate::steps::World;
use crate::volumes::Records;

/// A snapshot older than this is worth a word.
const SNAPSHOT_HOURS: i64 = 24;
/// Differences that are shown on the one screen.
const DRIFTS_SHOWN: usize = 6;
/// An evidence file is a few hundred kilobytes at most.
const EVIDENCE_BYTES_MAX: u64 = 8 << 20;

/// One screen: servers, quorum, volumes, certificates, versions, last snapshot, last drill, drift. Exit code 2 if
/// something needs attention.
#[derive(clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Status {
    cluster: String,
    at: Timestamp,
    /// `healthy`, `attention` or `down`
    health: &'static str,
    attention: Vec<String>,
    servers: Vec<ServerLine>,
    /// Load balancers and floating IPs.
    front: Vec<FrontLine>,
    etcd: EtcdLine,
    versions: Versions,
    snapshot: Option<SnapshotLine>,
    drill: Option<DrillLine>,
    /// Backups of declared volumes.
    volumes: Vec<volumes::VolumeLine>,
    drift: Vec<Drift>,
}

#[derive(Serialize)]
struct ServerLine {
    name: String,
    role: &'static str,
    /// `running`, `off`, `changing` or `missing`
    state: &'static str,
    location: String,
    server_type: String,
    public: Option<std::net::Ipv4Addr>,
    private: std::net::Ipv4Addr,
    /// What it serves; `SILENT` if it does not answer.
    serves: String,
    volume: Option<String>,
    certificates_until: Option<Timestamp>,
}

#[derive(Serialize)]
struct FrontLine {
    name: String,
    public: Option<std::net::Ipv4Addr>,
    private: Option<std::net::Ipv4Addr>,
    /// The server that a floating IP is routed to.
    holder: Option<String>,
}

#[derive(Serialize)]
struct EtcdLine {
    members: usize,
    serving: usize,
    majority: bool,
}

#[derive(Serialize)]
struct Versions {
    kubernetes: String,
    etcd: String,
}

#[derive(Serialize)]
struct SnapshotLine {
    id: String,
    taken_at: Timestamp,
    revision: i64,
    proof: String,
    count: usize,
}

#[derive(Serialize)]
struct DrillLine {
    runbook: String,
    run: String,
    ended: Option<String>,
    verdict: Verdict,
    recovery_seconds: Option<f64>,
}

/// Looks and prints.
pub fn run(_: Args, context: &Context) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    let mut status = context.block_on(look(&connected.world, &connected.ssh_public_key))?;
    for problem in connected.buckets.problems() {
        status.attention.push(format!("not every bucket does its part: {problem} → hk-dr mirror"));
        if status.health == "healthy" {
            status.health = "attention";
        }
    }
    if context.global.json {
        println!("{}", serde_json::json!(status));
    } else {
        print!("{}", render(&status));
    }
    if status.health == "healthy" {
        return Ok(());
    }
    Err(CliError { kind: ExitKind::Differs, message: String::new(), hints: Vec::new(), report: None })
}

async fn look(world: &World, ssh_public_key: &str) -> Result<Status, CliError> {
    let catalog = async { Catalog::new(world.store.as_ref(), &world.cluster.name).list().await };
    let drill = last_drill(world.store.as_ref(), &world.cluster.name);
    let records = async {
        // Nobody is asked about what is not declared.
        match world.cluster.volumes.is_empty() {
            true => Ok((Vec::new(), Vec::new())),
            false => Records { store: world.store.as_ref(), cluster: &world.cluster.name }.list().await,
        }
    };
    let (looked, entries, drill, records) =
        tokio::join!(look_for_drift(world, ssh_public_key), catalog, drill, records);
    let (inventory, drift) = looked?;
    // A bucket that is away must not hide the cluster: it becomes a line that asks for attention.
    let (entries, trouble) = match entries {
        Ok((entries, unreadable)) => (entries, unreadable.into_iter().map(|e| e.message).collect()),
        Err(error) => (Vec::new(), vec![format!("the bucket can't be read: {error}")]),
    };
    let mut status = assemble(world, &inventory, drift, &entries, trouble, drill.unwrap_or_default());
    // Where the bucket is away, that was said.
    if let Ok((backups, unreadable)) = records {
        let (lines, attention) = volumes::lines(&world.cluster.volumes, &backups, status.at);
        status.volumes = lines;
        let refused = unreadable.into_iter().map(|e| format!("a backup of a volume is not believed: {}", e.message));
        status.attention.extend(attention.into_iter().chain(refused));
        if status.health == "healthy" && !status.attention.is_empty() {
            status.health = "attention";
        }
    }
    Ok(status)
}

/// The newest evidence in the bucket.
async fn last_drill(store: &dyn ObjectStore, cluster: &str) -> PortResult<Option<Evidence>> {
    let prefix = format!("{cluster}/runs/");
    let objects = store.list(&prefix).await?;
    // Run ids begin with their time.
    let Some(newest) = objects.iter().rev().find(|o| o.key.ends_with("/evidence.json")) else { return Ok(None) };
    let text = store.get(&newest.key, EVIDENCE_BYTES_MAX).await?;
    Ok(serde_json::from_slice(&text).ok())
}

fn assemble(
    world: &World,
    inventory: &Inventory,
    drift: Vec<Drift>,
    entries: &[Entry],
    mut attention: Vec<String>,
    drill: Option<Evidence>,
) -> Status {
    let (cluster, now) = (&world.cluster, world.clock.now());
    let masters = cluster.masters.iter().map(|m| (&m.name, &m.location, &m.server_type, m.address, "master"));
    let workers = cluster.workers.iter().map(|w| (&w.name, &w.location, &w.server_type, w.address, "worker"));
    let renew_before = i64::from(cluster.certificates.renew_before_days);
    let mut servers = Vec::new();
    let vpn = cluster.vpn.iter().map(|v| (&v.name, &v.location, &v.server_type, v.address, "vpn"));
    for (name, location, server_type, private, role) in masters.chain(workers).chain(vpn) {
        let line = server_line(inventory, server_name(cluster, name), location, server_type, private, role);
        if let Some(until) = line.certificates_until
            && until.duration_since(now).as_hours() < renew_before * 24
        {
            let ends = until.strftime("%Y-%m-%d %H:%M UTC");
            attention.push(format!("{}: its first certificate ends {ends}: `hk-dr build` renews it", line.name));
        }
        servers.push(line);
    }
    let snapshot = entries.first().map(|entry| SnapshotLine {
        id: entry.manifest.id.clone(),
        taken_at: entry.manifest.taken_at,
        revision: entry.manifest.revision,
        proof: entry.proof.to_string(),
        count: entries.len(),
    });
    if let Some(entry) = entries.iter().find(|entry| matches!(entry.proof, Proof::Bad { .. })) {
        attention.push(format!("snapshot {} is {}", entry.manifest.id, entry.proof));
    }
    match &snapshot {
        None => attention.push("there is no snapshot: `hk-dr snapshot` takes one".into()),
        Some(s) if now.duration_since(s.taken_at).as_hours() >= SNAPSHOT_HOURS => {
            attention.push(format!("the newest snapshot is {} old: `hk-dr snapshot` takes one", age(now, s.taken_at)));
        }
        Some(_) => {}
    }
    if drill.as_ref().is_some_and(|d| d.verdict == Verdict::Failed) {
        attention.push("the last drill failed: its evidence says why".into());
    }
    for one in drift.iter().take(DRIFTS_SHOWN) {
        attention.push(format!("{}: {}, declared is {} → {}", one.what, one.found, one.declared, one.mend));
    }
    if drift.len() > DRIFTS_SHOWN {
        attention
            .push(format!("{} more differences from what Git declares: `hk-dr drift`", drift.len() - DRIFTS_SHOWN));
    }
    let down = !inventory.quorum || inventory.api_ready.is_empty();
    Status {
        cluster: cluster.name.clone(),
        at: now,
        health: if down {
            "down"
        } else if attention.is_empty() {
            "healthy"
        } else {
            "attention"
        },
        attention,
        servers,
        front: front_lines(inventory),
        etcd: EtcdLine {
            members: inventory.members.len().max(cluster.masters.len()),
            serving: inventory.etcd_serving.len(),
            majority: inventory.quorum,
        },
        versions: Versions { kubernetes: cluster.kubernetes.version.clone(), etcd: cluster.etcd.version.clone() },
        snapshot,
        drill: drill.map(|d| DrillLine {
            runbook: d.runbook,
            run: d.run,
            ended: d.ended,
            verdict: d.verdict,
            recovery_seconds: d.recovery.seconds,
        }),
        volumes: Vec::new(),
        drift,
    }
}

fn server_line(
    inventory: &Inventory,
    name: String,
    location: &str,
    server_type: &str,
    private: std::net::Ipv4Addr,
    role: &'static str,
) -> ServerLine {
    let server = inventory.server(&name);
    let probe = inventory.probes.get(&name);
    let volume = server.and_then(|s| inventory.volumes.iter().find(|v| v.server == Some(s.id))).map(|v| v.name.clone());
    let yes = |holds: bool, what: &str| if holds { what.to_owned() } else { format!("NOT {what}") };
    let serves = match (server, inventory.silent.get(&name), role) {
        (None, ..) => "-".to_owned(),
        // Why is among what asks for attention.
        (Some(_), Some(_), _) => "SILENT".to_owned(),
        (Some(_), None, "master") => format!(
            "{}, {}",
            yes(inventory.etcd_serving.contains(&name), "etcd"),
            yes(inventory.api_ready.contains(&name), "API")
        ),
        (Some(_), None, "vpn") => {
            yes(probe.is_some_and(|p| VPN_UNITS.iter().all(|u| p.active_units.contains(*u))), "WireGuard")
        }
        (Some(_), None, _) => yes(inventory.ready_nodes.contains(&name), "Node"),
    };
    ServerLine {
        role,
        state: match server.map(|s| s.status) {
            None => "MISSING",
            Some(ServerStatus::Running) => "running",
            Some(ServerStatus::Off) => "OFF",
            Some(ServerStatus::Changing) => "changing",
        },
        location: server.map_or(location, |s| &s.location).to_owned(),
        server_type: server.map_or(server_type, |s| &s.server_type).to_owned(),
        public: server.and_then(|s| s.public_ipv4),
        private,
        serves,
        volume,
        certificates_until: probe.and_then(|p| p.certificates_until),
        name,
    }
}

fn front_lines(inventory: &Inventory) -> Vec<FrontLine> {
    let balancers = inventory.balancers.iter().map(|b| FrontLine {
        name: b.name.clone(),
        public: b.public_ipv4,
        private: b.private.first().map(|p| p.address),
        holder: None,
    });
    let name_of = |id: u64| inventory.servers.iter().find(|s| s.id == id).map(|s| s.name.clone());
    let floating = inventory.floating_ips.iter().map(|f| FrontLine {
        name: f.name.clone(),
        public: Some(f.address),
        private: None,
        holder: Some(f.server.and_then(name_of).unwrap_or_else(|| "NOBODY".into())),
    });
    balancers.chain(floating).collect()
}

/// How long ago, in the largest unit that says enough.
fn age(now: Timestamp, then: Timestamp) -> String {
    let Ok(seconds) = now.since(then).and_then(|s| s.total(Unit::Second)) else { return "?".into() };
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

fn render(status: &Status) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}  cluster {}  {}",
        status.health.to_uppercase(),
        status.cluster,
        status.at.strftime("%Y-%m-%d %H:%M:%S UTC")
    );
    for line in &status.attention {
        let _ = writeln!(text, "  ! {line}");
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(["SERVER", "STATE", "SERVES", "WHERE", "TYPE", "PUBLIC", "PRIVATE", "VOLUME", "CERTIFICATES"]);
    for server in &status.servers {
        table.add_row([
            server.name.clone(),
            server.state.to_owned(),
            server.serves.clone(),
            server.location.clone(),
            server.server_type.clone(),
            server.public.map_or_else(|| "-".into(), |a| a.to_string()),
            server.private.to_string(),
            server.volume.clone().unwrap_or_else(|| "-".into()),
            server.certificates_until.map_or_else(|| "?".into(), |t| t.strftime("until %Y-%m-%d").to_string()),
        ]);
    }
    for line in &status.front {
        let or_none = |a: Option<std::net::Ipv4Addr>| a.map_or_else(|| "-".to_owned(), |a| a.to_string());
        let holder = line.holder.as_ref().map_or_else(|| "balances".to_owned(), |h| format!("at {h}"));
        let row = [line.name.clone(), "-".into(), holder, "-".into(), "-".into(), or_none(line.public)];
        table.add_row(row.into_iter().chain([or_none(line.private), "-".into(), "-".into()]));
    }
    let _ = writeln!(text, "\n{table}\n");
    let etcd = &status.etcd;
    let majority = if etcd.majority { "has a majority" } else { "has NO majority" };
    let _ = writeln!(text, "etcd      {} of {} members serve, it {majority}", etcd.serving, etcd.members);
    let _ = writeln!(text, "declared  Kubernetes {}, etcd {}", status.versions.kubernetes, status.versions.etcd);
    let earliest = status.servers.iter().filter_map(|s| Some((s.certificates_until?, &s.name))).min();
    if let Some((until, name)) = earliest {
        let days = until.duration_since(status.at).as_hours().div_euclid(24);
        let ends = until.strftime("%Y-%m-%d");
        let _ = writeln!(text, "certs     the first ends {ends} on {name}, in {days} days (`hk-dr certificates`)");
    }
    let _ = match &status.snapshot {
        None => writeln!(text, "snapshot  none"),
        Some(s) => {
            writeln!(text, "snapshot  {}, {} ago, {}; {} in all", s.id, age(status.at, s.taken_at), s.proof, s.count)
        }
    };
    let _ = match &status.drill {
        None => writeln!(text, "drill     none yet: `hk-dr runbook list`"),
        Some(d) => {
            let ended = d.ended.as_ref().and_then(|t| t.parse().ok()).map_or("?".into(), |t| age(status.at, t));
            let verdict = format!("{:?}", d.verdict).to_uppercase();
            let recovery = d.recovery_seconds.map_or_else(String::new, |s| format!(", serving again after {s:.1} s"));
            writeln!(text, "drill     {} {verdict}, {ended} ago{recovery} (run {})", d.runbook, d.run)
        }
    };
    for line in &status.volumes {
        let _ = match (&line.backup, line.taken_at, &line.proof) {
            (Some(backup), Some(at), Some(proof)) => {
                writeln!(text, "volume    {backup}, {} ago, {proof}; {} in all", age(status.at, at), line.count)
            }
            _ => writeln!(text, "volume    {}: no backup", line.volume),
        };
    }
    let _ = match status.drift.len() {
        0 => writeln!(text, "drift     none"),
        n => writeln!(text, "drift     {n} (`hk-dr drift`)"),
    };
    text
}
