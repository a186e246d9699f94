use std::net::Ipv4Addr;
use std::num::{NonZeroU32, NonZeroU64};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `cluster.yaml`: the cluster a team declares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// `hk-dr/v1`
    pub api_version: String,
    /// `Cluster`
    pub kind: String,
    /// Names every resource: lower-case letters, digits and dashes, at most 32.
    pub name: String,
    pub kubernetes: Kubernetes,
    pub etcd: EtcdConfig,
    pub network: NetworkConfig,
    /// Default-deny before all public addresses; without it there is no firewall at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firewall: Option<super::FirewallConfig>,
    /// The only way in; without it servers are reached at their public addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpn: Option<super::VpnConfig>,
    /// Load balancers and floating IPs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front: Option<super::FrontConfig>,
    /// The cloud's image that servers boot from.
    #[serde(default = "default_image")]
    pub image: String,
    /// Where a server goes when its own location has no capacity, in this order.
    pub fallback_locations: Vec<String>,
    /// An odd number of masters.
    pub masters: Vec<MasterConfig>,
    /// A list of workers, or `pools` of workers that are alike.
    #[serde(default, deserialize_with = "super::pools::workers")]
    #[schemars(schema_with = "super::pools::schema")]
    pub workers: Vec<WorkerConfig>,
    #[serde(default)]
    pub certificates: CertificatesConfig,
    pub backup: BackupConfig,
    /// Mounted volumes whose files `hk-dr volume backup` keeps. etcd's are not among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<super::VolumeConfig>,
}

/// How long the servers' certificates are valid and when a build renews them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificatesConfig {
    /// Days from a certificate's making to its end.
    #[serde(default = "default_valid_days")]
    pub valid_days: u32,
    /// A build renews what ends within so many days.
    #[serde(default = "default_renew_before_days")]
    pub renew_before_days: u32,
}

impl Default for CertificatesConfig {
    fn default() -> Self {
        Self { valid_days: default_valid_days(), renew_before_days: default_renew_before_days() }
    }
}

/// Kubernetes' version and address ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// Exact version without `v`, pinned in `artifacts.lock`.
    pub version: String,
    #[serde(default = "default_pod_range")]
    pub pod_range: String,
    #[serde(default = "default_service_range")]
    pub service_range: String,
    /// Image bundles from `artifacts.lock` that workers load before their kubelet starts.
    #[serde(default)]
    pub preload_images: Vec<String>,
}

/// etcd's version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EtcdConfig {
    pub version: String,
}

/// The private network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkConfig {
    /// The network's range, such as `10.0.0.0/16`.
    pub range: String,
    /// The subnet the servers' addresses are in.
    pub subnet: String,
    #[serde(default = "default_zone")]
    pub zone: String,
    /// Which servers have a public address beside the VPN host.
    #[serde(default, rename = "publicIPv4", skip_serializing_if = "PublicIpv4::is_default")]
    pub public_ipv4: PublicIpv4,
}

/// Which servers have a public IPv4 address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PublicIpv4 {
    /// All.
    #[default]
    All,
    /// Workers, which a floating IP can then follow.
    Workers,
    /// None: the way in and out is the VPN host.
    None,
}

impl PublicIpv4 {
    pub fn masters(self) -> bool {
        self == Self::All
    }
    pub fn workers(self) -> bool {
        self != Self::None
    }
    // Its signature is serde's.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One master: etcd on a volume, and the control plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MasterConfig {
    /// Short name; the server is called `<cluster>-<name>`.
    pub name: String,
    pub location: String,
    #[serde(rename = "type")]
    pub server_type: String,
    /// Pinned private address.
    pub address: Ipv4Addr,
    /// Size of the volume that holds etcd's data, in GB.
    #[serde(default = "default_etcd_volume")]
    pub etcd_volume_gb: u32,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkerConfig {
    pub name: String,
    pub location: String,
    #[serde(rename = "type")]
    pub server_type: String,
    pub address: Ipv4Addr,
    /// Node labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// The pool it is of, counted from 0 in the order of the file; none: it is declared by itself.
    #[serde(skip)]
    #[schemars(skip)]
    pub pool: Option<usize>,
}

/// Where offsite copies go and who can open them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupConfig {
    pub bucket: String,
    #[serde(default = "default_region")]
    pub region: String,
    /// S3 endpoint; none means AWS. `AWS_ENDPOINT_URL` overrides it.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// File beside `cluster.yaml` with one age recipient a line (at least two: one may be lost).
    #[serde(default = "default_recipients")]
    pub recipients_file: String,
    /// minisign public keys whose signatures count; whoever takes snapshots holds the secret half of one of them. None:
    /// nothing is signed or checked. `hk-dr keys signing init` makes one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signed_by: Vec<String>,
    /// Further buckets that hold the same: elsewhere, under other credentials (`hk-dr keys bucket NAME`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyConfig>,
    /// How long nobody can delete what backups consist of. None: versions are kept, and whoever may can delete them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_lock: Option<ObjectLockConfig>,
    /// What `hk-dr snapshot prune` keeps.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// The most that scheduled snapshots read of a member's file in a second, in MB (10⁶ bytes), so that the cluster's writes hardly
    /// notice. A fifth of it through etcd's API, where a byte costs etcd five times as much. Five times as much where something
    /// waits for it: a runbook's snapshot, the one that the log continues from. `hk-dr snapshot` reads as fast as it can unless
    /// told otherwise.
    #[serde(default = "default_megabytes_per_second")]
    pub megabytes_per_second: NonZeroU32,
}

impl BackupConfig {
    /// The same in bytes.
    pub fn bytes_per_second(&self) -> NonZeroU64 {
        NonZeroU64::from(self.megabytes_per_second).saturating_mul(BYTES_PER_MB)
    }
}

/// Bytes of a megabyte, as disks and networks count them.
pub const BYTES_PER_MB: NonZeroU64 = NonZeroU64::new(1_000_000).expect("it is not zero");

fn default_megabytes_per_second() -> NonZeroU32 {
    const { NonZeroU32::new(25).expect("it is not zero") }
}

/// A further bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopyConfig {
    /// Names its credentials in `secrets.yaml.age`.
    pub name: String,
    pub bucket: String,
    #[serde(default = "default_region")]
    pub region: String,
    /// S3 endpoint; none means AWS. `file:///PATH`: the directory PATH/BUCKET, on a disk or a share; somebody must have made
    /// it, and it needs no credentials.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// As `backup.objectLock`, for this bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_lock: Option<ObjectLockConfig>,
}

impl CopyConfig {
    /// The directory that it is, if it is one.
    pub fn directory(&self) -> Option<String> {
        let path = self.endpoint.as_deref()?.strip_prefix("file://")?;
        Some(format!("{}/{}", path.trim_end_matches('/'), self.bucket))
    }
}

/// An S3 object lock, set on each object as it is written. The bucket must have been made with object lock, as hk-dr makes
/// buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectLockConfig {
    pub mode: ObjectLockMode,
    /// From the time of writing.
    pub days: u32,
}

/// Who may shorten a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ObjectLockMode {
    /// Nobody, the account's owner included.
    Compliance,
    /// Those who may bypass it (`s3:BypassGovernanceRetention`).
    Governance,
}

/// Which snapshots stay, by time. Of each hour, day, week, month and year (UTC) the first of the best proven is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Every snapshot of so many hours.
    pub all_hours: u32,
    /// One an hour for so many days.
    pub hourly_days: u32,
    /// One a day for so many days.
    pub daily_days: u32,
    /// One a week for so many weeks.
    pub weekly_weeks: u32,
    /// One a month for so many months (31 days).
    pub monthly_months: u32,
    /// One a year for so many years.
    pub yearly_years: u32,
    /// So many days back every revision can be had: the log, and the snapshot it begins with.
    pub log_days: u32,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            all_hours: 24,
            hourly_days: 2,
            daily_days: 14,
            weekly_weeks: 8,
            monthly_months: 12,
            yearly_years: 3,
            log_days: 7,
        }
    }
}

fn default_valid_days() -> u32 {
    365
}
fn default_renew_before_days() -> u32 {
    30
}
fn default_image() -> String {
    "debian-12".into()
}
fn default_pod_range() -> String {
    "10.244.0.0/16".into()
}
fn default_service_range() -> String {
    "10.96.0.0/16".into()
}
fn default_zone() -> String {
    "eu-central".into()
}
fn default_etcd_volume() -> u32 {
    10
}
fn default_region() -> String {
    "eu-central".into()
}
fn default_recipients() -> String {
    "recipients.txt".into()
}
