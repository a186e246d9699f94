//! A control plane of one master, started from the rendered files with the real programs, in a network namespace that
//! ends with the test.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use secrecy::ExposeSecret;

use super::*;
use crate::distribution::pki::ClusterSecrets;
use crate::distribution::tests_support::demo;
use crate::ports::ClientTls;

/// Programs are in the cache that `make test` fills; a bare `cargo test` has none.
fn programs() -> Option<PathBuf> {
    let cache = std::env::var_os("HK_DR_CACHE").map(|dir| PathBuf::from(dir).join("artifacts"));
    if cache.is_none() {
        eprintln!("skipped: HK_DR_CACHE is not set (make test sets it)");
    }
    cache
}

/// The command line of a unit, with every file below `root` instead of `/`.
fn command_line(root: &Path, unit: &str, programs: &Path, program: &str) -> String {
    let text = std::fs::read_to_string(root.join(format!("etc/systemd/system/{unit}.service"))).unwrap();
    let line = text.split("ExecStart=").nth(1).unwrap().split("\nRestart=").next().unwrap().replace("\\\n", " ");
    let (_, arguments) = line.split_once(' ').unwrap();
    let arguments = arguments.replace("=/etc/", &format!("={}/etc/", root.display()));
    let arguments = arguments.replace("=/var/", &format!("={}/var/", root.display()));
    format!("{} {arguments}", programs.join(program).display())
}

fn client(root: &Path, name: &str, tls: &ClientTls) {
    for (suffix, text) in [("ca", tls.ca_pem.as_str()), ("crt", &tls.cert_pem), ("key", tls.key_pem.expose_secret())] {
        std::fs::write(root.join(format!("{name}.{suffix}")), text).unwrap();
    }
}

#[test]
fn a_rendered_control_plane_serves_those_with_a_certificate_and_encrypts_secrets() {
    let Some(programs) = programs() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let mut cluster = demo();
    cluster.masters.truncate(1);
    cluster.masters[0].address = [127, 0, 0, 2].into();
    let now = crate::ports::Clock::now(&crate::ports::SystemClock);
    let secrets = ClusterSecrets::generate(&cluster, now).unwrap();
    let placement = MasterPlacement {
        volume_device: "/dev/null".into(),
        etcd_token: secrets.etcd_token("test"),
        etcd_state: EtcdState::New,
    };
    for file in master_files(&cluster, &secrets, &cluster.masters[0], &placement, now).unwrap() {
        let path = root.join(file.path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &file.content[..]).unwrap();
    }
    for name in ["controller-manager", "scheduler"] {
        assert!(root.join(format!("etc/kubernetes/{name}.conf")).exists());
    }
    client(root, "kube", &secrets.kube_client(&cluster, now).unwrap());
    client(root, "etcd", &secrets.etcd_client(now).unwrap());

    let versions = [("etcd", "etcd-3.6.16"), ("kube-apiserver", "kube-apiserver-1.35.4")].into_iter().chain([
        ("kube-controller-manager", "kube-controller-manager-1.35.4"),
        ("kube-scheduler", "kube-scheduler-1.35.4"),
    ]);
    let mut script = format!("cd {}\nip link set lo up\nmkdir -p -m 700 var/lib/etcd/data\n", root.display());
    for (unit, program) in versions {
        let line = command_line(root, unit, &programs, program);
        // As systemd does: the API server, say, ends when etcd is slower than it.
        script.push_str(&format!("while :; do {line} >> {unit}.log 2>&1; sleep 0.3; done &\n"));
    }
    let key = base64::engine::general_purpose::STANDARD.encode("/registry/secrets/default/canary");
    script.push_str(&format!(
        "kube() {{ curl -sS -m 5 --cacert kube.ca --cert kube.crt --key kube.key --resolve {api}:6443:127.0.0.1 \"$@\"; }}\n\
         url=https://{api}:6443\n\
         for i in $(seq 1 600); do [ \"$(kube $url/readyz 2>/dev/null)\" = ok ] && break; sleep 0.1; done\n\
         echo ready $(kube $url/readyz)\n\
         echo stranger $(curl -s -m 5 -o /dev/null -w '%{{http_code}}' --cacert kube.ca --resolve {api}:6443:127.0.0.1 $url/api)\n\
         kube -o /dev/null -w 'created %{{http_code}}\\n' -H 'Content-Type: application/json' $url/api/v1/namespaces/default/secrets \
         -d '{{\"metadata\":{{\"name\":\"canary\"}},\"stringData\":{{\"word\":\"yellow-feather\"}}}}'\n\
         echo read $(kube $url/api/v1/namespaces/default/secrets/canary | grep -c $(printf yellow-feather | base64))\n\
         echo stored $(curl -sS -m 5 --cacert etcd.ca --cert etcd.crt --key etcd.key https://localhost:2379/v3/kv/range \
         -d '{{\"key\":\"{key}\"}}' | sed 's/.*\"value\":\"\\([^\"]*\\)\".*/\\1/')\n\
         curl -s -m 5 --cacert etcd.ca https://localhost:2379/health >/dev/null; echo etcd-stranger $?\n\
         for lease in kube-controller-manager kube-scheduler; do for i in $(seq 1 300); do\n\
         kube -f $url/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/$lease >/dev/null 2>&1 && break; sleep 0.1; done\n\
         kube -o /dev/null -w \"lease %{{http_code}}\\n\" $url/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/$lease; done\n",
        api = crate::distribution::api_name(&cluster),
    ));
    let output = Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let logs = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"].map(|unit| {
        let log = std::fs::read_to_string(root.join(format!("{unit}.log"))).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(8).collect();
        format!("--- {unit}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
    });
    let seen = format!("{text}{}\n{}", String::from_utf8_lossy(&output.stderr), logs.join("\n"));
    assert!(text.contains("ready ok"), "{seen}");
    assert!(text.contains("stranger 401"), "{seen}");
    assert!(text.contains("created 201") && text.contains("read 1"), "{seen}");
    let stored = text.lines().find_map(|line| line.strip_prefix("stored ")).unwrap();
    let stored = base64::engine::general_purpose::STANDARD.decode(stored).unwrap();
    assert!(stored.starts_with(b"k8s:enc:secretbox:v1:key1:"), "{seen}");
    assert!(!stored.windows(14).any(|window| window == b"yellow-feather"), "{seen}");
    assert!(!text.contains("etcd-stranger 0"), "{seen}");
    assert_eq!(text.matches("lease 200").count(), 2, "{seen}");
}
