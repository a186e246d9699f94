//! The cache against a server that hands out archives, as a user would notice it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::download::hex;
use super::*;
use crate::ports::ErrorCode;

const TOOL: &[u8] = b"#!/bin/sh\necho tool\n";

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Serves fixed paths, counts requests.
struct Server {
    base: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    async fn start(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        // The HTTP client insists on a TLS provider even where nothing is encrypted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let files: Arc<HashMap<String, Vec<u8>>> = Arc::new(files.into_iter().collect());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let (files, counter) = (Arc::clone(&files), Arc::clone(&counter));
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let Ok(1..) = connection.read_buf(&mut request).await else { return };
                    }
                    counter.fetch_add(1, Ordering::SeqCst);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let path = text.split(' ').nth(1).unwrap_or_default();
                    let (status, body) = match files.get(path) {
                        Some(body) => ("200 OK", body.as_slice()),
                        None => ("404 Not Found", &b""[..]),
                    };
                    let head =
                        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                    let _ = connection.write_all(head.as_bytes()).await;
                    let _ = connection.write_all(body).await;
                });
            }
        });
        Self { base, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A lock with one artifact `tool` 1.0; `release` is the text of its release table.
fn lock(release: &str, built_sha256: &str) -> Lock {
    let text = format!(
        "format = 1\n[toolchain]\ngo = 'go1.0'\nplatform = 'linux/amd64'\n[[artifact]]\nname = 'tool'\nversion = '1.0'\n\
         {release}\n[artifact.go]\nmodule = 'none'\npackage = 'none'\nsha256 = '{built_sha256}'\n"
    );
    Lock::parse(&text).unwrap()
}

fn archive(member: &str, content: &[u8]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (path, content) in [("other/README", &b"read me"[..]), (member, content)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, path, content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn release_only() -> Sources {
    Sources { mirror: None, release: true, build: false }
}

fn mirror_only(mirror: &str) -> Sources {
    let Ok(mirror) = mirror.parse();
    Sources { mirror: Some(mirror), release: false, build: false }
}

#[derive(Default)]
struct Heard(Mutex<Vec<Happening>>);

impl Progress for Heard {
    fn report(&self, _artifact: &str, happening: Happening) {
        self.0.lock().unwrap().push(happening);
    }
}

fn files_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn cached(root: &Path) -> PathBuf {
    root.join("artifacts/tool-1.0")
}

#[tokio::test]
async fn a_release_is_unpacked_once_and_then_needs_no_network() {
    let packed = archive("tool-1.0/bin/tool", TOOL);
    let server = Server::start([("/tool.tar.gz".to_owned(), packed.clone())]).await;
    let release = format!(
        "[artifact.release]\nurl = '{}/tool.tar.gz'\nmember = 'tool-1.0/bin/tool'\nsha256 = '{}'",
        server.base,
        sha256(&packed)
    );
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::with_lock(root.path(), lock(&release, &"0".repeat(64)));
    for _ in 0..2 {
        let path = cache.ensure("tool", "1.0", &release_only(), &Silent).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), TOOL);
        let output = std::process::Command::new(&path).output().unwrap();
        assert_eq!(output.stdout, b"tool\n", "it can be run");
    }
    assert_eq!(server.requests(), 1);
    assert_eq!(cache.digest("tool", "1.0").await.unwrap(), sha256(TOOL));

    // Nor does a later hk-dr that pins the same archive; one that pins another does not believe the old file.
    let again = Cache::with_lock(root.path(), lock(&release, &"0".repeat(64)));
    assert!(again.digest("tool", "1.0").await.is_ok());
    let other = Cache::with_lock(root.path(), lock(&release.replace("bin/tool", "sbin/tool"), &"0".repeat(64)));
    assert_eq!(other.digest("tool", "1.0").await.unwrap_err().code, ErrorCode::Corrupt);
}

#[tokio::test]
async fn a_release_with_another_digest_is_refused_and_leaves_nothing() {
    let server = Server::start([("/tool".to_owned(), b"something else".to_vec())]).await;
    let release = format!("[artifact.release]\nurl = '{}/tool'\nsha256 = '{}'", server.base, sha256(TOOL));
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::with_lock(root.path(), lock(&release, &"0".repeat(64)));
    let sources = Sources { build: true, ..release_only() };
    let error = cache.ensure("tool", "1.0", &sources, &Silent).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(error.message.contains(&sha256(b"something else")), "{}", error.message);
    assert!(error.message.contains(&sha256(TOOL)), "{}", error.message);
    assert_eq!(files_in(&root.path().join("artifacts")), [".lock"]);
}

#[tokio::test]
async fn a_release_without_a_pinned_digest_is_not_asked() {
    let server = Server::start([("/tool".to_owned(), TOOL.to_vec())]).await;
    let release = format!("[artifact.release]\nurl = '{}/tool'", server.base);
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::with_lock(root.path(), lock(&release, &"0".repeat(64)));
    let error = cache.ensure("tool", "1.0", &release_only(), &Silent).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    assert!(error.message.contains("no digest is pinned"), "{}", error.message);
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn a_mirror_is_asked_by_digest_then_by_name() {
    for name in [sha256(TOOL), "tool-1.0".to_owned()] {
        let server = Server::start([(format!("/files/{name}"), TOOL.to_vec())]).await;
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::with_lock(root.path(), lock("", &sha256(TOOL)));
        let path =
            cache.ensure("tool", "1.0", &mirror_only(&format!("{}/files/", server.base)), &Silent).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), TOOL);
    }
}

#[tokio::test]
async fn a_mirror_may_be_a_directory_and_may_hold_the_official_archive() {
    let packed = archive("bin/tool", TOOL);
    let release = format!(
        "[artifact.release]\nurl = 'http://127.0.0.1:9/none'\nmember = 'bin/tool'\nsha256 = '{}'",
        sha256(&packed)
    );
    let mirror = tempfile::tempdir().unwrap();
    std::fs::write(mirror.path().join(sha256(&packed)), &packed).unwrap();
    let root = tempfile::tempdir().unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cache = Cache::with_lock(root.path(), lock(&release, &"0".repeat(64)));
    let sources = mirror_only(mirror.path().to_str().unwrap());
    let path = cache.ensure("tool", "1.0", &sources, &Silent).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), TOOL);
}

#[tokio::test]
async fn a_mirror_with_something_else_under_the_name_is_refused() {
    let mirror = tempfile::tempdir().unwrap();
    std::fs::write(mirror.path().join("tool-1.0"), "something else").unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::with_lock(root.path(), lock("", &sha256(TOOL)));
    let sources = mirror_only(mirror.path().to_str().unwrap());
    let error = cache.ensure("tool", "1.0", &sources, &Silent).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(!cached(root.path()).exists());
}

#[tokio::test]
async fn a_mirror_that_does_not_answer_is_passed_over() {
    let server = Server::start([("/tool".to_owned(), TOOL.to_vec())]).await;
    let release = format!("[artifact.release]\nurl = '{}/tool'\nsha256 = '{}'", server.base, sha256(TOOL));
    // Bound and dropped: nobody listens there.
    let silent = format!("http://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap());
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::with_lock(root.path(), lock(&release, &"0".repeat(64)));
    let heard = Heard::default();
    let sources = Sources { release: true, ..mirror_only(&silent) };
    cache.ensure("tool", "1.0", &sources, &heard).await.unwrap();
    let heard = heard.0.into_inner().unwrap();
    assert!(matches!(&heard[0], Happening::Skipped { source, .. } if source == "mirror"), "{heard:?}");
}

#[tokio::test]
async fn a_damaged_file_in_the_cache_is_replaced() {
    let server = Server::start([("/tool".to_owned(), TOOL.to_vec())]).await;
    let release = format!("[artifact.release]\nurl = '{}/tool'\nsha256 = '{}'", server.base, sha256(TOOL));
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::with_lock(root.path(), lock(&release, &"0".repeat(64)));
    cache.ensure("tool", "1.0", &release_only(), &Silent).await.unwrap();
    std::fs::write(cached(root.path()), "damaged, and of another size").unwrap();
    assert_eq!(cache.digest("tool", "1.0").await.unwrap_err().code, ErrorCode::Corrupt);
    let heard = Heard::default();
    cache.ensure("tool", "1.0", &release_only(), &heard).await.unwrap();
    assert_eq!(std::fs::read(cached(root.path())).unwrap(), TOOL);
    assert!(matches!(heard.0.into_inner().unwrap()[0], Happening::Discarded { .. }));
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn credentials_in_a_mirrors_url_are_never_shown() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::with_lock(root.path(), lock("", &sha256(TOOL)));
    let sources = mirror_only(&format!("http://someone:hunter2@{silent}/files"));
    let error = cache.ensure("tool", "1.0", &sources, &Silent).await.unwrap_err();
    assert!(!error.message.contains("hunter2") && !error.message.contains("someone"), "{}", error.message);
}
