//! Clusters behind firewalls and a VPN host.

use hk_dr::ports::{Cloud, Perimeter};

use super::*;

#[tokio::test]
async fn a_private_cluster_survives_death_after_every_event_of_its_build() {
    battery_of(&private_cluster(), Wanted::Build).await;
}

#[tokio::test]
async fn a_private_cluster_survives_death_after_every_event_of_its_rebuild_and_destruction() {
    battery_of(&private_cluster(), Wanted::Rebuild(RebuildChoice::default())).await;
    battery_of(&private_cluster(), Wanted::Destroy(DestroyChoice { volumes: true, backups: true })).await;
}

#[tokio::test]
async fn what_was_opened_by_hand_is_drift_and_the_next_build_closes_it() {
    let cluster = private_cluster();
    let world = built(&cluster).await;
    let firewall = world.cloud.firewall_by_name("private").await.expect("asked").expect("it is there");
    let open = hk_dr::ports::FirewallRule {
        direction: "in".into(),
        protocol: "tcp".into(),
        port: Some("6443".into()),
        networks: vec!["0.0.0.0/0".into()],
        description: "just for a moment".into(),
    };
    world.cloud.set_firewall_rules(firewall.id, &[open]).await.expect("changed");
    let network = world.cloud.network_by_name("private").await.expect("asked").expect("it is there");
    world.cloud.delete_route(network.id, &network.routes[0]).await.expect("changed");
    let (_, drifts) = look_for_drift(&world.world(), "ssh-ed25519 AAAA").await.expect("looked");
    let found: Vec<&str> = drifts.iter().map(|d| d.found.as_str()).collect();
    assert_eq!(found, ["no route", "it also lets pass tcp 6443 from 0.0.0.0/0"], "{drifts:?}");
    let plan = draw(&world, &Wanted::Build).await;
    let mut kinds: Vec<&str> = plan.steps.iter().map(|s| s.kind.as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["firewall.provide", "machine.ready", "network.route", "vpn.configure"]);
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert!(draw(&world, &Wanted::Build).await.steps.is_empty());
}

/// Servers that are reached at public addresses must not be cut off before the VPN is there.
#[tokio::test]
async fn a_public_cluster_that_gets_a_vpn_is_closed_last() {
    let mut open = private_cluster();
    open.network.public_ipv4 = hk_dr::config::PublicIpv4::All;
    let closed = open.clone();
    (open.vpn, open.firewall) = (None, None);
    let world = built(&open).await;
    let world = world.with(&closed);
    let plan = draw(&world, &Wanted::Build).await;
    let closing = plan.steps.iter().find(|s| s.id == "firewall").expect("the firewall over all");
    assert_eq!(closing.needs, ["configure/private-vpn"]);
    assert!(plan.steps.iter().any(|s| s.id == "firewall-vpn" && s.needs.is_empty()));
}

/// Without the VPN host no server can be looked at: nothing may be concluded from their silence.
#[tokio::test]
async fn a_lost_vpn_host_is_made_anew_and_nothing_else_is_touched() {
    let world = built(&private_cluster()).await;
    let before = world.machines().await;
    let host = world.cloud.server_by_name("private-vpn").await.expect("asked").expect("it is there");
    world.cloud.delete_server(host.id).await.expect("deleted");
    let plan = draw(&world, &Wanted::Build).await;
    let mut ids: Vec<&str> = plan.steps.iter().map(|s| s.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["configure/private-vpn", "ready/private-vpn", "server/private-vpn"]);
    assert!(plan.findings.iter().any(|f| f.starts_with(hk_dr::plan::ONLY_THE_WAY_IN)), "{:?}", plan.findings);
    process(&world, &plan, MemoryJournal::default()).await.expect("it ends");
    assert!(draw(&world, &Wanted::Build).await.steps.is_empty());
    let after = world.machines().await;
    assert!(before.iter().filter(|(name, _)| *name != "private-vpn").all(|(name, machine)| after[name] == *machine));
}
