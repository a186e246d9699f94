//! What backups share stays locked as long as backups are made.

use std::time::Duration;

use super::*;
use crate::s3::{ObjectLock, S3Config};

#[tokio::test(flavor = "multi_thread")]
async fn what_an_old_backup_brought_is_locked_again_by_a_new_one() {
    let (server, dir) = s3_server();
    let lock = Some(ObjectLock { compliance: true, seconds: 12 });
    let s3 = S3Store::connect(&S3Config { lock, ..server.config("backups") }).unwrap();
    s3.ensure_bucket().await.unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(s3.clone());
    let (recipients, identities, _) = keys();
    let from = Mounted::at(dir.path().join("from"));
    sh(&format!("head -c 100000 /dev/urandom > {}/shared", from.path()));
    let volume = VolumeConfig {
        name: "shop".to_owned(),
        server: "w1".to_owned(),
        path: from.path(),
        before: None,
        after: None,
        exclude: Vec::new(),
    };
    let host = Host { name: "w1".to_owned(), address: [127, 0, 0, 1].into(), host_key_sha256: String::new() };
    let repository = Repository::open(&store, "demo", &identities, Some(&recipients)).await.unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let take = async || {
        let (repository, volume, shell, host, clock) = (&repository, &volume, &Here, &host, &clock);
        backup(&BackupRequest { repository, volume, host, shell, clock, git_commit: None }).await.unwrap()
    };
    let first = take().await;
    let files = store.list("demo/volumes/restic/").await.unwrap();
    let old: Vec<&str> = files.iter().map(|file| file.key.as_str()).chain(["demo/volumes/password.age"]).collect();
    assert!(old.iter().any(|key| key.contains("/restic/data/")), "{old:?}");
    let mut until = Vec::new();
    for key in &old {
        until.push(s3.locked_until(key).await.expect("locked as it was written"));
    }
    // A third of the time passes.
    tokio::time::sleep(Duration::from_secs(5)).await;
    sh(&format!("echo more > {}/more", from.path()));
    let second = take().await;
    assert_ne!(first.snapshot, second.snapshot);
    for (key, before) in old.iter().zip(until) {
        let now = s3.locked_until(key).await.expect("still locked");
        assert!(now >= before + 4, "{key} was locked until {before}, and is until {now}");
    }
}
