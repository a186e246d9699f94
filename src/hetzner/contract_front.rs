//! What every implementation of `Front` must do, whatever is behind it.

use crate::ports::{
    BalancerService, BalancerSpec, BalancerTarget, Cloud, ErrorCode, HealthCheck, Labels, NetworkSpec, ServerSpec,
    Subnet,
};

fn labels() -> Labels {
    [("hk-dr/cluster".to_owned(), "demo".to_owned())].into()
}

fn service(destination_port: u16) -> BalancerService {
    BalancerService {
        protocol: "tcp".into(),
        listen_port: 6443,
        destination_port,
        proxy_protocol: false,
        check: HealthCheck { protocol: "tcp".into(), port: destination_port, interval: 3, timeout: 2, retries: 2 },
    }
}

/// Runs all of it on an empty project.
pub(super) async fn run(cloud: &dyn Cloud) {
    balancers(cloud).await;
    floating_ips(cloud).await;
}

async fn balancers(cloud: &dyn Cloud) {
    let subnet = Subnet { range: "10.0.0.0/24".into(), zone: "eu-central".into() };
    let network = NetworkSpec {
        name: "demo-balanced".into(),
        range: "10.0.0.0/16".into(),
        subnet,
        routes: Vec::new(),
        labels: labels(),
    };
    let network = cloud.create_network(&network).await.unwrap();
    let spec = BalancerSpec {
        name: "demo-api".into(),
        balancer_type: "lb11".into(),
        location: "fsn1".into(),
        public: false,
        services: vec![service(6443)],
        labels: labels(),
    };
    let made = cloud.create_balancer(&spec).await.unwrap();
    assert_eq!((made.public_ipv4, &made.services), (None, &spec.services));
    assert_eq!((made.balancer_type.as_str(), made.location.as_str()), ("lb11", "fsn1"));
    // Found by its name and labels instead of made twice.
    assert_eq!(cloud.create_balancer(&spec).await.unwrap().id, made.id);
    let foreign = BalancerSpec { labels: [("x".to_owned(), "y".to_owned())].into(), ..spec.clone() };
    assert_eq!(cloud.create_balancer(&foreign).await.unwrap_err().code, ErrorCode::Conflict);

    let masters = BalancerTarget::Selector { selector: "hk-dr/role==master".into(), private: true };
    assert!(cloud.add_balancer_target(made.id, &masters).await.is_err(), "attached to no network");
    cloud.attach_balancer(made.id, network.id, [10, 0, 0, 5].into()).await.unwrap();
    cloud.add_balancer_target(made.id, &masters).await.unwrap();
    cloud.set_balancer_service(made.id, &service(16443)).await.unwrap();
    cloud.set_balancer_service(made.id, &BalancerService { listen_port: 443, ..service(443) }).await.unwrap();
    let shown = cloud.balancer_by_name("demo-api").await.unwrap().unwrap();
    assert_eq!(shown.private[0].address, std::net::Ipv4Addr::new(10, 0, 0, 5));
    assert_eq!(shown.targets, std::slice::from_ref(&masters));
    assert_eq!(shown.services.len(), 2);
    assert!(shown.services.contains(&service(16443)));

    cloud.delete_balancer_service(made.id, 443).await.unwrap();
    cloud.remove_balancer_target(made.id, &masters).await.unwrap();
    cloud.set_balancer_public(made.id, true).await.unwrap();
    cloud.detach_balancer(made.id, network.id).await.unwrap();
    let shown = cloud.balancers("hk-dr/cluster==demo").await.unwrap().remove(0);
    assert!(shown.public_ipv4.is_some() && shown.private.is_empty() && shown.targets.is_empty());
    assert_eq!(shown.services, [service(16443)]);
    assert_eq!(cloud.balancers("hk-dr/cluster==other").await.unwrap(), []);

    cloud.delete_balancer(made.id).await.unwrap();
    assert_eq!(cloud.delete_balancer(made.id).await.unwrap_err().code, ErrorCode::NotFound);
    cloud.delete_network(network.id).await.unwrap();
}

async fn floating_ips(cloud: &dyn Cloud) {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKWJXX+CsmFG5UMyZKDICSyPzfPT1Ihp+Fl/ROKA/Czq";
    let key = cloud.create_ssh_key("demo-front", key, &labels()).await.unwrap();
    let spec = |name: &str| ServerSpec {
        name: name.into(),
        server_type: "cx23".into(),
        image: "debian-12".into(),
        location: "fsn1".into(),
        ssh_keys: vec![key.id],
        placement_group: None,
        labels: labels(),
        public_ipv4: true,
        start: true,
        user_data: "#!/bin/sh\n".into(),
    };
    let (one, two) =
        (cloud.create_server(&spec("demo-w1")).await.unwrap(), cloud.create_server(&spec("demo-w2")).await.unwrap());
    let made = cloud.create_floating_ip("demo-www", "nbg1", &labels()).await.unwrap();
    assert_eq!((made.server, made.location.as_str()), (None, "nbg1"));
    assert!(!made.address.is_unspecified());
    assert_eq!(cloud.create_floating_ip("demo-www", "nbg1", &labels()).await.unwrap(), made);
    let other: Labels = [("x".to_owned(), "y".to_owned())].into();
    assert_eq!(cloud.create_floating_ip("demo-www", "nbg1", &other).await.unwrap_err().code, ErrorCode::Conflict);
    // To a server, to the same again, and on to another while the first has it.
    for server in [one.id, one.id, two.id] {
        cloud.assign_floating_ip(made.id, server).await.unwrap();
        assert_eq!(cloud.floating_ip_by_name("demo-www").await.unwrap().unwrap().server, Some(server));
    }
    // It outlives its server.
    cloud.delete_server(two.id).await.unwrap();
    assert_eq!(cloud.floating_ips("hk-dr/cluster==demo").await.unwrap()[0].server, None);
    cloud.assign_floating_ip(made.id, one.id).await.unwrap();
    cloud.delete_floating_ip(made.id).await.unwrap();
    assert_eq!(cloud.delete_floating_ip(made.id).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(cloud.floating_ips("").await.unwrap(), []);
}
