//! What every implementation of `Cloud` must do, whatever is behind it.

use std::net::Ipv4Addr;

use async_trait::async_trait;

use crate::ports::{Cloud, ErrorCode, Labels, NetworkSpec, ServerSpec, ServerStatus, Subnet, VolumeSpec};

/// What the suite needs beside the port.
#[async_trait]
pub(super) trait World: Sync {
    /// Lets creation in a location be refused from now on.
    async fn exhaust(&self, location: &str);
}

fn labels(role: &str) -> Labels {
    [("hk-dr/cluster", "demo"), ("hk-dr/role", role)].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

fn server(name: &str, key: u64, group: Option<u64>) -> ServerSpec {
    ServerSpec {
        name: name.into(),
        server_type: "cx23".into(),
        image: "debian-12".into(),
        location: "fsn1".into(),
        ssh_keys: vec![key],
        placement_group: group,
        labels: labels("master"),
        public_ipv4: true,
        start: true,
        user_data: "#!/bin/sh\n".into(),
    }
}

fn network_spec(subnet: &Subnet) -> NetworkSpec {
    let (range, subnet) = ("10.0.0.0/16".into(), subnet.clone());
    NetworkSpec { name: "demo".into(), range, subnet, routes: Vec::new(), labels: labels("net") }
}

fn volume(name: &str, location: &str) -> VolumeSpec {
    VolumeSpec { name: name.into(), size_gb: 10, location: location.into(), server: None, labels: labels("master") }
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKWJXX+CsmFG5UMyZKDICSyPzfPT1Ihp+Fl/ROKA/Czq";

/// Runs all of it on an empty project.
pub(super) async fn run(cloud: &dyn Cloud, world: &dyn World) {
    let locations = cloud.locations().await.unwrap();
    assert!(locations.iter().any(|l| l.name == "hel1" && l.network_zone == "eu-central"), "{locations:?}");

    // Names are unique; what is ours by its labels is found instead of made twice.
    let key = cloud.create_ssh_key("demo", KEY, &labels("key")).await.unwrap();
    assert_eq!(key.public_key, KEY);
    assert_eq!(cloud.create_ssh_key("demo", KEY, &labels("key")).await.unwrap().id, key.id);
    assert_eq!(cloud.create_ssh_key("demo", KEY, &labels("other")).await.unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(cloud.create_ssh_key("other", KEY, &labels("key")).await.unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(cloud.ssh_key_by_name("demo").await.unwrap().unwrap(), key);
    assert_eq!(cloud.ssh_key_by_name("nobody's").await.unwrap(), None);

    let subnet = Subnet { range: "10.0.0.0/24".into(), zone: "eu-central".into() };
    let network = cloud.create_network(&network_spec(&subnet)).await.unwrap();
    assert_eq!((network.range.as_str(), &network.subnets), ("10.0.0.0/16", &vec![subnet.clone()]));
    let again = cloud.create_network(&network_spec(&subnet)).await.unwrap();
    assert_eq!(again.id, network.id);
    let group = cloud.create_placement_group("demo-masters", &labels("group")).await.unwrap();

    let m1 = cloud.create_server(&server("demo-m1", key.id, Some(group.id))).await.unwrap();
    assert_eq!((m1.status, m1.location.as_str()), (ServerStatus::Running, "fsn1"));
    assert!(m1.public_ipv4.is_some());
    assert_eq!(m1.labels, labels("master"));
    assert_eq!(cloud.create_server(&server("demo-m1", key.id, Some(group.id))).await.unwrap().id, m1.id);
    let foreign = ServerSpec { labels: labels("worker"), ..server("demo-m1", key.id, None) };
    assert_eq!(cloud.create_server(&foreign).await.unwrap_err().code, ErrorCode::Conflict);
    let group = cloud.placement_group_by_name("demo-masters").await.unwrap().unwrap();
    assert_eq!(group.servers, [m1.id]);

    // Addresses in the private network are pinned and unique.
    let address = Ipv4Addr::new(10, 0, 0, 11);
    cloud.attach_network(m1.id, network.id, address).await.unwrap();
    let shown = cloud.server_by_name("demo-m1").await.unwrap().unwrap();
    assert_eq!((shown.private[0].network, shown.private[0].address), (network.id, address));
    let m2 = cloud.create_server(&server("demo-m2", key.id, None)).await.unwrap();
    assert_eq!(cloud.attach_network(m2.id, network.id, address).await.unwrap_err().code, ErrorCode::Conflict);

    // One without a public address is attached before it is switched on.
    let hidden = ServerSpec { public_ipv4: false, start: false, ..server("demo-hidden", key.id, None) };
    let hidden = cloud.create_server(&hidden).await.unwrap();
    assert_eq!((hidden.status, hidden.public_ipv4), (ServerStatus::Off, None));
    cloud.attach_network(hidden.id, network.id, Ipv4Addr::new(10, 0, 0, 21)).await.unwrap();
    cloud.power_on(hidden.id).await.unwrap();
    assert_eq!(cloud.server_by_name("demo-hidden").await.unwrap().unwrap().status, ServerStatus::Running);
    cloud.delete_server(hidden.id).await.unwrap();

    // Selectors.
    assert_eq!(cloud.servers("hk-dr/cluster=demo").await.unwrap().len(), 2);
    assert_eq!(cloud.servers("hk-dr/cluster=other").await.unwrap().len(), 0);
    cloud.label_server(m2.id, &labels("worker")).await.unwrap();
    let workers = cloud.servers("hk-dr/cluster=demo,hk-dr/role=worker").await.unwrap();
    assert_eq!(workers.iter().map(|s| s.id).collect::<Vec<_>>(), [m2.id]);

    // Power.
    cloud.power_off(m2.id).await.unwrap();
    assert_eq!(cloud.server_by_name("demo-m2").await.unwrap().unwrap().status, ServerStatus::Off);
    cloud.power_on(m2.id).await.unwrap();
    assert_eq!(cloud.server_by_name("demo-m2").await.unwrap().unwrap().status, ServerStatus::Running);

    volumes(cloud, m1.id, m2.id).await;

    // A location without capacity says so, and everything else goes on.
    world.exhaust("fsn1").await;
    let refused = cloud.create_server(&server("demo-m3", key.id, None)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoCapacity);
    assert_eq!(cloud.create_volume(&volume("demo-m3-etcd", "fsn1")).await.unwrap_err().code, ErrorCode::NoCapacity);
    assert_eq!(cloud.server_by_name("demo-m3").await.unwrap(), None);
    let elsewhere = ServerSpec { location: "nbg1".into(), ..server("demo-m3", key.id, None) };
    let m3 = cloud.create_server(&elsewhere).await.unwrap();

    for id in [m2.id, m3.id] {
        cloud.delete_server(id).await.unwrap();
        assert_eq!(cloud.delete_server(id).await.unwrap_err().code, ErrorCode::NotFound);
    }
    cloud.delete_placement_group(group.id).await.unwrap();
    cloud.delete_network(network.id).await.unwrap();
    cloud.delete_ssh_key(key.id).await.unwrap();
    assert_eq!(cloud.network_by_name("demo").await.unwrap(), None);
    assert_eq!(cloud.servers("").await.unwrap(), []);
    assert_eq!(cloud.volumes("").await.unwrap(), []);
}

async fn volumes(cloud: &dyn Cloud, m1: u64, m2: u64) {
    let etcd = cloud.create_volume(&volume("demo-m1-etcd", "fsn1")).await.unwrap();
    assert_eq!((etcd.size_gb, etcd.server), (10, None));
    assert!(etcd.device.starts_with("/dev/disk/by-id/"));
    assert_eq!(cloud.create_volume(&volume("demo-m1-etcd", "fsn1")).await.unwrap().id, etcd.id);
    let far = cloud.create_volume(&volume("demo-far", "nbg1")).await.unwrap();
    assert!(cloud.attach_volume(far.id, m1).await.is_err(), "a volume stays in its location");
    cloud.delete_volume(far.id).await.unwrap();

    cloud.attach_volume(etcd.id, m1).await.unwrap();
    assert_eq!(cloud.volume_by_name("demo-m1-etcd").await.unwrap().unwrap().server, Some(m1));
    assert_eq!(cloud.server_by_name("demo-m1").await.unwrap().unwrap().volumes, [etcd.id]);
    assert_eq!(cloud.attach_volume(etcd.id, m2).await.unwrap_err().code, ErrorCode::Conflict);
    assert!(cloud.delete_volume(etcd.id).await.is_err(), "an attached volume is not deleted");
    cloud.detach_volume(etcd.id).await.unwrap();
    cloud.attach_volume(etcd.id, m2).await.unwrap();
    cloud.detach_volume(etcd.id).await.unwrap();

    // Deleting a server leaves its volume, detached.
    cloud.attach_volume(etcd.id, m1).await.unwrap();
    cloud.delete_server(m1).await.unwrap();
    let left = cloud.volume_by_name("demo-m1-etcd").await.unwrap().unwrap();
    assert_eq!((left.id, left.server), (etcd.id, None));

    // What is kept is renamed, so that its name is free for what replaces it.
    let kept: Labels = [("hk-dr/kept".to_owned(), "20261123".to_owned())].into();
    cloud.update_volume(etcd.id, "demo-m1-etcd-old", &kept).await.unwrap();
    assert_eq!(cloud.volume_by_name("demo-m1-etcd").await.unwrap(), None);
    assert_eq!(cloud.volumes("hk-dr/kept").await.unwrap()[0].labels, kept);
    let replacement = cloud.create_volume(&volume("demo-m1-etcd", "fsn1")).await.unwrap();
    assert_ne!(replacement.id, etcd.id);
    for id in [replacement.id, etcd.id] {
        cloud.delete_volume(id).await.unwrap();
    }

    // Made for a server: where the server is, and attached when the call returns.
    let made_for = VolumeSpec { server: Some(m2), ..volume("demo-m2-etcd", "fsn1") };
    let attached = cloud.create_volume(&made_for).await.unwrap();
    let location = cloud.server_by_name("demo-m2").await.unwrap().unwrap().location;
    assert_eq!((attached.server, attached.location.as_str()), (Some(m2), location.as_str()));
    assert_eq!(cloud.volume_by_name("demo-m2-etcd").await.unwrap().unwrap().server, Some(m2));
    assert_eq!(cloud.create_volume(&made_for).await.unwrap(), attached);
    cloud.detach_volume(attached.id).await.unwrap();
    cloud.delete_volume(attached.id).await.unwrap();
}
