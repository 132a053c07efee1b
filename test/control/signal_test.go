// SPDX-License-Identifier: Apache-2.0

package control

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// A daemon that waits for another writer ends by the signal that it gets, not as if the lock had been refused.
func TestSignalWhileWaitingForTheLock(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	hp.Run("attach")
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			lock, err := os.Open(hp.Dir)
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Close()
			if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
				t.Fatal(err)
			}
			opened := watchOpens(t, hp.Dir)
			daemon := n.Router.For(t).Start(lab.Binary(t), "-c", hp.File, "--bpffs", hp.Dir, "run")
			select {
			case err := <-opened:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(lab.Patience):
				t.Fatal("nobody looks at the lock")
			}
			daemon.Signal(signal)
			if code := daemon.Wait(); code != -1 {
				t.Errorf("exit code %d, want -1, an end by the signal", code)
			}
			if said := daemon.Stderr.String(); !strings.Contains(said, unix.SignalName(signal)) || strings.Contains(said, "another hairpin") {
				t.Errorf("said %q", said)
			}
		})
	}
	hp.Run("--wait", "0s", "detach", "--all")
}

// watchOpens tells when somebody opens a directory, as who takes its lock does.
func watchOpens(t *testing.T, dir string) <-chan error {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_OPEN)
	}
	if err != nil {
		t.Fatalf("watch %s: %v", dir, err)
	}
	opened := make(chan error, 1)
	go func() {
		_, err := unix.Read(fd, make([]byte, 4096))
		opened <- err
		unix.Close(fd)
	}()
	return opened
}
