//! The disk that somebody forgot: a member's data from before the loss, which turns up beside the cluster that was brought
//! back. It must be refused.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::uses::{etcd, hosts};
use super::{Check, DemoError};
use crate::config::MasterConfig;
use crate::distribution::server_name;
use crate::ports::{Binary, Etcd, HashKv, Host, Member, Output, RemoteFile, Shell};
use crate::steps::{ServerOutput, World, object_key};

/// Where the old member lives on the worker.
const HOME: &str = "/root/forgotten-disk";
const COPY_WITHIN: Duration = Duration::from_secs(60);
/// How long the old member tries: several elections.
const TRIES_SECONDS: u32 = 5;
const URL_VALID: Duration = Duration::from_secs(300);

/// Copies one member's data as its disk holds it at one moment: writes to the disk wait while it is read.
///
/// # Errors
/// The member can't be reached, or its data can't be read.
pub async fn keep(world: &World, shell: &dyn Shell, member: &MasterConfig, to: &Path) -> Result<(), DemoError> {
    let name = server_name(&world.cluster, &member.name);
    let hosts = hosts(world).await?;
    let host = hosts.get(&name).ok_or_else(|| DemoError::new(format!("there is no server {name}")))?.host();
    let script = "set -e\nmountpoint -q /var/lib/etcd\ntrap 'fsfreeze -u /var/lib/etcd' EXIT\nfsfreeze -f /var/lib/etcd\n\
                  tar -C /var/lib/etcd --exclude='*.tmp' -cSf - data | gzip -1\n";
    let output = succeeded(&host, shell.run(&host, script, COPY_WITHIN).await?)?;
    std::fs::write(to, &output.stdout).map_err(|e| DemoError::io(format!("write {}", to.display()), &e))
}

/// What the old member did, as its machine reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Attempt {
    /// It was running until it was ended.
    lived: bool,
    /// Lines of its log that say a member of another cluster refused it.
    refused: u32,
    /// Lines of its log that say it has a leader, or is one.
    led: u32,
    /// HTTP status of a read it was asked for; 0: no answer.
    read: u32,
}

impl Attempt {
    fn is_harmless(&self) -> bool {
        self.lived && self.refused > 0 && self.led == 0 && self.read != 200
    }
}

/// Starts the old member on the first worker, with certificates that the cluster's CA signed today: everything but the
/// cluster's new identity is on its side.
///
/// # Errors
/// It could not be tried. What it did is in the check.
pub async fn try_to_return(
    world: &World,
    shell: &dyn Shell,
    member: &MasterConfig,
    disk: &Path,
) -> Result<Check, DemoError> {
    let hosts = hosts(world).await?;
    let etcd = etcd(world, &hosts).await?;
    let before = state(etcd.as_ref(), 0).await?;
    let attempt = start(world, shell, &hosts, member, disk).await?;
    let after = state(etcd.as_ref(), before.0.hash_revision).await?;
    let untouched = before == after;
    let detail = format!(
        "{} with its data from before, on {}: refused {} times for its cluster ID, {}, {}; members and keys of the cluster {}",
        member.name,
        world.cluster.workers.first().map_or("no worker", |w| w.name.as_str()),
        attempt.refused,
        if attempt.led == 0 { "never had a leader" } else { "HAD A LEADER" },
        if attempt.read == 200 { "SERVED A READ" } else { "served no read" },
        if untouched { "unchanged" } else { "CHANGED" },
    );
    let detail = if attempt.lived { detail } else { format!("{detail}; it did not run, so this proves nothing") };
    Ok(Check::new("an etcd member from before is refused", attempt.is_harmless() && untouched, detail))
}

/// The members and the hash of all keys at a revision (0: the newest), which a stranger must not change.
async fn state(etcd: &dyn Etcd, revision: i64) -> Result<(HashKv, Vec<Member>), DemoError> {
    let first = etcd.members().into_iter().next().ok_or_else(|| DemoError::new("etcd has no member"))?;
    let mut members = etcd.member_list(&first).await?;
    members.sort_by_key(|m| m.id);
    Ok((etcd.hash_kv(&first, revision).await?, members))
}

async fn start(
    world: &World,
    shell: &dyn Shell,
    hosts: &std::collections::BTreeMap<String, ServerOutput>,
    member: &MasterConfig,
    disk: &Path,
) -> Result<Attempt, DemoError> {
    let worker = world.cluster.workers.first().ok_or_else(|| DemoError::new("the cluster has no worker"))?;
    let name = server_name(&world.cluster, &worker.name);
    let host = hosts.get(&name).ok_or_else(|| DemoError::new(format!("there is no server {name}")))?.host();

    let (sha256, url) = etcd_in_the_bucket(world).await?;
    let binary = Binary { name: "etcd".into(), sha256, path: format!("{HOME}/etcd"), mode: 0o755 };
    world.machines.install(&host, &[(binary, url)]).await?;

    // Certificates for the place it is at now: its old ones would be refused for their address alone.
    let here = MasterConfig { address: worker.address, ..member.clone() };
    let secrets = world.secrets().await?;
    let leaves = secrets
        .issue_master(&world.cluster, &here, world.clock.now())
        .map_err(|e| DemoError::new(format!("the old member gets no certificate: {e}")))?;
    let mut files = vec![file("ca.crt", &secrets.etcd_ca.cert_pem)];
    for (base, leaf) in [("server", &leaves.etcd_server), ("peer", &leaves.etcd_peer)] {
        files.push(file(&format!("{base}.crt"), &leaf.cert_pem));
        files.push(file(&format!("{base}.key"), secret(&leaf.key_pem)));
    }
    shell.put_files(&host, &files).await?;

    let data = std::fs::read(disk).map_err(|e| DemoError::io(format!("read {}", disk.display()), &e))?;
    let stream = futures::stream::once(async move { Ok(bytes::Bytes::from(data)) }).boxed();
    let unpack = format!("tar -C {HOME} -xzf -");
    succeeded(&host, shell.feed(&host, &unpack, stream, COPY_WITHIN).await?)?;

    let script = attempt_script(&member.name, worker.address);
    let deadline = Duration::from_secs(u64::from(TRIES_SECONDS) + 30);
    let output = succeeded(&host, shell.run(&host, &script, deadline).await?)?;
    let said = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&said).map_err(|e| DemoError::new(format!("{name} reported {said:?}: {e}")))
}

/// Digest and address of the etcd that servers install.
async fn etcd_in_the_bucket(world: &World) -> Result<(String, SecretString), DemoError> {
    let (_, digests) = world.artifacts.pinned("etcd", Some(&world.cluster.etcd.version))?;
    for sha256 in digests {
        let key = object_key(&world.cluster.name, &sha256);
        if world.store.head(&key).await.is_ok() {
            return Ok((sha256, world.store.presign_get(&key, URL_VALID).await?));
        }
    }
    Err(DemoError::new("the bucket holds no etcd"))
}

/// Runs the old member for a while, asks it for a read, and reports as one line of JSON.
fn attempt_script(member: &str, address: std::net::Ipv4Addr) -> String {
    // Its membership, cluster ID and peers are in its data; flags that name them are ignored there.
    format!(
        "cd {HOME}\n\
         ./etcd --name={member} --data-dir={HOME}/data \\\n\
         --listen-peer-urls=https://{address}:2380 --initial-advertise-peer-urls=https://{address}:2380 \\\n\
         --initial-cluster={member}=https://{address}:2380 \\\n\
         --listen-client-urls=https://127.0.0.1:2379 --advertise-client-urls=https://127.0.0.1:2379 \\\n\
         --cert-file=server.crt --key-file=server.key --client-cert-auth=true --trusted-ca-file=ca.crt \\\n\
         --peer-cert-file=peer.crt --peer-key-file=peer.key --peer-client-cert-auth=true --peer-trusted-ca-file=ca.crt \\\n\
         --quota-backend-bytes=8589934592 > log 2>&1 &\n\
         pid=$!\n\
         end=$(( $(date +%s) + {TRIES_SECONDS} ))\n\
         read=$(curl -s -o /dev/null -w '%{{http_code}}' -m {TRIES_SECONDS} --retry 100 --retry-connrefused --retry-delay 1 \\\n\
         --retry-max-time {TRIES_SECONDS} --cacert ca.crt --cert server.crt --key server.key \\\n\
         -d '{{\"key\":\"AA==\",\"range_end\":\"AA==\",\"limit\":\"1\"}}' https://127.0.0.1:2379/v3/kv/range)\n\
         while [ $(date +%s) -lt $end ] && kill -0 $pid 2>/dev/null; do sleep 0.1; done\n\
         if kill $pid 2>/dev/null; then lived=true; else lived=false; fi\n\
         wait $pid\n\
         refused=$(grep -c 'cluster ID mismatch' log)\n\
         led=$(grep -cE 'elected leader|became leader|ready to serve client requests' log)\n\
         printf '{{\"lived\":%s,\"refused\":%d,\"led\":%d,\"read\":%d}}\\n' $lived $refused $led ${{read#00}}\n"
    )
}

fn file(name: &str, text: &str) -> RemoteFile {
    RemoteFile { path: format!("{HOME}/{name}"), mode: 0o600, content: Zeroizing::new(text.as_bytes().to_vec()) }
}

fn secret(value: &SecretString) -> &str {
    value.expose_secret()
}

fn succeeded(host: &Host, output: Output) -> Result<Output, DemoError> {
    if output.status == 0 {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(DemoError::new(format!("a command on {} ended with status {}: {}", host.name, output.status, stderr.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_member_that_ran_and_was_refused_proves_something() {
        let refused = Attempt { lived: true, refused: 12, led: 0, read: 0 };
        assert!(refused.is_harmless());
        assert!(!Attempt { lived: false, ..refused.clone() }.is_harmless());
        assert!(!Attempt { refused: 0, ..refused.clone() }.is_harmless());
        assert!(!Attempt { led: 1, ..refused.clone() }.is_harmless());
        assert!(!Attempt { read: 200, ..refused }.is_harmless());
    }
}
