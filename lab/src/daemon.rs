//! The emulator: the process in the outer namespace that serves the cloud's API, its metadata service and S3.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::api::{self, Provider};
use crate::backend::Backend;
use crate::error::{Attempt, LabError};
use crate::machine::Machines;
use crate::options::{LabInfo, Launch, labs_dir, state_file};
use crate::registry::Registry;
use crate::{entrance, fabric, objectstore, outer, storefault};

/// What the emulator gets from the guardian.
pub(crate) struct Inheritance {
    pub info: LabInfo,
    pub launch: Launch,
    /// Listeners on the host's loopback, made before the namespaces.
    pub api: TcpListener,
    pub s3: TcpListener,
    pub registry: PathBuf,
}

/// What a lab that comes up tells `lab up`, one line of JSON each on its standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    Progress(String),
    Ready,
    Failed { message: String, hint: Option<String> },
}

pub(crate) fn report(report: &Report) {
    let Ok(line) = serde_json::to_string(report) else { return };
    let mut out = std::io::stdout().lock();
    // Who waited may be gone: the lab goes on without.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Runs until the lab ends. Returns an exit status.
pub(crate) fn run(inheritance: Inheritance) -> i32 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result =
        runtime.attempt(|| "start the runtime".into()).and_then(|runtime| runtime.block_on(serve(inheritance)));
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            report(&Report::Failed { message: error.message, hint: error.hint });
            1
        }
    }
}

/// Each machine's init needs a few of what the kernel allows root 128 of by default: beyond thirty machines none would
/// boot. The limit is the host's, has no lesser scope, and is only ever raised; what uses none of it costs nothing.
fn raise_inotify_limit() {
    const ENOUGH: u64 = 4096;
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let limit = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if limit.is_some_and(|limit| limit < ENOUGH)
        && let Err(error) = std::fs::write(path, ENOUGH.to_string())
    {
        eprintln!("{path} stays low: {error}; with thirty machines or more some will not boot");
    }
}

async fn serve(inheritance: Inheritance) -> Result<(), LabError> {
    let Inheritance { info, launch, api, s3, registry } = inheritance;
    let dir = labs_dir().join(&launch.name);
    raise_inotify_limit();
    report(&Report::Progress("laying the network".into()));
    fabric::lay().await?;
    report(&Report::Progress("starting S3".into()));
    let store = objectstore::Store {
        program: launch.versitygw.clone(),
        dir: launch.disks.join("s3"),
        log: dir.join("s3.log"),
        access_key: info.access_key.clone(),
        secret_key: info.secret_key.clone(),
    };
    store.start().await?;
    objectstore::publish(s3)?;
    let (machines, mut events) = Machines::new(&launch.name, &launch.golden, &launch.disks, Registry::at(registry)?)?;
    let machines = Arc::new(machines);
    entrance::open(&dir, Arc::clone(&machines) as Arc<dyn Backend>)?;
    let options = api::Options::new(info.token.clone());
    let state = state_file(&launch.disks);
    let provider =
        if launch.durable { Provider::load(machines, options, &state)? } else { Provider::new(machines, options) };
    storefault::start(Arc::clone(&provider))?;
    let told = Arc::clone(&provider);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            told.machine_event(event);
        }
    });
    api.set_nonblocking(true).attempt(|| "prepare a listener".into())?;
    let mut running = tokio::task::JoinSet::new();
    let mut serve = |listener: TcpListener, router: axum::Router| {
        let listener = tokio::net::TcpListener::from_std(listener).attempt(|| "prepare a listener".into())?;
        running.spawn(hk_lab_serve::serve(listener, router));
        Ok::<(), LabError>(())
    };
    // Machines that boot ask for it.
    serve(fabric::listen(fabric::METADATA)?, api::metadata_router(Arc::clone(&provider)))?;
    if launch.durable {
        report(&Report::Progress("bringing back what was kept".into()));
        provider.restore().await?;
        provider.keep(state).await?;
    }
    let router = api::router(provider);
    serve(fabric::listen(fabric::API)?, router.clone())?;
    serve(api, router)?;
    report(&Report::Ready);
    outer::to_log(&dir)?;
    match running.join_next().await {
        Some(Ok(Err(error))) => Err(LabError::new(format!("a server of the lab ended: {error}"))),
        _ => Err(LabError::new("a server of the lab ended")),
    }
}
