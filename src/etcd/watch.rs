use async_trait::async_trait;
use etcd_client::{Client, EventType, WatchOptions, WatchStream};

use super::client::ANSWER_MAX_BYTES;
use super::error::port_error;
use crate::ports::{ChangeWatch, ErrorCode, KeyValue, PortError, PortResult, WatchNews, WatchedChange};

/// A watch on all keys of one member.
pub(super) struct Watch {
    member: String,
    stream: WatchStream,
    /// The connection ends with its last clone.
    _client: Client,
}

impl Watch {
    /// Large answers come in fragments, so that memory stays bounded while the watch catches up.
    pub(super) async fn begin(member: &str, client: Client, from: i64) -> Result<Self, etcd_client::Error> {
        let options =
            WatchOptions::new().with_all_keys().with_start_revision(from).with_progress_notify().with_fragment();
        let mut watching = client.watch_client().max_decoding_message_size(ANSWER_MAX_BYTES);
        let stream = watching.watch(vec![0], Some(options)).await?;
        Ok(Self { member: member.to_owned(), stream, _client: client })
    }

    fn ended(&self, why: &str) -> PortError {
        PortError::new(ErrorCode::Unreachable, format!("the watch on etcd member {} ended: {why}", self.member))
    }
}

#[async_trait]
impl ChangeWatch for Watch {
    async fn next(&mut self) -> PortResult<WatchNews> {
        loop {
            let message = self
                .stream
                .message()
                .await
                .map_err(|e| port_error(&e).context(format!("watch etcd member {}", self.member)))?
                .ok_or_else(|| self.ended("the member closed it"))?;
            if message.compact_revision() > 0 {
                return Ok(WatchNews::Compacted(message.compact_revision()));
            }
            if message.canceled() {
                return Err(self.ended(message.cancel_reason()));
            }
            if message.created() {
                continue;
            }
            if message.events().is_empty() {
                let revision = message.header().map_or(0, etcd_client::ResponseHeader::revision);
                return Ok(WatchNews::Progress(revision));
            }
            let changes = message.events().iter().filter_map(|event| {
                let kv = event.kv()?;
                Some(WatchedChange {
                    tombstone: event.event_type() == EventType::Delete,
                    kv: KeyValue {
                        key: kv.key().to_vec(),
                        value: kv.value().to_vec(),
                        create_revision: kv.create_revision(),
                        mod_revision: kv.mod_revision(),
                        version: kv.version(),
                        lease: kv.lease(),
                    },
                })
            });
            return Ok(WatchNews::Changes(changes.collect()));
        }
    }

    async fn ask_progress(&mut self) -> PortResult<()> {
        let asked = self.stream.request_progress().await;
        asked.map_err(|e| port_error(&e).context(format!("watch etcd member {}", self.member)))
    }
}
