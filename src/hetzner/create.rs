use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::HetznerCloud;
use super::actions::Actions;
use super::http::{Http, Pauses, parsed, query_value};
use super::wire::{Labelled, Resource, Started};
use crate::ports::{ErrorCode, Labels, PortError, PortResult, Server, ServerStatus};

/// How long a server that an earlier, lost request created may take to run.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);

/// Something new, and whether this call's own request is known to have made it (its actions were waited for then).
pub(super) struct Created<T> {
    pub(super) model: T,
    pub(super) waited: bool,
}

/// Creates what has a unique name. A lost answer is followed by a look for the name before anything is sent again; a name
/// that is taken is fine if what has it carries our labels.
pub(super) async fn create<R: Resource>(
    http: &Arc<Http>,
    actions: &Arc<Actions>,
    name: &str,
    labels: &Labels,
    body: &Value,
) -> PortResult<Created<R::Model>> {
    let doing = || format!("create {} {name}", R::ONE.replace('_', " "));
    let path = format!("/{}", R::LIST);
    let mut pauses = Pauses::new();
    loop {
        let failure = match http.attempt(&Method::POST, &path, Some(body)).await {
            Ok(mut value) => {
                let model = parsed::<R>(value[R::ONE].take(), &path)?.model();
                let started: Started = parsed(value, &path).unwrap_or_default();
                actions.all(started.all()).await.map_err(|e| e.context(doing()))?;
                return Ok(Created { model, waited: true });
            }
            Err(failure) => failure,
        };
        let taken = failure.error.code == ErrorCode::Conflict;
        if failure.ambiguous || taken {
            match by_name::<R>(http, name).await.map_err(|e| e.context(doing()))? {
                Some(found) if carries(found.labels(), labels) => return Ok(Created { model: found, waited: false }),
                Some(found) => return Err(foreign::<R>(&found).context(doing())),
                None => {}
            }
        }
        pauses.after(failure.error).await.map_err(|e| e.context(doing()))?;
    }
}

/// The only one of this name, if there is one.
pub(super) async fn by_name<R: Resource>(http: &Http, name: &str) -> PortResult<Option<R::Model>> {
    let found: Vec<R> = http.list(R::LIST, &format!("&name={}", query_value(name))).await?;
    Ok(found.into_iter().map(Resource::model).find(|model| model.name() == name))
}

fn carries(found: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| found.get(key) == Some(value))
}

fn foreign<R: Resource>(found: &R::Model) -> PortError {
    let kind = R::ONE.replace('_', " ");
    PortError::new(
        ErrorCode::Conflict,
        format!("a {kind} of this name (id {}) exists and does not carry this cluster's labels", found.id()),
    )
    .hint(format!("rename or delete that {kind}, or choose another cluster name; it was not touched"))
}

impl HetznerCloud {
    /// Waits until a server that was found instead of created runs: its actions are not known.
    pub(super) async fn running(&self, id: u64) -> PortResult<Server> {
        let end = Instant::now() + BOOT_TIMEOUT;
        let mut pause = Duration::from_millis(100);
        loop {
            let server = self.server(id).await?;
            if server.status != ServerStatus::Changing {
                return Ok(server);
            }
            if Instant::now() + pause > end {
                return Err(PortError::new(
                    ErrorCode::Timeout,
                    format!("server {} did not run within {} s", server.name, BOOT_TIMEOUT.as_secs()),
                ));
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_secs(2));
        }
    }
}
