//! Backups that are damaged, and who finds out.

use super::*;
use crate::backup::{Copies, MirrorRequest, SignedStore, mirror};
use crate::ports::{PutCondition, Vouched};
use crate::s3::contract::next_second;
use crate::s3::{AsOfStore, DirStore};
use crate::sign::{SigningKey, Trust};

/// A volume on this machine with a file that does not compress.
fn filled(name: &str, path: &Path) -> (Mounted, VolumeConfig) {
    let mounted = Mounted::at(path.to_owned());
    sh(&format!("head -c 300000 /dev/urandom > {}/file", mounted.path()));
    let volume = VolumeConfig {
        name: name.to_owned(),
        server: "w1".to_owned(),
        path: mounted.path(),
        before: None,
        after: None,
        exclude: Vec::new(),
    };
    (mounted, volume)
}

async fn taken(repository: &Repository, volume: &VolumeConfig) -> Backup {
    let host = Host { name: "w1".to_owned(), address: [127, 0, 0, 1].into(), host_key_sha256: String::new() };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let request = BackupRequest { repository, volume, host: &host, shell: &Here, clock: &clock, git_commit: None };
    backup(&request).await.unwrap()
}

/// Changes a byte of the largest file of a repository in a directory.
fn damage(bucket: &Path) {
    sh(&format!(
        "cd {}/demo/volumes/restic/data; f=$(find . -type f -size +200k | head -1); \
         printf 'X' | dd of=$f bs=1 seek=1000 conv=notrunc 2>/dev/null",
        bucket.display()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_in_the_backup_that_has_it_and_a_stranger_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(DirStore::open(dir.path().join("bucket")).unwrap());
    let (recipients, identities, _) = keys();
    let repository = Repository::open(&store, "demo", &identities, Some(&recipients)).await.unwrap();
    let (_shop, shop) = filled("shop", &dir.path().join("shop"));
    let shop = taken(&repository, &shop).await;
    let scratch = dir.path().join("scratch");
    let look = async |repository: &Repository, backups: &[Backup], level| {
        verify(&VerifyRequest { repository, backups, level, scratch: &scratch, clock: &SystemClock }).await
    };

    let stranger = keys();
    let refused = Repository::open(&store, "demo", &stranger.1, None).await.err().unwrap();
    assert_eq!(refused.code, ErrorCode::Unauthorized, "{refused}");
    assert!(Repository::rewrap(store.as_ref(), "demo", &identities, &stranger.0).await.unwrap());
    let opened = Repository::open(&store, "demo", &stranger.1, None).await.unwrap();
    assert!(look(&opened, std::slice::from_ref(&shop), Level::Read).await.unwrap().bad().next().is_none());

    damage(&dir.path().join("bucket"));
    let (_blog, blog) = filled("blog", &dir.path().join("blog"));
    let blog = taken(&repository, &blog).await;
    let both = [shop.clone(), blog.clone()];
    let proof = async |volume: &str| repository.records().find(volume, "latest").await.unwrap().proof;
    assert!(look(&repository, &both, Level::Check).await.unwrap().bad().next().is_none(), "nobody read it");
    assert!(matches!(proof("shop").await, Proof::Verified { .. }));
    // All of the repository is read; who needs what is damaged is told apart from who does not.
    let found = look(&repository, &both, Level::Read).await.unwrap();
    assert_eq!(found.bad().map(|(id, _)| id).collect::<Vec<_>>(), [shop.id.as_str()], "{found:?}");
    assert!(found.elsewhere.is_some());
    assert!(matches!(proof("shop").await, Proof::Bad { .. }) && proof("blog").await == Proof::Unproven);
    let found = look(&repository, &both, Level::Restore).await.unwrap();
    assert_eq!(found.bad().map(|(id, _)| id).collect::<Vec<_>>(), [shop.id.as_str()], "{found:?}");
    assert!(matches!(proof("shop").await, Proof::Bad { .. }) && matches!(proof("blog").await, Proof::Proven { .. }));

    // What has no room is no fault of the backup.
    let vast = Backup { bytes: u64::MAX, ..blog };
    let refused = look(&repository, &[vast], Level::Restore).await.unwrap_err();
    assert!(refused.code == ErrorCode::Local && refused.hint.unwrap().contains("nothing was restored"));
    assert!(matches!(proof("blog").await, Proof::Proven { .. }));
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_buckets_the_one_that_has_a_file_whole_is_read_and_mirror_heals_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["home", "away"].map(|name| dir.path().join(name));
    let buckets: Vec<Arc<dyn ObjectStore>> =
        paths.iter().map(|path| Arc::new(DirStore::open(path.clone()).unwrap()) as _).collect();
    let copies = Arc::new(Copies::new(buckets.clone()));
    let store: Arc<dyn ObjectStore> = Arc::clone(&copies) as _;
    let (recipients, identities, _) = keys();
    let repository = Repository::open(&store, "demo", &identities, Some(&recipients)).await.unwrap();
    let (_shop, volume) = filled("shop", &dir.path().join("shop"));
    let made = taken(&repository, &volume).await;
    assert!(copies.problems().is_empty(), "{:?}", copies.problems());
    damage(&paths[0]);
    let scratch = dir.path().join("scratch");
    let look = async |store: &Arc<dyn ObjectStore>| {
        let repository = Repository::open(store, "demo", &identities, None).await.unwrap();
        let (level, backups) = (Level::Restore, [made.clone()]);
        let request =
            VerifyRequest { repository: &repository, backups: &backups, level, scratch: &scratch, clock: &SystemClock };
        verify(&request).await.unwrap().bad().count()
    };
    assert_eq!(look(&store).await, 0, "the other bucket has it");
    assert_eq!(look(&buckets[0]).await, 1);
    let trust = Trust::default();
    let request = MirrorRequest { stores: &buckets, cluster: "demo", trust: &trust, deep: true, dry_run: false };
    let done = mirror(&request).await.unwrap();
    assert!(done.copied.iter().any(|copied| copied.key.contains("/restic/data/") && copied.replaced), "{done:?}");
    assert_eq!(look(&buckets[0]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_thief_overwrote_and_deleted_is_restored_as_it_was_and_what_is_not_signed_is_not() {
    let (server, dir) = s3_server();
    let bucket = Arc::new(S3Store::connect(&server.config("backups")).unwrap());
    bucket.ensure_bucket().await.unwrap();
    let signer = Arc::new(SigningKey::generate().unwrap());
    let trust = Trust::parse(&[signer.public().to_string()]).unwrap();
    let signed = |store: Arc<dyn ObjectStore>| SignedStore::over(store, &trust, Some(&signer), false);
    let now = signed(Arc::clone(&bucket) as _);
    let (recipients, identities, _) = keys();
    let (from, volume) = filled("shop", &dir.path().join("shop"));
    let repository = Repository::open(&now, "demo", &identities, Some(&recipients)).await.unwrap();
    let made = taken(&repository, &volume).await;
    let entry = repository.records().find("shop", "latest").await.unwrap();
    assert!(matches!(entry.signature, Vouched::Signed { .. }), "{entry:?}");
    let before = next_second().await;

    for object in bucket.list("demo/volumes/").await.unwrap() {
        if object.key.contains("/data/") || object.key.ends_with(".minisig") {
            bucket.delete(&object.key).await.unwrap();
        } else if !object.key.contains("/backups/") {
            bucket.put(&object.key, "you have been robbed".into(), PutCondition::Any).await.unwrap();
        }
    }
    let (entries, refused) = repository.records().list().await.unwrap();
    assert_eq!((entries.len(), refused[0].code), (0, ErrorCode::Unsigned));
    assert!(Repository::open(&now, "demo", &identities, None).await.is_err());

    let then = signed(Arc::new(AsOfStore::new(bucket, before, None)));
    let repository = Repository::open(&then, "demo", &identities, None).await.unwrap();
    let found = repository.records().find("shop", "latest").await.unwrap().backup;
    assert_eq!(found, made);
    let to = Mounted::at(dir.path().join("elsewhere"));
    let request = RestoreRequest {
        repository: &repository,
        backup: &found,
        host: &Host { name: "w1".to_owned(), address: [127, 0, 0, 1].into(), host_key_sha256: String::new() },
        shell: &Here,
        clock: &SystemClock,
        device: None,
        path: &to.path(),
        record: false,
    };
    restore(&request).await.unwrap();
    assert_eq!(listing(&from.0), listing(&to.0));
    assert_eq!(
        repository.records().find("shop", "latest").await.unwrap().proof,
        Proof::Unproven,
        "of now nothing is said"
    );
}
