use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use super::{CliError, Context, ExitKind};
use crate::config::INGRESS_PORT;
use crate::plan::{OWNER_LABEL, ROLE_LABEL, open_at};
use crate::scan::{Answer, Manner, Thoroughness, scan};

/// Try from outside what answers at the cluster's public addresses; exit 2 if anything does that Git did not open.
#[derive(clap::Args)]
pub struct Args {
    /// All 65,535 TCP ports instead of the notable ones.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    prober: Prober,
}

/// Where a scan is made from.
#[derive(clap::Args, Clone, Default)]
pub struct Prober {
    /// A command that is hk-dr somewhere outside, such as `ssh -T outside.example.com hk-dr`. Default: from here.
    #[arg(long, env = "HK_DR_PROBER", value_name = "COMMAND")]
    prober: Option<String>,
}

/// Scans the cluster.
///
/// # Errors
/// `Differs` if something answers that is not declared.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let connected = super::connect::connect(context)?;
    let found = look(context, &connected, &args.prober, args.all)?;
    if context.global.json {
        println!("{}", serde_json::json!(found));
    } else {
        println!("{}", render(&found));
    }
    if found.surprises.is_empty() { Ok(()) } else { Err(surprised(&found)) }
}

/// What a scan found.
#[derive(serde::Serialize)]
pub struct Found {
    /// Whose addresses were tried.
    addresses: BTreeMap<Ipv4Addr, String>,
    all_ports: bool,
    /// As declared.
    expected: Vec<Answer>,
    /// Not declared.
    pub surprises: Vec<Answer>,
}

/// After a build: refuses to call a cluster healthy at whose addresses something else answers. Says nothing without a firewall in
/// Git.
///
/// # Errors
/// `Differs` if something answers that is not declared.
pub fn after_build(context: &Context, prober: &Prober) -> Result<(), CliError> {
    if super::connect::declared(context)?.cluster.firewall.is_none() {
        return Ok(());
    }
    let found = look(context, &super::connect::connect(context)?, prober, false)?;
    if !found.surprises.is_empty() {
        return Err(surprised(&found));
    }
    if !context.global.json && !context.global.quiet {
        eprintln!("{}", render(&found));
    }
    Ok(())
}

fn look(
    context: &Context,
    connected: &super::connect::Connected,
    prober: &Prober,
    all: bool,
) -> Result<Found, CliError> {
    let world = &connected.world;
    let selector = format!("{OWNER_LABEL}=={}", world.cluster.name);
    let cluster = &world.cluster;
    let (servers, balancers, floating) = context.block_on(async {
        let cloud = &world.cloud;
        tokio::try_join!(cloud.servers(&selector), cloud.balancers(&selector), cloud.floating_ips(&selector))
    })?;
    // Whose address it is, and what may answer there.
    let mut declared: BTreeMap<Ipv4Addr, (String, BTreeSet<u16>)> = BTreeMap::new();
    for server in &servers {
        let role = server.labels.get(ROLE_LABEL).map_or("", String::as_str);
        declared.extend(server.public_ipv4.map(|a| (a, (server.name.clone(), open_at(cluster, role)))));
    }
    let ingress = || BTreeSet::from([INGRESS_PORT]);
    declared.extend(balancers.iter().filter_map(|b| Some((b.public_ipv4?, (b.name.clone(), ingress())))));
    declared.extend(floating.iter().map(|f| (f.address, (f.name.clone(), ingress()))));
    declared.remove(&Ipv4Addr::UNSPECIFIED);
    let addresses: BTreeMap<Ipv4Addr, String> = declared.iter().map(|(a, (name, _))| (*a, name.clone())).collect();
    let targets: Vec<Ipv4Addr> = addresses.keys().copied().collect();
    let answers = match &prober.prober {
        Some(command) => from_outside(command, &targets, all)?,
        None => context.block_on(scan(&targets, thoroughness(all, None, None))).map_err(|e| failed(&e))?,
    };
    // Where 443 is let in, a worker without an ingress controller refuses: that is no hole.
    let may = |a: &Answer| declared.get(&a.address).is_some_and(|(_, open)| open.contains(&a.port));
    // A load balancer is the provider's own machine: that it refuses what it has no service for is no hole of the cluster's.
    let balanced = |a: &Answer| balancers.iter().any(|b| b.public_ipv4 == Some(a.address));
    let (expected, surprises) =
        answers.into_iter().filter(|a| !(a.manner == Manner::Refused && balanced(a))).partition(may);
    Ok(Found { addresses, all_ports: all, expected, surprises })
}

fn thoroughness(all: bool, patience_ms: Option<u64>, at_once: Option<usize>) -> Thoroughness {
    // A first packet that was lost is repeated by the kernel after a second. Descriptors are limited to 1024 by default.
    let patience = Duration::from_millis(patience_ms.unwrap_or(1300));
    Thoroughness { all, patience, at_once: at_once.unwrap_or(800) }
}

fn from_outside(command: &str, targets: &[Ipv4Addr], all: bool) -> Result<BTreeSet<Answer>, CliError> {
    let mut words = command.split_whitespace();
    let program = words.next().ok_or_else(|| CliError::new(ExitKind::Usage, "the prober is empty"))?;
    let mut probe = Command::new(program);
    probe.args(words).args(["scan-ports", "--json"]);
    if all {
        probe.arg("--all");
    }
    let output = probe
        .args(targets.iter().map(ToString::to_string))
        .output()
        .map_err(|e| CliError::new(ExitKind::Failed, format!("the prober `{program}` can't be started: {e}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let wrong = |why: String| {
        CliError::new(ExitKind::Failed, format!("the scan from outside failed: {why}"))
            .hint("the cluster was not changed by it; `hk-dr scan` tries again")
    };
    if !output.status.success() {
        return Err(wrong(format!("{} {}", output.status, said.trim())));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| wrong(format!("the prober's answer can't be read: {e}")))
}

fn failed(error: &std::io::Error) -> CliError {
    CliError::new(ExitKind::Failed, format!("the scan could not be made: {error}"))
        .hint("silence would mean nothing; fewer connections at once need fewer descriptors (ulimit -n)")
}

fn surprised(found: &Found) -> CliError {
    let words = |a: &Answer| {
        let name = found.addresses.get(&a.address).map_or("?", String::as_str);
        let manner = match a.manner {
            Manner::Open => "is open",
            Manner::Refused => "refuses instead of being silent",
        };
        format!("TCP {} of {name} ({}) {manner}", a.port, a.address)
    };
    let some: Vec<String> = found.surprises.iter().take(8).map(words).collect();
    let more = found.surprises.len().saturating_sub(some.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    CliError::new(ExitKind::Differs, format!("open to the world but not in Git: {}{more}", some.join("; ")))
        .hint("the cluster works, but it is not what Git declares; `hk-dr drift` shows firewalls that differ")
        .hint("a firewall that was made moments ago may not be applied yet: `hk-dr scan` looks again")
}

fn render(found: &Found) -> String {
    let ports = if found.all_ports { "all TCP ports" } else { "the notable TCP ports" };
    let open: BTreeSet<String> = found.expected.iter().map(|a| format!("{} of {}", a.port, a.address)).collect();
    let open: Vec<String> = open.into_iter().collect();
    let open = if open.is_empty() { "none answers".to_owned() } else { format!("only {} answer", open.join(", ")) };
    format!("Tried from outside: {ports} of {} public addresses; {open}.", found.addresses.len())
}

/// The part of a scan that runs outside.
#[derive(clap::Args)]
pub struct PortsArgs {
    addresses: Vec<Ipv4Addr>,
    #[arg(long)]
    all: bool,
    /// Milliseconds after which a port counts as silent.
    #[arg(long)]
    patience: Option<u64>,
    /// Connections at once.
    #[arg(long)]
    at_once: Option<usize>,
}

/// Scans given addresses.
///
/// # Errors
/// When the connections can't be made.
pub fn ports(args: &PortsArgs, context: &Context) -> Result<(), CliError> {
    let how = thoroughness(args.all, args.patience, args.at_once);
    let answers = context.block_on(scan(&args.addresses, how)).map_err(|e| failed(&e))?;
    if context.global.json {
        println!("{}", serde_json::json!(answers));
    } else {
        for answer in &answers {
            println!("{} {} {:?}", answer.port, answer.address, answer.manner);
        }
    }
    Ok(())
}
