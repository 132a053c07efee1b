// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var unmount = scenario{
	number: 2, name: "The bpffs is unmounted under the daemon",
	demanded: "0 connections end, 0 datagrams lost; the daemon pins everything again",
	run:      unmountOften,
}

func unmountOften(t *trial) figures {
	var said []string
	for _, mode := range t.modes() {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		hp := t.start(n, mode, home.Forwards)
		f, c := t.newFlow(n, upgradeFlow), t.newCrowd(100, n.Internet, n.Client)
		r := f.begin()
		rounds := t.choose(1, 5, 50)
		for i := range rounds {
			t.unmount(hp, i)
			t.progress(i+1, rounds, "unmounts, "+mode)
		}
		flowed, ended := r.end(), c.alive(mode)
		t.none(ended, "connections ended by an unmount, "+mode)
		t.none(flowed.lost, fmt.Sprintf("datagrams of %d were lost by an unmount, %s", flowed.sent, mode))
		said = append(said, fmt.Sprintf("%s: %d unmounts, %d of %d connections ended, %d of %d datagrams lost", mode, rounds, ended, len(c.conns), flowed.lost, flowed.sent))
	}
	return figures{measured: strings.Join(said, "; "), nftables: "no pins"}
}

// unmount takes the bpffs away, and returns when the daemon has pinned everything again. The new pins are of the same objects, and
// commands work.
func (t *trial) unmount(hp *lab.Hairpin, round int) {
	t.Helper()
	before, err := objectsOf(hp.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(hp.Dir, unix.MNT_DETACH); err != nil {
		t.Fatalf("unmount: %v", err)
	}
	// The daemon looks at the network every few seconds, and when something changes.
	router := t.watched[len(t.watched)-1].Router
	router.Address("lan1", "192.168.2.99/32")
	router.Unaddress("lan1", "192.168.2.99/32")
	lab.Eventually(t, 2*lab.Patience, func() error {
		if _, err := os.Lstat(filepath.Join(hp.Dir, "datapath")); err != nil {
			return err
		}
		now, err := objectsOf(hp.Dir)
		if err == nil && fmt.Sprint(now) != fmt.Sprint(before) {
			err = errors.New("the pins are not of the same objects")
		}
		return err
	})
	name := fmt.Sprintf("late%d", round)
	hp.Run("forward", "add", name, "tcp", "8443", "to", lab.Server+":8080")
	c, err := t.watched[len(t.watched)-1].Client.DialTCP(lab.External+":8443", "", lab.Patience)
	if err != nil {
		t.Fatalf("a forward added after an unmount: %v", err)
	}
	c.Close()
	hp.Run("forward", "del", name)
	// A second daemon is refused, as the first one has the lock of the new mount.
	if said := hp.Fail(5, "run"); !strings.Contains(said, "a daemon is running") {
		t.Errorf("a second daemon says %q", said)
	}
}
