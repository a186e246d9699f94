//! The command line: parse, call, render. Only here is anything printed or the environment read.

mod abort;
mod approve;
mod artifacts;
mod ask;
mod bench;
mod buckets;
mod build;
mod certificates;
mod compact;
mod completions;
pub mod connect;
mod context;
mod crash;
mod credentials;
mod demo;
mod demo_probe;
mod destroy;
mod diff;
mod display;
mod doctor;
mod drift;
mod drive;
mod error;
mod front;
mod get;
mod gitops;
mod hold;
mod init;
mod keys;
mod kubeconfig;
mod lab;
mod lab_fault;
mod lab_status;
mod log;
mod materialize;
mod members;
mod mirror;
mod obtain;
mod past_object;
mod plan;
mod policy;
mod pruning;
mod read_pages;
mod rebuild;
mod recovered;
mod report;
mod restore_object;
mod resume;
mod runbook;
mod runs;
mod scan;
mod schema;
mod serve;
mod snapshot;
mod ssh;
mod status;
mod terraform;
mod validate;
mod volume;
mod vpn;
mod webhooks;
mod workers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use context::{Context, Global};
pub use credentials::{load_secrets, overrides};
pub use error::{CliError, ExitKind};
pub use obtain::{SourceOptions, obtain};
pub use validate::load_cluster;

/// Makes a Kubernetes cluster on Hetzner Cloud impossible to lose, and proves it.
#[derive(Parser)]
#[command(name = "hk-dr", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// One file a command; each has `pub struct Args` and `pub fn run(args, &Context) -> Result<(), CliError>`.
#[derive(Subcommand)]
enum Command {
    Plan(plan::Args),
    Build(build::Args),
    Rebuild(rebuild::Args),
    Snapshot(snapshot::Args),
    Log(log::Args),
    Materialize(materialize::Args),
    Compact(compact::Args),
    Mirror(mirror::Args),
    Doctor(doctor::Args),
    Diff(diff::Args),
    Get(get::Args),
    RestoreObject(restore_object::Args),
    Resume(resume::Args),
    Abort(abort::Args),
    Approve(approve::Args),
    Runbook(runbook::Args),
    Policy(policy::Args),
    Serve(serve::Args),
    Report(report::Args),
    Status(status::Args),
    Drift(drift::Args),
    Ssh(ssh::Args),
    Kubeconfig(kubeconfig::Args),
    Certificates(certificates::Args),
    Terraform(terraform::Args),
    Workers(workers::Args),
    Webhooks(webhooks::Args),
    Gitops(gitops::Args),
    Volume(volume::Args),
    Vpn(vpn::Args),
    Front(front::Args),
    Scan(scan::Args),
    #[command(hide = true)]
    ScanPorts(scan::PortsArgs),
    Init(init::Args),
    Destroy(destroy::Args),
    #[command(hide = true)]
    PinnedHostKey(ssh::PinnedArgs),
    Runs(runs::Args),
    Artifacts(artifacts::Args),
    Bench(bench::Args),
    #[command(hide = true)]
    BenchDesk(bench::desk::Args),
    #[command(hide = true)]
    BenchLoad(bench::LoadArgs),
    #[command(hide = true)]
    BenchSnapshotOnce(bench::OnceArgs),
    Completions(completions::Args),
    #[command(hide = true)]
    ReadPages(read_pages::Args),
    Demo(demo::Args),
    #[command(hide = true)]
    DemoProbe(demo_probe::Args),
    Keys(keys::Args),
    Schema(schema::Args),
    Validate(validate::Args),
    Lab(lab::Args),
}

/// Parses, runs, and renders an error with its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // TLS goes through one provider, chosen here and nowhere else. A second call can't happen: ignore its result.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let context = Context::new(cli.global);
    crate::backup::ask_with(Box::new(ask::Terminal::of(&context)));
    match run(cli.command, &context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.render(&context),
    }
}

impl Command {
    /// Whether it reads backups for what they hold; others would mix the past with what they write.
    fn may_look_back(&self) -> bool {
        match self {
            Self::Snapshot(args) => args.may_look_back(),
            Self::Log(args) => args.may_look_back(),
            Self::Volume(args) => args.may_look_back(),
            Self::Materialize(_) | Self::Diff(_) | Self::Get(_) | Self::RestoreObject(_) => true,
            Self::Rebuild(_) | Self::Plan(_) | Self::Runbook(_) | Self::Resume(_) | Self::Status(_) => true,
            _ => false,
        }
    }
}

fn run(command: Command, context: &Context) -> Result<(), CliError> {
    if let Some(before) = context.global.as_of {
        if !command.may_look_back() {
            return Err(CliError::new(ExitKind::Usage, "--as-of is for commands that read backups")
                .hint("nothing was touched; it goes with snapshot list, show and fetch, log status, materialize, diff, get, restore-object, volume list and restore, plan, rebuild, runbook, resume, status"));
        }
        if before > crate::ports::Clock::now(&crate::ports::SystemClock) {
            return Err(CliError::new(ExitKind::Usage, format!("--as-of {before} is still to come"))
                .hint("nothing was touched; leave it away to read the bucket as it is"));
        }
    }
    match command {
        Command::Plan(args) => plan::run(args, context),
        Command::Build(args) => build::run(args, context),
        Command::Rebuild(args) => rebuild::run(args, context),
        Command::Snapshot(args) => snapshot::run(args, context),
        Command::Log(args) => log::run(args, context),
        Command::Materialize(args) => materialize::run(&args, context),
        Command::Doctor(args) => doctor::run(&args, context),
        Command::RestoreObject(args) => restore_object::run(&args, context),
        Command::Mirror(args) => mirror::run(&args, context),
        Command::Compact(args) => compact::run(&args, context),
        Command::Diff(args) => diff::run(&args, context),
        Command::Get(args) => get::run(&args, context),
        Command::Resume(args) => resume::run(args, context),
        Command::Abort(args) => abort::run(&args, context),
        Command::Approve(args) => approve::run(&args, context),
        Command::Runbook(args) => runbook::run(args, context),
        Command::Policy(args) => policy::run(args, context),
        Command::Serve(args) => serve::run(&args, context),
        Command::Report(args) => report::run(&args, context),
        Command::Status(args) => status::run(args, context),
        Command::Drift(args) => drift::run(args, context),
        Command::Ssh(args) => ssh::run(args, context),
        Command::Kubeconfig(args) => kubeconfig::run(args, context),
        Command::Certificates(args) => certificates::run(args, context),
        Command::Terraform(args) => terraform::run(args, context),
        Command::Workers(args) => workers::run(args, context),
        Command::Webhooks(args) => webhooks::run(&args, context),
        Command::Gitops(args) => gitops::run(&args, context),
        Command::Volume(args) => volume::run(&args, context),
        Command::Vpn(args) => vpn::run(args, context),
        Command::Front(args) => front::run(&args, context),
        Command::Scan(args) => scan::run(&args, context),
        Command::ScanPorts(args) => scan::ports(&args, context),
        Command::Init(args) => init::run(args, context),
        Command::Destroy(args) => destroy::run(args, context),
        Command::PinnedHostKey(args) => ssh::pinned(&args),
        Command::Runs(args) => runs::run(args, context),
        Command::Artifacts(args) => artifacts::run(args, context),
        Command::Bench(args) => bench::run(args, context),
        Command::BenchDesk(args) => bench::desk::run(&args, context),
        Command::BenchLoad(args) => bench::load(&args, context),
        Command::BenchSnapshotOnce(args) => bench::once(&args, context),
        Command::ReadPages(args) => read_pages::run(&args, context),
        Command::Completions(args) => completions::run(args, context),
        Command::Demo(args) => demo::run(args, context),
        Command::DemoProbe(args) => demo_probe::run(args, context),
        Command::Keys(args) => keys::run(args, context),
        Command::Schema(args) => schema::run(args, context),
        Command::Validate(args) => validate::run(args, context),
        Command::Lab(args) => lab::run(args, context),
    }
}
