// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

const lateForward = `
[[forward]]
name = "late"
protocol = ["tcp"]
port = "8443"
to = "192.168.1.20:8080"
`

// startCommand starts a command of the CLI in the background.
func startCommand(t *testing.T, n *lab.Network, hp *lab.Hairpin, args ...string) *lab.Process {
	t.Helper()
	return n.Router.For(t).Start(append([]string{lab.Binary(t), "-c", hp.File, "--bpffs", hp.Dir}, args...)...)
}

func stateFile(hp *lab.Hairpin, name string) string { return filepath.Join(hp.Dir+".state", name) }

func awaitFile(t *testing.T, path string, there bool) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) == there {
			return fmt.Errorf("%s is there: %v, want %v", path, !there, there)
		}
		return nil
	})
}

// watchers returns the processes that wait for what is due later in this datapath.
func watchers(t *testing.T, hp *lab.Hairpin) (pids []int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		words, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(words), hp.Dir+"\x00finish-changes") {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

func names(t *testing.T, hp *lab.Hairpin) string {
	t.Helper()
	var list []string
	for _, f := range home.Show(t, hp, "forward", "show").Forwards {
		list = append(list, f.Name)
	}
	return strings.Join(list, " ")
}

func wantNames(t *testing.T, when string, hp *lab.Hairpin, want string) {
	t.Helper()
	if got := names(t, hp); got != want {
		t.Errorf("%s: forwards %q, want %q", when, got, want)
	}
}

// Whoever is killed, and whenever: a change that nobody confirms is taken back.
func TestUnconfirmedChangeIsTakenBack(t *testing.T) {
	const wait = 3 * time.Second
	for _, killed := range []string{"nobody", "command", "daemon", "command and daemon", "watcher", "daemon later", "daemon and watcher later"} {
		t.Run(killed, func(t *testing.T) {
			n := lab.NewNetwork(t)
			hp := home.Start(t, n, "tc", home.Forwards)
			hp.Run("forward", "add", "kept", "tcp", "81", "to", lab.Server)
			before := hp.Run("forward", "show")
			hp.Write(home.Config("tc", lateForward))
			pending := stateFile(hp, "pending.json")

			command := startCommand(t, n, hp, "apply", "--confirm", wait.String())
			awaitFile(t, pending, true)
			// The command is between the file of the pending change and its end; the swap may be before or after this moment.
			if strings.Contains(killed, "command") {
				command.Signal(unix.SIGKILL)
			}
			if killed == "daemon" || strings.HasPrefix(killed, "command") && strings.Contains(killed, "daemon") {
				hp.Kill()
			}
			command.Wait()
			switch killed {
			case "daemon later":
				wantNames(t, "before the kill", hp, "late")
				hp.Kill()
			case "watcher", "daemon and watcher later":
				if killed != "watcher" {
					hp.Kill()
				}
				for _, pid := range watchers(t, hp) {
					if err := unix.Kill(pid, unix.SIGKILL); err != nil {
						t.Error(err)
					}
				}
			}
			if killed == "daemon and watcher later" {
				// Nobody is left. The next command does what is overdue, before its own work.
				lab.Eventually(t, lab.Patience, func() error {
					r, err := hp.Try("forward", "add", "next", "tcp", "82", "to", lab.Server)
					if err == nil && r.Code != 0 {
						err = errors.New(r.Stderr)
					}
					return err
				})
				wantNames(t, "after the next command", hp, "web dns kept next")
				return
			}
			lab.Eventually(t, lab.Patience, func() error {
				// A command that is killed before its swap leaves the file, but nothing to take back.
				if strings.Contains(hp.Run("status"), "a change waits") {
					return errors.New("the change still waits")
				}
				return nil
			})
			hp.Fail(3, "confirm")
			awaitFile(t, pending, false)
			if after := hp.Run("forward", "show"); after != before {
				t.Errorf("forwards:\n%s\nwere before the change:\n%s", after, before)
			}
			lab.Eventually(t, lab.Patience, func() error {
				if left := watchers(t, hp); len(left) > 0 {
					return fmt.Errorf("watchers %v have nothing to do and still run", left)
				}
				return nil
			})
		})
	}
}

// A command that hangs up the terminal, or leaves a pipe, must not wait for the watcher; a confirmed change stays beyond its time.
func TestConfirmedChangeStays(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	hp.Write(home.Config("tc", home.Forwards+lateForward))
	const wait = 2 * time.Second
	deadline := time.Now().Add(wait)
	var document struct {
		Apply struct {
			Added  []string
			Within float64 `json:"confirm_within_seconds"`
		}
	}
	out := hp.Run("-j", "apply", "--confirm", wait.String())
	if err := json.Unmarshal([]byte(out), &document); err != nil || document.Apply.Within != 2 || len(document.Apply.Added) != 1 {
		t.Errorf("%s, %v", out, err)
	}
	hp.Run("confirm")
	if said := hp.Fail(3, "confirm"); !strings.Contains(said, "no change waits for its confirmation") {
		t.Errorf("said %q", said)
	}
	lab.Eventually(t, lab.Patience, func() error {
		if time.Now().Before(deadline.Add(time.Second)) {
			return errors.New("the time is not over")
		}
		return nil
	})
	wantNames(t, "after the time", hp, "web dns late")
	if left := watchers(t, hp); len(left) > 0 {
		t.Errorf("watchers %v still run", left)
	}
	// What changes nothing needs no confirmation.
	if said := hp.Fail(0, "apply", "--confirm", "60s"); !strings.Contains(said, "nothing to do") || strings.Contains(said, "unless") {
		t.Errorf("said %q", said)
	}
	hp.Fail(3, "confirm")
}

// While a change waits nothing else changes, and each refusal says what to do. rollback returns at once.
func TestPendingChangeRefusesOthers(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	hp.Write(home.Config("tc", lateForward))
	hp.Run("apply", "--confirm", "1h")
	for _, args := range [][]string{
		{"apply"}, {"apply", "--confirm", "60s"}, {"reload"}, {"forward", "add", "x", "tcp", "90", "to", lab.Server}, {"forward", "del", "late"},
		{"forward", "replace", "late", "tcp", "90", "to", lab.Server}, {"forward", "disable", "late"}, {"forward", "del", "late", "--drain", "1m"},
	} {
		said := hp.Fail(1, args...)
		for _, want := range []string{"waits for its confirmation", "hairpin confirm", "hairpin rollback", "is taken back in"} {
			if !strings.Contains(said, want) {
				t.Errorf("%v: said %q, which lacks %q", args, said, want)
			}
		}
	}
	wantNames(t, "after the refusals", hp, "late")
	if said := hp.Run("status"); !strings.Contains(said, `a change waits for "hairpin confirm"`) {
		t.Errorf("status:\n%s", said)
	}
	hp.Run("rollback")
	wantNames(t, "after rollback", hp, "web dns")
	hp.Fail(3, "confirm")
	hp.Run("forward", "add", "x", "tcp", "90", "to", lab.Server)
}

// The files on disk are those of the change that nobody confirmed: no start runs them, until somebody asks for them.
func TestStartDoesNotRunUnconfirmedFiles(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	hp.Write(home.Config("tc", lateForward))
	hp.Run("apply", "--confirm", "1s")
	awaitFile(t, stateFile(hp, "pending.json"), false)
	wantNames(t, "after the time", hp, "web dns")

	hp.Kill()
	hp.Start()
	wantNames(t, "after the daemon's start", hp, "web dns")
	for _, want := range []string{"not confirmed", `"apply `} {
		if said := hp.Run("status"); !strings.Contains(said, want) {
			t.Errorf("status lacks %q:\n%s", want, said)
		}
	}
	hp.Stop()
	hp.Run("detach", "--all")
	hp.Start()
	wantNames(t, "after a boot", hp, "web dns")

	hp.Run("reload")
	wantNames(t, "after a reload", hp, "late")
	hp.Kill()
	hp.Start()
	wantNames(t, "after the next start", hp, "late")
	if said := hp.Run("status"); strings.Contains(said, "confirmed") {
		t.Errorf("status:\n%s", said)
	}
}

// A change that waits when the machine goes down is taken back by the boot, though the time of the deadline is not over.
func TestBootTakesAnUnconfirmedChangeBack(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	hp.Write(home.Config("tc", lateForward))
	hp.Run("apply", "--confirm", "1h")

	// A restart of the daemon alone keeps the change, and the time goes on.
	hp.Kill()
	hp.Start()
	wantNames(t, "after a restart within the time", hp, "late")

	// A boot: the pins are gone, and the boot has another id.
	hp.Kill()
	for _, pid := range watchers(t, hp) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	pending := stateFile(hp, "pending.json")
	text, err := os.ReadFile(pending)
	if err != nil {
		t.Fatal(err)
	}
	hp.Run("detach", "--all")
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), strings.TrimSpace(string(boot)), "another", 1))
	if err := os.WriteFile(pending, text, 0o600); err != nil {
		t.Fatal(err)
	}
	hp.Start()
	wantNames(t, "after the boot", hp, "web dns")
	awaitFile(t, pending, false)
	if response := home.Get(t, n, "/-/ready"); response.StatusCode != 503 {
		t.Errorf("ready: %s", response.Status)
	}
}
