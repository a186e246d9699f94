# Hetzner's own provider, unmodified, under OpenTofu or Terraform: a life of each kind of resource (`life.sh`).
# HCLOUD_ENDPOINT and HCLOUD_TOKEN name the API.
terraform {
  required_providers {
    hcloud = { source = "hetznercloud/hcloud" }
  }
}

variable "size" {
  description = "GB of the volume; a second `apply` makes it grow"
  default     = 10
}

provider "hcloud" {
  poll_interval = "100ms"
}

resource "hcloud_ssh_key" "life" {
  name       = "life"
  public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGR66U8LQqBQUTkpdM4TBWfJtFKHJwnVZKi4q1YpJOqR one"
}

resource "hcloud_network" "life" {
  name     = "life"
  ip_range = "10.0.0.0/16"
}

resource "hcloud_network_subnet" "life" {
  network_id   = hcloud_network.life.id
  type         = "cloud"
  network_zone = "eu-central"
  ip_range     = "10.0.1.0/24"
}

resource "hcloud_network_route" "life" {
  network_id  = hcloud_network.life.id
  destination = "10.9.0.0/24"
  gateway     = "10.0.1.5"
}

resource "hcloud_firewall" "life" {
  name = "life"
  rule {
    direction  = "in"
    protocol   = "tcp"
    port       = "22"
    source_ips = ["0.0.0.0/0", "::/0"]
  }
  apply_to {
    label_selector = "life=yes"
  }
}

resource "hcloud_placement_group" "life" {
  name = "life"
  type = "spread"
}

resource "hcloud_primary_ip" "life" {
  name        = "life"
  type        = "ipv4"
  location    = "fsn1"
  auto_delete = false
}

resource "hcloud_server" "life" {
  count              = 2
  name               = "life-${count.index}"
  server_type        = "cx23"
  image              = "debian-12"
  location           = "fsn1"
  ssh_keys           = [hcloud_ssh_key.life.id]
  placement_group_id = hcloud_placement_group.life.id
  labels             = { life = "yes" }
  user_data          = "#cloud-config\nruncmd: [[touch, /root/ran]]\n"
  public_net {
    ipv4_enabled = true
    ipv4         = count.index == 0 ? hcloud_primary_ip.life.id : null
    ipv6_enabled = true
  }
  network {
    network_id = hcloud_network.life.id
    ip         = "10.0.1.${count.index + 5}"
  }
  depends_on = [hcloud_network_subnet.life]
}

resource "hcloud_volume" "life" {
  name      = "life"
  size      = var.size
  server_id = hcloud_server.life[0].id
  format    = "ext4"
  automount = true
}

resource "hcloud_floating_ip" "life" {
  name      = "life"
  type      = "ipv4"
  server_id = hcloud_server.life[1].id
}

resource "hcloud_rdns" "life" {
  floating_ip_id = hcloud_floating_ip.life.id
  ip_address     = hcloud_floating_ip.life.ip_address
  dns_ptr        = "life.example.com"
}

resource "hcloud_load_balancer" "life" {
  name               = "life"
  load_balancer_type = "lb11"
  location           = "fsn1"
}

resource "hcloud_load_balancer_network" "life" {
  load_balancer_id = hcloud_load_balancer.life.id
  subnet_id        = hcloud_network_subnet.life.id
}

resource "hcloud_load_balancer_service" "life" {
  load_balancer_id = hcloud_load_balancer.life.id
  protocol         = "tcp"
  listen_port      = 2222
  destination_port = 22
}

resource "hcloud_load_balancer_target" "life" {
  load_balancer_id = hcloud_load_balancer.life.id
  type             = "label_selector"
  label_selector   = "life=yes"
  use_private_ip   = true
  depends_on       = [hcloud_load_balancer_network.life, hcloud_server.life]
}

resource "hcloud_snapshot" "life" {
  server_id   = hcloud_server.life[1].id
  description = "life"
}

data "hcloud_locations" "all" {}

output "locations" {
  value = data.hcloud_locations.all.locations[*].name
}
