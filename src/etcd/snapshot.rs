//! A member's snapshot, over a connection of its own: how far etcd may send ahead of its reader is agreed on when a connection
//! is made, and what the client library decodes is copied twice on its way.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::Error;
use futures::stream::unfold;
use http::uri::PathAndQuery;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::error::port_error;
use crate::ports::{ByteStream, ErrorCode, PortError};

/// <https://etcd.io/docs/v3.6/dev-guide/api_reference_v3/>, `Maintenance.Snapshot`.
const METHOD: &str = "/etcdserverpb.Maintenance/Snapshot";
/// Longest silence within the stream.
const SILENCE: Duration = Duration::from_secs(60);

/// `etcdserverpb.SnapshotResponse`, as far as it is of interest. Its bytes stay where they were received.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Piece {
    #[prost(uint64, tag = "2")]
    remaining_bytes: u64,
    #[prost(bytes = "bytes", tag = "3")]
    blob: Bytes,
}

/// Asks for the snapshot. What the reader does not take stays with etcd, but for `ahead_bytes`.
pub(super) async fn begin(endpoint: &Endpoint, ahead_bytes: u32) -> Result<Streaming<Piece>, Error> {
    let endpoint = endpoint.clone().initial_stream_window_size(ahead_bytes).initial_connection_window_size(ahead_bytes);
    let mut client = tonic::client::Grpc::new(endpoint.connect().await?);
    client.ready().await?;
    // `SnapshotRequest` has no fields.
    let asked = client.server_streaming(Request::new(()), PathAndQuery::from_static(METHOD), ProstCodec::default());
    Ok(asked.await?.into_inner())
}

/// The bytes, until all that etcd announced have come. `member` is for messages.
pub(super) fn bytes(stream: Streaming<Piece>, member: String) -> ByteStream {
    Box::pin(unfold(Some((stream, 0)), move |state| {
        let member = member.clone();
        async move {
            let (mut stream, remaining) = state?;
            let broken = match timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(piece))) => return Some((Ok(piece.blob), Some((stream, piece.remaining_bytes)))),
                Ok(Ok(None)) if remaining == 0 => return None,
                Ok(Ok(None)) => {
                    let message = format!("the snapshot of etcd member {member} ended {remaining} bytes early");
                    PortError::new(ErrorCode::Corrupt, message)
                }
                Ok(Err(status)) => {
                    port_error(&status.into()).context(format!("read the snapshot of etcd member {member}"))
                }
                Err(_) => {
                    let silence = SILENCE.as_secs();
                    let message = format!("the snapshot of etcd member {member} stalled: nothing within {silence} s");
                    PortError::new(ErrorCode::Timeout, message)
                }
            };
            Some((Err(broken), None))
        }
    }))
}
