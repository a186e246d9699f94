//! Against a real sshd on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

use super::local_sshd::LocalSshd;
use super::*;
use crate::ports::{
    ByteStream, Dialer, ErrorCode, EtcdEndpoint, Host, MemberFile, PortResult, Printed, PrintedStream, RemoteFile,
    Shell,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Starts one and waits until it answers.
async fn ready() -> (LocalSshd, SshShell, Host) {
    let sshd = LocalSshd::start().unwrap();
    let (shell, host) = (sshd.shell().unwrap(), sshd.host());
    shell.wait_ready(&host, DEADLINE).await.unwrap();
    (sshd, shell, host)
}

fn file(path: &Path, mode: u32, content: impl Into<Vec<u8>>) -> RemoteFile {
    RemoteFile { path: path.to_str().unwrap().into(), mode, content: Zeroizing::new(content.into()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_runs_with_its_output_status_and_no_input() {
    let (_sshd, shell, host) = ready().await;
    let script = "echo out; echo err >&2; cat; read x; echo \"still here $?\"\nexit 7\n";
    let output = shell.run(&host, script, DEADLINE).await.unwrap();
    assert_eq!(output.status, 7);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\nstill here 1\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_does_not_show_in_the_process_list() {
    let (_sshd, shell, host) = ready().await;
    let script =
        "mark=very-secret-mark-in-script; tr '\\0' ' ' </proc/$$/cmdline; tr '\\0' ' ' </proc/$PPID/cmdline; env";
    let output = shell.run(&host, script, DEADLINE).await.unwrap();
    assert_eq!(output.status, 0);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("very-secret"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_commands_than_sshd_allows_sessions_run_side_by_side() {
    // As it comes, and one that allows fewer than we open: it refuses some, as a busy one does that still counts what has ended.
    for more in ["", "MaxSessions 3"] {
        let sshd = LocalSshd::start_configured(more).unwrap();
        let (shell, host) = (sshd.shell().unwrap(), sshd.host());
        shell.wait_ready(&host, DEADLINE).await.unwrap();
        let runs = (0..30).map(|i| {
            let (shell, host) = (shell.clone(), host.clone());
            async move { shell.run(&host, &format!("echo {i}"), DEADLINE).await.unwrap().stdout }
        });
        let outputs = futures::future::join_all(runs).await;
        for (i, output) in outputs.iter().enumerate() {
            assert_eq!(String::from_utf8_lossy(output), format!("{i}\n"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_key_is_untrusted_and_nothing_runs() {
    let (sshd, _, host) = ready().await;
    let mark = sshd.dir.path().join("ran");
    let other = Host { host_key_sha256: keypair().unwrap().fingerprint, ..host };
    let error = sshd.shell().unwrap().run(&other, &format!("touch {}", mark.display()), DEADLINE).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Untrusted);
    assert!(error.message.contains(&sshd.host_key.fingerprint), "{error}");
    assert!(error.message.contains(&other.host_key_sha256), "{error}");
    assert!(!mark.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_says_so() {
    let (sshd, _, host) = ready().await;
    let stranger = SshShell::with_port(&keypair().unwrap().private, sshd.port).unwrap();
    let error = stranger.run(&host, "true", DEADLINE).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthorized);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_not_there_is_unreachable() {
    let mut sshd = LocalSshd::start().unwrap();
    sshd.kill();
    let error = sshd.shell().unwrap().run(&sshd.host(), "true", DEADLINE).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    let error = sshd.shell().unwrap().wait_ready(&sshd.host(), Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_outlasts_the_first_boot_with_another_host_key() {
    let mut first = LocalSshd::start().unwrap();
    let pinned = keypair().unwrap();
    let host = Host { host_key_sha256: pinned.fingerprint.clone(), ..first.host() };
    let shell = first.shell().unwrap();
    let waiting = tokio::spawn({
        let (shell, host) = (shell.clone(), host.clone());
        async move { shell.wait_ready(&host, DEADLINE).await }
    });
    let mut error = shell.run(&host, "true", DEADLINE).await.unwrap_err();
    while error.code == ErrorCode::Unreachable {
        tokio::time::sleep(Duration::from_millis(20)).await;
        error = shell.run(&host, "true", DEADLINE).await.unwrap_err();
    }
    assert_eq!(error.code, ErrorCode::Untrusted);
    first.kill();
    let _second = LocalSshd::start_with(first.port, first.login.clone(), pinned).unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(shell.run(&host, "echo ok", DEADLINE).await.unwrap().stdout, b"ok\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_made_anew_for_the_next_call() {
    let (mut sshd, shell, host) = ready().await;
    shell.run(&host, "true", DEADLINE).await.unwrap();
    sshd.kill();
    let _again = LocalSshd::start_with(sshd.port, sshd.login.clone(), sshd.host_key.clone()).unwrap();
    shell.wait_ready(&host, DEADLINE).await.unwrap();
    assert_eq!(shell.run(&host, "echo back", DEADLINE).await.unwrap().stdout, b"back\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_past_its_deadline_is_killed_with_its_children() {
    let (sshd, shell, host) = ready().await;
    let pid = sshd.dir.path().join("pid");
    let script = format!("sleep 1000 & echo $! >{}; wait", pid.display());
    let error = shell.run(&host, &script, Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Timeout);
    let pid = std::fs::read_to_string(pid).unwrap();
    let process = format!("/proc/{}/stat", pid.trim());
    for _ in 0..500 {
        match std::fs::read_to_string(&process) {
            Ok(stat) if !stat.contains(") Z ") => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => return,
        }
    }
    panic!("the child outlived its command by 10 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_output_is_an_error_and_not_a_full_memory() {
    let (_sshd, shell, host) = ready().await;
    let error = shell.run(&host, "yes", DEADLINE).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::LimitExceeded);
    assert_eq!(shell.run(&host, "echo fine", DEADLINE).await.unwrap().stdout, b"fine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_whole_with_their_modes_and_replace_what_was_there() {
    let (sshd, shell, host) = ready().await;
    let root = sshd.dir.path().join("put");
    let (key, unit) = (root.join("pki/it's a key"), root.join("a b/unit"));
    let deep = root.join("d".repeat(120)).join("e".repeat(120));
    let binary: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
    std::fs::create_dir_all(unit.parent().unwrap()).unwrap();
    std::fs::write(&unit, "old").unwrap();
    let files = [
        file(&key, 0o600, binary.clone()),
        file(&unit, 0o644, "new\n"),
        file(&deep, 0o755, ""),
        file(&key, 0o600, binary.clone()),
    ];
    shell.put_files(&host, &files).await.unwrap();
    assert_eq!(std::fs::read(&key).unwrap(), binary);
    assert_eq!(std::fs::read(&unit).unwrap(), b"new\n");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&key), mode(&unit), mode(&deep), mode(&root)), (0o600, 0o644, 0o755, 0o755));
    let left = Command::new("find").arg(&root).args(["-name", ".hk-dr-*"]).output().unwrap();
    assert!(left.stdout.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_written_leave_everything_as_it_was() {
    let (sshd, shell, host) = ready().await;
    let root = sshd.dir.path().join("put");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("file"), "old").unwrap();
    // A directory cannot be made below a file.
    let files = [file(&root.join("file"), 0o644, "new"), file(&root.join("file/below"), 0o644, "x")];
    let error = shell.put_files(&host, &files).await.unwrap_err();
    assert!(error.message.contains("m1"), "{error}");
    assert_eq!(std::fs::read(root.join("file")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1, "no temporary file is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_feeds_a_command_byte_for_byte() {
    let (_sshd, shell, host) = ready().await;
    let chunk = Bytes::from((0..=255u8).cycle().take(1 << 20).collect::<Vec<_>>());
    let mut hash = Sha256::new();
    for _ in 0..64 {
        hash.update(&chunk);
    }
    let chunks = futures::stream::iter((0..64).map(move |_| Ok(chunk.clone())));
    let output = shell.feed(&host, "sha256sum", Box::pin(chunks), DEADLINE).await.unwrap();
    let expected: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{expected}  -\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_breaks_breaks_the_feed() {
    let (_sshd, shell, host) = ready().await;
    let broken = crate::ports::PortError::new(ErrorCode::Corrupt, "the source broke");
    let chunks: ByteStream = Box::pin(futures::stream::iter([Ok(Bytes::from_static(b"x")), Err(broken)]));
    let error = shell.feed(&host, "cat", chunks, DEADLINE).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Corrupt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_early_ends_the_feed() {
    let (_sshd, shell, host) = ready().await;
    let chunk = Bytes::from(vec![0; 1 << 20]);
    let endless = futures::stream::repeat_with(move || Ok(chunk.clone()));
    let output = shell.feed(&host, "head -c 10 >/dev/null; exit 3", Box::pin(endless), DEADLINE).await.unwrap();
    assert_eq!(output.status, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_port_carries_both_ways_and_closes_with_its_value() {
    let (_sshd, shell, host) = ready().await;
    let echo = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let remote = echo.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    let forward = shell.forward(&host, remote).await.unwrap();
    assert!(forward.local.ip().is_loopback());
    let sent: Vec<u8> = (0..=255u8).cycle().take(8 << 20).collect();
    let carried = (0..3).map(|_| async {
        let (mut read, mut write) = tokio::net::TcpStream::connect(forward.local).await.unwrap().into_split();
        let mut received = Vec::new();
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let (_, received_bytes) = tokio::join!(send, read.read_to_end(&mut received));
        received_bytes.unwrap();
        received
    });
    for received in futures::future::join_all(carried).await {
        assert!(received == sent, "{} bytes came back", received.len());
    }
    let local = forward.local;
    drop(forward);
    for _ in 0..500 {
        if tokio::net::TcpStream::connect(local).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the port was still open 5 s after its value was dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_to_nothing_closes_its_connections() {
    let (_sshd, shell, host) = ready().await;
    let nobody: SocketAddr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let forward = shell.forward(&host, nobody).await.unwrap();
    let mut socket = tokio::net::TcpStream::connect(forward.local).await.unwrap();
    let mut nothing = Vec::new();
    let read = socket.read_to_end(&mut nothing).await;
    assert!(nothing.is_empty(), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_is_dialed_through_its_machine_which_may_come_later_or_go() {
    let server = crate::etcd::testing::Server::start().await;
    let (mut sshd, shell, host) = ready().await;
    let mut dialer = SshDialer::new(shell);
    dialer.etcd_port = server.client_port;
    let endpoint = EtcdEndpoint { name: "m1".into(), host: host.clone(), address: Ipv4Addr::LOCALHOST };
    let stranger = Host { host_key_sha256: keypair().unwrap().fingerprint, ..host };
    let other = EtcdEndpoint { name: "m2".into(), host: stranger, ..endpoint.clone() };
    let etcd = dialer.etcd(&[endpoint, other], &server.pki.client()).await.unwrap();
    assert_eq!(etcd.members(), ["m1", "m2"]);
    etcd.put("m1", b"/a", &vec![1; 1_000_000]).await.unwrap();
    assert_eq!(etcd.get("m1", b"/a").await.unwrap().unwrap().value.len(), 1_000_000);
    let error = etcd.status("m2").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Untrusted, "{error}");

    sshd.kill();
    let error = etcd.status("m1").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable, "{error}");
    let _again = LocalSshd::start_with(sshd.port, sshd.login.clone(), sshd.host_key.clone()).unwrap();
    for _ in 0..200 {
        if etcd.status("m1").await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the member was not reached again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_not_up_yet_is_unreachable_not_an_error_of_dialing() {
    let (sshd, shell, host) = ready().await;
    let mut dialer = SshDialer::new(shell);
    dialer.kube_port = crate::etcd::testing::free_port();
    let tls = crate::etcd::testing::Pki::new().client();
    let kube = dialer.kube(&host, &tls).await.unwrap();
    assert_eq!(kube.ready().await.unwrap_err().code, ErrorCode::Unreachable);
    drop(sshd);
}

/// What a command printed: its bytes, its lines, and how it ended.
async fn followed(mut printed: PrintedStream) -> (Vec<u8>, Vec<String>, PortResult<()>) {
    let (mut data, mut lines) = (Vec::new(), Vec::new());
    while let Some(next) = printed.next().await {
        match next {
            Ok(Printed::Data(bytes)) => data.extend_from_slice(&bytes),
            Ok(Printed::Line(line)) => lines.push(line),
            Err(error) => return (data, lines, Err(error)),
        }
    }
    (data, lines, Ok(()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_started_command_prints_comes_while_it_runs() {
    let (_sshd, shell, host) = ready().await;
    let command = "cat; echo one >&2; printf 'two\\nthree' >&2; head -c 5000000 /dev/zero";
    let printed = shell.start(&host, command, Bytes::from_static(b"input"), DEADLINE).await.unwrap();
    let (data, lines, ended) = followed(printed).await;
    ended.unwrap();
    assert_eq!((&data[..5], data.len()), (&b"input"[..], 5_000_005));
    assert_eq!(lines, ["one", "two", "three"]);

    let command = "echo half; echo '{\"read\":5}' >&2; echo why >&2; exit 7";
    let printed = shell.start(&host, command, Bytes::new(), DEADLINE).await.unwrap();
    let (data, lines, ended) = followed(printed).await;
    assert_eq!((&data[..], lines.len()), (&b"half\n"[..], 2));
    assert_eq!(ended.unwrap_err().message, "a command on m1 ended with status 7: why");
    let printed = shell.start(&host, "kill -9 $$", Bytes::new(), DEADLINE).await.unwrap();
    let error = followed(printed).await.2.unwrap_err();
    assert_eq!(error.message, "a command on m1 ended with status 137 (killed)");

    let mut endless = shell.start(&host, "echo $$ >&2; yes", Bytes::new(), Duration::from_secs(3)).await.unwrap();
    let late = loop {
        if let Err(error) = endless.next().await.unwrap() {
            break error;
        }
    };
    assert_eq!(late.code, ErrorCode::Timeout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_started_command_ends_when_nobody_reads_it_any_more() {
    let (_sshd, shell, host) = ready().await;
    let mut printed = shell.start(&host, "echo $$ >&2; exec yes", Bytes::new(), DEADLINE).await.unwrap();
    let pid = loop {
        if let Printed::Line(pid) = printed.next().await.unwrap().unwrap() {
            break pid;
        }
    };
    drop(printed);
    let process = format!("/proc/{pid}");
    for _ in 0..500 {
        if !Path::new(&process).exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it outlived its reader by 10 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_sent_once_for_each_version_and_runs_beside_the_file() {
    let (sshd, shell, host) = ready().await;
    let place = sshd.dir.path().join("beside");
    let program = |text: &str| {
        let path = sshd.dir.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        path
    };
    let sending = |program: &Path| {
        let file = SshMemberFile::new(shell.clone(), host.clone(), "/etc/hostname".to_owned());
        file.placed(place.to_str().unwrap().to_owned()).sending(program)
    };
    let there = || {
        let names = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    let first = sending(&program("nice; echo first $1; cat"));
    for (gently, nice) in [(false, 0), (true, 19)] {
        first.prepare().await.unwrap();
        let printed = first.start("word", Bytes::from_static(b"in"), gently, DEADLINE).await.unwrap();
        assert_eq!(followed(printed).await.0, format!("{nice}\nfirst word\nin").as_bytes());
    }
    let names = there();
    let inode = std::fs::metadata(place.join(&names[0])).unwrap().ino();
    assert_eq!(names.len(), 1);
    assert_eq!(std::fs::metadata(place.join(&names[0])).unwrap().permissions().mode() & 0o777, 0o700);
    sending(&program("nice; echo first $1; cat")).prepare().await.unwrap();
    assert_eq!(std::fs::metadata(place.join(&names[0])).unwrap().ino(), inode, "it was not sent again");

    sending(&program("echo second")).prepare().await.unwrap();
    assert_eq!(there().len(), 1, "the former version is gone");
    assert_ne!(there(), names);

    // What the machine cannot run is an error, and so is a machine without room.
    let foreign = sending(&program(""));
    std::fs::write(sshd.dir.path().join("program"), b"\x7fELF of another kind").unwrap();
    foreign.prepare().await.unwrap();
    let (_, _, ended) = followed(foreign.start("x", Bytes::new(), false, DEADLINE).await.unwrap()).await;
    assert!(ended.is_err());
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::write(&place, "no directory").unwrap();
    let refused = sending(&program("true")).prepare().await.unwrap_err();
    assert!(refused.message.contains("did not take hk-dr"), "{refused}");
}
