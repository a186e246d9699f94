// Hetzner's own Go library, unmodified, through a life of each kind of resource. HCLOUD_ENDPOINT and HCLOUD_TOKEN name the API.
package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	client := hcloud.NewClient(
		hcloud.WithToken(os.Getenv("HCLOUD_TOKEN")),
		hcloud.WithEndpoint(os.Getenv("HCLOUD_ENDPOINT")),
		hcloud.WithApplication("life", "1"),
		hcloud.WithPollOpts(hcloud.PollOpts{BackoffFunc: hcloud.ConstantBackoff(100 * time.Millisecond)}),
	)
	live(ctx, client)
	fmt.Println("life is complete with hcloud-go", hcloud.Version)
}

// must returns what a call returned, or ends the program with what went wrong.
func must[T any](value T, _ *hcloud.Response, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func expect(holds bool, what string, seen any) {
	if !holds {
		panic(fmt.Sprintf("%s: %+v", what, seen))
	}
}

func live(ctx context.Context, client *hcloud.Client) {
	wait := func(actions ...*hcloud.Action) {
		kept := actions[:0]
		for _, action := range actions {
			if action != nil {
				kept = append(kept, action)
			}
		}
		check(client.Action.WaitFor(ctx, kept...))
	}
	act := func(action *hcloud.Action, _ *hcloud.Response, err error) {
		check(err)
		wait(action)
	}
	yes := true

	locations, err := client.Location.All(ctx)
	check(err)
	expect(len(locations) >= 3, "locations", locations)
	kind := must(client.ServerType.GetByName(ctx, "cx23"))
	image := must(client.Image.GetByNameAndArchitecture(ctx, "debian-12", kind.Architecture))
	fsn1 := must(client.Location.GetByName(ctx, "fsn1"))
	expect(kind != nil && image != nil && fsn1 != nil, "catalog", kind)
	key := must(client.SSHKey.Create(ctx, hcloud.SSHKeyCreateOpts{
		Name:      "life",
		PublicKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGR66U8LQqBQUTkpdM4TBWfJtFKHJwnVZKi4q1YpJOqR one",
	}))

	_, whole, _ := net.ParseCIDR("10.0.0.0/16")
	_, part, _ := net.ParseCIDR("10.0.1.0/24")
	network := must(client.Network.Create(ctx, hcloud.NetworkCreateOpts{Name: "life", IPRange: whole}))
	act(client.Network.AddSubnet(ctx, network, hcloud.NetworkAddSubnetOpts{Subnet: hcloud.NetworkSubnet{
		Type: hcloud.NetworkSubnetTypeCloud, NetworkZone: hcloud.NetworkZoneEUCentral, IPRange: part,
	}}))
	_, anywhere, _ := net.ParseCIDR("0.0.0.0/0")
	port := "22"
	firewall := must(client.Firewall.Create(ctx, hcloud.FirewallCreateOpts{Name: "life", Rules: []hcloud.FirewallRule{{
		Direction: hcloud.FirewallRuleDirectionIn, Protocol: hcloud.FirewallRuleProtocolTCP, Port: &port, SourceIPs: []net.IPNet{*anywhere},
	}}}))
	wait(firewall.Actions...)
	group := must(client.PlacementGroup.Create(ctx, hcloud.PlacementGroupCreateOpts{Name: "life", Type: hcloud.PlacementGroupTypeSpread}))
	primary := must(client.PrimaryIP.Create(ctx, hcloud.PrimaryIPCreateOpts{
		Name: "life", Type: hcloud.PrimaryIPTypeIPv4, AssigneeType: "server", Location: "fsn1",
	}))
	wait(primary.Action)
	volume := must(client.Volume.Create(ctx, hcloud.VolumeCreateOpts{Name: "life", Size: 10, Location: fsn1, Format: hcloud.Ptr("ext4")}))
	wait(append(volume.NextActions, volume.Action)...)

	created := must(client.Server.Create(ctx, hcloud.ServerCreateOpts{
		Name: "life", ServerType: kind, Image: image, Location: fsn1, SSHKeys: []*hcloud.SSHKey{key},
		Networks: []*hcloud.Network{network}, Firewalls: []*hcloud.ServerCreateFirewall{{Firewall: *firewall.Firewall}},
		Volumes: []*hcloud.Volume{volume.Volume}, Automount: &yes, PlacementGroup: group.PlacementGroup,
		Labels:    map[string]string{"life": "yes"},
		PublicNet: &hcloud.ServerCreatePublicNet{EnableIPv4: true, EnableIPv6: true, IPv4: primary.PrimaryIP},
	}))
	wait(append(created.NextActions, created.Action)...)
	found, err := client.Server.AllWithOpts(ctx, hcloud.ServerListOpts{ListOpts: hcloud.ListOpts{LabelSelector: "life=yes"}})
	check(err)
	expect(len(found) == 1 && found[0].Status == hcloud.ServerStatusRunning, "the server runs", found)
	server := found[0]
	expect(server.PublicNet.IPv4.IP.Equal(primary.PrimaryIP.IP), "it has its address", server.PublicNet.IPv4.IP)
	expect(len(server.PrivateNet) == 1 && part.Contains(server.PrivateNet[0].IP), "and its private one", server.PrivateNet)
	expect(len(server.Volumes) == 1, "and its volume", server.Volumes)

	act(client.Server.Shutdown(ctx, server))
	act(client.Server.Poweroff(ctx, server))
	act(client.Server.ChangeType(ctx, server, hcloud.ServerChangeTypeOpts{ServerType: &hcloud.ServerType{Name: "cx33"}}))
	act(client.Server.Reset(ctx, server))
	picture := must(client.Server.CreateImage(ctx, server, &hcloud.ServerCreateImageOpts{Type: hcloud.ImageTypeSnapshot, Description: hcloud.Ptr("life")}))
	wait(picture.Action)
	rescue := must(client.Server.EnableRescue(ctx, server, hcloud.ServerEnableRescueOpts{Type: hcloud.ServerRescueTypeLinux64}))
	wait(rescue.Action)
	act(client.Server.DisableRescue(ctx, server))
	metrics := must(client.Server.GetMetrics(ctx, server, hcloud.ServerGetMetricsOpts{
		Types: []hcloud.ServerMetricType{hcloud.ServerMetricCPU}, Start: time.Now().Add(-30 * time.Minute), End: time.Now(),
	}))
	expect(metrics != nil, "metrics", metrics)

	act(client.Volume.Resize(ctx, volume.Volume, 12))
	act(client.Volume.Detach(ctx, volume.Volume))
	act(client.Volume.AttachWithOpts(ctx, volume.Volume, hcloud.VolumeAttachOpts{Server: server}))
	act(client.Volume.Detach(ctx, volume.Volume))

	floating := must(client.FloatingIP.Create(ctx, hcloud.FloatingIPCreateOpts{Type: hcloud.FloatingIPTypeIPv4, Server: server}))
	wait(floating.Action)
	act(client.FloatingIP.Unassign(ctx, floating.FloatingIP))
	act(client.RDNS.ChangeDNSPtr(ctx, floating.FloatingIP, floating.FloatingIP.IP, hcloud.Ptr("life.example.com")))

	listen, health := 80, 22
	balancer := must(client.LoadBalancer.Create(ctx, hcloud.LoadBalancerCreateOpts{
		Name: "life", LoadBalancerType: must(client.LoadBalancerType.GetByName(ctx, "lb11")), Location: fsn1, Network: network,
		Services: []hcloud.LoadBalancerCreateOptsService{{
			Protocol: hcloud.LoadBalancerServiceProtocolTCP, ListenPort: &listen, DestinationPort: &health,
		}},
	}))
	wait(balancer.Action)
	act(client.LoadBalancer.AddServerTarget(ctx, balancer.LoadBalancer, hcloud.LoadBalancerAddServerTargetOpts{Server: server, UsePrivateIP: &yes}))
	act(client.LoadBalancer.ChangeAlgorithm(ctx, balancer.LoadBalancer, hcloud.LoadBalancerChangeAlgorithmOpts{Type: hcloud.LoadBalancerAlgorithmTypeLeastConnections}))
	act(client.LoadBalancer.RemoveServerTarget(ctx, balancer.LoadBalancer, server))
	act(client.LoadBalancer.DetachFromNetwork(ctx, balancer.LoadBalancer, hcloud.LoadBalancerDetachFromNetworkOpts{Network: network}))

	_, err = client.Volume.Delete(ctx, &hcloud.Volume{ID: 1})
	expect(hcloud.IsError(err, hcloud.ErrorCodeNotFound), "what is not there is not found", err)
	_, _, err = client.SSHKey.Create(ctx, hcloud.SSHKeyCreateOpts{Name: "life", PublicKey: key.PublicKey})
	expect(hcloud.IsError(err, hcloud.ErrorCodeUniquenessError), "a name is taken once", err)

	end(ctx, client, wait, server, picture.Image, volume.Volume, floating.FloatingIP, balancer.LoadBalancer)
	for _, err := range []error{
		second(client.Firewall.Delete(ctx, firewall.Firewall)), second(client.Network.Delete(ctx, network)),
		second(client.PlacementGroup.Delete(ctx, group.PlacementGroup)), second(client.SSHKey.Delete(ctx, key)),
		second(client.PrimaryIP.Delete(ctx, primary.PrimaryIP)),
	} {
		check(err)
	}
	var prices bytes.Buffer
	pricing := must(client.Pricing.Get(ctx))
	fmt.Fprint(&prices, pricing.Currency)
	expect(prices.String() == "EUR", "prices", prices.String())
}

func end(ctx context.Context, client *hcloud.Client, wait func(...*hcloud.Action), server *hcloud.Server, image *hcloud.Image,
	volume *hcloud.Volume, floating *hcloud.FloatingIP, balancer *hcloud.LoadBalancer,
) {
	check(second(client.LoadBalancer.Delete(ctx, balancer)))
	check(second(client.FloatingIP.Delete(ctx, floating)))
	check(second(client.Volume.Delete(ctx, volume)))
	check(second(client.Image.Delete(ctx, image)))
	primary := must(client.PrimaryIP.GetByID(ctx, server.PublicNet.IPv4.ID))
	deleted := must(client.Server.DeleteWithResult(ctx, server))
	wait(deleted.Action)
	left := must(client.PrimaryIP.GetByID(ctx, primary.ID))
	expect(left != nil && left.AssigneeID == 0, "an address of its own stays", left)
}

func second(_ *hcloud.Response, err error) error { return err }
