//! What retention removes, with which credential, and who has to wait meanwhile.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

use super::*;
use crate::config::RetentionConfig;
use crate::ports::PutCondition;
use crate::s3::contract::write_only;
use crate::volumes::turn::Turn;

/// A clock that is set by hand.
struct Set(AtomicI64);

impl Clock for Set {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.0.load(Ordering::SeqCst)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_does_not_keep_goes_with_a_credential_that_may_while_nobody_adds() {
    let (server, dir) = s3_server();
    let root = S3Store::connect(&server.config("backups")).unwrap();
    root.ensure_bucket().await.unwrap();
    let root: Arc<dyn ObjectStore> = Arc::new(root);
    let writer: Arc<dyn ObjectStore> = Arc::new(S3Store::connect(&write_only(&server, "backups").await).unwrap());
    let (recipients, identities, _) = keys();
    // The everyday credential makes backups, also without a right to remove restic's locks.
    let everyday = Repository::open(&writer, "demo", &identities, Some(&recipients)).await.unwrap();
    let from = Mounted::at(dir.path().join("from"));
    let volume = VolumeConfig {
        name: "shop".to_owned(),
        server: "w1".to_owned(),
        path: from.path(),
        before: None,
        after: None,
        exclude: Vec::new(),
    };
    let host = Host { name: "w1".to_owned(), address: [127, 0, 0, 1].into(), host_key_sha256: String::new() };
    // Noon of the day after tomorrow: restic's own times, which are real, are older than a day then.
    let noon = (SystemClock.now().as_second() / 86_400 + 2) * 86_400 + 43_200;
    let set = Arc::new(Set(AtomicI64::new(noon)));
    let clock: Arc<dyn Clock> = Arc::clone(&set) as _;
    let take = async |hours_ago: i64| {
        set.0.store(noon - hours_ago * 3600, Ordering::SeqCst);
        // All of it is new each time, so that what goes gives back space.
        sh(&format!("head -c 900000 /dev/urandom > {}/file", from.path()));
        let request = BackupRequest {
            repository: &everyday,
            volume: &volume,
            host: &host,
            shell: &Here,
            clock: &clock,
            git_commit: None,
        };
        let made = backup(&request).await;
        set.0.store(noon, Ordering::SeqCst);
        made
    };
    let base = take(240).await.unwrap();
    let second = take(239).await.unwrap();
    let lost = take(5).await.unwrap();
    let newest = take(1).await.unwrap();
    // One died before it was recorded.
    root.delete(&everyday.records().key(&lost.id, "manifest.json")).await.unwrap();
    let plan = async |repository| plan_pruning(repository, &RetentionConfig::default(), clock.now()).await.unwrap();
    let pruning = plan(&everyday).await;
    assert_eq!((pruning.gone(), pruning.leftovers), (0, 1), "nothing was ever read back: {pruning:?}");
    let scratch = dir.path().join("scratch");
    let look = async |repository: &Repository, backups: &[Backup], level| {
        let request = VerifyRequest { repository, backups, level, scratch: &scratch, clock: clock.as_ref() };
        verify(&request).await.unwrap().bad().count()
    };
    let all = [base.clone(), second.clone(), newest.clone()];
    assert_eq!(look(&everyday, &all, Level::Read).await, 0);
    let pruning = plan(&everyday).await;
    let why: Vec<(&str, bool, &str)> = pruning
        .decisions
        .iter()
        .map(|d| (d.decision.id.as_str(), d.decision.keep, d.decision.reason.as_str()))
        .collect();
    let covered = format!("its day is kept by {}", base.id);
    assert_eq!(
        why,
        [
            (newest.id.as_str(), true, "the newest that was read back"),
            (second.id.as_str(), false, covered.as_str()),
            (base.id.as_str(), true, "the first of its day"),
        ]
    );

    // The everyday credential removes nothing, and says which one may.
    let listed = async || root.list("demo/volumes/").await.unwrap();
    let before = listed().await;
    let refused = prune(&everyday, &pruning, &clock).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Forbidden, "{refused}");
    assert!(refused.hint.unwrap().contains("AWS_ACCESS_KEY_ID"));
    assert_eq!(listed().await, before);

    // Nobody removes while somebody adds, nor the other way round.
    let remover = Repository::open(&root, "demo", &identities, None).await.unwrap();
    let adding = Turn::to_add(&everyday, "blog", &clock).await.unwrap();
    let busy = prune(&remover, &pruning, &clock).await.unwrap_err();
    assert!(busy.code == ErrorCode::Locked && busy.message.contains("backing up volume blog"), "{busy}");
    assert_eq!(listed().await, before);
    adding.release().await;
    let removing = Turn::to_remove(&remover, &clock).await.unwrap();
    let busy = take(0).await.unwrap_err();
    assert!(busy.code == ErrorCode::Locked && busy.message.contains("pruned"), "{busy}");
    removing.release().await;

    let pruned = prune(&remover, &pruning, &clock).await.unwrap();
    assert_eq!((pruned.backups, pruned.leftovers), (1, 1));
    assert!(pruned.freed_bytes > 1_700_000, "two of four files: {pruned:?}");
    assert!(plan(&everyday).await.is_empty());
    let left: Vec<String> = listed().await.into_iter().map(|object| object.key).collect();
    assert!(!left.iter().any(|key| key.contains(&second.id) || key.contains(&second.snapshot)), "{left:?}");
    assert_eq!(look(&everyday, &[base, newest], Level::Restore).await, 0);

    // One that was interrupted is ended by the next.
    let mark = format!("{{\"began\": \"{}\", \"finished\": null}}", clock.now());
    root.put("demo/volumes/prune.json", mark.into(), PutCondition::Any).await.unwrap();
    let pruning = plan(&remover).await;
    assert!(pruning.unfinished && !pruning.is_empty() && pruning.gone() == 0);
    prune(&remover, &pruning, &clock).await.unwrap();
    assert!(plan(&everyday).await.is_empty());
    take(0).await.unwrap();
}
