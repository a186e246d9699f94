use std::collections::BTreeMap;

use super::*;
use crate::distribution::pki::ClusterSecrets;
use crate::distribution::tests_support::{demo, noon};
use crate::ports::RemoteFile;

fn placement() -> MasterPlacement {
    MasterPlacement {
        volume_device: "/dev/disk/by-id/scsi-0HC_Volume_7".into(),
        etcd_token: "demo-0-run".into(),
        etcd_state: EtcdState::New,
    }
}

fn texts(files: &[RemoteFile]) -> BTreeMap<String, String> {
    files.iter().map(|f| (f.path.clone(), String::from_utf8(f.content.to_vec()).unwrap())).collect()
}

#[test]
fn private_keys_are_for_their_owner_only_and_ca_keys_stay_away() {
    let (cluster, secrets) = (demo(), ClusterSecrets::generate(&demo(), noon()).unwrap());
    let mut files = master_files(&cluster, &secrets, &cluster.masters[0], &placement(), noon()).unwrap();
    let worker = WorkerPlacement { location: "nbg1".into() };
    files.extend(worker_files(&cluster, &secrets, &cluster.workers[0], &worker, noon()).unwrap());
    use secrecy::ExposeSecret as _;
    for file in &files {
        let text = String::from_utf8(file.content.to_vec()).unwrap();
        let secret = text.contains("PRIVATE KEY") || text.contains("client-key-data") || text.contains("secretbox");
        assert_eq!(secret, file.mode == 0o600, "{} has mode {:o}", file.path, file.mode);
        for ca in [&secrets.kubernetes_ca, &secrets.etcd_ca, &secrets.front_proxy_ca] {
            assert!(!text.contains(ca.key_pem.expose_secret()), "{} holds a CA's key", file.path);
        }
    }
}

#[test]
fn the_node_record_comes_last_and_says_what_the_server_was_made_from() {
    let (cluster, secrets) = (demo(), ClusterSecrets::generate(&demo(), noon()).unwrap());
    let files = master_files(&cluster, &secrets, &cluster.masters[0], &placement(), noon()).unwrap();
    let last = files.last().unwrap();
    assert_eq!(last.path, NODE_FILE);
    let record: NodeRecord = serde_json::from_slice(&last.content).unwrap();
    assert_eq!(record.config_digest, config_digest(&cluster, &secrets, Role::Master, "m1"));
    assert_eq!(record.etcd_token.as_deref(), Some("demo-0-run"));
}

#[test]
fn the_digest_tells_declarations_apart_and_nothing_else() {
    let (cluster, secrets) = (demo(), ClusterSecrets::generate(&demo(), noon()).unwrap());
    let digest = |c: &Cluster, s: &ClusterSecrets| config_digest(c, s, Role::Master, "m1");
    let before = digest(&cluster, &secrets);
    assert_eq!(before, digest(&cluster.clone(), &secrets.clone()));
    let mut workers_only = cluster.clone();
    workers_only.workers.clear();
    workers_only.backup.bucket = "elsewhere".into();
    assert_eq!(before, digest(&workers_only, &secrets), "a worker or a bucket is nothing to a master");
    let mut newer = cluster.clone();
    newer.kubernetes.version = "1.35.5".into();
    assert_ne!(before, digest(&newer, &secrets));
    assert_ne!(before, digest(&cluster, &ClusterSecrets::generate(&cluster, noon()).unwrap()));
}

#[test]
fn every_connection_of_the_control_plane_is_authenticated() {
    let (cluster, secrets) = (demo(), ClusterSecrets::generate(&demo(), noon()).unwrap());
    let files = texts(&master_files(&cluster, &secrets, &cluster.masters[0], &placement(), noon()).unwrap());
    let etcd = &files["/etc/systemd/system/etcd.service"];
    for needed in ["--client-cert-auth=true", "--peer-client-cert-auth=true", "--initial-cluster-state=new"] {
        assert!(etcd.contains(needed), "{needed}");
    }
    assert!(files.values().all(|text| !text.contains("http://")), "a plain-text URL is rendered");
    let api = &files["/etc/systemd/system/kube-apiserver.service"];
    for needed in ["--anonymous-auth=false", "--kubelet-certificate-authority=", "--encryption-provider-config="] {
        assert!(api.contains(needed), "{needed}");
    }
    assert_eq!(files["/etc/hosts"], files["/etc/hk-dr/hosts"]);
    assert_eq!(files["/etc/hosts"].matches(" api.demo.internal").count(), 3);
}

#[test]
fn files_a_master_refers_to_are_among_its_files() {
    let (cluster, secrets) = (demo(), ClusterSecrets::generate(&demo(), noon()).unwrap());
    let files = texts(&master_files(&cluster, &secrets, &cluster.masters[0], &placement(), noon()).unwrap());
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".service")) {
        for word in text.split(|c: char| c.is_whitespace() || c == '=' || c == ',') {
            if word.starts_with("/etc/") {
                assert!(files.contains_key(word), "{path} wants {word}");
            }
        }
    }
}

#[test]
fn urls_are_on_standard_input_only() {
    let items = [Install {
        path: "/usr/local/bin/etcd".into(),
        mode: 0o755,
        sha256: "ab".repeat(32),
        url: secrecy::SecretString::from("https://bucket.example/x?sig=%22a\"b"),
    }];
    let text = install_script(&items);
    assert!(text.contains("url = \"https://bucket.example/x?sig=%22a\\\"b\""));
    assert!(text.lines().filter(|line| line.contains("curl")).all(|line| !line.contains("sig=")));
}

/// What dash, the shell of Debian's servers, says about each script.
#[test]
fn scripts_are_valid_shell() {
    let restore = EtcdRestore {
        id: "r1".into(),
        name: "m1".into(),
        address: [10, 0, 0, 11].into(),
        initial_cluster: crate::distribution::initial_cluster(&demo().masters),
        token: "t".into(),
        bump_revision: 1_000_000_000,
    };
    for text in [
        worker_packages_script(),
        format_and_mount_script("/dev/disk/by-id/scsi-0HC_Volume_7"),
        receive_snapshot_command(&restore, Some("00")),
        etcd_restore_script(&restore),
        start_etcd_script(),
        start_apiserver_script(),
        start_controllers_script(),
        stop_script(&["etcd"]),
        unmount_script(),
        start_worker_script(),
        probe_script(Role::Master),
        probe_script(Role::Worker),
        certificates_script(Role::Master),
        certificates_script(Role::Worker),
        install_script(&[]).to_string(),
    ] {
        let output = std::process::Command::new("sh").args(["-n", "-c", &text]).output().unwrap();
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_probe_of_an_untouched_machine_is_readable() {
    let output = std::process::Command::new("sh").args(["-c", &probe_script(Role::Worker)]).output().unwrap();
    let probe: Probe = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!probe.active("kubelet"));
}

/// On this machine, in a folder: what is replaced stays, and going back to it asks no server.
#[test]
fn what_is_replaced_is_kept_and_comes_back_without_a_server() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bin/etcd");
    let digest = |text: &str| crate::distribution::pki::hex(&<sha2::Sha256 as sha2::Digest>::digest(text));
    let install = |text: &str, url: &str| {
        let item = Install {
            path: path.display().to_string(),
            mode: 0o755,
            sha256: digest(text),
            url: secrecy::SecretString::from(url.to_owned()),
        };
        let script = install_script(&[item]).replace(KEPT_DIR, &dir.path().join("kept").display().to_string());
        let script = script.replace("--retry 8", "--retry 0");
        std::process::Command::new("sh").args(["-c", &script]).output().unwrap()
    };
    let source = |text: &str| {
        let file = dir.path().join(format!("source-{text}"));
        std::fs::write(&file, text).unwrap();
        format!("file://{}", file.display())
    };
    for text in ["old", "new"] {
        let output = install(text, &source(text));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    // Damaged on the machine: it is not taken, whatever it is called.
    let kept = dir.path().join("kept/etcd").join(digest("old"));
    assert!(install("old", "file:///nowhere").status.success());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(!kept.exists(), "one version before is kept, not all");
    std::fs::write(dir.path().join("kept/etcd").join(digest("new")), "bad").unwrap();
    assert_eq!(install("new", "file:///nowhere").status.code(), Some(NOT_READY));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
}
