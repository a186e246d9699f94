//! From the Git directory, its secrets and the command line to the world that steps act on.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::buckets::Buckets;
use super::{CliError, Context, ExitKind};
use crate::artifacts::{Cache, Silent, Sources};
use crate::backup::{Archive, BucketBackups, BucketVault, IN_PLACE_FROM_BYTES, Identities, Rate, Recipients, Source};
use crate::config::Cluster;
use crate::hetzner::HetznerCloud;
use crate::machines::ShellMachines;
use crate::ports::{Artifacts, Cloud, Dialer, Machines, ObjectStore, PortResult, Reach, SystemClock, Vault};
use crate::secrets::Secrets;
use crate::sign::{SigningKey, Trust};
use crate::ssh::{Direct, SshDialer, SshShell};
use crate::steps::World;
use crate::vpn::{Slots, VpnRoute};

/// Where Hetzner's API is when nothing else is said.
const CLOUD_ENDPOINT: &str = "https://api.hetzner.cloud/v1";

/// Where sshd listens.
pub(super) const SSH_PORT: u16 = 22;

/// The Git directory, read and checked.
pub struct Declared {
    pub cluster: Cluster,
    /// The text of `cluster.yaml`, as it goes into recovery sets.
    pub text: String,
    pub recipients: Recipients,
    /// The commit that is checked out, if the directory is in Git.
    pub git_commit: Option<String>,
}

/// A connected world and what it was made from.
pub struct Connected {
    pub declared: Declared,
    /// OpenSSH form.
    pub ssh_public_key: String,
    pub world: World,
    /// The bucket, or all of them at once, behind signatures where cluster.yaml names keys.
    pub store: Arc<dyn ObjectStore>,
    /// The buckets themselves.
    pub buckets: Buckets,
    /// Signs evidence and reports; what goes into the bucket is signed on its way.
    pub signer: Option<Arc<SigningKey>>,
    /// The cloud, for what no port asks.
    pub hetzner: HetznerCloud,
    /// What snapshots are taken of.
    pub source: Source,
    /// Commands on machines.
    pub shell: SshShell,
    /// The way to machines.
    pub reach: Arc<dyn Reach>,
}

impl Connected {
    /// Where points in time are fetched from. Plain data lies below the state directory meanwhile, unlinked.
    pub fn archive(&self, context: &Context) -> Result<Archive, CliError> {
        Ok(Archive {
            store: Arc::clone(&self.store),
            cluster: self.declared.cluster.name.clone(),
            identities: Identities::load_given(context.global.identity.as_deref())?,
            scratch: context.state_dir().join("scratch"),
        })
    }
}

/// Reads and checks `cluster.yaml` and the recipients.
pub fn declared(context: &Context) -> Result<Declared, CliError> {
    let dir = &context.global.dir;
    let path = dir.join("cluster.yaml");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", path.display()))
            .hint("nothing was touched; name the Git directory with -C DIR")
    })?;
    let cluster = super::validate::check(&text, &path)?;
    let recipients = Recipients::load(&dir.join(&cluster.backup.recipients_file))?;
    Ok(Declared { cluster, text, recipients, git_commit: git_commit(dir) })
}

/// Connects to nothing yet: every port connects when it is first used.
pub fn connect(context: &Context) -> Result<Connected, CliError> {
    let declared = declared(context)?;
    let secrets = super::credentials::load_secrets(context)?;
    let cluster = declared.cluster.clone();
    let endpoint = secrets.cloud_endpoint().unwrap_or(CLOUD_ENDPOINT);
    let hetzner = HetznerCloud::new(endpoint, secrets.cloud_token()?)?;
    let trust = Trust::parse(&cluster.backup.signed_by)?;
    let signer = signer(&secrets, &trust)?;
    let buckets = Buckets::of(&cluster, &secrets, &trust, signer.as_ref(), context)?;
    let store = Arc::clone(&buckets.store);
    let cloud: Arc<dyn Cloud> = Arc::new(hetzner.clone());
    let identities = context.global.identity.as_deref().map(Identities::load).transpose()?;
    let clock = Arc::new(SystemClock);
    let vault: Arc<dyn Vault> = Arc::new(BucketVault {
        store: Arc::clone(&store),
        cluster: cluster.name.clone(),
        recipients: declared.recipients.clone(),
        identities: identities.clone(),
        clock: Arc::clone(&clock) as _,
    });
    let known = Arc::new(OnceCell::new());
    let reach: Arc<dyn Reach> = match &cluster.vpn {
        None => Arc::new(Direct),
        Some(_) => Arc::new(VpnRoute::new(
            cluster.clone(),
            Arc::clone(&cloud),
            Arc::clone(&vault),
            Arc::clone(&known),
            Slots::new(context.state_dir().join("vpn")),
        )),
    };
    // A copy of the cluster has no VPN: it is reached as a cluster without one.
    let in_public = match &cluster.vpn {
        None => None,
        Some(_) => {
            let shell = SshShell::through(&secrets.ssh_private_keys()?, SSH_PORT, Arc::new(Direct))?;
            let machines: Arc<dyn Machines> = Arc::new(ShellMachines::new(Arc::new(shell.clone())));
            Some((machines, Arc::new(SshDialer::new(shell)) as Arc<dyn Dialer>))
        }
    };
    let shell = SshShell::through(&secrets.ssh_private_keys()?, SSH_PORT, Arc::clone(&reach))?;
    let source = Source {
        cluster: cluster.name.clone(),
        declaration: declared.text.clone(),
        git_commit: declared.git_commit.clone(),
        recipients: declared.recipients.clone(),
        vault: Arc::clone(&vault),
        clock: Arc::clone(&clock) as _,
        rate: Rate::beside(cluster.backup.bytes_per_second()),
        in_place_from_bytes: IN_PLACE_FROM_BYTES,
        scratch: context.state_dir().join("scratch"),
    };
    let world = World {
        cloud,
        machines: Arc::new(ShellMachines::new(Arc::new(shell.clone()))),
        dialer: Arc::new(SshDialer::new(shell.clone())),
        vault,
        backups: Arc::new(BucketBackups {
            store: Arc::clone(&store),
            cluster: cluster.name.clone(),
            identities: match identities {
                Some(identities) => identities,
                None => Identities::load_given(None)?,
            },
            source: Some(source.clone()),
        }),
        artifacts: Arc::new(CachedArtifacts { cache: Cache::new(context.cache_dir()) }),
        store: Arc::clone(&store),
        clock,
        secrets: known,
        cluster,
        copy_of: None,
        in_public,
    };
    let ssh_public_key = ssh_public_key(context)?;
    Ok(Connected { declared, ssh_public_key, world, hetzner, store, buckets, signer, source, shell, reach })
}

/// The key that signs. One that nobody would believe is not used.
pub(super) fn signer(secrets: &Secrets, trust: &Trust) -> Result<Option<Arc<SigningKey>>, CliError> {
    let Some(key) = secrets.signing_key()? else { return Ok(None) };
    if !trust.is_empty() && !trust.names(key.public()) {
        let message = format!("the signing key in secrets.yaml.age ({}) is none of backup.signedBy", key.public().id());
        return Err(CliError::new(ExitKind::Usage, message).hint(
            "nothing was touched; both are changed together: `hk-dr keys signing init`, or take both from one commit",
        ));
    }
    Ok(Some(Arc::new(key)))
}

fn ssh_public_key(context: &Context) -> Result<String, CliError> {
    let path = context.global.dir.join(super::keys::SSH_PUBLIC_FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| {
        CliError::new(ExitKind::Usage, format!("cannot read {}: {e}", path.display()))
            .hint("nothing was touched; `hk-dr keys init` makes the cluster's SSH key")
    })?;
    Ok(text.trim().to_owned())
}

fn git_commit(dir: &std::path::Path) -> Option<String> {
    let output = std::process::Command::new("git").arg("-C").arg(dir).args(["rev-parse", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && commit.len() >= 40).then_some(commit)
}

/// Pinned files from the cache, obtained by the usual sources if they are not there.
struct CachedArtifacts {
    cache: Cache,
}

#[async_trait]
impl Artifacts for CachedArtifacts {
    fn pinned(&self, name: &str, version: Option<&str>) -> PortResult<(String, Vec<String>)> {
        let lock = self.cache.lock();
        let artifact = match version {
            Some(version) => lock.get(name, version)?,
            None => lock.by_name(name)?,
        };
        Ok((artifact.version.clone(), artifact.pinned_digests().into_iter().map(str::to_owned).collect()))
    }

    async fn fetch(&self, name: &str, version: &str) -> PortResult<(PathBuf, String)> {
        let sources = Sources { mirror: None, release: true, build: true };
        let path = self.cache.ensure(name, version, &sources, &Silent).await?;
        Ok((path, self.cache.digest(name, version).await?))
    }
}
