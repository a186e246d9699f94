//! The buckets that cluster.yaml declares: one, or several that hold the same.

use std::sync::Arc;

use secrecy::ExposeSecret;

use super::{CliError, Context};
use crate::backup::{Copies, SignedStore};
use crate::config::{Cluster, ObjectLockConfig, ObjectLockMode};
use crate::ports::{ObjectStore, PortResult};
use crate::s3::{AsOfStore, DirStore, ObjectLock, S3Config, S3Store};
use crate::secrets::Secrets;
use crate::sign::{SigningKey, Trust};

/// A bucket as it is declared.
#[derive(Clone)]
pub enum Bucket {
    S3(Arc<S3Store>),
    /// A directory: a disk or a share.
    Directory(Arc<DirStore>),
}

impl Bucket {
    /// What can be done with either.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        match self {
            Self::S3(store) => Arc::clone(store) as _,
            Self::Directory(store) => Arc::clone(store) as _,
        }
    }

    /// Makes it, if it is missing and is made by hk-dr: a directory is made by a person.
    async fn ensure(&self) -> PortResult<()> {
        match self {
            Self::S3(store) => store.ensure_bucket().await.map(|_| ()),
            Self::Directory(store) => store.there(),
        }
    }
}

/// All of them, and what everything else works with.
pub struct Buckets {
    /// Behind signatures where cluster.yaml names keys, and all of them at once.
    pub store: Arc<dyn ObjectStore>,
    /// As they are, the home bucket first.
    pub bare: Vec<Bucket>,
    /// Set if there are several.
    copies: Option<Arc<Copies>>,
}

impl Buckets {
    /// Connects to nothing yet.
    pub(super) fn of(
        cluster: &Cluster,
        secrets: &Secrets,
        trust: &Trust,
        signer: Option<&Arc<SigningKey>>,
        context: &Context,
    ) -> Result<Self, CliError> {
        let backup = &cluster.backup;
        let mut bare = vec![Bucket::S3(Arc::new(S3Store::connect(&S3Config {
            endpoint: secrets.s3_endpoint().map(str::to_owned).or_else(|| backup.endpoint.clone()),
            region: backup.region.clone(),
            bucket: backup.bucket.clone(),
            access_key: secrets.s3_access_key()?.expose_secret().to_owned(),
            secret_key: secrets.s3_secret_key()?.clone(),
            lock: backup.object_lock.map(lock),
        })?))];
        for copy in &backup.copies {
            if let Some(directory) = copy.directory() {
                bare.push(Bucket::Directory(Arc::new(DirStore::given(directory))));
                continue;
            }
            let (access, secret) = secrets.copy_keys(&copy.name)?;
            bare.push(Bucket::S3(Arc::new(S3Store::connect(&S3Config {
                endpoint: copy.endpoint.clone(),
                region: copy.region.clone(),
                bucket: copy.bucket.clone(),
                access_key: access.expose_secret().to_owned(),
                secret_key: secret.clone(),
                lock: copy.object_lock.map(lock),
            })?)));
        }
        let accept = context.global.accept_unsigned;
        let looked_at = |index: usize, bucket: &Bucket| -> Option<Arc<dyn ObjectStore>> {
            let Some(before) = context.global.as_of else { return Some(bucket.store()) };
            // A directory keeps no versions: its past is not known.
            let Bucket::S3(store) = bucket else { return None };
            let own = context.state_dir().join("as-of").join(format!("{}-{index}-{before}", cluster.name));
            Some(Arc::new(AsOfStore::new(Arc::clone(store), before, Some(own))))
        };
        let mut stores: Vec<Arc<dyn ObjectStore>> = Vec::new();
        for (index, bucket) in bare.iter().enumerate() {
            stores.extend(looked_at(index, bucket).map(|store| SignedStore::over(store, trust, signer, accept)));
        }
        if stores.len() > 1 {
            let copies = Arc::new(Copies::new(stores));
            return Ok(Self { store: Arc::clone(&copies) as _, bare, copies: Some(copies) });
        }
        Ok(Self { store: stores.remove(0), bare, copies: None })
    }

    /// Makes buckets that are missing. One of several that cannot be made stops nobody.
    pub async fn ensure(&self) -> Result<(), CliError> {
        let mut made = 0;
        let mut failed = None;
        for bucket in &self.bare {
            match bucket.ensure().await {
                Ok(()) => made += 1,
                Err(e) => {
                    if self.copies.is_some() {
                        eprintln!("warning: {e}");
                    }
                    failed = Some(e);
                }
            }
        }
        match failed {
            Some(failed) if made == 0 => Err(failed.into()),
            _ => Ok(()),
        }
    }

    /// What went wrong with one of several buckets while the others did their work.
    pub fn problems(&self) -> Vec<String> {
        self.copies.as_ref().map(|copies| copies.problems()).unwrap_or_default()
    }

    /// Says it, and what to do about it.
    pub fn warn(&self) {
        for problem in self.problems() {
            eprintln!("warning: not every bucket did its part: {problem}");
            eprintln!("  → the others have everything; `hk-dr mirror` brings it up to date");
        }
    }
}

fn lock(declared: ObjectLockConfig) -> ObjectLock {
    ObjectLock {
        compliance: declared.mode == ObjectLockMode::Compliance,
        seconds: declared.days.saturating_mul(24 * 3600),
    }
}
