#!/bin/sh
# Hetzner's own command line, unmodified, through a life of each kind of resource. HCLOUD_ENDPOINT and HCLOUD_TOKEN name the API.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export HCLOUD_CONFIG="$dir/cli.toml" HCLOUD_POLL_INTERVAL=100ms
# Says what it does, so that a failure shows where.
h() {
  echo "hcloud $*" >&2
  hcloud "$@"
}
echo "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGR66U8LQqBQUTkpdM4TBWfJtFKHJwnVZKi4q1YpJOqR one" >"$dir/key.pub"
printf '#cloud-config\nruncmd: [[touch, /root/ran]]\n' >"$dir/user-data"

h location list
h server-type list -o columns=name,cores,memory,disk
h image list --type system --architecture x86
h ssh-key create --name life --public-key-from-file "$dir/key.pub"
h network create --name life --ip-range 10.0.0.0/16
h network add-subnet life --type cloud --network-zone eu-central --ip-range 10.0.0.0/24
h network add-route life --destination 10.9.0.0/24 --gateway 10.0.0.2
h firewall create --name life
h firewall add-rule life --direction in --protocol tcp --port 22 --source-ips 0.0.0.0/0 --source-ips ::/0 --description ssh
h placement-group create --name life --type spread
h volume create --name life --size 10 --location fsn1 --format ext4
h primary-ip create --name life --type ipv4 --location fsn1
h server create --name life --type cx23 --image debian-12 --location fsn1 --ssh-key life --network life --firewall life \
  --volume life --automount --placement-group life --primary-ipv4 life --label life=yes --user-data-from-file "$dir/user-data"
test "$(h server list -l life=yes -o noheader -o columns=name,status)" = "life   running"
test "$(h server describe life -o format='{{.ServerType.Name}}')" = cx23
test "$(h server ip life)" = "$(h primary-ip describe life -o format='{{.IP}}')"
h server add-label life more=true
h server poweroff life
h server change-type life cx33
h server shutdown life --wait --wait-timeout 60s
h server poweron life
h server reset life
h server reboot life
h server enable-rescue life --ssh-key life
h server disable-rescue life
h server reset-password life >/dev/null
h server metrics life --type cpu
h server create-image life --type snapshot --description life
h server enable-protection life delete rebuild
if h server delete life; then exit 1; fi
h server disable-protection life delete rebuild
h volume detach life
h volume resize life --size 12
h volume attach life --server life --automount
h volume detach life
h floating-ip create --type ipv4 --name life --server life
h floating-ip set-rdns life --hostname life.example.com
h floating-ip unassign life
h load-balancer create --name life --type lb11 --location fsn1
h load-balancer attach-to-network life --network life
h load-balancer add-service life --protocol http --listen-port 80 --destination-port 8080 --http-sticky-sessions
h load-balancer update-service life --listen-port 80 --health-check-interval 5s
h load-balancer add-target life --server life --use-private-ip
h load-balancer describe life
h load-balancer delete life
h volume list
h server delete life
h floating-ip delete life
h primary-ip unassign life 2>/dev/null || true
h primary-ip delete life
h volume delete life
h image delete "$(h image list --type snapshot -o noheader -o columns=id)"
h firewall delete life
h placement-group delete life
h network delete life
h ssh-key delete life
echo "life is complete with $(hcloud version)"
