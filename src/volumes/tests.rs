//! Real restic against a real S3 server, with this machine in a server's place.

mod damaged;
mod locked;
mod pruned;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::ExposeSecret;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::backup::{Identities, Proof, Recipients};
use crate::config::VolumeConfig;
use crate::ports::{
    ByteStream, Clock, ErrorCode, Forward, Host, ObjectStore, Offer, Output, PortResult, RemoteFile, Shell, SystemClock,
};
use crate::s3::S3Store;
use crate::s3::contract::s3_server;

/// Scripts run here.
struct Here;

#[async_trait]
impl Shell for Here {
    async fn wait_ready(&self, _: &Host, _: Duration) -> PortResult<()> {
        Ok(())
    }
    async fn run(&self, _: &Host, script: &str, _: Duration) -> PortResult<Output> {
        let mut child = tokio::process::Command::new("sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        Ok(Output { status: output.status.code().unwrap(), stdout: output.stdout, stderr: output.stderr })
    }
    async fn put_files(&self, _: &Host, _: &[RemoteFile]) -> PortResult<()> {
        unreachable!("nothing is configured here")
    }
    async fn feed(&self, _: &Host, _: &str, _: ByteStream, _: Duration) -> PortResult<Output> {
        unreachable!("restic is here")
    }
    async fn accepts(&self, _: &Host, _: &str) -> PortResult<bool> {
        Ok(true)
    }
    async fn forward(&self, _: &Host, _: SocketAddr) -> PortResult<Forward> {
        unreachable!("nothing is forwarded")
    }
    async fn offer(&self, _: &Host, local: SocketAddr) -> PortResult<Offer> {
        Ok(Offer { port: local.port(), guard: Box::new(()) })
    }
}

/// A file system in memory, in the place of a volume.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        sh(&format!("mount -t tmpfs hk-dr-test {}", path.display()));
        Self(path)
    }
    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn sh(script: &str) -> String {
    let output = std::process::Command::new("sh").args(["-euc", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Names, kinds, modes, owners, times, links and contents.
fn listing(path: &Path) -> String {
    sh(&format!(
        "cd {0} && find . -mindepth 1 -printf '%p %y %m %U %G %n %T@ %l\\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum",
        path.display()
    ))
}

fn keys() -> (Recipients, Identities, String) {
    let pairs = [age::x25519::Identity::generate(), age::x25519::Identity::generate()];
    let names: Vec<String> = pairs.iter().map(|pair| pair.to_public().to_string()).collect();
    let text = age::secrecy::ExposeSecret::expose_secret(&pairs[0].to_string()).to_owned();
    (Recipients::parse(&names.join("\n")).unwrap(), Identities::parse(&text, "key").unwrap(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_back_as_they_were_and_stock_restic_opens_the_bucket() {
    let (server, dir) = s3_server();
    let s3 = S3Store::connect(&server.config("backups")).unwrap();
    s3.ensure_bucket().await.unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(s3);
    let (recipients, identities, key) = keys();
    let from = Mounted::at(dir.path().join("from"));
    sh(&format!(
        "cd {}; mkdir -p data/deep; head -c 3000000 /dev/urandom > data/large; head -c 3000000 data/large > data/twice; \
         echo hello > 'data/with space'; ln data/large data/hard; ln -s large data/soft; chmod 640 data/large; \
         chown 12:34 data/deep; chmod 2750 data/deep; touch -d 2001-02-03T04:05:06.789 data/deep; echo no > data/skip.tmp",
        from.path()
    ));
    let marker = dir.path().join("hooks");
    let volume = VolumeConfig {
        name: "shop".to_owned(),
        server: "w1".to_owned(),
        path: from.path(),
        before: Some(format!("echo before >> {0}; sync", marker.display())),
        after: Some(format!("echo after >> {0}", marker.display())),
        exclude: vec!["*.tmp".to_owned()],
    };
    let host = Host { name: "w1".to_owned(), address: [127, 0, 0, 1].into(), host_key_sha256: String::new() };
    let none = Repository::open(&store, "demo", &identities, None).await.err().unwrap();
    assert_eq!(none.code, ErrorCode::NotFound, "{none}");
    let repository = Repository::open(&store, "demo", &identities, Some(&recipients)).await.unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let take = async |volume: &VolumeConfig| {
        let (shell, clock) = (&Here, &clock);
        let request =
            BackupRequest { repository: &repository, volume, host: &host, shell, clock, git_commit: Some("abc") };
        backup(&request).await
    };
    let first = take(&volume).await.unwrap();
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), "before\nafter\n");
    assert!(first.quiesced && first.bytes > 6_000_000, "{first:?}");
    assert!(first.added_bytes < 4_000_000, "what is twice there is kept once: {first:?}");
    crate::s3::contract::next_second().await;
    sh(&format!("cd {}; echo more > data/more; rm data/skip.tmp", from.path()));
    let second = take(&volume).await.unwrap();
    assert!(second.added_bytes < 200_000, "only what changed: {second:?}");

    // A script that fails stops the backup, and the other one is run all the same.
    let bad = VolumeConfig { before: Some("echo no database >&2; exit 1".to_owned()), ..volume.clone() };
    let refused = take(&bad).await.unwrap_err();
    assert!(refused.message.contains("no database") && refused.hint.unwrap().contains("nothing was backed up"));
    assert_eq!(std::fs::read_to_string(&marker).unwrap().matches("after").count(), 3);
    let gone = VolumeConfig { path: dir.path().join("nowhere").display().to_string(), ..volume.clone() };
    assert!(take(&gone).await.unwrap_err().message.contains("not mounted"));

    let records = Records { store: store.as_ref(), cluster: "demo" };
    let ids: Vec<String> = records.list().await.unwrap().0.into_iter().map(|entry| entry.backup.id).collect();
    assert_eq!(ids, [second.id.clone(), first.id.clone()]);
    let newest = async || records.find("shop", "latest").await.unwrap();
    let scratch = dir.path().join("scratch");
    let look = async |level| {
        let backups = [second.clone()];
        let clock = clock.as_ref();
        verify(&VerifyRequest { repository: &repository, backups: &backups, level, scratch: &scratch, clock }).await
    };
    look(Level::Check).await.unwrap();
    assert_eq!(newest().await.proof, Proof::Unproven);
    look(Level::Read).await.unwrap();
    assert!(matches!(newest().await.proof, Proof::Verified { .. }));
    // Restored into a place of its own, of which nothing stays.
    look(Level::Restore).await.unwrap();
    let proven = newest().await;
    assert!(proven.proof.to_string().starts_with("proven by restore"), "{proven:?}");
    // data, deep and seven files, and the directories that lead there.
    let depth = Path::new(&from.path()).components().count() as u64 - 1;
    assert_eq!(proven.checked.unwrap().compared, Some(depth + 8));
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);

    // Onto another volume, at another place.
    let to = Mounted::at(dir.path().join("elsewhere/to"));
    let path = to.path();
    let request = RestoreRequest {
        repository: &repository,
        backup: &second,
        host: &host,
        shell: &Here,
        clock: &SystemClock,
        device: None,
        path: &path,
        record: true,
    };
    restore(&request).await.unwrap();
    assert_eq!(listing(&from.0), listing(&to.0));
    assert!(matches!(newest().await.proof, Proof::Proven { .. }));
    let again = restore(&request).await.unwrap_err();
    assert!(again.message.contains("not empty"), "{again}");

    // Stock tools and the bucket, without hk-dr.
    let config = server.config("backups");
    std::fs::write(dir.path().join("key"), key).unwrap();
    let password = store.get("demo/volumes/password.age", 9999).await.unwrap();
    std::fs::write(dir.path().join("password.age"), password).unwrap();
    let stock = format!(
        "cd {}; export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} RESTIC_PASSWORD_COMMAND='age -d -i key password.age'; \
         restic --no-cache -r s3:{}/backups/demo/volumes/restic -q check --no-lock --read-data; \
         restic --no-cache --no-lock -r s3:{}/backups/demo/volumes/restic -q dump {} '{}/data/with space'",
        dir.path().display(),
        config.access_key,
        config.secret_key.expose_secret(),
        server.endpoint(),
        server.endpoint(),
        second.snapshot,
        from.path(),
    );
    assert!(sh(&stock).ends_with("hello\n"));

    // What is on the server can add, and remove or change nothing.
    let url = repository.relay.url(repository.relay.address().port());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = url.trim_start_matches("rest:");
    let http = reqwest::Client::new();
    let one = format!("{url}snapshots/{}", first.snapshot);
    assert_eq!(http.delete(&one).send().await.unwrap().status(), 403);
    assert_eq!(http.delete(format!("{url}config")).send().await.unwrap().status(), 403);
    assert_eq!(http.post(&one).body("other").send().await.unwrap().status(), 400);
    // Not even that where nothing is being backed up.
    let unasked = format!("{url}index/{}", crate::backup::hex(&<sha2::Sha256 as sha2::Digest>::digest(b"unasked")));
    assert_eq!(http.post(unasked).body("unasked").send().await.unwrap().status(), 403);
    assert_eq!(http.post(format!("{url}config")).body("other").send().await.unwrap().status(), 403);
    let guessed = format!("http://{}/{}/config", repository.relay.address(), "0".repeat(64));
    assert_eq!(http.get(guessed).send().await.unwrap().status(), 404);
}
