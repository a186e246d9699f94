use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::{Observed, StepContext, StepKind};
use crate::plan::params::ArtifactMirror;
use crate::ports::{ErrorCode, PortError, PortResult, PutCondition, Upload};

/// Puts a pinned binary into the bucket.
pub struct ArtifactMirrorStep;

/// Parts of an upload, in bytes.
const PART_BYTES: usize = 8 << 20;

/// Where servers find a binary.
pub fn object_key(cluster: &str, sha256: &str) -> String {
    format!("{cluster}/artifacts/{sha256}")
}

#[async_trait]
impl StepKind for ArtifactMirrorStep {
    type Params = ArtifactMirror;
    type Output = ();

    async fn observe(&self, cx: &StepContext<'_>, params: &ArtifactMirror) -> PortResult<Observed<()>> {
        match cx.world.store.head(&object_key(cx.world.folder(), &params.sha256)).await {
            Ok(_) => Ok(Observed::Done(())),
            Err(error) if error.code == ErrorCode::NotFound => Ok(Observed::Absent),
            Err(error) => Err(error),
        }
    }

    async fn apply(&self, cx: &StepContext<'_>, params: &ArtifactMirror) -> PortResult<()> {
        let (path, sha256) = cx.world.artifacts.fetch(&params.name, &params.version).await?;
        if sha256 != params.sha256 {
            let message = format!("{} {} is now another file than was planned", params.name, params.version);
            return Err(PortError::new(ErrorCode::Invalid, message).hint("nothing was uploaded; plan again"));
        }
        let key = object_key(cx.world.folder(), &params.sha256);
        let mut upload = cx.world.store.upload(&key).await?;
        match send(&path, upload.as_mut()).await {
            // Named by its content: an object that is there already is the same one.
            Ok(()) => upload.complete(PutCondition::Any).await.map(|_| ()),
            Err(error) => {
                upload.abort().await?;
                Err(error)
            }
        }
    }
}

async fn send(path: &std::path::Path, upload: &mut dyn Upload) -> PortResult<()> {
    let local = |e: std::io::Error| PortError::new(ErrorCode::Local, format!("reading {}: {e}", path.display()));
    let mut file = tokio::fs::File::open(path).await.map_err(local)?;
    loop {
        let mut part = Vec::with_capacity(PART_BYTES);
        (&mut file).take(PART_BYTES as u64).read_to_end(&mut part).await.map_err(local)?;
        if part.is_empty() {
            return Ok(());
        }
        upload.part(Bytes::from(part)).await?;
    }
}
