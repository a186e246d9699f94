//! The infrastructure as Terraform's HCL, with import blocks: for teams whose other infrastructure lives there. Pure: an
//! inventory in, text out. What is inside machines stays hk-dr's.
//!
//! Attributes as the provider `hetznercloud/hcloud` 1.5x has them:
//! <https://registry.terraform.io/providers/hetznercloud/hcloud/latest/docs>

mod hcl;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use self::hcl::{Block, aligned, identifier, quoted};
use crate::config::Cluster;
use crate::plan::Inventory;
use crate::ports::{Balancer, BalancerService, BalancerTarget, Firewall, FloatingIp, Server, Volume};

/// Files by name.
pub fn export(cluster: &Cluster, inventory: &Inventory) -> BTreeMap<&'static str, String> {
    let mut files =
        Files { cluster, inventory, resources: RESOURCES_HEAD.to_owned(), imports: IMPORTS_HEAD.to_owned() };
    files.network();
    if let Some(group) = &inventory.placement_group {
        let mut block = Block::new("hcloud_placement_group", "masters");
        block.text("name", &group.name).text("type", "spread").labels(&group.labels);
        files.resource(block, &group.id.to_string());
    }
    if let Some(key) = &inventory.ssh_key {
        let mut block = Block::new("hcloud_ssh_key", "cluster");
        block.text("name", &key.name).text("public_key", &key.public_key).labels(&key.labels);
        files.resource(block, &key.id.to_string());
    }
    for firewall in &inventory.firewalls {
        files.firewall(firewall);
    }
    for server in &inventory.servers {
        files.server(server);
    }
    for volume in &inventory.volumes {
        files.volume(volume);
    }
    for balancer in &inventory.balancers {
        files.balancer(balancer);
    }
    for floating in &inventory.floating_ips {
        files.floating_ip(floating);
    }
    let (resources, imports) = (aligned(&files.resources), aligned(&files.imports));
    BTreeMap::from([("versions.tf", VERSIONS.to_owned()), ("cluster.tf", resources), ("imports.tf", imports)])
}

const VERSIONS: &str = r#"# Written by `hk-dr terraform export`. The token comes from HCLOUD_TOKEN.
terraform {
  # Import blocks.
  required_version = ">= 1.5"
  required_providers {
    hcloud = {
      source  = "hetznercloud/hcloud"
      version = ">= 1.50"
    }
  }
}
"#;

const RESOURCES_HEAD: &str = "# Written by `hk-dr terraform export` from what is in the cloud. hk-dr goes on building this cluster: change\n\
                              # cluster.yaml, build, and export again.\n";
const IMPORTS_HEAD: &str =
    "# Written by `hk-dr terraform export`: Terraform takes over what exists, and creates nothing.\n";

struct Files<'a> {
    cluster: &'a Cluster,
    inventory: &'a Inventory,
    resources: String,
    imports: String,
}

impl Files<'_> {
    fn resource(&mut self, block: Block, id: &str) {
        let address = format!("{}.{}", block.kind, block.name);
        let _ = write!(self.imports, "\nimport {{\n  to = {address}\n  id = {}\n}}\n", quoted(id));
        let _ = write!(self.resources, "\nresource \"{}\" \"{}\" {{\n{}}}\n", block.kind, block.name, block.body);
    }

    fn network(&mut self) {
        let Some(network) = &self.inventory.network else { return };
        let mut block = Block::new("hcloud_network", "cluster");
        block.text("name", &network.name).text("ip_range", &network.range).labels(&network.labels).kept();
        self.resource(block, &network.id.to_string());
        for (number, subnet) in network.subnets.iter().enumerate() {
            let name =
                if subnet.range == self.cluster.network.subnet { "servers".into() } else { format!("other-{number}") };
            let mut block = Block::new("hcloud_network_subnet", &name);
            block
                .raw("network_id", "hcloud_network.cluster.id")
                .text("type", "cloud")
                .text("network_zone", &subnet.zone)
                .text("ip_range", &subnet.range);
            self.resource(block, &format!("{}-{}", network.id, subnet.range));
        }
        for route in &network.routes {
            let mut block = Block::new("hcloud_network_route", &identifier(&format!("to-{}", route.destination)));
            block
                .raw("network_id", "hcloud_network.cluster.id")
                .text("destination", &route.destination)
                .text("gateway", &route.gateway.to_string());
            self.resource(block, &format!("{}-{}", network.id, route.destination));
        }
    }

    fn firewall(&mut self, firewall: &Firewall) {
        let mut block = Block::new("hcloud_firewall", &self.local(&firewall.name));
        block.text("name", &firewall.name).labels(&firewall.labels);
        for rule in &firewall.rules {
            let networks: Vec<String> = rule.networks.iter().map(|n| quoted(n)).collect();
            let ips = if rule.direction == "out" { "destination_ips" } else { "source_ips" };
            let mut lines = vec![format!("direction = {}", quoted(&rule.direction))];
            lines.push(format!("protocol = {}", quoted(&rule.protocol)));
            lines.extend(rule.port.as_ref().map(|port| format!("port = {}", quoted(port))));
            lines.push(format!("{ips} = [{}]", networks.join(", ")));
            lines.push(format!("description = {}", quoted(&rule.description)));
            block.block("rule", &lines);
        }
        for selector in &firewall.selectors {
            block.block("apply_to", &[format!("label_selector = {}", quoted(selector))]);
        }
        for server in &firewall.servers {
            block.block("apply_to", &[format!("server = {server}")]);
        }
        self.resource(block, &firewall.id.to_string());
    }

    fn server(&mut self, server: &Server) {
        let (inventory, name) = (self.inventory, self.local(&server.name));
        let mut block = Block::new("hcloud_server", &name);
        block
            .text("name", &server.name)
            .text("server_type", &server.server_type)
            .text("image", &self.cluster.image)
            .text("location", &server.location);
        if inventory.ssh_key.is_some() {
            block.raw("ssh_keys", "[hcloud_ssh_key.cluster.id]");
        }
        if inventory.placement_group.as_ref().is_some_and(|g| server.placement_group == Some(g.id)) {
            block.raw("placement_group_id", "hcloud_placement_group.masters.id");
        }
        if server.public_ipv4.is_none() {
            block.block("public_net", &["ipv4_enabled = false".into(), "ipv6_enabled = false".into()]);
        }
        block.labels(&server.labels);
        // None of these can be read back from a server: each would make Terraform replace it.
        block.lifecycle("ignore_changes = [image, public_net, ssh_keys, user_data]");
        self.resource(block, &server.id.to_string());
        for private in &server.private {
            if inventory.network.as_ref().is_none_or(|n| n.id != private.network) {
                continue;
            }
            let mut block = Block::new("hcloud_server_network", &name);
            block
                .raw("server_id", &format!("hcloud_server.{name}.id"))
                .raw("network_id", "hcloud_network.cluster.id")
                .text("ip", &private.address.to_string());
            self.resource(block, &format!("{}-{}", server.id, private.network));
        }
    }

    /// A resource's name without the cluster's.
    fn local(&self, full: &str) -> String {
        identifier(full.strip_prefix(&format!("{}-", self.cluster.name)).unwrap_or(full))
    }

    fn volume(&mut self, volume: &Volume) {
        let name = self.local(&volume.name);
        let mut block = Block::new("hcloud_volume", &name);
        block
            .text("name", &volume.name)
            .raw("size", &volume.size_gb.to_string())
            .text("location", &volume.location)
            .labels(&volume.labels)
            .kept();
        self.resource(block, &volume.id.to_string());
        let Some(server) = self.inventory.servers.iter().find(|s| volume.server == Some(s.id)) else { return };
        let mut block = Block::new("hcloud_volume_attachment", &name);
        block
            .raw("volume_id", &format!("hcloud_volume.{name}.id"))
            .raw("server_id", &format!("hcloud_server.{}.id", self.local(&server.name)));
        self.resource(block, &volume.id.to_string());
    }

    fn balancer(&mut self, balancer: &Balancer) {
        let name = self.local(&balancer.name);
        let mut block = Block::new("hcloud_load_balancer", &name);
        block
            .text("name", &balancer.name)
            .text("load_balancer_type", &balancer.balancer_type)
            .text("location", &balancer.location)
            .labels(&balancer.labels)
            .block("algorithm", &["type = \"round_robin\"".into()])
            // Its address may stand in name servers.
            .kept();
        self.resource(block, &balancer.id.to_string());
        let attached = |id: u64| self.inventory.network.as_ref().is_some_and(|n| n.id == id);
        let private = balancer.private.iter().find(|p| attached(p.network));
        if let Some(private) = private {
            let mut block = Block::new("hcloud_load_balancer_network", &name);
            block
                .raw("load_balancer_id", &format!("hcloud_load_balancer.{name}.id"))
                .raw("network_id", "hcloud_network.cluster.id")
                .text("ip", &private.address.to_string())
                .raw("enable_public_interface", &balancer.public_ipv4.is_some().to_string());
            self.resource(block, &format!("{}-{}", balancer.id, private.network));
        }
        for service in &balancer.services {
            self.balancer_service(balancer.id, &name, service);
        }
        for (number, target) in balancer.targets.iter().enumerate() {
            self.balancer_target(balancer, &format!("{name}-{number}"), target, private.is_some());
        }
    }

    fn balancer_service(&mut self, id: u64, balancer: &str, service: &BalancerService) {
        let check = &service.check;
        let mut block = Block::new("hcloud_load_balancer_service", &format!("{balancer}-{}", service.listen_port));
        block
            .raw("load_balancer_id", &format!("hcloud_load_balancer.{balancer}.id"))
            .text("protocol", &service.protocol)
            .raw("listen_port", &service.listen_port.to_string())
            .raw("destination_port", &service.destination_port.to_string())
            .raw("proxyprotocol", &service.proxy_protocol.to_string())
            .block(
                "health_check",
                &[
                    format!("protocol = {}", quoted(&check.protocol)),
                    format!("port = {}", check.port),
                    format!("interval = {}", check.interval),
                    format!("timeout = {}", check.timeout),
                    format!("retries = {}", check.retries),
                ],
            );
        self.resource(block, &format!("{id}__{}", service.listen_port));
    }

    fn balancer_target(&mut self, balancer: &Balancer, name: &str, target: &BalancerTarget, attached: bool) {
        let of = self.local(&balancer.name);
        let mut block = Block::new("hcloud_load_balancer_target", name);
        block.raw("load_balancer_id", &format!("hcloud_load_balancer.{of}.id"));
        let (kind, identifier) = match target {
            BalancerTarget::Selector { selector, private } => {
                block.text("type", "label_selector").text("label_selector", selector);
                block.raw("use_private_ip", &private.to_string());
                ("label_selector", selector.clone())
            }
            BalancerTarget::Server { id, private } => {
                let server = self.inventory.servers.iter().find(|s| s.id == *id);
                let server = server.map_or(id.to_string(), |s| format!("hcloud_server.{}.id", self.local(&s.name)));
                block.text("type", "server").raw("server_id", &server).raw("use_private_ip", &private.to_string());
                ("server", id.to_string())
            }
            BalancerTarget::Address(address) => {
                block.text("type", "ip").text("ip", address);
                ("ip", address.clone())
            }
        };
        if attached {
            // Through the network only once it is in there.
            block.raw("depends_on", &format!("[hcloud_load_balancer_network.{of}]"));
        }
        self.resource(block, &format!("{}__{kind}__{identifier}", balancer.id));
    }

    fn floating_ip(&mut self, floating: &FloatingIp) {
        let mut block = Block::new("hcloud_floating_ip", &self.local(&floating.name));
        block
            .text("name", &floating.name)
            .text("type", "ipv4")
            .text("home_location", &floating.location)
            .labels(&floating.labels);
        // Whoever watches over it moves it to a worker that answers: Terraform must not take it back.
        block.lifecycle("ignore_changes = [server_id]");
        self.resource(block, &floating.id.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::distribution::tests_support::{demo, noon};
    use crate::ports::{
        FirewallRule, HealthCheck, Labels, Network, PlacementGroup, PrivateAddress, Route, ServerStatus, SshKey, Subnet,
    };

    fn inventory() -> Inventory {
        let labels: Labels = [("hk-dr/cluster", "demo")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let server = |id: u64, name: &str| Server {
            id,
            name: name.into(),
            status: ServerStatus::Running,
            location: "fsn1".into(),
            server_type: "cx23".into(),
            public_ipv4: None,
            private: vec![PrivateAddress { network: 1, address: [10, 0, 0, 11].into() }],
            volumes: Vec::new(),
            placement_group: name.contains("-m").then_some(2),
            labels: labels.clone(),
        };
        let volume = Volume {
            id: 21,
            name: "demo-m1-etcd".into(),
            location: "fsn1".into(),
            size_gb: 10,
            server: Some(11),
            device: String::new(),
            labels: labels.clone(),
        };
        let subnet = Subnet { range: "10.0.0.0/24".into(), zone: "eu-central".into() };
        let network = Network {
            id: 1,
            name: "demo".into(),
            range: "10.0.0.0/16".into(),
            subnets: vec![subnet],
            labels: labels.clone(),
            routes: vec![Route { destination: "10.244.21.0/24".into(), gateway: [10, 0, 0, 21].into() }],
        };
        let rule = FirewallRule {
            direction: "in".into(),
            protocol: "udp".into(),
            port: Some("51820".into()),
            networks: vec!["0.0.0.0/0".into(), "::/0".into()],
            description: "WireGuard".into(),
        };
        let firewall = Firewall {
            id: 31,
            name: "demo-vpn".into(),
            rules: vec![rule],
            selectors: vec!["hk-dr/cluster==demo".into()],
            servers: Vec::new(),
            labels: labels.clone(),
        };
        let floating = FloatingIp {
            id: 51,
            name: "demo-www".into(),
            address: [203, 0, 113, 9].into(),
            location: "nbg1".into(),
            server: Some(12),
            labels: labels.clone(),
        };
        let group = PlacementGroup { id: 2, name: "demo-masters".into(), servers: vec![11], labels: labels.clone() };
        let key = SshKey { id: 3, name: "demo".into(), public_key: "ssh-ed25519 AAAA".into(), labels: labels.clone() };
        let value = serde_json::json!({
            "observed_at": noon(), "firewalls": [firewall], "servers": [server(11, "demo-m1"), server(12, "demo-w1")], "volumes": [volume],
            "network": network, "placement_group": group, "ssh_key": key, "foreign": [], "probes": {}, "silent": {},
            "api_ready": [], "ready_nodes": [], "quorum": false, "members": [], "etcd_serving": [], "mirrored": [],
            "secrets_kept": false, "snapshots": [], "balancers": [balancer("demo-ingress", 41)], "floating_ips": [floating],
        });
        serde_json::from_value(value).unwrap()
    }

    fn balancer(name: &str, id: u64) -> Balancer {
        let check = HealthCheck { protocol: "tcp".into(), port: 443, interval: 3, timeout: 2, retries: 1 };
        let service = BalancerService {
            protocol: "tcp".into(),
            listen_port: 443,
            destination_port: 443,
            proxy_protocol: false,
            check,
        };
        Balancer {
            id,
            name: name.into(),
            location: "nbg1".into(),
            balancer_type: "lb11".into(),
            public_ipv4: Some([203, 0, 113, 8].into()),
            private: vec![PrivateAddress { network: 1, address: [10, 0, 0, 6].into() }],
            services: vec![service],
            targets: vec![
                BalancerTarget::Selector { selector: "hk-dr/role==worker".into(), private: true },
                BalancerTarget::Server { id: 12, private: true },
                BalancerTarget::Address("198.51.100.7".into()),
            ],
            labels: Labels::new(),
        }
    }

    #[test]
    fn every_resource_has_an_import_and_every_reference_a_resource() {
        let files = export(&demo(), &inventory());
        let words = |text: &str, line: &str| -> BTreeSet<String> {
            text.lines().filter_map(|l| l.trim().strip_prefix(line)).map(|rest| rest.trim().to_owned()).collect()
        };
        let resources: BTreeSet<String> = words(&files["cluster.tf"], "resource ")
            .iter()
            .map(|r| r.trim_end_matches(" {").replace("\" \"", ".").replace('"', ""))
            .collect();
        assert_eq!(resources, words(&files["imports.tf"], "to = "));
        for wanted in [
            "hcloud_network.cluster",
            "hcloud_network_subnet.servers",
            "hcloud_placement_group.masters",
            "hcloud_ssh_key.cluster",
            "hcloud_server.m1",
            "hcloud_server_network.w1",
            "hcloud_firewall.vpn",
            "hcloud_network_route.to-10_244_21_0_24",
            "hcloud_volume.m1-etcd",
            "hcloud_volume_attachment.m1-etcd",
            "hcloud_load_balancer.ingress",
            "hcloud_load_balancer_network.ingress",
            "hcloud_load_balancer_service.ingress-443",
            "hcloud_load_balancer_target.ingress-2",
            "hcloud_floating_ip.www",
        ] {
            assert!(resources.contains(wanted), "{wanted} is not in {resources:?}");
        }
        let balanced = ["\"41-1\"", "\"41__443\"", "\"41__server__12\"", "\"41__ip__198.51.100.7\""];
        let others = ["\"1-10.0.0.0/24\"", "\"11-1\"", "\"21\"", "\"41__label_selector__hk-dr/role==worker\""];
        for id in others.iter().chain(&balanced) {
            assert!(files["imports.tf"].contains(&format!("id = {id}")), "{id}");
        }
        for reference in files["cluster.tf"].split(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c))) {
            if let Some(address) = reference.strip_suffix(".id") {
                assert!(resources.contains(address), "nothing is called {address}");
            }
        }
        let open = files["cluster.tf"].matches('{').count();
        assert_eq!(open, files["cluster.tf"].matches('}').count());
    }

    #[test]
    fn only_masters_are_in_the_placement_group_and_what_holds_data_is_kept() {
        let text = export(&demo(), &inventory()).remove("cluster.tf").unwrap();
        let block = |name: &str| {
            let start = text.find(&format!("resource {name} {{")).unwrap();
            text[start..].split("\n}\n").next().unwrap().to_owned()
        };
        assert!(block("\"hcloud_server\" \"m1\"").contains("placement_group_id = hcloud_placement_group.masters.id"));
        assert!(!block("\"hcloud_server\" \"w1\"").contains("placement_group_id"));
        assert!(block("\"hcloud_volume\" \"m1-etcd\"").contains("prevent_destroy = true"));
        assert!(
            block("\"hcloud_server\" \"m1\"").contains("ignore_changes  = [image, public_net, ssh_keys, user_data]")
        );
    }

    /// The provider itself says whether the files are right.
    #[test]
    #[ignore = "needs terraform and the folder of a built provider in HK_DR_TERRAFORM_PROVIDER; cargo test -p hk-dr --lib terraform:: -- --ignored"]
    fn terraform_finds_the_files_valid() {
        let provider = std::env::var("HK_DR_TERRAFORM_PROVIDER").expect("the folder of terraform-provider-hcloud");
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in export(&demo(), &inventory()) {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let config = dir.path().join("terraformrc");
        let overrides = format!(
            "provider_installation {{\n  dev_overrides {{\n    \"hetznercloud/hcloud\" = {provider:?}\n  }}\n  direct {{}}\n}}\n"
        );
        std::fs::write(&config, overrides).unwrap();
        for arguments in [&["validate", "-no-color"][..], &["fmt", "-check", "-diff", "-no-color"]] {
            let mut terraform = std::process::Command::new("terraform");
            terraform.args(arguments).current_dir(dir.path()).env("TF_CLI_CONFIG_FILE", &config);
            let output = terraform.output().unwrap();
            let said = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).join("");
            assert!(output.status.success(), "terraform {arguments:?}: {said}");
        }
    }
}
