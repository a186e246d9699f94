use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, Context, ExitKind};
use crate::front::{ROUND, TcpKnock, Watch, Watched};

/// Floating IPs: watch over them.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Route every floating IP whose worker went silent to one that answers, until stopped.
    ///
    /// Tries TCP 443 as the world does, so run it where the world is: on any machine outside of the cluster, beside
    /// `hk-dr serve`. Several may run: one of them moves, by a lease in the bucket, the others stand by.
    Watch,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<(), CliError> {
    let Command::Watch = args.command;
    let connected = super::connect::connect(context)?;
    let world = &connected.world;
    if world.cluster.floating_ips().is_empty() {
        return Err(CliError::new(ExitKind::Usage, format!("cluster {} declares no floating IP", world.cluster.name))
            .hint("nothing was begun; `front.ingress.floatingIPs` in cluster.yaml declares them"));
    }
    let watch = Watch {
        cluster: world.cluster.clone(),
        cloud: Arc::clone(&world.cloud),
        store: Arc::clone(&connected.store),
        clock: Arc::clone(&world.clock),
        knock: Arc::new(TcpKnock),
        holder: holder(),
        round: ROUND,
    };
    context.block_on(async {
        let failed = |e: std::io::Error| CliError::new(ExitKind::Failed, format!("listen for signals: {e}"));
        let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
        eprintln!("watching over {} floating IPs of {}", watch.cluster.floating_ips().len(), watch.cluster.name);
        // Without systemd these do nothing.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let tell = |event| match event {
            Watched::Round => {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
            Watched::Said(text) => eprintln!("{text}"),
        };
        tokio::select! {
            () = watch.run(tell) => {}
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        Ok(())
    })
}

/// Machine and process; drawn anew for each process, so that one that restarts is not taken for the one before.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}-{:04x}", host.trim(), std::process::id(), rand::random::<u16>())
}
