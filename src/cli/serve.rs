//! The service: policies are run, and how it stands is shown.

mod entrance;
mod volumes;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::connect::connect;
use super::{CliError, Context, ExitKind};
use crate::config::{Approval, Policy};
use crate::ports::{Clock, SystemClock};
use crate::serve::{Door, Notifier, Options, Pace, Peer, Secrets, Service, Tended, TlsListener, router};

use entrance::{Entrance, Listen, Listening, TlsArgs};

/// The secret that holds the bearer token, if there is one.
const TOKEN_SECRET: &str = "serve-token";
/// First pause between two tries of a notification.
const NOTIFY_PAUSE: Duration = Duration::from_secs(2);

/// Run the policies of one or many clusters, and show how they stand: status page, metrics, notifications.
///
/// Several instances share the work: each run is claimed in the bucket, and the survivor finishes what a dead one began.
/// Secrets that policies name are systemd credentials, or environment variables HK_DR_SECRET_<NAME>; `serve-token` is
/// what one signs in with.
#[derive(clap::Args)]
pub struct Args {
    /// Git directory of a further cluster to look after. Repeatable.
    #[arg(long, value_name = "DIR")]
    also: Vec<PathBuf>,
    /// Where status page, metrics and probes listen; `vpn:PORT` is this machine's address in the cluster's VPN. Addresses
    /// that other machines reach need a token or a certificate, for reading too.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8440")]
    listen: Listen,
    #[command(flatten)]
    tls: TlsArgs,
    /// Runs at the same time, over all clusters.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    at_once: u16,
    /// How long runs under way are waited for when it is stopped, in seconds. Those that have not ended are resumed later.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    grace: u64,
    /// An instance that was silent for so many seconds is dead: its runs are taken over.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(4..=3600))]
    lease: u64,
    /// How often the buckets are looked at for page and metrics, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    look: u64,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let mut clusters: BTreeMap<String, Arc<Tended>> = BTreeMap::new();
    let mut secrets = Secrets::new();
    for dir in std::iter::once(&context.global.dir).chain(&args.also) {
        let own = below(context, dir);
        let tended = tended(&own, &mut secrets)?;
        let name = tended.name.clone();
        if clusters.insert(name.clone(), tended).is_some() {
            let message = format!("two Git directories declare cluster {name}");
            return Err(CliError::new(ExitKind::Usage, message).hint("nothing was begun; name each cluster once"));
        }
    }
    let (token, tls) = (secret(TOKEN_SECRET), args.tls.load()?);
    let listen = args.listen.address(context)?;
    let public = !listen.ip().is_loopback();
    if public && token.is_none() && tls.as_ref().is_none_or(|tls| tls.clients.is_none()) {
        return Err(CliError::new(ExitKind::Usage, format!("{listen} can be reached from other machines")).hint(
            format!("nothing was begun; give the secret `{TOKEN_SECRET}` or --tls-clients, or listen on 127.0.0.1"),
        ));
    }
    let pace = Duration::from_secs(args.lease);
    let options = Options {
        at_once: args.at_once.into(),
        grace: Duration::from_secs(args.grace),
        look_every: Duration::from_secs(args.look),
        pace: Pace { lease: pace, read: (pace / 3).min(Pace::default().read), ..Pace::default() },
        holder: holder(),
    };
    let entrance = Entrance { listen, tls, door: Door::new(token, public) };
    context.block_on(serve(options, clusters.into_values().collect(), secrets, entrance))
}

async fn serve(
    options: Options,
    clusters: Vec<Arc<Tended>>,
    secrets: Secrets,
    entrance: Entrance,
) -> Result<(), CliError> {
    let Entrance { listen, tls, door } = entrance;
    let failed = |what: &str, e: std::io::Error| {
        CliError::new(ExitKind::Failed, format!("{what}: {e}")).hint("nothing was begun")
    };
    let listener = TcpListener::bind(listen).await.map_err(|e| failed(&format!("listen on {listen}"), e))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(|e| failed("listen for signals", e))?;
    let mut terminated = signal(SignalKind::terminate()).map_err(|e| failed("listen for signals", e))?;
    let address = listener.local_addr().map_err(|e| failed("listen", e))?;
    let schedules: usize = clusters.iter().flat_map(|c| &c.policies).map(|p| p.schedules.len()).sum();
    let entrance = match &tls {
        None => Listening::Plain(listener),
        Some(tls) => Listening::Tls(TlsListener::new(listener, tls).map_err(|why| {
            CliError::new(ExitKind::Usage, why)
                .hint("nothing was begun; --tls-cert, --tls-key and --tls-clients name PEM files")
        })?),
    };
    let scheme = if matches!(entrance, Listening::Tls(_)) { "https" } else { "http" };
    tell(&format!("serving {} clusters with {schedules} schedules; {scheme}://{address}/", clusters.len()));
    let notifier = Notifier::start(secrets, NOTIFY_PAUSE, tell);
    let service = Service::new(options, clusters, notifier, SystemClock.now());
    let stop = CancellationToken::new();
    let pages = router(Arc::clone(&service), Arc::new(door)).into_make_service_with_connect_info::<Peer>();
    let until = stop.clone().cancelled_owned();
    let mut serving = tokio::spawn(async move {
        match entrance {
            Listening::Plain(listener) => axum::serve(listener, pages).with_graceful_shutdown(until).await,
            Listening::Tls(listener) => axum::serve(listener, pages).with_graceful_shutdown(until).await,
        }
    });
    // Without systemd these do nothing.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let alive = || {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    };
    let mut running = tokio::spawn(Arc::clone(&service).run(stop.clone(), alive));
    let ended = tokio::select! {
        _ = interrupted.recv() => Ok(()),
        _ = terminated.recv() => Ok(()),
        died = &mut running => Err(format!("the service's loop ended early: {died:?}")),
        died = &mut serving => Err(format!("the status page ended early: {died:?}")),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tell("stopping: nothing new begins; runs under way are waited for");
    stop.cancel();
    if !running.is_finished() {
        // Bounded by the grace; a second signal ends it at once. What is half done is in the journals.
        tokio::select! {
            _ = &mut running => {}
            _ = interrupted.recv() => tell("not waited for"),
            _ = terminated.recv() => tell("not waited for"),
        }
    }
    ended.map_err(|message| CliError::new(ExitKind::Failed, message).hint("start it again; runs are finished then"))
}

/// What a cluster's Git directory says.
fn tended(context: &Context, secrets: &mut Secrets) -> Result<Arc<Tended>, CliError> {
    let connected = connect(context)?;
    let name = connected.declared.cluster.name.clone();
    let all = super::policy::load_all(context)?;
    let policies: Vec<Arc<Policy>> = all.into_iter().filter(|p| p.holds_for(&name)).map(Arc::new).collect();
    if policies.is_empty() {
        let message =
            format!("no policy in {} holds for cluster {name}", context.global.dir.join("policies").display());
        return Err(CliError::new(ExitKind::Usage, message)
            .hint("nothing was begun; `hk-dr policy show backups > policies/backups.yaml` is a beginning"));
    }
    for (wanted, what) in policies.iter().flat_map(|policy| policy.secrets()) {
        let value = secret(wanted).ok_or_else(|| {
            CliError::new(ExitKind::Credentials, format!("there is no secret `{wanted}` ({what})"))
                .hint(format!("nothing was begun; give it as systemd credential or as {}", variable(wanted)))
        })?;
        secrets.insert(wanted.to_owned(), value);
    }
    let (store, clock) = (Arc::clone(&connected.store), Arc::clone(&connected.world.clock));
    let cluster = &connected.declared.cluster;
    let retention = super::policy::retention(policies.iter().map(AsRef::as_ref), cluster)?;
    let volume_retention = super::policy::volume_retention(policies.iter().map(AsRef::as_ref), cluster)?;
    let volumes: Vec<String> = cluster.volumes.iter().map(|volume| volume.name.clone()).collect();
    for (policy, schedule) in policies.iter().flat_map(|p| p.schedules.iter().map(move |s| (p, s))) {
        let declared = &connected.declared.cluster.volumes;
        if let Some(volume) = schedule.volumes.iter().find(|name| !declared.iter().any(|volume| volume.name == **name))
        {
            let message = format!(
                "policy {}, schedule {}: cluster {name} declares no volume {volume}",
                policy.name, schedule.name
            );
            return Err(CliError::new(ExitKind::Usage, message)
                .hint("nothing was begun; correct the policy, or declare it in `volumes` of cluster.yaml"));
        }
        for runbook in &schedule.runbooks {
            let asked = schedule.approval == Approval::Required;
            super::runbook::may_be_scheduled(runbook, asked, context).map_err(|mut error| {
                error.message = format!("policy {}, schedule {}: {}", policy.name, schedule.name, error.message);
                error
            })?;
        }
    }
    let work = work::Commands::new(context, connected, retention, volume_retention);
    let tended = Tended::new(name, policies, store, Arc::new(work), clock, Arc::new(tell));
    Ok(Arc::new(tended.with_volumes(volumes)))
}

/// The same options for another Git directory. Nobody watches, and standard output belongs to no run.
fn below(context: &Context, dir: &Path) -> Context {
    let mut global = context.global.clone();
    global.dir = dir.to_owned();
    global.quiet = true;
    global.json = false;
    Context::new(global)
}

fn secret(name: &str) -> Option<SecretString> {
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| PathBuf::from(dir).join(name));
    let text = match credential.and_then(|path| std::fs::read_to_string(path).ok()) {
        Some(text) => text.trim_end().to_owned(),
        None => std::env::var(variable(name)).ok()?,
    };
    (!text.is_empty()).then(|| SecretString::from(text))
}

fn variable(name: &str) -> String {
    format!("HK_DR_SECRET_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Machine and process, for people; drawn anew for each process, so that one that restarts is not taken for the one before.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}-{:04x}", host.trim(), std::process::id(), rand::random::<u16>())
}

fn tell(text: &str) {
    eprintln!("{text}");
}
