#!/bin/sh
# Edits a freshly installed Debian tree into the golden image. $1: the tree, $2: where the files beside this script are.
set -eu
g=$1
src=$2
: >"$g/etc/machine-id"
rm -f "$g"/etc/ssh/ssh_host_* "$g/var/lib/dbus/machine-id" "$g/etc/hostname"
printf 'HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\nPasswordAuthentication no\nMaxStartups 100:30:200\nMaxSessions 100\n' >"$g/etc/ssh/sshd_config.d/lab.conf"
# Nothing in the lab resolves names: fail at once instead of after a timeout.
rm -f "$g/etc/resolv.conf"
echo '# no resolver in the lab' >"$g/etc/resolv.conf"
# No hardware, no console, no clock of its own; and nothing that wakes up by itself.
for u in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
  systemd-resolved.service systemd-networkd.service systemd-networkd.socket systemd-timesyncd.service apt-daily.timer \
  apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer e2scrub_reap.service dpkg-db-backup.timer console-getty.service \
  getty.target getty-static.service systemd-logind.service systemd-firstboot.service systemd-update-utmp.service \
  systemd-update-utmp-runlevel.service sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount \
  dev-mqueue.mount systemd-machine-id-commit.service modprobe@.service systemd-modules-load.service kmod-static-nodes.service \
  systemd-sysusers.service systemd-remount-fs.service systemd-random-seed.service systemd-pstore.service \
  systemd-tmpfiles-setup-dev.service systemd-tmpfiles-clean.timer systemd-journal-flush.service \
  systemd-journal-catalog-update.service systemd-update-done.service ldconfig.service proc-sys-fs-binfmt_misc.automount \
  sys-fs-fuse-connections.mount sys-kernel-config.mount systemd-ask-password-console.path \
  systemd-ask-password-wall.path cloud-init-local.service cloud-init.service cloud-config.service cloud-final.service \
  cloud-init-hotplugd.service cloud-init-hotplugd.socket; do
  ln -sf /dev/null "$g/etc/systemd/system/$u"
done
wants=$g/etc/systemd/system/multi-user.target.wants
mkdir -p "$wants" "$g/etc/systemd/system/sysinit.target.wants" "$g/usr/local/sbin"
ln -sf /lib/systemd/system/ssh.service "$wants/ssh.service"
# A server that nobody asked to run containers does not.
rm -f "$wants/containerd.service"
ln -sf /lib/systemd/system/multi-user.target "$g/etc/systemd/system/default.target"
sed -i '/pam_systemd/s/^/#/' "$g/etc/pam.d/common-session"
mkdir -p "$g/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=8M\n' >"$g/etc/systemd/journald.conf.d/lab.conf"
install -m 755 "$src/lab-prep" "$src/lab-init" "$src/lab-automount" "$src/lab-cloud" "$g/usr/local/sbin/"
install -m 644 "$src/lab-prep.service" "$src/lab-init.service" "$src/lab-cloud.service" "$g/etc/systemd/system/"
# lab-init starts cloud-init where it is needed; nothing looks for it at each boot.
mkdir -p "$g/etc/systemd/system-generators"
ln -sf /dev/null "$g/etc/systemd/system-generators/cloud-init-generator"
install -m 644 "$src/cloud.cfg" "$g/etc/cloud/cloud.cfg.d/90_lab.cfg"
ln -sf ../lab-prep.service "$g/etc/systemd/system/sysinit.target.wants/lab-prep.service"
ln -sf ../lab-init.service "$wants/lab-init.service"
mkdir -p "$g/opt/cni" "$g/etc/containerd" "$g/etc/cni/net.d" "$g/var/lib/containerd" "$g/var/lib/kubelet"
ln -sfn /usr/lib/cni "$g/opt/cni/bin"
install -m 644 "$src/containerd.toml" "$g/etc/containerd/config.toml"
rm -rf "$g"/var/cache/apt/archives/*.deb "$g"/var/lib/apt/lists/* "$g"/usr/share/doc/* "$g"/usr/share/man/* "$g"/usr/share/locale/*
