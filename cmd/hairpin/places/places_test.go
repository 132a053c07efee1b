// SPDX-License-Identifier: Apache-2.0

package places

import "testing"

func TestPlaces(t *testing.T) {
	for bpffs, want := range map[string][2]string{
		"/sys/fs/bpf/hairpin":  {"/var/lib/hairpin", "/run/hairpin/control"},
		"/sys/fs/bpf/hairpin/": {"/var/lib/hairpin", "/run/hairpin/control"},
		"/sys/fs/bpf/b/c":      {"/var/lib/hairpin/other/sys-fs-bpf-b-c", "/run/hairpin/other/sys-fs-bpf-b-c/control"},
		"/sys/fs/bpf/b-c":      {`/var/lib/hairpin/other/sys-fs-bpf-b\x2dc`, `/run/hairpin/other/sys-fs-bpf-b\x2dc/control`},
		"/tmp/x/pins":          {"/tmp/x/pins.state", "/tmp/x/pins.state/control"},
		"none":                 {"none.state", "none.state/control"},
	} {
		if got := [2]string{State(bpffs), Socket(bpffs)}; got != want {
			t.Errorf("%s: %q, want %q", bpffs, got, want)
		}
	}
}
