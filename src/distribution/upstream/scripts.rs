//! Scripts that steps run on servers: text in, text out. All are safe to repeat, none asks anything, and none holds a
//! secret except [`install_script`], whose URLs are secret while they are valid (scripts travel on standard input).

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::front::FRONT_LABEL;
use super::worker::IMAGES_DIR;
use super::{NODE_FILE, NodeRecord, Role};
use crate::distribution::ETCD_PEER_PORT;

/// Where etcd's volume is mounted.
pub const ETCD_MOUNT: &str = "/var/lib/etcd";
/// etcd's data directory on it.
pub const ETCD_DATA_DIR: &str = "/var/lib/etcd/data";
/// Exit status of a script that found something it must not overwrite. It changed nothing; standard error says what.
pub const REFUSED: i32 = 20;
/// Exit status of a script whose precondition does not hold (no device, not mounted, wrong digest). It can be repeated.
pub const NOT_READY: i32 = 21;

/// How long a service may take to end by itself, in tenths of a second.
const STOP_GRACE_TENTHS: u32 = 8;

/// The whole script is read before any of it runs, and nothing in it can swallow the rest of standard input. A lost
/// connection does not stop it in the middle.
pub(super) fn script(body: &str) -> String {
    format!("main() {{\nset -eu\ntrap '' HUP\n{body}\n}}\nmain </dev/null\n")
}

/// Something to install on a server: where it goes and where it comes from.
#[derive(Clone)]
pub struct Install {
    /// Absolute path on the server, without spaces or quotes.
    pub path: String,
    pub mode: u32,
    /// 64 hex digits.
    pub sha256: String,
    /// A presigned URL.
    pub url: SecretString,
}

/// Where the file that another one took the place of is kept, by name and digest.
pub const KEPT_DIR: &str = "/usr/local/lib/hk-dr/kept";

/// Fetches files at the same time, checks each digest before the file gets its name, and leaves alone what is right. What
/// is replaced is kept: going back to it needs nothing but this machine.
pub fn install_script(items: &[Install]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::from(
        // A build hashes 800 MB on its servers: openssl uses the processor's instructions for it, coreutils takes six times
        // as long.
        "if command -v openssl >/dev/null; then digest() { openssl dgst -sha256 -r | cut -c1-64; }\n\
         else digest() { sha256sum | cut -c1-64; }; fi\n\
         fetch() { # path mode sha256; curl's configuration with the URL on standard input, so that no process list shows it\n\
         had=; [ ! -f \"$1\" ] || had=$(digest < \"$1\")\n\
         [ \"$had\" = \"$3\" ] && { chmod \"$2\" \"$1\"; return 0; }\n\
         mkdir -p \"${1%/*}\"; kept=/usr/local/lib/hk-dr/kept/${1##*/}\n\
         if [ -f \"$kept/$3\" ]; then cp \"$kept/$3\" \"$1.part\"; else\n\
         curl -fsS --retry 8 --retry-delay 1 --retry-all-errors --connect-timeout 5 --max-time 600 -o \"$1.part\" -K - || {\n\
         echo \"could not fetch $1\" >&2; rm -f \"$1.part\"; return 21; }; fi\n\
         got=$(digest < \"$1.part\")\n\
         [ \"$got\" = \"$3\" ] || { echo \"$1: the digest is $got, not $3; it was not installed\" >&2; rm -f \"$1.part\" \"$kept/$3\"; return 21; }\n\
         if [ -n \"$had\" ]; then rm -rf \"$kept\"; mkdir -p \"$kept\"; ln \"$1\" \"$kept/$had\"; fi\n\
         chmod \"$2\" \"$1.part\"; mv -f \"$1.part\" \"$1\"; }\n\
         main() {\nset -u\ntrap '' HUP\npids=\n",
    ));
    for item in items {
        text.push_str(&format!("fetch {} {:o} {} <<'HK_DR_END' &\nurl = \"", item.path, item.mode, item.sha256));
        text.push_str(&item.url.expose_secret().replace('\\', "\\\\").replace('"', "\\\""));
        text.push_str("\"\nHK_DR_END\npids=\"$pids $!\"\n");
    }
    text.push_str("bad=0\nfor pid in $pids; do wait \"$pid\" || bad=$?; done\nreturn $bad\n}\nmain </dev/null\n");
    text
}

/// Debian packages a worker needs; does nothing where they are there already, and needs no network then.
pub fn worker_packages_script() -> String {
    script(
        "if command -v containerd >/dev/null && command -v runc >/dev/null && command -v nft >/dev/null && \
         [ -x /usr/lib/cni/bridge ]; then exit 0; fi\n\
         export DEBIAN_FRONTEND=noninteractive\n\
         # Another package run (the first boot's, say) may hold the lock for a while.\n\
         apt-get -q -o DPkg::Lock::Timeout=120 update\n\
         apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends \
         containerd runc containernetworking-plugins nftables iptables",
    )
}

/// Makes a file system on an empty volume and mounts it at [`ETCD_MOUNT`]. A volume with a file system is mounted as it
/// is; one with anything else on it is refused ([`REFUSED`]). Needs the master's files, because they have the mount unit.
pub fn format_and_mount_script(device: &str) -> String {
    script(&format!(
        "device={device}\n\
         for i in $(seq 1 150); do [ -b \"$device\" ] && break; sleep 0.2; done\n\
         [ -b \"$device\" ] || {{ echo \"$device did not appear within 30 s; is the volume attached to this server?\" >&2; exit {NOT_READY}; }}\n\
         type=$(blkid -p -o value -s TYPE \"$device\" || true)\n\
         if [ -z \"$type\" ]; then\n\
         # Only what is empty is formatted: no known signature, and nothing but zeros at the beginning.\n\
         found=$(wipefs --noheadings -n \"$device\")\n\
         [ -z \"$found\" ] || {{ echo \"$device is not empty: $found; nothing was changed\" >&2; exit {REFUSED}; }}\n\
         cmp -s -n 1048576 \"$device\" /dev/zero || {{ echo \"$device has no file system but is not empty; nothing was changed\" >&2; exit {REFUSED}; }}\n\
         mkfs.ext4 -q -m 0 -L hk-dr-etcd \"$device\" >&2\n\
         elif [ \"$type\" != ext4 ]; then\n\
         echo \"$device holds $type, not ext4; nothing was changed\" >&2; exit {REFUSED}\n\
         fi\n\
         # A unit that names another volume is read anew even where the clock went back since, which NeedDaemonReload misses.\n\
         what=$(systemctl show -p What --value var-lib-etcd.mount)\n\
         if [ \"$(readlink -f \"$what\")\" != \"$(readlink -f \"$device\")\" ]; then systemctl daemon-reload; else {reload}; fi\n\
         systemctl --no-reload enable -q var-lib-etcd.mount\n\
         # Attempts that failed before must not count: systemd refuses the sixth start in ten seconds, whatever was mended.\n\
         systemctl reset-failed var-lib-etcd.mount 2>/dev/null || true\n\
         systemctl start var-lib-etcd.mount\n\
         mounted=$(findmnt -n -o SOURCE {ETCD_MOUNT})\n\
         [ \"$(readlink -f \"$mounted\")\" = \"$(readlink -f \"$device\")\" ] || {{ echo \"{ETCD_MOUNT} is $mounted, not $device; nothing was changed\" >&2; exit {REFUSED}; }}\n\
         chmod 700 {ETCD_MOUNT}",
        reload = reload_for(&["var-lib-etcd.mount"])
    ))
}

/// What one member is restored as. All members of a restore share everything but `name` and `address`.
#[derive(Debug, Clone)]
pub struct EtcdRestore {
    /// Names this restore; a repeated script sees by it that the work is done. Letters, digits and dashes.
    pub id: String,
    pub name: String,
    pub address: std::net::Ipv4Addr,
    /// See [`crate::distribution::initial_cluster`].
    pub initial_cluster: String,
    pub token: String,
    /// Added to the snapshot's revision, and what is before it is marked compacted; 0: it goes on where it was.
    pub bump_revision: u64,
}

/// The command that receives a snapshot file on its standard input and puts it on the mounted volume. Refuses where
/// there is data that is not from this restore; where this restore is complete, it only reads its input away.
pub fn receive_snapshot_command(restore: &EtcdRestore, sha256: Option<&str>) -> String {
    let check = sha256.map_or(String::new(), |sha256| {
        format!(
            "got=$(sha256sum < snapshot.db.part | cut -c1-64); [ \"$got\" = {sha256} ] || {{ rm -f snapshot.db.part; \
             echo \"the snapshot arrived with digest $got, not {sha256}\" >&2; exit {NOT_READY}; }}; "
        )
    });
    format!(
        "set -eu; mountpoint -q {ETCD_MOUNT} || {{ echo \"{ETCD_MOUNT} is not mounted\" >&2; exit {NOT_READY}; }}; \
         if [ -e {ETCD_DATA_DIR} ]; then if grep -qs '\"id\":\"{id}\"' {ETCD_MOUNT}/restored.json; then cat >/dev/null; exit 0; fi; \
         echo \"{ETCD_DATA_DIR} exists already; nothing was changed\" >&2; exit {REFUSED}; fi; \
         umask 077; mkdir -p {ETCD_MOUNT}/incoming; cd {ETCD_MOUNT}/incoming; cat > snapshot.db.part; {check}mv snapshot.db.part snapshot.db",
        id = restore.id
    )
}

/// Restores the received snapshot to [`ETCD_DATA_DIR`], which appears whole or not at all.
pub fn etcd_restore_script(restore: &EtcdRestore) -> String {
    let EtcdRestore { id, name, address, initial_cluster, token, bump_revision } = restore;
    let port = crate::distribution::ETCD_PEER_PORT;
    let bump = match bump_revision {
        0 => String::new(),
        bump => format!("--bump-revision {bump} --mark-compacted "),
    };
    script(&format!(
        "base={ETCD_MOUNT}\n\
         mountpoint -q $base || {{ echo \"$base is not mounted\" >&2; exit {NOT_READY}; }}\n\
         if [ -e $base/data ]; then\n\
         grep -qs '\"id\":\"{id}\"' $base/restored.json && {{ rm -rf $base/incoming; exit 0; }}\n\
         echo \"$base/data exists already; nothing was changed\" >&2; exit {REFUSED}\n\
         fi\n\
         [ -f $base/incoming/snapshot.db ] || {{ echo \"no snapshot has been received\" >&2; exit {NOT_READY}; }}\n\
         umask 077\n\
         rm -rf $base/restoring\n\
         /usr/local/bin/etcdutl snapshot restore $base/incoming/snapshot.db --data-dir $base/restoring --name {name} \\\n\
         --initial-cluster {initial_cluster} --initial-cluster-token {token} \\\n\
         --initial-advertise-peer-urls https://{address}:{port} {bump}>&2\n\
         printf '{{\"id\":\"{id}\",\"token\":\"{token}\",\"bump_revision\":{bump_revision}}}\\n' > $base/restored.json\n\
         # On disk before it gets the name by which etcd and a repeated restore believe in it.\n\
         sync -f $base\n\
         mv $base/restoring $base/data\n\
         sync -f $base\n\
         rm -rf $base/incoming"
    ))
}

/// Starts etcd and returns at once: it is ready when a majority of members is, which is for the caller to wait for.
pub fn start_etcd_script() -> String {
    script(&format!(
        "{reload}\nmountpoint -q {ETCD_MOUNT} || {{ echo \"{ETCD_MOUNT} is not mounted\" >&2; exit {NOT_READY}; }}\n\
         mkdir -p -m 700 {ETCD_DATA_DIR}\nsystemctl --no-reload enable -q etcd\nsystemctl start --no-block etcd",
        reload = reload_for(&["etcd"])
    ))
}

/// Starts the API server alone: a rebuild removes what names dead servers before any controller acts on it.
pub fn start_apiserver_script() -> String {
    start_script(&["kube-apiserver"])
}

/// Starts controller manager and scheduler.
pub fn start_controllers_script() -> String {
    start_script(&["kube-controller-manager", "kube-scheduler"])
}

fn start_script(units: &[&str]) -> String {
    let (reload, units) = (reload_for(units), units.join(" "));
    script(&format!("{reload}\nsystemctl --no-reload enable -q {units}\nsystemctl start --no-block {units}"))
}

/// Lets systemd read its files anew only where one of these changed: that takes longer than starting them.
fn reload_for(units: &[&str]) -> String {
    let units = units.join(" ");
    format!("if systemctl show -p NeedDaemonReload --value {units} | grep -q yes; then systemctl daemon-reload; fi")
}

/// Stops units together and keeps them stopped over a reboot. What does not end by itself in time is killed: an API
/// server would wait a minute for its watchers, a member of etcd for others to take its leadership, and neither has
/// anything in memory that was acknowledged and is not on disk. A unit that is not installed is stopped.
pub fn stop_script(units: &[&str]) -> String {
    let units = units.join(" ");
    script(&format!(
        "systemctl --no-reload disable -q {units} 2>/dev/null || true\n\
         systemctl stop --no-block {units} 2>/dev/null || true\n\
         ended() {{ ! systemctl show -p ActiveState --value {units} | grep -qvE '^(inactive|failed)?$'; }}\n\
         for i in $(seq 1 {STOP_GRACE_TENTHS}); do ended && exit 0; sleep 0.1; done\n\
         systemctl kill -s KILL {units} 2>/dev/null || true\n\
         for i in $(seq 1 100); do ended && exit 0; sleep 0.1; done\n\
         echo \"still running: $(systemctl is-active {units} | tr '\\n' ' ')\" >&2; exit {NOT_READY}"
    ))
}

/// Unmounts etcd's volume and keeps it unmounted over a reboot: the volume may be elsewhere then.
pub fn unmount_script() -> String {
    script(&format!(
        "systemctl --no-reload disable -q var-lib-etcd.mount 2>/dev/null || true\n\
         systemctl stop var-lib-etcd.mount || true\n\
         if mountpoint -q {ETCD_MOUNT}; then echo \"{ETCD_MOUNT} is still in use\" >&2; exit {NOT_READY}; fi\nsync"
    ))
}

/// Starts containerd and loads the image bundles: slow, and independent of the control plane.
pub fn prepare_worker_script() -> String {
    script(&format!(
        "systemctl daemon-reload\n\
         systemctl enable -q hk-dr-node containerd\n\
         systemctl start hk-dr-node\n\
         # The package may have started containerd with its own configuration: once per configuration and boot, restart it.\n\
         want=$(sha256sum < /etc/containerd/config.toml)\n\
         if [ \"$(cat /run/hk-dr-containerd 2>/dev/null)\" != \"$want\" ]; then\n\
         systemctl restart containerd; echo \"$want\" > /run/hk-dr-containerd\nelse systemctl start containerd; fi\n\
         for i in $(seq 1 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done\n\
         for bundle in {IMAGES_DIR}/*.tar; do\n[ -e \"$bundle\" ] || continue\n\
         ctr -n k8s.io images import \"$bundle\" >/dev/null || {{ echo \"containerd refused $bundle\" >&2; exit {NOT_READY}; }}\ndone"
    ))
}

/// Starts kubelet and kube-proxy.
pub fn start_worker_script() -> String {
    script("systemctl enable -q kubelet kube-proxy\nsystemctl start --no-block kube-proxy kubelet")
}

/// Makes the VPN host's WireGuard and its way out equal to their files.
pub fn apply_vpn_script() -> String {
    script(super::vpn::APPLY_VPN)
}

/// Prints a [`Probe`] as one line of JSON. Changes nothing.
pub fn probe_script(role: Role) -> String {
    let (units, programs) = match role {
        Role::Master => (
            "var-lib-etcd.mount etcd kube-apiserver kube-controller-manager kube-scheduler",
            "etcd kube-apiserver kube-controller-manager kube-scheduler",
        ),
        Role::Vpn => ("wg-quick@wg0 hk-dr-nat", ""),
        Role::Worker => ("hk-dr-node containerd kubelet kube-proxy", "kubelet kube-proxy"),
    };
    script(&format!(
        "version() {{ \"$1\" --version 2>/dev/null | head -n 1 | sed 's/.*[ v]\\([0-9][0-9.]*\\).*/\\1/'; }}\n\
         printf '{{\"boot_id\":\"%s\",\"node\":' \"$(cat /proc/sys/kernel/random/boot_id)\"\n\
         if [ -s {NODE_FILE} ]; then cat {NODE_FILE}; else printf null; fi\n\
         printf ',\"restored\":'\n\
         # It is written before the data gets its name: alone it says nothing.\n\
         if [ -s {ETCD_MOUNT}/restored.json ] && [ -d {ETCD_DATA_DIR}/member ]; then tr -d '\\n' < {ETCD_MOUNT}/restored.json; else printf null; fi\n\
         if [ -d {ETCD_DATA_DIR}/member ]; then printf ',\"etcd_data\":true'; else printf ',\"etcd_data\":false'; fi\n\
         printf ',\"front\":['\ncomma=\n\
         for address in $(ip -o -4 addr show dev lo label {FRONT_LABEL} 2>/dev/null | sed -n 's/.* inet \\([0-9.]*\\).*/\\1/p'); do\n\
         printf '%s\"%s\"' \"$comma\" \"$address\"; comma=,\ndone\nprintf ']'\n\
         until=$(for crt in /etc/etcd/pki/*.crt /etc/kubernetes/pki/*.crt; do [ -f \"$crt\" ] || continue\n\
         openssl x509 -in \"$crt\" -noout -enddate -dateopt iso_8601 2>/dev/null || true\ndone | sed -n 's/^notAfter=//p' | sort | head -n 1)\n\
         if [ -n \"$until\" ]; then printf ',\"certificates_until\":\"%s\"' \"$until\"; fi\n\
         printf ',\"units\":{{'\ncomma=\n\
         for unit in {units}; do\nprintf '%s\"%s\":\"%s\"' \"$comma\" $unit \"$(systemctl show -p ActiveState --value $unit)\"; comma=,\ndone\n\
         printf '}},\"versions\":{{'\ncomma=\n\
         for program in {programs}; do\n[ -x /usr/local/bin/$program ] || continue\n\
         printf '%s\"%s\":\"%s\"' \"$comma\" $program \"$(version /usr/local/bin/$program)\"; comma=,\ndone\n\
         # What runs from a file that another one took the place of since.\n\
         printf '}},\"stale\":{{'\ncomma=\n\
         for program in {programs}; do\n\
         pid=$(systemctl show -p MainPID --value $program 2>/dev/null || true)\n\
         [ \"${{pid:-0}}\" != 0 ] && [ -e /proc/$pid/exe ] || continue\n\
         [ /proc/$pid/exe -ef /usr/local/bin/$program ] && continue\n\
         printf '%s\"%s\":\"%s\"' \"$comma\" $program \"$(version /proc/$pid/exe)\"; comma=,\ndone\n\
         printf '}}}}\\n'"
    ))
}

/// Prints a line for each certificate of a machine, in files, in kubeconfigs and as its services show them: where, until
/// when, whose; separated by tabs. Changes nothing.
pub fn certificates_script(role: Role) -> String {
    let (configs, ports) = match role {
        Role::Master => ("controller-manager scheduler", "2379 2380 6443"),
        Role::Worker => ("kubelet kube-proxy", "10250"),
        Role::Vpn => ("", ""),
    };
    script(&format!(
        "end() {{ openssl x509 -noout -subject -nameopt RFC2253 -enddate -dateopt iso_8601 2>/dev/null; }}\n\
         show() {{ # where; its end and its subject, from what `end` printed\n\
         until=$(printf '%s\\n' \"$2\" | sed -n 's/^notAfter=//p'); [ -n \"$until\" ] || return 0\n\
         printf '%s\\t%s\\t%s\\n' \"$1\" \"$until\" \"$(printf '%s\\n' \"$2\" | sed -n 's/^subject=//p')\"; }}\n\
         command -v openssl >/dev/null || {{ echo 'openssl is missing here' >&2; exit {NOT_READY}; }}\n\
         for crt in /etc/etcd/pki/*.crt /etc/kubernetes/pki/*.crt; do\n\
         [ ! -f \"$crt\" ] || show \"$crt\" \"$(end < \"$crt\" || true)\"\ndone\n\
         for name in {configs}; do\nconfig=/etc/kubernetes/$name.conf\n[ -f $config ] || continue\n\
         show $config \"$(sed -n 's/.*client-certificate-data: //p' $config | base64 -d | end || true)\"\ndone\n\
         # What is shown to whoever connects: a service may hold another certificate than the one in its file.\n\
         # etcd's peers have no way in by loopback.\n\
         for port in {ports}; do\n\
         host=127.0.0.1\n\
         [ $port != {ETCD_PEER_PORT} ] || host=$(sed -n 's/.*--listen-peer-urls=https:..\\([0-9.]*\\):.*/\\1/p' /etc/systemd/system/etcd.service)\n\
         show \"port $port\" \"$(timeout 3 openssl s_client -connect $host:$port </dev/null 2>/dev/null | end || true)\"\ndone"
    ))
}

/// What [`probe_script`] found.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Probe {
    pub boot_id: String,
    /// None: never configured, or not to the end.
    pub node: Option<NodeRecord>,
    /// None: etcd's data, if any, was not restored from a snapshot.
    pub restored: Option<Restored>,
    /// etcd's data directory has been used.
    pub etcd_data: bool,
    /// When the first of its certificates ends, `2027-11-23 12:00:00Z`; absent without openssl or certificates.
    #[serde(default)]
    pub certificates_until: Option<String>,
    /// systemd's `ActiveState` by unit.
    pub units: std::collections::BTreeMap<String, String>,
    /// Version without `v` by program; absent if it is not installed.
    pub versions: std::collections::BTreeMap<String, String>,
    /// Version that runs, by program, where it runs from another file than the one installed now.
    #[serde(default)]
    pub stale: std::collections::BTreeMap<String, String>,
    /// Floating IPs that are configured.
    #[serde(default)]
    pub front: std::collections::BTreeSet<std::net::Ipv4Addr>,
}

impl Probe {
    /// Whether a unit is running (or has done its one task).
    pub fn active(&self, unit: &str) -> bool {
        self.units.get(unit).is_some_and(|state| state == "active")
    }
}

/// What a restore left on etcd's volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Restored {
    pub id: String,
    pub token: String,
    pub bump_revision: u64,
}
