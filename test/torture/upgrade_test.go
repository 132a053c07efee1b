// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"hairpin/test/build"
	"hairpin/test/home"
	"hairpin/test/lab"
)

var upgrade = scenario{
	number: 3, name: "Upgrades and downgrades between two builds; a build with another layout",
	demanded: "0 connections end, 0 datagrams lost, 0 packets untranslated; a build with another layout says the command to run, and changes nothing",
	run:      upgradeOften,
}

// builds are the binaries of this scenario.
type builds struct {
	here  string   // of this tree
	other string   // the same with another fingerprint of the datapath
	apart []string // with another layout
}

func (t *trial) newBuilds() builds {
	t.Helper()
	b := builds{
		here:  lab.Binary(t),
		other: t.variant(build.AnotherBuild),
		apart: []string{t.variant(build.AnotherSchema)},
	}
	if t.scale != short {
		b.apart = append(b.apart, t.variant(build.AnotherMap))
	}
	return b
}

// variant returns the path of another build. On the kernels of test/kernels there is no Go: the builds are there already.
func (t *trial) variant(v build.Variant) string {
	t.Helper()
	if t.scale == brief {
		return filepath.Join(filepath.Dir(lab.Binary(t)), v.Name)
	}
	path, err := v.In(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func upgradeOften(t *trial) figures {
	b := t.newBuilds()
	var said []string
	for _, mode := range t.modes() {
		said = append(said, t.upgradeIn(mode, b))
	}
	return figures{measured: strings.Join(said, "; "), nftables: t.beside(t.upgradeNFT)}
}

const (
	// An upgrade installs the other build. A cycle has this many upgrades, and ends with a downgrade.
	upgradesPerCycle = 5
	upgradeFlow      = 5_000 // datagrams a second
)

// newStream opens connections and uses each of them all the time: 10,000, or as many as this process may have. A third comes from the
// LAN: a LAN client that appears as the router has one of 4,536 source ports.
func (t *trial) newStream(n *lab.Network) *crowd {
	t.Helper()
	c := t.newCrowd(min(t.size(200, 10_000), t.descriptors()), n.Internet, n.Internet, n.Client)
	c.stream(time.Duration(t.size(1, 4)) * time.Second)
	return c
}

// upgradeIn upgrades and downgrades under traffic, and returns the figure of the mode.
func (t *trial) upgradeIn(mode string, b builds) string {
	t.Helper()
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Server.ServeTCPApart(":8080")
	hp := t.start(n, mode, home.Forwards)
	strangers := []*lab.Sieve{
		n.Internet.WatchStrangers("eth0", home.ExternalAddress), n.Client.WatchStrangers("eth0", home.ExternalAddress),
		n.Server.WatchStrangers("eth0", netip.MustParseAddr(lab.InternetSource), home.RouterAddress),
	}
	f := t.newFlow(n, upgradeFlow)
	c := t.newStream(n)
	r := f.begin()

	upgrades, downgrades := t.count(3, 100/len(t.modes())), t.count(1, 20/len(t.modes()))
	for i := range upgrades + downgrades {
		binary := b.other
		if i%(upgradesPerCycle+1) == upgradesPerCycle || i == upgrades+downgrades-1 {
			binary = b.here
		}
		hp.With(binary).Run("upgrade")
		if i%10 == 3 || i == upgrades+downgrades-1 { // systemctl restart hairpin; until then the daemon has the programs of before
			hp.Stop()
			*hp = *hp.With(binary)
			hp.Start()
		}
		c.advance(len(c.conns) / 10)
		t.progress(i+1, upgrades+downgrades, "upgrades and downgrades, "+mode)
	}
	for _, binary := range b.apart {
		t.refuses(hp, binary)
	}
	c.advance(len(c.conns))

	flowed := r.end()
	ended, lost := c.finish()
	t.none(flowed.lost, fmt.Sprintf("datagrams of %d were lost in upgrades, %s", flowed.sent, mode))
	t.none(ended, "connections ended in upgrades, "+mode)
	untranslated := 0
	for _, s := range strangers {
		for i, packet := range s.Stop() {
			if untranslated++; i < 3 {
				t.Errorf("untranslated, %s: %s", mode, packet)
			}
		}
	}
	return fmt.Sprintf("%s: %d upgrades, %d downgrades, %d connections: %d ended, %d of %d datagrams lost, %d segments lost, %d packets untranslated; %d layouts refused",
		mode, upgrades, downgrades, len(c.conns), ended, flowed.lost, flowed.sent, lost, untranslated, len(b.apart))
}

// refuses runs a build with another layout. It must say the command to run, and leave everything as it is.
func (t *trial) refuses(hp *lab.Hairpin, binary string) {
	t.Helper()
	before, err := objectsOf(hp.Dir)
	if err != nil {
		t.Fatal(err)
	}
	forwards := hp.Run("forward", "show")
	for _, command := range []string{"upgrade", "attach", "run"} {
		said := hp.With(binary).Fail(4, command)
		if !strings.Contains(said, "another layout") || !strings.Contains(said, `run "hairpin detach --all"`) {
			t.Errorf("hairpin %s with another layout does not say what to do: %s", command, said)
		}
	}
	if now := hp.Run("forward", "show"); now != forwards {
		t.Errorf("after a build with another layout the forwards are\n%s\nwere\n%s", now, forwards)
	}
	lab.Eventually(t, lab.Patience, func() error {
		now, err := objectsOf(hp.Dir)
		if err == nil && fmt.Sprint(now) != fmt.Sprint(before) {
			err = fmt.Errorf("after a build with another layout there is %v, was %v", now, before)
		}
		return err
	})
	hp.Reload() // the daemon still serves
}

// upgradeNFT replaces the rules of nftables as often as hairpin is upgraded, and returns the figure.
func (t *trial) upgradeNFT() string {
	t.Helper()
	n := lab.NewNetwork(t)
	n.Server.ServeTCPApart(":8080")
	useNFT(n.Router)
	f := t.newFlow(n, upgradeFlow)
	c := t.newStream(n)
	r := f.begin()
	replaced := t.choose(4, 30, 120)
	for range replaced {
		n.Router.RunInput("flush table ip nat\n"+nftForwards, "nft", "-f", "-")
		c.advance(len(c.conns) / 10)
	}
	flowed := r.end()
	ended, _ := c.finish()
	return fmt.Sprintf("rules replaced %d times, %d connections: %d ended, %d of %d datagrams lost", replaced, len(c.conns), ended, flowed.lost, flowed.sent)
}
