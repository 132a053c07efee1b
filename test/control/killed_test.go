// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// doomed is a router on which a change waits for its confirmation until somebody is killed.
type doomed struct {
	hp       *lab.Hairpin
	command  *lab.Process
	at       time.Duration // of the kill, after the begin of the command; 0: when the file of the pending change is there
	everyone bool          // the watcher is killed, too, and the daemon is started again, as systemd does
	due      time.Time     // of the kill
	before   string        // the forwards before the change
}

func (d *doomed) String() string {
	who := "command and daemon"
	if d.everyone {
		who = "command, daemon and watcher"
	}
	return fmt.Sprintf("%s killed after %s", who, d.at)
}

// newDoomed returns a router with a running daemon. Its tables are small: there are many routers at once.
func newDoomed(t *testing.T, at time.Duration, everyone bool) *doomed {
	router, others := lab.NewHost(t, "router"), lab.NewHost(t, "others")
	for _, dev := range []string{"wan0", "lan0", "lan1"} {
		lab.Cable(router, dev, others, dev)
	}
	router.Address("wan0", lab.External+"/24")
	router.Address("lan0", lab.RouterLAN+"/24")
	config := func(forwards string) string {
		return strings.Replace(home.Config("tc", forwards), "[datapath]", "[datapath]\nmax_connections = 1000", 1)
	}
	hp := lab.NewHairpin(router, config(home.Forwards))
	hp.Start()
	before := hp.Run("forward", "show")
	hp.Write(config(lateForward))
	return &doomed{hp: hp, at: at, everyone: everyone, before: before}
}

// killWhenDue kills at the moment that the test is about, and reports whether the command had ended by itself.
func (d *doomed) killWhenDue(t *testing.T) (ended bool) {
	<-time.After(time.Until(d.due))
	select {
	case <-d.command.Done():
		ended = true
	default:
	}
	d.kill(t)
	return ended
}

func (d *doomed) kill(t *testing.T) {
	d.command.Signal(unix.SIGKILL)
	d.hp.Kill()
	if !d.everyone {
		return
	}
	for _, pid := range watchers(t, d.hp) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
	}
	d.hp.Spawn("run")
}

// The processes of a change are killed at many moments of the time in which it waits, and the configuration of before runs again each
// time. A longer wait has no other moments. The file of the pending change has the deadline as a time since the boot, and nobody counts
// down: each process compares this time with the clock, again and again. So between the swap and the deadline no process is in another
// state in the 30th second than in the second one. What differs is the swap and the deadline themselves, and the test kills before,
// about and after both.
func TestKilledAtEverySecond(t *testing.T) {
	const wait = 5 * time.Second
	moments := []time.Duration{0, 100 * time.Millisecond}
	for at := time.Second; at <= wait+time.Second; at += time.Second {
		moments = append(moments, at)
	}
	var all []*doomed
	for _, at := range moments {
		all = append(all, newDoomed(t, at, false), newDoomed(t, at, true))
	}
	for _, d := range all {
		d.due = time.Now().Add(d.at)
		d.command = d.hp.Spawn("apply", "--confirm", wait.String())
		if d.at < time.Second {
			// Before the file of the pending change nothing has happened, and a start of the daemon runs the files.
			awaitFile(t, stateFile(d.hp, "pending.json"), true)
			d.killWhenDue(t)
		}
	}
	later := slices.DeleteFunc(slices.Clone(all), func(d *doomed) bool { return d.at < time.Second })
	slices.SortFunc(later, func(a, b *doomed) int { return a.due.Compare(b.due) })
	made := 0
	for _, d := range later {
		if d.killWhenDue(t) {
			made++
		}
	}
	if made < len(later)/2 {
		t.Errorf("%d of %d commands had made their change when they were killed", made, len(later))
	}
	for _, d := range all {
		d.wantBefore(t)
	}
}

// wantBefore waits until nothing waits any more, and wants the configuration of before.
func (d *doomed) wantBefore(t *testing.T) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		r, err := d.hp.Try("status")
		if err == nil && (r.Code != 0 || strings.Contains(r.Stdout, "a change waits")) {
			err = fmt.Errorf("%s: %s%s", d, r.Stdout, r.Stderr)
		}
		return err
	})
	if after := d.hp.Run("forward", "show"); after != d.before {
		t.Errorf("%s: forwards:\n%s\nwere before the change:\n%s", d, after, d.before)
	}
	d.hp.Fail(3, "confirm")
}
