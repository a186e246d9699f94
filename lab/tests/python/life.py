"""A full life of every kind of resource, by Hetzner's own Python client as it is published.

Runs against whatever HCLOUD_ENDPOINT and HCLOUD_TOKEN name; everything it makes is named after LIFE_PREFIX and deleted
again. LIFE_CERTIFICATE and LIFE_KEY name PEM files, LIFE_SSH_KEY a public key.
"""

import os
import time
from datetime import datetime, timedelta, timezone

from hcloud import APIException, Client
from hcloud.firewalls import FirewallResource, FirewallResourceLabelSelector, FirewallRule
from hcloud.images import Image
from hcloud.load_balancers import (
    LoadBalancerAlgorithm,
    LoadBalancerHealthCheck,
    LoadBalancerHealthCheckHttp,
    LoadBalancerService,
    LoadBalancerServiceHttp,
    LoadBalancerTarget,
    LoadBalancerTargetIP,
    LoadBalancerTargetLabelSelector,
)
from hcloud.load_balancer_types import LoadBalancerType
from hcloud.locations import Location
from hcloud.networks import NetworkRoute, NetworkSubnet
from hcloud.server_types import ServerType
from hcloud.servers import ServerCreatePublicNetwork
from hcloud.certificates import Certificate

PREFIX = os.environ.get("LIFE_PREFIX", "life")
LABELS = {"life": PREFIX}
DEADLINE = 60

client = Client(
    token=os.environ["HCLOUD_TOKEN"],
    api_endpoint=os.environ["HCLOUD_ENDPOINT"],
    application_name="hk-dr-life",
    poll_interval=0.05,
    poll_max_retries=1200,
)


def name(kind):
    return f"{PREFIX}-{kind}"


def wait(*actions):
    """Waits for actions with the client's own waiter."""
    for action in actions:
        for one in action if isinstance(action, list) else [action]:
            if one is not None:
                one.wait_until_finished()


def until(what, holds):
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, f"not so within {DEADLINE} s: {what}"
        time.sleep(0.05)


def refused(code, call):
    try:
        call()
    except APIException as error:
        assert error.code == code, f"{error.code} instead of {code}: {error}"
        assert error.correlation_id, "a refusal has a correlation id"
        return
    raise AssertionError(f"not refused with {code}")


def look(collection, resource):
    """Finds a resource in every way there is, renames and labels it."""
    by_id = collection.get_by_id(resource.id)
    assert by_id.id == resource.id
    assert collection.get_by_name(by_id.name).id == resource.id
    assert resource.id in [r.id for r in collection.get_all(label_selector=f"life={PREFIX}")]
    assert resource.id not in [r.id for r in collection.get_all(label_selector=f"life!={PREFIX}")]
    assert [r.id for r in collection.get_list(name=by_id.name, per_page=1).__getitem__(0)] == [resource.id]
    renamed = by_id.update(name=f"{by_id.name}-2", labels={**LABELS, "seen": "yes"})
    assert (renamed.name, renamed.labels["seen"]) == (f"{by_id.name}-2", "yes")
    if hasattr(by_id, "get_actions"):
        for action in by_id.get_actions():
            assert client.actions.get_by_id(action.id).id == action.id
            assert action.status in ("success", "error")
    return collection.get_by_id(resource.id)


def protect(collection, resource, **kinds):
    """Protects a resource, finds that it stays, and takes the protection back."""
    kinds = kinds or {"delete": True}
    wait(resource.change_protection(**kinds))
    assert collection.get_by_id(resource.id).protection["delete"]
    refused("protected", resource.delete)
    wait(resource.change_protection(**{kind: False for kind in kinds}))


def gone(collection, resource):
    until(f"{resource} is gone", lambda: resource.id not in [r.id for r in collection.get_all()])
    refused("not_found", lambda: collection.get_by_id(resource.id))


def catalogue():
    assert {"fsn1", "nbg1", "hel1"} <= {l.name for l in client.locations.get_all()}
    kind = client.server_types.get_by_name("cx23")
    assert kind.architecture == "x86" and any(l.available for l in kind.locations)
    assert client.images.get_by_name_and_architecture("debian-12", "x86").os_flavor == "debian"
    assert client.load_balancer_types.get_by_name("lb11").max_services == 5
    assert client.isos.get_all() == []


def ssh_keys():
    public = open(os.environ["LIFE_SSH_KEY"]).read().strip()
    key = client.ssh_keys.create(name=name("key"), public_key=public, labels=LABELS)
    assert client.ssh_keys.get_by_fingerprint(key.fingerprint).id == key.id
    refused("uniqueness_error", lambda: client.ssh_keys.create(name=name("key"), public_key=public))
    return look(client.ssh_keys, key)


def placement_groups():
    made = client.placement_groups.create(name=name("group"), type="spread", labels=LABELS)
    wait(made.action)
    return look(client.placement_groups, made.placement_group)


def networks():
    network = client.networks.create(name=name("net"), ip_range="10.64.0.0/16", labels=LABELS)
    wait(network.add_subnet(NetworkSubnet(type="cloud", network_zone="eu-central", ip_range="10.64.0.0/24")))
    wait(network.add_subnet(NetworkSubnet(type="cloud", network_zone="eu-central", ip_range="10.64.9.0/24")))
    wait(network.delete_subnet(NetworkSubnet(ip_range="10.64.9.0/24")))
    route = NetworkRoute(destination="10.99.0.0/24", gateway="10.64.0.50")
    wait(network.add_route(route))
    assert client.networks.get_by_id(network.id).routes[0].destination == "10.99.0.0/24"
    wait(network.delete_route(route))
    wait(network.change_ip_range("10.64.0.0/15"))
    protect(client.networks, network)
    return look(client.networks, network)


def servers(key, group, network, firewall):
    refused("invalid_input", lambda: client.servers.create(name="no name", server_type=ServerType(name="cx23"), image=Image(name="debian-12")))
    made = client.servers.create(
        name=name("server"),
        server_type=ServerType(name="cx23"),
        image=Image(name="debian-12"),
        location=Location(name="fsn1"),
        ssh_keys=[key],
        networks=[network],
        firewalls=[firewall],
        placement_group=group,
        labels=LABELS,
    )
    assert made.root_password is None
    assert [action.command for action in made.next_actions] == ["attach_to_network", "start_server"]
    wait(made.action, made.next_actions)
    server = look(client.servers, made.server)
    assert server.status == "running" and server.public_net.ipv4.ip and server.public_net.ipv6.ip.endswith("/64")
    assert server.public_net.firewalls[0].status == "applied"
    assert server.placement_group.id == group.id
    members = client.networks.get_by_id(network.id).get_member_all()
    assert [(m.id, m.status) for m in members] == [(server.id, "ok")]
    protect(client.servers, server, delete=True, rebuild=True)
    wait(server.change_alias_ips(network, ["10.64.0.77"]))
    assert client.servers.get_by_id(server.id).private_net[0].alias_ips == ["10.64.0.77"]
    wait(server.detach_from_network(network))
    wait(server.attach_to_network(network, ip="10.64.0.20"))
    wait(server.change_dns_ptr(server.public_net.ipv4.ip, "life.example.com"))
    assert client.servers.get_by_id(server.id).public_net.ipv4.dns_ptr == "life.example.com"
    for act in (server.reboot, server.reset, server.power_off, server.power_on, server.shutdown, server.power_off):
        wait(act())
    until("the server is off", lambda: client.servers.get_by_id(server.id).status == "off")
    wait(server.remove_from_placement_group())
    wait(server.add_to_placement_group(group))
    wait(server.change_type(ServerType(name="cx33"), upgrade_disk=False))
    until("the server runs", lambda: client.servers.get_by_id(server.id).status == "running")
    rescue = server.enable_rescue(type="linux64", ssh_keys=[key.id])
    wait(rescue.action)
    assert rescue.root_password and client.servers.get_by_id(server.id).rescue_enabled
    wait(server.disable_rescue())
    password = server.reset_password()
    wait(password.action)
    assert password.root_password
    wait(server.enable_backup())
    wait(server.detach_iso())
    refused("unsupported_error", server.request_console)
    end = datetime.now(timezone.utc)
    for kind in ("cpu", "disk", "network"):
        metrics = server.get_metrics(type=kind, start=end - timedelta(minutes=5), end=end).metrics
        assert metrics.time_series
    return client.servers.get_by_id(server.id)


def images(server):
    made = server.create_image(description="a snapshot", type="snapshot", labels=LABELS)
    wait(made.action)
    image = client.images.get_by_id(made.image.id)
    assert image.status == "available" and image.created_from.id == server.id
    assert image.id in [i.id for i in client.images.get_all(type="snapshot", label_selector=f"life={PREFIX}")]
    assert image.update(description="changed").description == "changed"
    protect(client.images, image)
    rebuilt = server.rebuild(image)
    wait(rebuilt.action)
    assert client.servers.get_by_id(server.id).image.id == image.id
    backup = server.create_image(type="backup")
    wait(backup.action)
    wait(server.disable_backup())
    gone(client.images, backup.image)
    assert image.delete()
    gone(client.images, image)


def volumes(server):
    made = client.volumes.create(name=name("volume"), size=10, location=server.location, format="ext4", labels=LABELS)
    wait(made.action, made.next_actions)
    volume = look(client.volumes, made.volume)
    wait(volume.attach(server, automount=False))
    assert client.volumes.get_by_id(volume.id).server.id == server.id
    refused("resource_in_use", volume.delete)
    wait(volume.detach())
    wait(volume.resize(11))
    assert client.volumes.get_by_id(volume.id).size == 11
    protect(client.volumes, volume)
    assert volume.delete()
    gone(client.volumes, volume)


def firewalls():
    rule = FirewallRule(direction="in", protocol="tcp", port="22", source_ips=["0.0.0.0/0", "::/0"], description="ssh")
    made = client.firewalls.create(name=name("firewall"), rules=[rule], labels=LABELS)
    wait(made.actions)
    return look(client.firewalls, made.firewall)


def firewalls_end(firewall, server):
    resource = FirewallResource(type="server", server=server)
    refused("resource_in_use", firewall.delete)
    wait(firewall.set_rules([FirewallRule(direction="in", protocol="icmp", source_ips=["0.0.0.0/0"])]))
    wait(firewall.remove_from_resources([resource]))
    wait(firewall.apply_to_resources([resource]))
    selector = FirewallResource(
        type="label_selector", label_selector=FirewallResourceLabelSelector(selector=f"life={PREFIX}")
    )
    wait(firewall.remove_from_resources([resource]))
    wait(firewall.apply_to_resources([selector]))
    until("the selector's firewall is applied", lambda: client.servers.get_by_id(server.id).public_net.firewalls[0].status == "applied")
    wait(firewall.remove_from_resources([selector]))
    until("no firewall is left", lambda: not client.servers.get_by_id(server.id).public_net.firewalls)
    assert firewall.delete()
    gone(client.firewalls, firewall)


def floating_ips(server):
    made = client.floating_ips.create(type="ipv4", name=name("floating"), home_location=Location(name="fsn1"), labels=LABELS)
    wait(made.action)
    floating = look(client.floating_ips, made.floating_ip)
    wait(floating.assign(server))
    assert client.floating_ips.get_by_id(floating.id).server.id == server.id
    refused("must_be_unassigned", floating.delete)
    wait(floating.change_dns_ptr(floating.ip, "floating.example.com"))
    wait(floating.unassign())
    protect(client.floating_ips, floating)
    assert floating.delete()
    gone(client.floating_ips, floating)
    made = client.floating_ips.create(type="ipv6", name=name("floating6"), server=server, labels=LABELS)
    wait(made.action)
    wait(made.floating_ip.unassign())
    assert made.floating_ip.delete()


def primary_ips(network):
    made = client.primary_ips.create(type="ipv4", name=name("primary"), location=Location(name="fsn1"), labels=LABELS)
    wait(made.action)
    primary = look(client.primary_ips, made.primary_ip)
    assert primary.assignee_id is None
    net = ServerCreatePublicNetwork(ipv4=primary, enable_ipv4=True, enable_ipv6=False)
    # Whatever is not started is made and off.
    server = client.servers.create(
        name=name("primary-server"), server_type=ServerType(name="cx23"), image=Image(name="debian-12"),
        location=Location(name="fsn1"), public_net=net, start_after_create=False, labels=LABELS,
    )
    assert server.root_password
    wait(server.action, server.next_actions)
    wait(primary.unassign())
    wait(primary.assign(assignee_id=server.server.id, assignee_type="server"))
    assert client.servers.get_by_id(server.server.id).public_net.primary_ipv4.id == primary.id
    wait(primary.change_dns_ptr(primary.ip, "primary.example.com"))
    wait(server.server.delete())
    protect(client.primary_ips, primary)
    assert primary.delete()
    gone(client.primary_ips, primary)


def certificates():
    chain, key = (open(os.environ[e]).read() for e in ("LIFE_CERTIFICATE", "LIFE_KEY"))
    certificate = client.certificates.create(name=name("cert"), certificate=chain, private_key=key, labels=LABELS)
    assert certificate.fingerprint and certificate.domain_names == ["life.example.com"]
    assert certificate.not_valid_after > datetime.now(timezone.utc)
    refused("unsupported_error", lambda: client.certificates.create_managed(name=name("m"), domain_names=["a.example.com"]))
    return look(client.certificates, certificate)


def load_balancers(server, network, certificate):
    made = client.load_balancers.create(
        name=name("lb"), load_balancer_type=LoadBalancerType(name="lb11"), location=Location(name="fsn1"), labels=LABELS,
        algorithm=LoadBalancerAlgorithm(type="round_robin"), network=network,
    )
    wait(made.action)
    lb = look(client.load_balancers, made.load_balancer)
    protect(client.load_balancers, lb)
    check = LoadBalancerHealthCheck(
        protocol="http", port=80, interval=15, timeout=10, retries=3,
        http=LoadBalancerHealthCheckHttp(path="/healthz", domain="", response="", status_codes=["2??"], tls=False),
    )
    https = LoadBalancerService(
        protocol="https", listen_port=443, destination_port=80, proxyprotocol=False, health_check=check,
        http=LoadBalancerServiceHttp(certificates=[Certificate(id=certificate.id)], sticky_sessions=True, redirect_http=True),
    )
    wait(lb.add_service(https))
    tcp = LoadBalancerService(protocol="tcp", listen_port=6443, destination_port=6443, proxyprotocol=True)
    wait(lb.add_service(tcp))
    refused("source_port_already_used", lambda: lb.add_service(tcp))
    tcp.destination_port = 6444
    wait(lb.update_service(tcp))
    seen = client.load_balancers.get_by_id(lb.id)
    assert [s.destination_port for s in seen.services] == [80, 6444] and seen.services[0].http.certificates[0].id == certificate.id
    refused("resource_in_use", certificate.delete)
    wait(lb.delete_service(tcp))
    private = LoadBalancerTarget(type="server", server=server, use_private_ip=True)
    wait(lb.add_target(private))
    selector = LoadBalancerTarget(
        type="label_selector", label_selector=LoadBalancerTargetLabelSelector(selector=f"life={PREFIX}"), use_private_ip=True
    )
    wait(lb.add_target(selector))
    target = client.load_balancers.get_by_id(lb.id).targets
    assert target[0].health_status[0].status in ("healthy", "unhealthy", "unknown")
    assert [t.server.id for t in target[1].targets] == [server.id]
    wait(lb.disable_public_interface())
    wait(lb.enable_public_interface())
    elsewhere = LoadBalancerTarget(type="ip", ip=LoadBalancerTargetIP(ip="198.51.101.2"))
    wait(lb.add_target(elsewhere))
    wait(lb.remove_target(elsewhere))
    for old in (private, selector):
        wait(lb.remove_target(old))
    wait(lb.detach_from_network(network))
    wait(lb.attach_to_network(network, ip="10.64.0.30"))
    wait(lb.change_algorithm(LoadBalancerAlgorithm(type="least_connections")))
    wait(lb.change_type(LoadBalancerType(name="lb21")))
    wait(lb.change_dns_ptr(lb.public_net.ipv4.ip, "lb.example.com"))
    end = datetime.now(timezone.utc)
    assert lb.get_metrics(type="open_connections", start=end - timedelta(minutes=5), end=end).metrics.time_series
    wait(lb.delete().action)
    gone(client.load_balancers, lb)
    assert certificate.delete()
    gone(client.certificates, certificate)


def main():
    begun = time.monotonic()
    catalogue()
    key, group, network, firewall = ssh_keys(), placement_groups(), networks(), firewalls()
    server = servers(key, group, network, firewall)
    images(server)
    volumes(server)
    firewalls_end(firewall, server)
    floating_ips(server)
    primary_ips(network)
    load_balancers(server, network, certificates())
    refused("not_found", lambda: client.actions.get_by_id(1))
    wait(server.delete())
    gone(client.servers, server)
    for collection, resource in ((client.placement_groups, group), (client.networks, network), (client.ssh_keys, key)):
        assert resource.delete()
        gone(collection, resource)
    left = [a.name for a in client.primary_ips.get_all()]
    assert not left, f"left behind: {left}"
    print(f"life is complete after {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main()
