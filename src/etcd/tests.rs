//! Against a real etcd with mutual TLS.

use futures::StreamExt;
use sha2::{Digest, Sha256};

use super::testing::{Pki, SERVER_NAME, Server, free_port};
use super::*;
use crate::ports::{ClientTls, ErrorCode, Etcd};

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_written_read_and_deleted() {
    let server = Server::start().await;
    let etcd = server.client().await;
    assert_eq!(etcd.get("m1", b"/a").await.unwrap(), None);
    let first = etcd.put("m1", b"/a", b"one").await.unwrap();
    let second = etcd.put("m1", b"/a", b"two").await.unwrap();
    assert_eq!(second, first + 1);
    let read = etcd.get("m1", b"/a").await.unwrap().unwrap();
    assert_eq!((read.value.as_slice(), read.create_revision, read.mod_revision), (&b"two"[..], first, second));
    assert!(etcd.delete("m1", b"/a").await.unwrap());
    assert!(!etcd.delete("m1", b"/a").await.unwrap());
    // As large as etcd takes them.
    let large = vec![7; 1_500_000];
    etcd.put("m1", b"/large", &large).await.unwrap();
    assert_eq!(etcd.get("m1", b"/large").await.unwrap().unwrap().value, large);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_tells_its_state_its_peers_and_its_hash() {
    let server = Server::start().await;
    let etcd = server.client().await;
    let revision = etcd.put("m1", b"/a", b"one").await.unwrap();
    let status = etcd.status("m1").await.unwrap();
    assert_eq!((status.name.as_str(), status.revision, status.version.as_str()), ("m1", revision, "3.6.16"));
    assert_eq!(status.leader_id, status.member_id);
    assert!(status.db_size_bytes > 0 && !status.is_learner);
    let members = etcd.member_list("m1").await.unwrap();
    assert_eq!((members[0].id, members[0].client_urls[0].as_str()), (status.member_id, server.url().as_str()));
    let hash = etcd.hash_kv("m1", 0).await.unwrap();
    assert_eq!(hash.hash_revision, revision);
    assert_eq!(etcd.hash_kv("m1", revision).await.unwrap().hash, hash.hash);
    etcd.put("m1", b"/a", b"two").await.unwrap();
    assert_ne!(etcd.hash_kv("m1", 0).await.unwrap().hash, hash.hash);
    assert_eq!(etcd.hash_kv("m1", revision).await.unwrap().hash, hash.hash, "at the old revision nothing changed");
    assert_eq!(etcd.status("m9").await.unwrap_err().code, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_read_at_one_revision_over_all_its_pages() {
    let server = Server::start().await;
    let etcd = server.client().await;
    // Keys of very different sizes, so that pages change theirs.
    let writes = (0..600usize).map(|i| {
        let value = vec![b'x'; if i % 100 == 0 { 400_000 } else { i % 50 }];
        let etcd = &etcd;
        async move { etcd.put("m1", format!("/in/{i:04}").as_bytes(), &value).await.unwrap() }
    });
    let revision = futures::stream::iter(writes).buffered(32).fold(0, async |a, b| a.max(b)).await;
    etcd.put("m1", b"/in", b"outside").await.unwrap();
    etcd.put("m1", b"/in0", b"outside").await.unwrap();
    let mut pages = Vec::new();
    let at = etcd.range("m1", b"/in/", revision, &mut |page| pages.push(page)).await.unwrap();
    assert_eq!(at, revision);
    let keys: Vec<String> = pages.iter().flatten().map(|kv| String::from_utf8(kv.key.clone()).unwrap()).collect();
    assert_eq!(keys, (0..600).map(|i| format!("/in/{i:04}")).collect::<Vec<_>>());
    assert!(pages.len() > 1);

    // What is written while the pages are read is not in them.
    etcd.delete("m1", b"/in/0599").await.unwrap();
    let mut count = 0;
    etcd.range("m1", b"/in/", revision, &mut |page| count += page.len()).await.unwrap();
    assert_eq!(count, 600);
    let mut count = 0;
    let newest = etcd.range("m1", b"", 0, &mut |page| count += page.len()).await.unwrap();
    assert_eq!((count, newest), (601, etcd.status("m1").await.unwrap().revision));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_streams_whole_and_its_own_checksum_holds() {
    let server = Server::start().await;
    let etcd = server.client().await;
    for i in 0..20 {
        etcd.put("m1", format!("/{i}").as_bytes(), &vec![i; 300_000]).await.unwrap();
    }
    let mut stream = etcd.snapshot("m1", 1 << 20).await.unwrap();
    // The stream must not depend on the client that made it.
    drop(etcd);
    let mut data = Vec::new();
    while let Some(chunk) = stream.next().await {
        data.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(data.len() % 512, 32);
    let (database, trailer) = data.split_at(data.len() - 32);
    assert_eq!(Sha256::digest(database).as_slice(), trailer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_a_compacted_revision_is_told_and_others_are_not() {
    let server = Server::start().await;
    let etcd = server.client().await;
    let first = etcd.put("m1", b"/a", b"one").await.unwrap();
    let second = etcd.put("m1", b"/a", b"two").await.unwrap();
    assert!(!etcd.watch_is_compacted("m1", b"/a", first).await.unwrap());
    assert!(!etcd.watch_is_compacted("m1", b"/nothing", first).await.unwrap(), "a watch without events");
    let compact = std::process::Command::new(super::testing::pinned("etcdctl-3.6.16"))
        .args(["--endpoints", &server.url(), "--cacert", &server.pki.file("ca.crt")])
        .args(["--cert", &server.pki.file("client.crt"), "--key", &server.pki.file("client.key")])
        .args(["compaction", &second.to_string()])
        .output()
        .unwrap();
    assert!(compact.status.success(), "{compact:?}");
    assert!(etcd.watch_is_compacted("m1", b"/a", first).await.unwrap());
    assert!(!etcd.watch_is_compacted("m1", b"/a", second).await.unwrap());
    assert!(!etcd.watch_is_compacted("m1", b"/a", second + 1_000_000).await.unwrap(), "a revision to come");
    let old = etcd.range("m1", b"/", first, &mut |_| {}).await.unwrap_err();
    assert_eq!(old.code, ErrorCode::NotFound);
    assert!(old.message.contains("compacted") && old.message.contains("m1"), "{old}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_connection_is_told_apart() {
    let server = Server::start().await;
    let member = |url: String| [("m1".to_owned(), url)];
    let status = async |url: String, tls: &ClientTls| {
        EtcdClient::direct(&member(url), Some(tls)).await.unwrap().status("m1").await.unwrap_err()
    };
    let stranger = Pki::new();
    let wrong_ca = ClientTls { ca_pem: stranger.client().ca_pem, ..server.pki.client() };
    assert_eq!(status(server.url(), &wrong_ca).await.code, ErrorCode::Untrusted);
    let wrong_name = ClientTls { server_name: format!("not-{SERVER_NAME}"), ..server.pki.client() };
    assert_eq!(status(server.url(), &wrong_name).await.code, ErrorCode::Untrusted);
    let wrong_client = ClientTls { ca_pem: server.pki.client().ca_pem, ..stranger.client() };
    let refused = status(server.url(), &wrong_client).await;
    assert!(matches!(refused.code, ErrorCode::Unauthorized | ErrorCode::Unreachable), "{refused:?}");
    let nobody = status(format!("https://127.0.0.1:{}", free_port()), &server.pki.client()).await;
    assert_eq!(nobody.code, ErrorCode::Unreachable);
    assert!(nobody.message.contains("m1"), "{nobody}");
}
