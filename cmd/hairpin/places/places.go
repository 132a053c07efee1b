// SPDX-License-Identifier: Apache-2.0

// Package places says where the files of a datapath are that are not among its pins: a bpffs holds no regular files.
package places

import (
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hairpin/loader"
)

const (
	stateDir = "/var/lib/hairpin"
	runDir   = "/run/hairpin"
)

// State returns the directory that keeps configurations, across reboots, of the datapath with its pins in bpffs. It is
// /var/lib/hairpin for the usual datapath. For another datapath the directory is next to its pins, as DIR.state; if nothing can
// be kept there, because that is below /sys or in a bpffs, the directory is below /var/lib/hairpin.
func State(bpffs string) string { return place(bpffs, stateDir) }

// Socket returns the path of the socket at which the daemon of the datapath answers commands.
func Socket(bpffs string) string { return filepath.Join(place(bpffs, runDir), "control") }

// escaped makes one name of a path, as systemd-escape(1) does. Two paths never get one name.
var escaped = strings.NewReplacer("/", "-", "-", `\x2d`, `\`, `\x5c`)

func place(bpffs, usual string) string {
	bpffs = filepath.Clean(bpffs)
	switch {
	case bpffs == loader.DefaultDir:
		return usual
	case strings.HasPrefix(bpffs, "/sys/"), isBPFFS(filepath.Dir(bpffs)):
		return filepath.Join(usual, "other", escaped.Replace(strings.TrimPrefix(bpffs, "/")))
	}
	return bpffs + ".state"
}

func isBPFFS(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.BPF_FS_MAGIC
}
