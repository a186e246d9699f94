use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, ResponseHeader, TlsOptions, WatchOptions,
};
use secrecy::ExposeSecret;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use super::error::port_error;
use super::snapshot;
use super::watch::Watch;
use crate::ports::{
    ByteStream, ChangeWatch, ClientTls, ErrorCode, Etcd, HashKv, KeyValue, LeaseTtl, Member, MemberFile, MemberStatus,
    PortError, PortResult,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An ordinary call. A write may have to wait for an election, which takes a second or two.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Hashing reads the whole database.
const HASH_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a connection in use is tested. etcd drops clients that ask more often than every 5 s.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));
/// Largest answer that is taken: a page of the smallest size full of the largest values etcd stores (1.5 MiB).
pub(super) const ANSWER_MAX_BYTES: usize = 64 << 20;
/// What a page of `range` aims at, and the number of keys it may have.
const PAGE_TARGET_BYTES: usize = 4 << 20;
const PAGE_KEYS: std::ops::RangeInclusive<usize> = 32..=4096;

/// Tells why connections to a member fail, when what carries them knows better than the client.
pub(crate) type Explain = Arc<dyn Fn() -> Option<PortError> + Send + Sync>;

/// [`Etcd`] over gRPC with mutual TLS.
pub struct EtcdClient {
    members: Vec<Link>,
}

/// How one member is reached.
struct Link {
    name: String,
    client: Client,
    /// For connections of their own.
    endpoint: Endpoint,
    explain: Option<Explain>,
    file: Option<Arc<dyn MemberFile>>,
    /// Keeps a forwarded port open.
    _guard: Option<Box<dyn Any + Send + Sync>>,
}

impl EtcdClient {
    /// Reaches members by URL (`http://…` without TLS, `https://…` with it). Connects to nothing yet.
    pub async fn direct(members: &[(String, String)], tls: Option<&ClientTls>) -> PortResult<Self> {
        let mut client = Self { members: Vec::with_capacity(members.len()) };
        for (name, url) in members {
            client.add(name, url, tls, None, None).await?;
        }
        Ok(client)
    }

    /// A client without members, to be filled by [`EtcdClient::add`].
    pub(crate) fn empty() -> Self {
        Self { members: Vec::new() }
    }

    /// Adds a member; `guard` lives as long as the client.
    pub(crate) async fn add(
        &mut self,
        name: &str,
        url: &str,
        tls: Option<&ClientTls>,
        guard: Option<Box<dyn Any + Send + Sync>>,
        explain: Option<Explain>,
    ) -> PortResult<()> {
        let prepare =
            |e: etcd_client::Error| port_error(&e).context(format!("prepare the connection to etcd member {name}"));
        let mut options =
            ConnectOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_keep_alive(KEEPALIVE.0, KEEPALIVE.1);
        let mut endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|e| prepare(e.into()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1);
        if let Some(tls) = tls {
            let options_tls = TlsOptions::new()
                .domain_name(&tls.server_name)
                .ca_certificate(Certificate::from_pem(&tls.ca_pem))
                .identity(Identity::from_pem(&tls.cert_pem, tls.key_pem.expose_secret()));
            endpoint = endpoint.tls_config(options_tls.clone()).map_err(|e| prepare(e.into()))?;
            options = options.with_tls(options_tls);
        }
        let client = Client::connect([url], Some(options)).await.map_err(prepare)?;
        self.members.push(Link { name: name.to_owned(), client, endpoint, explain, file: None, _guard: guard });
        Ok(())
    }

    /// Says where the member's file is, once it was added.
    pub(crate) fn with_file(&mut self, name: &str, file: Arc<dyn MemberFile>) {
        if let Some(link) = self.members.iter_mut().find(|link| link.name == name) {
            link.file = Some(file);
        }
    }

    fn link(&self, member: &str) -> PortResult<&Link> {
        self.members.iter().find(|link| link.name == member).ok_or_else(|| {
            PortError::new(ErrorCode::Invalid, format!("there is no etcd member called {member} in this connection"))
        })
    }
}

impl Link {
    /// Runs one call with its deadline and puts what was attempted before its error.
    async fn call<T>(
        &self,
        doing: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> PortResult<T> {
        match timeout(deadline, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.explained(port_error(&error)).context(self.doing(doing))),
            Err(_) => Err(self.explained(PortError::new(
                ErrorCode::Timeout,
                format!("{}: no answer within {} s", self.doing(doing), deadline.as_secs()),
            ))),
        }
    }

    fn doing(&self, doing: &str) -> String {
        format!("{doing} etcd member {}", self.name)
    }

    fn explained(&self, error: PortError) -> PortError {
        let carried = matches!(error.code, ErrorCode::Unreachable | ErrorCode::Timeout);
        self.explain.as_ref().filter(|_| carried).and_then(|explain| explain()).unwrap_or(error)
    }
}

#[async_trait]
impl Etcd for EtcdClient {
    fn members(&self) -> Vec<String> {
        self.members.iter().map(|link| link.name.clone()).collect()
    }

    async fn status(&self, member: &str) -> PortResult<MemberStatus> {
        let link = self.link(member)?;
        let mut client = link.client.clone();
        let status = link.call("ask the status of", CALL_TIMEOUT, client.status()).await?;
        let header = header(status.header())?;
        Ok(MemberStatus {
            name: link.name.clone(),
            member_id: header.member_id(),
            cluster_id: header.cluster_id(),
            leader_id: status.leader(),
            revision: header.revision(),
            db_size_bytes: status.db_size(),
            raft_index: status.raft_index(),
            is_learner: status.is_learner(),
            version: status.version().to_owned(),
        })
    }

    async fn member_list(&self, member: &str) -> PortResult<Vec<Member>> {
        let link = self.link(member)?;
        let mut client = link.client.clone();
        let list = link.call("ask the members of", CALL_TIMEOUT, client.member_list()).await?;
        let member = |m: &etcd_client::Member| Member {
            id: m.id(),
            name: m.name().to_owned(),
            peer_urls: m.peer_urls().to_vec(),
            client_urls: m.client_urls().to_vec(),
        };
        Ok(list.members().iter().map(member).collect())
    }

    async fn member_remove(&self, member: &str, id: u64) -> PortResult<()> {
        let link = self.link(member)?;
        let mut client = link.client.clone();
        link.call("remove a member through", CALL_TIMEOUT, client.member_remove(id)).await.map(|_| ())
    }

    async fn member_add(&self, member: &str, peer_url: &str) -> PortResult<u64> {
        let link = self.link(member)?;
        let mut client = link.client.clone();
        let answer = link.call("add a member through", CALL_TIMEOUT, client.member_add([peer_url], None)).await?;
        let added = answer.member().map(etcd_client::Member::id);
        added.ok_or_else(|| PortError::new(ErrorCode::ServerError, "etcd's answer does not name the new member"))
    }

    async fn hash_kv(&self, member: &str, revision: i64) -> PortResult<HashKv> {
        let link = self.link(member)?;
        let mut client = link.client.clone();
        let hash = link.call("hash the keys of", HASH_TIMEOUT, client.hash_kv(revision)).await?;
        Ok(HashKv { hash: hash.hash(), hash_revision: hash.hash_revision(), compact_revision: hash.compact_version() })
    }

    async fn snapshot(&self, member: &str, ahead_bytes: u32) -> PortResult<ByteStream> {
        let link = self.link(member)?;
        let begun = snapshot::begin(&link.endpoint, ahead_bytes);
        let stream = link.call("start a snapshot of", CALL_TIMEOUT, begun).await?;
        Ok(snapshot::bytes(stream, link.name.clone()))
    }

    fn file(&self, member: &str) -> Option<Arc<dyn MemberFile>> {
        self.link(member).ok()?.file.clone()
    }

    async fn range(
        &self,
        member: &str,
        prefix: &[u8],
        revision: i64,
        page: &mut (dyn FnMut(Vec<KeyValue>) + Send),
    ) -> PortResult<i64> {
        let link = self.link(member)?;
        let mut client = link.client.kv_client().max_decoding_message_size(ANSWER_MAX_BYTES);
        let (mut from, end) = prefix_range(prefix);
        let mut at = revision;
        let mut limit = *PAGE_KEYS.start();
        loop {
            let keys = i64::try_from(limit).unwrap_or(i64::MAX);
            // Serializable: at a fixed revision every member gives the same answer, and none has to ask the leader.
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(keys).with_revision(at);
            if at != 0 {
                options = options.with_serializable();
            }
            let mut answer = link.call("read keys of", CALL_TIMEOUT, client.get(from.clone(), Some(options))).await?;
            if at == 0 {
                at = header(answer.header())?.revision();
            }
            let more = answer.more();
            let found: Vec<KeyValue> = answer.take_kvs().into_iter().map(key_value).collect();
            let bytes: usize = found.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
            let Some(last) = found.last() else { return Ok(at) };
            from = [last.key.as_slice(), &[0]].concat();
            let count = found.len();
            page(found);
            if !more {
                return Ok(at);
            }
            let average = (bytes / count).max(1);
            // Grow by steps: the next keys may be larger than these.
            limit = (PAGE_TARGET_BYTES / average).min(limit * 4).clamp(*PAGE_KEYS.start(), *PAGE_KEYS.end());
        }
    }

    async fn watch_is_compacted(&self, member: &str, key: &[u8], revision: i64) -> PortResult<bool> {
        let link = self.link(member)?;
        let mut client = link.client.watch_client();
        let options = WatchOptions::new().with_start_revision(revision);
        let work = async {
            let mut stream = client.watch(key, Some(options)).await?;
            loop {
                // A watch without events says nothing; asked for its progress it answers once it has caught up, unless it
                // begins in the future.
                let Ok(message) = timeout(Duration::from_millis(200), stream.message()).await else {
                    stream.request_progress().await?;
                    continue;
                };
                let Some(message) = message? else {
                    return Err(etcd_client::Error::WatchError("the watch ended without an answer".into()));
                };
                if message.compact_revision() > 0 {
                    return Ok(true);
                }
                if message.canceled() {
                    return Err(etcd_client::Error::WatchError(message.cancel_reason().to_owned()));
                }
                let future = message.header().is_some_and(|h| h.revision() > 0 && revision > h.revision());
                if !message.created() || future {
                    return Ok(false);
                }
                stream.request_progress().await?;
            }
        };
        link.call("watch", CALL_TIMEOUT, work).await
    }

    async fn get(&self, member: &str, key: &[u8]) -> PortResult<Option<KeyValue>> {
        let link = self.link(member)?;
        let mut client = link.client.clone();
        let mut answer = link.call("read a key of", CALL_TIMEOUT, client.get(key, None)).await?;
        Ok(answer.take_kvs().into_iter().next().map(key_value))
    }

    async fn put(&self, member: &str, key: &[u8], value: &[u8]) -> PortResult<i64> {
        let link = self.link(member)?;
        let mut client = link.client.clone();
        let answer = link.call("write a key of", CALL_TIMEOUT, client.put(key, value, None)).await?;
        Ok(header(answer.header())?.revision())
    }

    async fn delete(&self, member: &str, key: &[u8]) -> PortResult<bool> {
        let link = self.link(member)?;
        let mut client = link.client.clone();
        let answer = link.call("delete a key of", CALL_TIMEOUT, client.delete(key, None)).await?;
        Ok(answer.deleted() > 0)
    }

    async fn watch(&self, member: &str, from_revision: i64) -> PortResult<Box<dyn ChangeWatch>> {
        let link = self.link(member)?;
        let watch = Watch::begin(&link.name, link.client.clone(), from_revision);
        Ok(Box::new(link.call("watch", CALL_TIMEOUT, watch).await?))
    }

    async fn lease_ttl(&self, member: &str, id: i64) -> PortResult<Option<LeaseTtl>> {
        let link = self.link(member)?;
        let mut client = link.client.clone();
        let answer = link.call("ask for a lease of", CALL_TIMEOUT, client.lease_time_to_live(id, None)).await?;
        // -1: there is no such lease.
        Ok((answer.ttl() >= 0)
            .then(|| LeaseTtl { granted_seconds: answer.granted_ttl(), remaining_seconds: answer.ttl() }))
    }
}

fn header(header: Option<&ResponseHeader>) -> PortResult<&ResponseHeader> {
    header.ok_or_else(|| PortError::new(ErrorCode::ServerError, "etcd's answer has no header"))
}

fn key_value(kv: etcd_client::KeyValue) -> KeyValue {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let (version, lease) = (kv.version(), kv.lease());
    let (key, value) = kv.into_key_value();
    KeyValue { key, value, create_revision, mod_revision, version, lease }
}

/// First key and end (exclusive) of all keys below a prefix, as etcd wants them; `\0` as the end means "to the last key".
fn prefix_range(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    if prefix.is_empty() {
        return (vec![0], vec![0]);
    }
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return (prefix.to_vec(), end);
        }
    }
    (prefix.to_vec(), vec![0])
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(prefix_range(b"/registry/"), (b"/registry/".to_vec(), b"/registry0".to_vec()));
        assert_eq!(prefix_range(b"a\xff"), (b"a\xff".to_vec(), b"b".to_vec()));
        assert_eq!(prefix_range(b"\xff\xff"), (b"\xff\xff".to_vec(), vec![0]));
        assert_eq!(prefix_range(b""), (vec![0], vec![0]));
    }
}
