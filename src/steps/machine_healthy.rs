use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Observed, StepContext, StepKind};
use crate::distribution::upstream::Role;
use crate::plan::params::MachineHealthy;
use crate::ports::{ErrorClass, ErrorCode, Host, NodeProbe, PortError, PortResult, Service};

/// Waits until a machine runs what it should. Where it does not, the run stops: nothing else is touched.
pub struct MachineHealthyStep;

const ASK_EVERY: Duration = Duration::from_millis(250);
/// Looks in a row that must find nothing wrong: a service that ends again and again runs in between.
const GOOD_LOOKS: u32 = 2;

#[async_trait]
impl StepKind for MachineHealthyStep {
    type Params = MachineHealthy;
    type Output = ();

    async fn observe(&self, _: &StepContext<'_>, _: &MachineHealthy) -> PortResult<Observed<()>> {
        Ok(Observed::Absent)
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &MachineHealthy) -> PortResult<()> {
        let host = cx.server(&params.server).await?.host();
        let end = Instant::now() + Duration::from_secs(params.within_seconds.into());
        let mut good = 0;
        loop {
            let wrong = match look(cx, &host, params).await {
                Ok(None) => {
                    good += 1;
                    if good == GOOD_LOOKS {
                        return Ok(());
                    }
                    None
                }
                Ok(Some(wrong)) => Some(wrong),
                Err(error) if error.class() == ErrorClass::Transient => Some(error.message),
                Err(error) => return Err(error),
            };
            if let Some(wrong) = wrong {
                good = 0;
                if Instant::now() + ASK_EVERY >= end {
                    // Not transient: trying the same once more would only keep a person waiting.
                    let message = format!("{} is not healthy after {} s: {wrong}", host.name, params.within_seconds);
                    return Err(PortError::new(ErrorCode::Invalid, message).hint(params.hint.clone()));
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// What is wrong, if anything is.
async fn look(cx: &StepContext<'_>, host: &Host, params: &MachineHealthy) -> PortResult<Option<String>> {
    let machines = &cx.world.machines;
    let role = if params.master { Role::Master } else { Role::Worker };
    if let Some(wrong) = wrong(params, &machines.probe(host, role).await?) {
        return Ok(Some(wrong));
    }
    let Some(least) = params.certificates_until else { return Ok(None) };
    let found = machines.certificates(host, params.master).await?;
    let first = found.iter().filter(|c| c.until < least).min_by_key(|c| c.until);
    Ok(first.map(|c| format!("its certificate at {} ends {}", c.place, c.until)))
}

fn wrong(params: &MachineHealthy, probe: &NodeProbe) -> Option<String> {
    let services: &[Service] =
        if params.master { &[Service::Etcd, Service::ApiServer, Service::Controllers] } else { &[Service::Worker] };
    let units = services.iter().flat_map(|s| s.units());
    let idle: Vec<&str> = units.copied().filter(|unit| !probe.active_units.contains(*unit)).collect();
    if !idle.is_empty() {
        return Some(format!("{} not running", idle.join(" and ")));
    }
    params.versions.iter().find_map(|(program, wanted)| {
        let runs = probe.stale.get(program).or_else(|| probe.versions.get(program));
        (runs != Some(wanted))
            .then(|| format!("{program} {} runs, not {wanted}", runs.map_or("of no known version", String::as_str)))
    })
}
