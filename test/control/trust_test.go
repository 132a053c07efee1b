// SPDX-License-Identifier: Apache-2.0

package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// TestFilesOfOthersAreNotReloaded: what others can write does not become what root runs.
func TestFilesOfOthersAreNotReloaded(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	dropIn := filepath.Join(filepath.Dir(hp.File), "forwards.d", "60-late.toml")
	const late = "[[forward]]\nname = \"late\"\nprotocol = \"tcp\"\nport = 8443\nto = \"192.168.1.20\"\n"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Dir(dropIn), 0o755))
	must(os.Chmod(filepath.Dir(dropIn), 0o755))
	must(os.WriteFile(dropIn, []byte(late), 0o600))

	must(os.Chown(dropIn, 4711, 4711))
	for i, spoil := range []struct {
		do   func() error
		want string
	}{
		{func() error { return nil }, dropIn + " is owned by uid 4711"},
		{func() error { return os.Chmod(hp.File, 0o620) }, hp.File + " can be written by others than its owner (mode 0620)"},
	} {
		must(spoil.do())
		hp.Reload()
		if !strings.Contains(hp.Log(), spoil.want) {
			t.Errorf("the log lacks %q:\n%s", spoil.want, hp.Log())
		}
		if got := len(home.Show(t, hp, "forward", "show").Forwards); got != 2 {
			t.Errorf("%d forwards, want the 2 of before", got)
		}
		if home.Scrape(t, n, "hairpin_config_last_reload_successful") != 0 {
			t.Error("the metrics say that the reload went well")
		}
		tellsWhen(t, hp, "the previous configuration stays active", i+1)
		if said := hp.Fail(1, "apply"); !strings.Contains(said, spoil.want) {
			t.Errorf("apply: %s\nlacks %q", said, spoil.want)
		}
	}
	must(os.Chmod(hp.File, 0o600))
	must(os.Chown(dropIn, 0, 0))
	hp.Reload()
	home.ForwardNamed(t, hp, "late")
}
