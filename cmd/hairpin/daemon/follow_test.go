// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/cmd/hairpin/router"
	"hairpin/loader"
	"hairpin/maps/config"
)

func prefixes(list ...string) (found []netip.Prefix) {
	for _, text := range list {
		found = append(found, netip.MustParsePrefix(text))
	}
	return found
}

func wantAddresses(t *testing.T, got config.Interface, addresses, passive []netip.Prefix) {
	t.Helper()
	diff := cmp.Diff([][]netip.Prefix{addresses, passive}, [][]netip.Prefix{got.Addresses, got.Passive},
		cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty())
	if diff != "" {
		t.Errorf("addresses of %s (-want +got):\n%s", got.Name, diff)
	}
}

// TestDaemonFollowsAddresses: addresses are replaced, removed, added and restored. The tables get each
// change, and the programs stay attached.
func TestDaemonFollowsAddresses(t *testing.T) {
	d := newDaemonFake(t)
	for _, step := range []struct {
		name               string
		addresses, passive []netip.Prefix
		shown              string
	}{
		{"replaced", prefixes("203.0.113.9/24"), nil, "203.0.113.9"},
		{"several", prefixes("203.0.113.9/24", "203.0.113.10/32", "2001:db8::1/64", "fd00::1/64", "fe80::1/64"), nil, "203.0.113.9 203.0.113.10 2001:db8::1 fd00::1"},
		{"new prefix", prefixes("203.0.113.9/24", "2001:db8:5::1/64", "fe80::1/64"), prefixes("2001:db8::1/64"), "203.0.113.9 2001:db8:5::1 2001:db8::1"},
		{"IPv4 gone", prefixes("2001:db8:5::1/64", "fe80::1/64"), nil, "2001:db8:5::1"},
		{"none left", prefixes("fe80::1/64"), nil, ""},
		{"back", prefixes("203.0.113.9/24"), nil, "203.0.113.9"},
	} {
		t.Run(step.name, func(t *testing.T) {
			d.machine.Edit("wan0", func(l *loader.Link) { l.Addresses, l.Passive = step.addresses, step.passive })
			d.follow(context.Background(), links())
			d.machine.WantDone(t, "interfaces wan0,lan0")
			wantAddresses(t, d.machine.Interfaces[0], step.addresses, step.passive)
			var shown []string
			for _, addr := range d.state.interfaces()[0].Addresses {
				shown = append(shown, addr.String())
			}
			if got := strings.Join(shown, " "); got != step.shown {
				t.Errorf("shows %q, want %q", got, step.shown)
			}
		})
	}
}

// TestDaemonFollowsNames: the configuration means names. A renamed interface is detached; an interface that
// gets the name is attached.
func TestDaemonFollowsNames(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	d.machine.Edit("wan0", func(l *loader.Link) { l.Name = "old0" })
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces lan0", "detach wan0")
	if got := router.Pending(d.state.load()); !slices.Equal(got, []string{"wan0"}) {
		t.Errorf("pending %v, want wan0", got)
	}

	d.machine.Plug("wan0", 9)
	d.follow(ctx, links())
	d.machine.WantDone(t, "attach wan0 auto", "interfaces wan0,lan0")

	// While the tables keep its role, a renamed interface keeps its programs.
	d.machine.Edit("lan0", func(l *loader.Link) { l.Name = "old1" })
	d.machine.Lost = []int{3}
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces wan0")
	d.machine.Lost = nil
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces wan0", "detach lan0")
	d.machine.Edit("old1", func(l *loader.Link) { l.Name = "lan0" })
	d.follow(ctx, links())
	d.machine.WantDone(t, "attach lan0 auto", "interfaces wan0,lan0")

	// Two interfaces swap their names: both keep their programs and swap their roles. The new WAN gets the
	// guard before the tables change; the other interface loses the guard after that.
	d.machine.Edit("wan0", func(l *loader.Link) { l.Name = "tmp0" })
	d.machine.Edit("lan0", func(l *loader.Link) { l.Name = "wan0" })
	d.machine.Edit("tmp0", func(l *loader.Link) { l.Name = "lan0" })
	d.follow(ctx, links())
	d.machine.WantDone(t, "attach wan0 auto", "interfaces wan0,lan0", "attach lan0 auto")
	if wan, lan := d.machine.Attached[3], d.machine.Attached[9]; !wan.Guard || lan.Guard {
		t.Errorf("wan0 has %+v, lan0 has %+v", wan, lan)
	}
	if wan, lan := d.machine.Interfaces[0], d.machine.Interfaces[1]; wan.Index != 3 || wan.Role != config.RoleWAN || lan.Index != 9 || lan.Role != config.RoleLAN {
		t.Errorf("wan0 is %+v, lan0 is %+v", wan, lan)
	}

	// Under its old name the interface is attached again.
	d.machine.Unplug("wan0")
	d.machine.Edit("old0", func(l *loader.Link) { l.Name = "wan0" })
	d.follow(ctx, links())
	d.machine.WantDone(t, "attach wan0 auto", "interfaces wan0,lan0", "detach 3")
}

// TestDaemonKeepsXDPFromMissingTags: XDP is removed when it no longer sees VLAN tags; on a NIC the offload
// is switched off.
func TestDaemonKeepsXDPFromMissingTags(t *testing.T) {
	for name, tags := range map[string]loader.TagVisibility{
		"a NIC strips tags":          {Strips: []string{"rx-vlan-hw-parse"}},
		"tags come beside the frame": {Hides: "no XDP: for a reason"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemonFake(t)
			ctx := context.Background()
			d.machine.Config.Mode = config.ModeXDP
			d.follow(ctx, links())
			d.machine.WantDone(t, "interfaces wan0,lan0")
			wan := d.machine.Attached[2]
			wan.XDP = loader.XDPNative
			d.machine.Attached[2] = wan
			d.follow(ctx, links())
			d.machine.WantDone(t, "interfaces wan0,lan0")

			d.machine.Edit("wan0", func(l *loader.Link) { l.Tags = tags })
			d.follow(ctx, links())
			d.machine.WantDone(t, "attach wan0 xdp", "interfaces wan0,lan0")
			if tags.Hides == "" {
				return
			}
			wan.XDP = ""
			d.machine.Attached[2] = wan
			d.follow(ctx, links())
			d.machine.WantDone(t, "interfaces wan0,lan0")
			if wan := d.state.load()[0]; wan.Attachment.Reason != tags.Hides {
				t.Errorf("wan0 is shown as %+v, want the reason", wan.Attachment)
			}
		})
	}
}

// TestDaemonLeavesPortsOfABridge: the bridge receives packets of its ports. The daemon leaves the port
// alone, and logs once what to do.
func TestDaemonLeavesPortsOfABridge(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	d.machine.Plug("br0", 7)
	d.machine.Edit("lan0", func(l *loader.Link) { l.PortOf = "br0" })
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces wan0", "detach lan0")
	d.follow(ctx, links())
	d.machine.WantDone(t, "interfaces wan0")
	const problem = "lan0 is a port of br0, which receives its packets"
	if n := strings.Count(d.output.String(), problem); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, &d.output)
	}
	if lan := d.state.load()[1]; lan.State() != "detached" {
		t.Errorf("lan0 is shown as %+v", lan)
	}

	// Do what the message says.
	d.file.LAN = []string{"br0"}
	d.reload(ctx)
	d.machine.WantDone(t, "attach br0 auto", "apply", "interfaces wan0,br0")

	// A reload with the port in the file fails, and changes nothing.
	d.file.LAN = []string{"lan0"}
	d.reload(ctx)
	d.machine.WantDone(t)
	if !strings.Contains(d.output.String(), "reload") || len(d.taken) != 2 || d.taken[1] {
		t.Errorf("reloads taken: %v", d.taken)
	}

	// Outside the bridge the interface is attached again.
	d.machine.Edit("lan0", func(l *loader.Link) { l.PortOf = "" })
	d.reload(ctx)
	d.machine.WantDone(t, "attach lan0 auto", "apply", "interfaces wan0,lan0", "detach br0")
}

// A lost address is looked for again when its grace is over, not only with the next beat.
func TestDaemonAwaitsTheGrace(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	d.awaitGrace()
	if d.graceOver != nil {
		t.Error("no address is lost, and the daemon waits for one")
	}
	d.machine.Grace = time.Nanosecond
	d.follow(ctx, links())
	d.awaitGrace()
	select {
	case <-d.graceOver:
	case <-time.After(d.beat):
		t.Error("the daemon waits for its beat")
	}
	d.machine.Grace = 0
	d.reload(ctx)
	d.awaitGrace()
	if d.graceOver != nil {
		t.Error("the address is back, and the daemon still waits")
	}
}

// Routes and neighbours that change all the time do not put the end of a grace off. They do not have the tables read either.
func TestRoutesDoNotPutOffTheGrace(t *testing.T) {
	d := newDaemonFake(t)
	d.machine.Grace = time.Nanosecond
	const enough = 3
	looks := 0
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d.renew = func() (bool, error) {
		if looks++; looks == enough {
			cancel()
		}
		return false, nil
	}
	events := make(chan loader.Event)
	defer background(ctx, func(ctx context.Context) {
		for ctx.Err() == nil {
			select {
			case events <- routes():
			case <-ctx.Done():
			}
		}
	})()
	if err := d.loop(ctx, events); err != nil {
		t.Error(err)
	}
	if looks != enough {
		t.Errorf("the interfaces were looked at %d times while routes changed, want %d", looks, enough)
	}
	if asked := d.machine.GraceAsked; asked > enough+1 {
		t.Errorf("the absences were read %d times for %d looks at the interfaces", asked, looks)
	}
}

// Policies that cannot be read keep the daemon from following nothing else. The error is told once.
func TestDaemonFollowsWithoutPolicies(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	d.machine.PoliciesErr = errors.New("no memory for policies")
	d.machine.Unplug("wan0")
	for range 2 {
		d.follow(ctx, links())
		d.machine.Plug("wan0", 9)
	}
	d.machine.WantDone(t, "interfaces lan0", "detach 2", "attach wan0 auto", "interfaces wan0,lan0")
	if n := strings.Count(d.output.String(), "no memory for policies"); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, &d.output)
	}
}
