// SPDX-License-Identifier: Apache-2.0

package places

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/maps/mapstest"
)

// TestInsideABPFFS: pins may be in a directory of a bpffs that is mounted anywhere. The files of the datapath cannot be there.
func TestInsideABPFFS(t *testing.T) {
	mapstest.NeedRoot(t)
	mount := t.TempDir()
	if err := unix.Mount("bpf", mount, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	pins := filepath.Join(mount, "pins")
	if got, want := State(pins), "/var/lib/hairpin/other/"+strings.ReplaceAll(pins[1:], "/", "-"); got != want {
		t.Errorf("state of %s: %q, want %q", pins, got, want)
	}
}
