use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ports::{ErrorCode, ObjectStore, PortError, PortResult, PutCondition};

/// Attempts to read a document whose etag changes meanwhile.
const READS_MAX: u32 = 5;

/// Reads a small JSON document with the etag it had when it was read; none if there is none.
///
/// # Errors
/// `Corrupt` if it is no such document, `Locked` if it changes faster than it can be read; those of the store.
pub async fn read_document<T: DeserializeOwned>(
    store: &dyn ObjectStore,
    key: &str,
    limit_bytes: u64,
) -> PortResult<Option<(T, String)>> {
    for _ in 0..READS_MAX {
        // The etag must be that of what was read: it is asked before and after.
        let before = match store.head(key).await {
            Err(e) if e.code == ErrorCode::NotFound => return Ok(None),
            other => other?,
        };
        let bytes = match store.get(key, limit_bytes).await {
            Err(e) if e.code == ErrorCode::NotFound => continue,
            other => other?,
        };
        match store.head(key).await {
            Ok(after) if after.etag == before.etag => {
                let document = serde_json::from_slice(&bytes)
                    .map_err(|e| PortError::new(ErrorCode::Corrupt, format!("{key} is damaged: {e}")))?;
                return Ok(Some((document, before.etag)));
            }
            Err(e) if e.code != ErrorCode::NotFound => return Err(e),
            _ => {}
        }
    }
    Err(PortError::new(ErrorCode::Locked, format!("{key} changes faster than it can be read")))
}

/// Writes a small JSON document; answers with its etag. `Conflict` if the condition does not hold.
pub async fn put_document(
    store: &dyn ObjectStore,
    key: &str,
    document: &impl Serialize,
    condition: PutCondition,
) -> PortResult<String> {
    let text = serde_json::to_vec_pretty(document)
        .map_err(|e| PortError::new(ErrorCode::Invalid, format!("write {key}: {e}")))?;
    Ok(store.put(key, Bytes::from(text), condition).await?.etag)
}
