use std::sync::Arc;

use age::secrecy::ExposeSecret;
use age::x25519;
use async_trait::async_trait;
use bytes::Bytes;

use crate::backup::{BucketBackups, Catalog, Compression, Entry, Identities, Recipients, TakeRequest, Taken, take};
use crate::bolt::tests::compacted_sample;
use crate::ports::{
    ByteStream, ErrorCode, Etcd, HashKv, KeyValue, Member, MemberStatus, ObjectStore, PortError, PortResult,
    RecoverySet, SystemClock,
};

/// One member that answers as it was told.
#[derive(Clone)]
pub struct FakeMember {
    pub status: PortResult<MemberStatus>,
    pub hash: PortResult<HashKv>,
    pub stream: Vec<PortResult<Bytes>>,
}

/// A cluster of such members.
#[derive(Clone)]
pub struct FakeEtcd(pub Vec<FakeMember>);

impl FakeEtcd {
    /// Three members that agree; `m1` leads; all give this snapshot in pieces.
    pub fn healthy(snapshot: &[u8]) -> Self {
        let pieces: Vec<PortResult<Bytes>> =
            snapshot.chunks(32 << 10).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Self(
            (1..=3)
                .map(|n| FakeMember {
                    status: Ok(MemberStatus {
                        name: format!("m{n}"),
                        member_id: n,
                        cluster_id: 0xabc,
                        leader_id: 1,
                        revision: 500,
                        db_size_bytes: snapshot.len() as i64,
                        raft_index: 1000 + n % 3,
                        is_learner: false,
                        version: "3.6.16".to_owned(),
                    }),
                    hash: Ok(HashKv { hash: 0x1234, hash_revision: 500, compact_revision: 300 }),
                    stream: pieces.clone(),
                })
                .collect(),
        )
    }

    /// Healthy, with the sample file.
    pub fn sample() -> Self {
        Self::healthy(&compacted_sample().snapshot)
    }

    /// Every member gives these pieces.
    pub fn streaming(pieces: Vec<PortResult<Bytes>>) -> Self {
        let mut etcd = Self::healthy(b"");
        etcd.0.iter_mut().for_each(|member| member.stream = pieces.clone());
        etcd
    }

    fn member(&self, name: &str) -> &FakeMember {
        let number: usize = name[1..].parse().unwrap();
        &self.0[number - 1]
    }
}

fn unused<T>() -> PortResult<T> {
    Err(PortError::new(ErrorCode::Invalid, "a snapshot has no need for this"))
}

#[async_trait]
impl Etcd for FakeEtcd {
    fn members(&self) -> Vec<String> {
        (1..=self.0.len()).map(|n| format!("m{n}")).collect()
    }
    async fn status(&self, member: &str) -> PortResult<MemberStatus> {
        self.member(member).status.clone()
    }
    async fn member_list(&self, _: &str) -> PortResult<Vec<Member>> {
        unused()
    }
    async fn member_remove(&self, _: &str, _: u64) -> PortResult<()> {
        unused()
    }
    async fn member_add(&self, _: &str, _: &str) -> PortResult<u64> {
        unused()
    }
    async fn hash_kv(&self, member: &str, _: i64) -> PortResult<HashKv> {
        self.member(member).hash.clone()
    }
    async fn snapshot(&self, member: &str, _: u32) -> PortResult<ByteStream> {
        Ok(Box::pin(futures::stream::iter(self.member(member).stream.clone())))
    }
    async fn range(&self, _: &str, _: &[u8], _: i64, _: &mut (dyn FnMut(Vec<KeyValue>) + Send)) -> PortResult<i64> {
        unused()
    }
    async fn watch_is_compacted(&self, _: &str, _: &[u8], _: i64) -> PortResult<bool> {
        unused()
    }
    async fn get(&self, _: &str, _: &[u8]) -> PortResult<Option<KeyValue>> {
        unused()
    }
    async fn put(&self, _: &str, _: &[u8], _: &[u8]) -> PortResult<i64> {
        unused()
    }
    async fn delete(&self, _: &str, _: &[u8]) -> PortResult<bool> {
        unused()
    }
}

/// Two fresh key pairs.
pub struct Keys {
    pub recipients: Recipients,
    pub first: Identities,
    pub second: Identities,
    /// Text of the second's identity file, for stock age.
    pub second_file: String,
}

pub fn keys() -> Keys {
    let pairs = [x25519::Identity::generate(), x25519::Identity::generate()];
    let [first, second] = pairs.each_ref().map(|pair| pair.to_string().expose_secret().to_owned());
    let list: Vec<String> = pairs.iter().map(|pair| pair.to_public().to_string()).collect();
    Keys {
        recipients: Recipients::parse(&format!("# the team\n{}\n", list.join("\n"))).unwrap(),
        first: Identities::parse(&first, "first.txt").unwrap(),
        second: Identities::parse(&second, "second.txt").unwrap(),
        second_file: second,
    }
}

pub fn recovery_set() -> RecoverySet {
    RecoverySet::from([
        ("cluster.yaml".to_owned(), (0o644, b"kind: Cluster\n".to_vec())),
        ("pki/kubernetes-ca.key".to_owned(), (0o600, b"a key".to_vec())),
    ])
}

/// Takes a snapshot of cluster `demo`.
pub async fn take_from(etcd: &dyn Etcd, store: &dyn ObjectStore, keys: &Keys) -> PortResult<Taken> {
    take_set(etcd, store, keys, &recovery_set()).await
}

pub async fn take_set(etcd: &dyn Etcd, store: &dyn ObjectStore, keys: &Keys, set: &RecoverySet) -> PortResult<Taken> {
    take(&TakeRequest {
        cluster: "demo",
        etcd,
        store,
        recipients: &keys.recipients,
        recovery: set,
        required: &["cluster.yaml", "pki/kubernetes-ca.key"],
        git_commit: Some("0123abcd".to_owned()),
        clock: &SystemClock,
        compression: Compression::default(),
        rate: None,
        in_place_from_bytes: u64::MAX,
        progress: &Arc::default(),
    })
    .await
}

pub async fn newest(store: &dyn ObjectStore) -> Entry {
    Catalog::new(store, "demo").find("latest").await.unwrap()
}

pub fn backups(store: &Arc<dyn ObjectStore>, identities: &Identities) -> BucketBackups {
    BucketBackups { store: store.clone(), cluster: "demo".to_owned(), identities: identities.clone(), source: None }
}
