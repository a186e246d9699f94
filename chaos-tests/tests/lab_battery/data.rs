//! What the cluster's owners would lose: files on a volume, which come back in another location, and an object.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::everyday::{answer, call, ssh};
use super::life::kubectl;
use super::{Lab, refused, succeeded, unique};

const DECLARED: &str = "
volumes:
  - name: shop
    server: w1
    path: /mnt/shop
    before: test -f /mnt/shop/data/large && touch /run/quiesced
    after: rm /run/quiesced
    exclude: ['*.tmp']
";

/// Names, kinds, modes, owners, times and contents.
const LISTING: &str = "cd /mnt/shop && find data -printf '%p %y %m %U %G %n %T@ %l\\n' | sort && find data -type f | sort | xargs sha256sum";

pub fn volume_in_another_location(lab: &Lab) {
    let servers = unique(lab, "servers");
    let order = json!({"name": "shop", "size": 10, "server": servers["demo-w1"], "automount": false});
    let volume = call(lab, &format!("-X POST -d '{order}' $1/volumes"))["volume"].clone();
    let device = volume["linux_device"].as_str().expect("a device");
    let fill = format!(
        "set -e; for n in $(seq 100); do [ -b {device} ] && break; sleep 0.1; done; mkfs.ext4 -q {device}; mkdir -p /mnt/shop; \
         mount {device} /mnt/shop; cd /mnt/shop; mkdir -p data/deep; head -c 3000000 /dev/urandom > data/large; \
         cp data/large data/twice; ln data/large data/hard; ln -s large data/soft; echo hello > data/deep/file; \
         chown 12:34 data/deep; chmod 2750 data/deep; touch -d 2001-02-03T04:05:06.789 data/deep"
    );
    succeeded(&ssh(lab, "w1", &fill), "a volume with files");
    let file = lab.path("git/cluster.yaml");
    let before = std::fs::read_to_string(&file).expect("cluster.yaml");
    // A directory holds the same as the bucket.
    let disk = lab.path("disk");
    std::fs::create_dir_all(format!("{disk}/demo")).expect("a directory");
    let copies = format!("backup:\n  copies: [{{name: disk, bucket: demo, endpoint: \"file://{disk}\"}}]\n");
    assert!(before.contains("backup:\n"), "{before}");
    std::fs::write(&file, format!("{}{DECLARED}", before.replacen("backup:\n", &copies, 1))).expect("written");
    let mirrored = lab.operator(&["mirror", "--json"], None);
    succeeded(&mirrored, "mirror");
    let mirrored = answer(&mirrored);
    assert!(
        mirrored["copied"].as_array().is_some_and(|c| !c.is_empty()) && mirrored["unresolved"] == json!([]),
        "{mirrored}"
    );
    let doctor = lab.operator(&["doctor", "--json"], None);
    succeeded(&doctor, "doctor");
    assert!(answer(&doctor)[1]["bucket"].as_str().is_some_and(|name| name.starts_with("directory ")), "{doctor:?}");

    let made = lab.operator(&["volume", "backup", "--json"], None);
    succeeded(&made, "volume backup");
    let made = answer(&made);
    assert!(made[0]["quiesced"] == true && made[0]["bytes"].as_u64() > Some(6_000_000), "{made}");
    succeeded(&ssh(lab, "w1", "test ! -e /run/quiesced"), "`after` was run");
    assert!(made[0]["added_bytes"].as_u64() < Some(4_000_000), "what is twice there is kept once: {made}");
    succeeded(&lab.operator(&["volume", "verify", "shop"], None), "volume verify");
    let listed = answer(&lab.operator(&["volume", "list", "--json"], None));
    assert_eq!(listed[0]["checked"]["level"], "read", "{listed}");
    refused(&lab.operator(&["volume", "restore", "shop", "--server", "w1", "--mounted"], None), 3, &["not empty"]);

    let id = listed[0]["id"].as_str().expect("an id");
    assert!(std::path::Path::new(&format!("{disk}/demo/demo/volumes/backups/{id}/manifest.json")).exists());
    let back = lab.operator(&["volume", "restore", "shop", "--server", "m1", "--json"], None);
    succeeded(&back, "volume restore");
    let listing = |server: &str| {
        let output = ssh(lab, server, LISTING);
        succeeded(&output, "a listing");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(listing("w1"), listing("m1"));
    let listed = answer(&lab.operator(&["volume", "list", "--json"], None));
    assert_eq!(listed[0]["checked"]["level"], "restore", "{listed}");
    let volumes = lab.api("volumes");
    let new =
        volumes.iter().find(|v| v["name"].as_str().is_some_and(|n| n.starts_with("demo-shop-"))).expect("a new volume");
    assert_eq!(new["location"]["name"], "fsn1", "where the server is that got it");

    // Restored once more, where the operator is, and compared; nothing of it is to be removed yet.
    let proven = lab.operator(&["volume", "verify", "--level", "restore", "--json"], None);
    succeeded(&proven, "volume verify --level restore");
    assert!(answer(&proven)["found"][0][1]["compared"].as_u64() > Some(7), "{proven:?}");
    let listed = answer(&lab.operator(&["volume", "list", "--json"], None));
    assert_eq!(listed[0]["proof"]["status"], "proven", "{listed}");
    let pruning = lab.operator(&["volume", "prune", "--json"], None);
    succeeded(&pruning, "volume prune has nothing to do");
    let decided = &answer(&pruning)["pruning"]["decisions"][0];
    assert!(decided["keep"] == true && decided["reason"] == "the last proven one", "{decided}");
    let status = answer(&lab.operator(&["status", "--json"], None));
    assert_eq!(status["volumes"][0]["backup"], listed[0]["id"], "{status}");

    std::fs::write(&file, before).expect("written");
    let unmount = "systemctl disable -q --now mnt-shop.mount 2>/dev/null || umount /mnt/shop";
    for (server, volume) in [("w1", &volume), ("m1", new)] {
        succeeded(&ssh(lab, server, unmount), "unmounting");
        call(lab, &format!("-X POST $1/volumes/{}/actions/detach", volume["id"]));
        let gone =
            (0..50).any(|_| call(lab, &format!("$1/volumes/{}", volume["id"]))["volume"]["server"] == Value::Null);
        assert!(gone, "the volume stays attached");
        call(lab, &format!("-X DELETE $1/volumes/{}", volume["id"]));
    }
}

/// One that was changed and one that was deleted, on the living cluster.
pub fn objects_on_the_living_cluster(lab: &Lab) {
    let config = lab.path("kubeconfig-objects");
    succeeded(&lab.operator(&["kubeconfig", "--to", &config], None), "kubeconfig");
    let kube = |args: &[&str]| -> Output {
        let program = kubectl().display().to_string();
        let place = ["lab", "exec", "--name", &lab.name, "--from", "operator", "--", &program, "--kubeconfig", &config];
        Command::new(super::hk_dr()).args(place).args(args).output().expect("kubectl starts")
    };
    succeeded(&kube(&["create", "configmap", "kept", "--from-literal=color=blue"]), "an object");
    succeeded(&kube(&["create", "configmap", "lost", "--from-literal=shape=round"]), "another");
    succeeded(&lab.operator(&["snapshot"], None), "snapshot");
    let changed = ["patch", "configmap", "kept", "-p", r#"{"data":{"color":"red"}}"#];
    succeeded(&kube(&changed), "a mistake");
    succeeded(&kube(&["delete", "configmap", "lost"]), "a worse one");
    for name in ["kept", "lost"] {
        let args = ["restore-object", "configmap", name, "-n", "default", "--at", "latest"];
        assert_eq!(lab.operator(&[&args[..], &["--dry-run"]].concat(), None).status.code(), Some(2));
        succeeded(&lab.operator(&[&args[..], &["--yes"]].concat(), None), "restore-object");
        succeeded(&lab.operator(&[&args[..], &["--dry-run"]].concat(), None), "nothing differs any more");
    }
    let value = |name: &str| answer(&kube(&["get", "configmap", name, "-o", "json"]))["data"].clone();
    assert_eq!((value("kept"), value("lost")), (json!({"color": "blue"}), json!({"shape": "round"})));
    succeeded(&kube(&["delete", "configmap", "kept", "lost"]), "the end of both");
}
