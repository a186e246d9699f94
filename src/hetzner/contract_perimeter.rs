//! What every implementation of `Perimeter` must do, whatever is behind it.

use crate::ports::{Cloud, ErrorCode, FirewallRule, FirewallSpec, Labels, NetworkSpec, Route, Subnet};

fn labels() -> Labels {
    [("hk-dr/cluster".to_owned(), "demo".to_owned())].into()
}

fn rule(port: &str) -> FirewallRule {
    FirewallRule {
        direction: "in".into(),
        protocol: "tcp".into(),
        port: Some(port.into()),
        networks: vec!["0.0.0.0/0".into(), "::/0".into()],
        description: "for the test".into(),
    }
}

/// Runs all of it on an empty project.
pub(super) async fn run(cloud: &dyn Cloud) {
    firewalls(cloud).await;
    routes(cloud).await;
}

async fn firewalls(cloud: &dyn Cloud) {
    let spec = FirewallSpec {
        name: "demo".into(),
        selector: "hk-dr/cluster==demo".into(),
        rules: vec![rule("443")],
        labels: labels(),
    };
    let made = cloud.create_firewall(&spec).await.unwrap();
    assert_eq!((&made.rules, &made.selectors), (&spec.rules, &vec![spec.selector.clone()]));
    // Found by its name and labels instead of made twice, with the rules it has.
    let other = FirewallSpec { rules: Vec::new(), ..spec.clone() };
    assert_eq!(cloud.create_firewall(&other).await.unwrap().rules, spec.rules);
    let foreign = FirewallSpec { labels: [("x".to_owned(), "y".to_owned())].into(), ..spec.clone() };
    assert_eq!(cloud.create_firewall(&foreign).await.unwrap_err().code, ErrorCode::Conflict);

    cloud.set_firewall_rules(made.id, &[rule("80-85")]).await.unwrap();
    cloud.apply_firewall(made.id, "hk-dr/role==vpn").await.unwrap();
    let shown = cloud.firewall_by_name("demo").await.unwrap().unwrap();
    assert_eq!(shown.rules, [rule("80-85")]);
    assert_eq!(shown.selectors, ["hk-dr/cluster==demo", "hk-dr/role==vpn"]);
    cloud.set_firewall_rules(made.id, &[]).await.unwrap();
    assert_eq!(cloud.firewalls("hk-dr/cluster==demo").await.unwrap()[0].rules, []);
    assert_eq!(cloud.firewalls("hk-dr/cluster==other").await.unwrap(), []);

    // Deleted although it is applied.
    cloud.delete_firewall(made.id).await.unwrap();
    assert_eq!(cloud.delete_firewall(made.id).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(cloud.firewall_by_name("demo").await.unwrap(), None);
}

async fn routes(cloud: &dyn Cloud) {
    let subnet = Subnet { range: "10.0.0.0/24".into(), zone: "eu-central".into() };
    let route = Route { destination: "0.0.0.0/0".into(), gateway: [10, 0, 0, 2].into() };
    let spec = NetworkSpec {
        name: "demo-routed".into(),
        range: "10.0.0.0/16".into(),
        subnet,
        routes: vec![route.clone()],
        labels: labels(),
    };
    let network = cloud.create_network(&spec).await.unwrap();
    assert_eq!(network.routes, spec.routes);
    // One that exists keeps the routes it has.
    let other = NetworkSpec { routes: Vec::new(), ..spec.clone() };
    assert_eq!(cloud.create_network(&other).await.unwrap().routes, spec.routes);
    cloud.delete_route(network.id, &route).await.unwrap();
    cloud.add_route(network.id, &route).await.unwrap();
    cloud.add_route(network.id, &route).await.unwrap();
    assert_eq!(cloud.network_by_name("demo-routed").await.unwrap().unwrap().routes, std::slice::from_ref(&route));
    cloud.delete_route(network.id, &route).await.unwrap();
    cloud.delete_route(network.id, &route).await.unwrap();
    assert_eq!(cloud.network_by_name("demo-routed").await.unwrap().unwrap().routes, []);
    cloud.delete_network(network.id).await.unwrap();
}
