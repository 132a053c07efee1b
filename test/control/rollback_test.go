// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// Every configuration that ran is kept, by whatever command it came, and rollback counts from what runs.
func TestRollbackOverGenerations(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	hp.Run("forward", "add", "a", "tcp", "81", "to", lab.Server)
	hp.Run("forward", "disable", "web")
	hp.Run("forward", "del", "dns")
	hp.Write(home.Config("tc", lateForward))
	hp.Run("reload")
	wantNames(t, "after the changes", hp, "late")

	var document struct {
		Generations []struct {
			Back    int
			Command string
			Change  struct{ Added, Removed, Changed []string }
		}
	}
	if err := json.Unmarshal([]byte(hp.Run("-j", "rollback", "--list")), &document); err != nil {
		t.Fatal(err)
	}
	commands := ""
	for i, g := range document.Generations {
		if g.Back != i+1 {
			t.Errorf("entry %d is %d back", i, g.Back)
		}
		commands += g.Command + "; "
	}
	if commands != "forward del dns; forward disable web; forward add a; start; " {
		t.Errorf("kept: %s", commands)
	}
	text := hp.Run("rollback", "--list")
	if !strings.Contains(text, "+a +web -late") {
		t.Errorf("list:\n%s", text)
	}
	hp.Run("rollback", "3")
	wantNames(t, "3 back", hp, "web dns a")
	hp.Run("rollback")
	wantNames(t, "back to before the rollback", hp, "late")
	hp.Run("rollback", "4")
	if said := hp.Fail(3, "rollback", "99"); !strings.Contains(said, "no such configuration is kept: 99 back") {
		t.Errorf("said %q", said)
	}
	for i := range 15 {
		hp.Run("forward", "add", fmt.Sprintf("f%d", i), "tcp", fmt.Sprint(1000+i), "to", lab.Server)
	}
	kept, err := filepath.Glob(stateFile(hp, "generations/*"))
	if err != nil || len(kept) != 10 {
		t.Errorf("%d files are kept, want 10: %v, %v", len(kept), kept, err)
	}
}

// A boot with a broken file runs what ran last, and says so everywhere, until the file runs.
func TestBootWithABrokenFile(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	hp.Run("forward", "add", "kept", "tcp", "81", "to", lab.Server)
	hp.Stop()
	hp.Run("detach", "--all")
	hp.Write(home.Config("tc", home.Forwards) + "port = \n")

	hp.Start()
	wantNames(t, "after the boot", hp, "web dns kept")
	wantApart(t, n, hp, hp.File)
	if !strings.Contains(hp.Log(), "the files do not run") {
		t.Errorf("log:\n%s", hp.Log())
	}
	// A restart of the daemon keeps what runs.
	hp.Kill()
	hp.Start()
	wantNames(t, "after a restart", hp, "web dns kept")
	wantApart(t, n, hp, hp.File)

	// A command that makes the file run counts, too.
	hp.Write(home.Config("tc", lateForward))
	hp.Run("apply")
	lab.Eventually(t, lab.Patience, func() error {
		if response := home.Get(t, n, "/-/ready"); response.StatusCode != http.StatusOK {
			return fmt.Errorf("ready: %s", response.Status)
		}
		return nil
	})
	if home.Scrape(t, n, "hairpin_config_last_reload_successful") != 1 {
		t.Error("the metrics do not say that the files run")
	}

	// Without a kept configuration there is nothing to run.
	hp.Stop()
	hp.Run("detach", "--all")
	if err := os.RemoveAll(hp.Dir + ".state"); err != nil {
		t.Fatal(err)
	}
	hp.Write("version = \n")
	if said := hp.Fail(1, "run"); !strings.Contains(said, hp.File+":1:") {
		t.Errorf("said %q", said)
	}
}

// wantApart wants everybody to say that the files do not run, with a part of the reason.
func wantApart(t *testing.T, n *lab.Network, hp *lab.Hairpin, why string) {
	t.Helper()
	response := home.Get(t, n, "/-/ready")
	body, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), why) || err != nil {
		t.Errorf("ready: %s %s, %v", response.Status, body, err)
	}
	if home.Scrape(t, n, "hairpin_config_last_reload_successful") != 0 {
		t.Error("the metrics say that the last reload went well")
	}
	if text := hp.Run("status"); !strings.Contains(text, "warning: the ") || !strings.Contains(text, why) {
		t.Errorf("status:\n%s", text)
	}
}

// reload gives the daemon's answer, and the exit code that apply would give.
func TestReloadAnswers(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	hp.Write(home.Config("tc", home.Forwards+lateForward))
	if said := hp.Fail(0, "reload"); !strings.Contains(said, "reloaded: 1 added, 0 removed, 0 changed, 2 unchanged") {
		t.Errorf("a good file: said %q", said)
	}
	wantNames(t, "after the reload", hp, "web dns late")

	hp.Write(home.Config("tc", home.Forwards) + "[[forward]]\nname = \"x\"\nport = 7\n")
	if said := hp.Fail(1, "reload"); !strings.Contains(said, hp.File) || !strings.Contains(said, `forward "x"`) {
		t.Errorf("a broken file: said %q", said)
	}
	wantApart(t, n, hp, hp.File)
	wantNames(t, "after the broken file", hp, "web dns late")

	if err := os.Remove(hp.File); err != nil {
		t.Fatal(err)
	}
	if said := hp.Fail(1, "reload"); !strings.Contains(said, hp.File+": no such file or directory") {
		t.Errorf("no file: said %q", said)
	}
	var document struct {
		Reload struct {
			Done   bool
			Code   int
			Errors []string
		}
	}
	r, err := hp.Try("-j", "reload")
	if err != nil || json.Unmarshal([]byte(r.Stdout), &document) != nil || document.Reload.Done || document.Reload.Code != 1 || len(document.Reload.Errors) != 1 {
		t.Errorf("%+v, %v", r, err)
	}

	hp.Write(home.Config("tc", home.Forwards))
	hp.Run("reload")
	if response := home.Get(t, n, "/-/ready"); response.StatusCode != http.StatusOK {
		t.Errorf("after a good file: ready %s", response.Status)
	}
	if text := hp.Run("status"); strings.Contains(text, "reload") {
		t.Errorf("after a good file: status\n%s", text)
	}
	hp.Kill() // the socket stays
	if said := hp.Fail(4, "reload"); !strings.Contains(said, "no daemon answers") || !strings.Contains(said, "hairpin apply") {
		t.Errorf("no daemon: said %q", said)
	}
}

// A directory that cannot be written is a warning: the change runs. But a change that could not be taken back is not made.
func TestStateCannotBeWritten(t *testing.T) {
	for name, test := range map[string]struct {
		flags   uintptr
		options string
		want    string
	}{
		"full disk": {0, "size=64k,mode=700", "no space left on device"},
		"read-only": {unix.MS_RDONLY, "size=64k,mode=700", "read-only file system"},
	} {
		t.Run(name, func(t *testing.T) {
			n := lab.NewNetwork(t)
			hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
			state := hp.Dir + ".state"
			if err := os.Mkdir(state, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", state, "tmpfs", test.flags, test.options); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			if test.flags == 0 {
				if err := os.WriteFile(filepath.Join(state, "filler"), make([]byte, 64<<10), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			hp.Run("attach")
			said := hp.Fail(0, "forward", "add", "a", "tcp", "81", "to", lab.Server)
			if !strings.Contains(said, "warning: the change runs, but") || !strings.Contains(said, test.want) || !strings.Contains(said, state) {
				t.Errorf("said %q", said)
			}
			hp.Write(home.Config("tc", lateForward))
			if said := hp.Fail(2, "apply", "--confirm", "60s"); !strings.Contains(said, test.want) || !strings.Contains(said, "nothing was changed") {
				t.Errorf("said %q", said)
			}
			wantNames(t, "after the refusal", hp, "web dns a")
			hp.Run("apply")
			wantNames(t, "after apply", hp, "late")
			hp.Fail(3, "rollback")
			hp.Fail(3, "confirm")
		})
	}
}

// What others could have written is not run.
func TestStateOfOthersIsNotTrusted(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	hp.Run("attach")
	hp.Run("forward", "add", "a", "tcp", "81", "to", lab.Server)
	file := stateFile(hp, "generations/1.json")
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	if said := hp.Fail(3, "rollback"); !strings.Contains(said, "can be written by others than its owner") {
		t.Errorf("said %q", said)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(stateFile(hp, "generations"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if said := hp.Fail(3, "rollback"); !strings.Contains(said, "is owned by") {
		t.Errorf("said %q", said)
	}
	wantNames(t, "after the refusals", hp, "web dns a")
	if err := os.Chown(stateFile(hp, "generations"), 0, 0); err != nil {
		t.Fatal(err)
	}
	hp.Run("rollback")
	wantNames(t, "after rollback", hp, "web dns")
}

// Without privilege every command says what it lacks, and changes nothing.
func TestChangesNeedPrivilege(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	// The file must be readable, so that the privilege is all that is missing.
	if err := os.Chmod(filepath.Dir(hp.File), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(hp.File, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"apply", "--confirm", "60s"}, {"confirm"}, {"rollback"}, {"rollback", "--list"}, {"reload"}, {"forward", "disable", "web"}, {"forward", "enable", "web"},
		{"forward", "del", "web", "--drain", "1m"}, {"forward", "replace", "web", "tcp", "80", "to", lab.Server},
	} {
		command := append([]string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", lab.Binary(t), "-c", hp.File, "--bpffs", hp.Dir}, args...)
		r, err := n.Router.Try(command...)
		if err != nil || r.Code != 2 || !strings.Contains(r.Stderr, "permission denied") && !strings.Contains(r.Stderr, "root") {
			t.Errorf("%v: %+v, %v", args, r, err)
		}
	}
	wantNames(t, "afterwards", hp, "web dns")
}
