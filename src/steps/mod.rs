//! One file a step kind, and the registry that finds them. A step observes first and acts only on what is missing:
//! that is what makes a crash between an effect and its record harmless.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::plan::params::Params;
use crate::ports::{ErrorCode, PortError, PortResult};

mod aftermath;
mod api_start;
mod api_write;
mod artifact_mirror;
mod balancer;
mod binaries_install;
mod cluster_clean;
mod cluster_settle;
mod control_plane_stop;
mod controllers_start;
mod copy;
mod etcd_agree;
mod etcd_mount;
mod etcd_restore;
mod etcd_start;
mod etcd_stop;
mod etcd_unchanged;
mod floating_ip;
mod machine_healthy;
mod machine_ready;
mod manual_wait;
mod mark;
mod master_configure;
mod member_change;
mod network_create;
mod node_drain;
mod node_fresh;
mod node_ready;
mod perimeter;
mod placement_group_create;
mod removal;
mod secrets_keep;
mod server_create;
mod server_fence;
mod server_power;
mod servers;
mod services_stop;
mod snapshot_take;
mod ssh_key_create;
mod ssh_key_rotate;
mod volume_move;
mod volume_provide;
mod volume_retire;
mod vpn_configure;
mod waiting;
mod worker_configure;
mod worker_start;
mod world;

pub use aftermath::{Webhooks, put_webhooks_back, relaxed_webhooks, resume_suspended, suspended_workloads};
pub use artifact_mirror::object_key;
pub use cluster_clean::Cleaned;
pub use copy::Discarded;
pub use etcd_agree::Agreement;
pub use manual_wait::{Approval, approval, approve};
pub use mark::Mark;
pub use servers::{HOST_KEY_LABEL, ServerOutput};
pub use world::{World, load_secrets};

/// What a step sees of its run.
pub struct StepContext<'a> {
    pub world: &'a World,
    pub run: &'a str,
    /// Outputs of all steps that have finished, by step id.
    pub outputs: &'a BTreeMap<String, Value>,
    /// While applying: nothing of the effect was there a moment ago. Whoever makes something need not look for it again.
    pub absent: bool,
}

/// What a step found before it acted.
#[derive(Debug, Clone, PartialEq)]
pub enum Observed<T> {
    /// Nothing of the effect is there.
    Absent,
    /// The whole effect is there.
    Done(T),
    /// A part is there; applying completes it.
    Partial,
    /// Something that is not ours stands in the way.
    Foreign(String),
}

/// The code behind one kind of step.
#[async_trait]
pub trait StepKind: Send + Sync {
    type Params: Params;
    type Output: Serialize + DeserializeOwned + Send + Sync;

    /// Looks at the world and changes nothing.
    async fn observe(&self, cx: &StepContext<'_>, params: &Self::Params) -> PortResult<Observed<Self::Output>>;
    /// Brings the effect about. May be repeated after any interruption.
    async fn apply(&self, cx: &StepContext<'_>, params: &Self::Params) -> PortResult<Self::Output>;
}

/// A step kind with its types erased.
#[async_trait]
pub trait ErasedStep: Send + Sync {
    fn version(&self) -> u32;
    async fn observe(&self, cx: &StepContext<'_>, params: &Value) -> PortResult<Observed<Value>>;
    async fn apply(&self, cx: &StepContext<'_>, params: &Value) -> PortResult<Value>;
}

#[async_trait]
impl<K: StepKind> ErasedStep for K {
    fn version(&self) -> u32 {
        K::Params::VERSION
    }

    async fn observe(&self, cx: &StepContext<'_>, params: &Value) -> PortResult<Observed<Value>> {
        Ok(match StepKind::observe(self, cx, &decode::<K::Params>(params)?).await? {
            Observed::Absent => Observed::Absent,
            Observed::Partial => Observed::Partial,
            Observed::Foreign(what) => Observed::Foreign(what),
            Observed::Done(output) => Observed::Done(encode(&output)?),
        })
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &Value) -> PortResult<Value> {
        encode(&StepKind::apply(self, cx, &decode::<K::Params>(params)?).await?)
    }
}

fn decode<T: DeserializeOwned>(params: &Value) -> PortResult<T> {
    serde_json::from_value(params.clone())
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("the step's parameters can't be read: {e}")))
}

fn encode<T: Serialize>(output: &T) -> PortResult<Value> {
    serde_json::to_value(output)
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("the step's output can't be written: {e}")))
}

/// Finds the code for a step kind.
pub struct Registry {
    kinds: BTreeMap<&'static str, Box<dyn ErasedStep>>,
}

impl Registry {
    /// All kinds this version knows.
    pub fn standard() -> Self {
        let mut registry = Self { kinds: BTreeMap::new() };
        registry.add(secrets_keep::SecretsKeepStep);
        registry.add(artifact_mirror::ArtifactMirrorStep);
        registry.add(network_create::NetworkCreateStep);
        registry.add(perimeter::FirewallProvideStep);
        registry.add(perimeter::FirewallDeleteStep);
        registry.add(perimeter::RouteProvideStep);
        registry.add(vpn_configure::VpnConfigureStep);
        registry.add(balancer::BalancerProvideStep);
        registry.add(balancer::BalancerDeleteStep);
        registry.add(floating_ip::FloatingIpProvideStep);
        registry.add(floating_ip::FloatingIpAssignStep);
        registry.add(floating_ip::FloatingIpDeleteStep);
        registry.add(floating_ip::FrontConfigureStep);
        registry.add(placement_group_create::PlacementGroupCreateStep);
        registry.add(ssh_key_create::SshKeyCreateStep);
        registry.add(server_create::ServerCreateStep);
        registry.add(server_fence::ServerFenceStep);
        registry.add(volume_retire::VolumeRetireStep);
        registry.add(volume_provide::VolumeProvideStep);
        registry.add(machine_ready::MachineReadyStep);
        registry.add(binaries_install::BinariesInstallStep);
        registry.add(master_configure::MasterConfigureStep);
        registry.add(etcd_mount::EtcdMountStep);
        registry.add(etcd_restore::EtcdRestoreKind);
        registry.add(etcd_restore::EtcdRestoreTakenStep);
        registry.add(manual_wait::ManualWaitStep);
        registry.add(copy::CopyCompareStep);
        registry.add(copy::CopyServedStep);
        registry.add(copy::CopyDiscardStep);
        registry.add(etcd_start::EtcdStartKind);
        registry.add(etcd_agree::EtcdAgreeStep);
        registry.add(api_start::ApiStartStep);
        registry.add(cluster_clean::ClusterCleanStep);
        registry.add(cluster_settle::ClusterSettleStep);
        registry.add(controllers_start::ControllersStartStep);
        registry.add(worker_configure::WorkerConfigureStep);
        registry.add(worker_start::WorkerStartStep);
        registry.add(node_ready::NodeReadyStep);
        registry.add(snapshot_take::SnapshotTakeStep);
        registry.add(control_plane_stop::ControlPlaneStopStep);
        registry.add(etcd_stop::EtcdStopStep);
        registry.add(server_power::ServerPowerOffStep);
        registry.add(server_power::ServerPowerOnStep);
        registry.add(volume_move::VolumeDetachStep);
        registry.add(volume_move::VolumeAttachStep);
        registry.add(etcd_unchanged::EtcdUnchangedStep);
        registry.add(api_write::ApiWriteStep);
        registry.add(member_change::MemberRemoveStep);
        registry.add(member_change::MemberAddStep);
        registry.add(node_fresh::NodeFreshStep);
        registry.add(ssh_key_rotate::SshKeyAuthorizeStep);
        registry.add(ssh_key_rotate::SshKeyRevokeStep);
        registry.add(services_stop::ControllersStopStep);
        registry.add(services_stop::WorkerStopStep);
        registry.add(machine_healthy::MachineHealthyStep);
        registry.add(node_drain::NodeDrainStep);
        registry.add(node_drain::NodeUncordonStep);
        registry.add(node_drain::NodeDeleteStep);
        registry.add(removal::VolumeDeleteStep);
        registry.add(removal::NetworkDeleteStep);
        registry.add(removal::PlacementGroupDeleteStep);
        registry.add(removal::SshKeyDeleteStep);
        registry.add(removal::BackupsDeleteStep);
        registry
    }

    fn add<K: StepKind + 'static>(&mut self, kind: K) {
        self.kinds.insert(K::Params::KIND, Box::new(kind));
    }

    /// The code for a kind in exactly this version.
    pub fn find(&self, kind: &str, version: u32) -> Result<&dyn ErasedStep, UnknownStep> {
        match self.kinds.get(kind) {
            Some(step) if step.version() == version => Ok(step.as_ref()),
            Some(step) => Err(UnknownStep { kind: kind.into(), version, known: Some(step.version()) }),
            None => Err(UnknownStep { kind: kind.into(), version, known: None }),
        }
    }
}

/// A plan has a step this version can't execute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step kind {kind} version {version} is not known to this hk-dr (it knows {known:?})")]
pub struct UnknownStep {
    pub kind: String,
    pub version: u32,
    pub known: Option<u32>,
}
