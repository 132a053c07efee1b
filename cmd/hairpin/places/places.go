// SPDX-License-Identifier: Apache-2.0

// Package places says where the files of a datapath are that are not among its pins: a bpffs holds no regular files.
package places

import (
	"path/filepath"
	"strings"

	"hairpin/loader"
)

const (
	stateDir = "/var/lib/hairpin"
	runDir   = "/run/hairpin"
)

// State returns the directory that keeps configurations, across reboots, of the datapath with its pins in bpffs. It is
// /var/lib/hairpin for the usual datapath. For another datapath the directory is next to its pins, as DIR.state; if the pins are
// below /sys, where nothing can be kept, the directory is below /var/lib/hairpin.
func State(bpffs string) string { return place(bpffs, stateDir) }

// Socket returns the path of the socket at which the daemon of the datapath answers commands.
func Socket(bpffs string) string { return filepath.Join(place(bpffs, runDir), "control") }

func place(bpffs, usual string) string {
	bpffs = filepath.Clean(bpffs)
	switch {
	case bpffs == loader.DefaultDir:
		return usual
	case strings.HasPrefix(bpffs, "/sys/"):
		return filepath.Join(usual, "other", strings.ReplaceAll(bpffs[1:], "/", "-"))
	}
	return bpffs + ".state"
}
