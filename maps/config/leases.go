// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"hairpin/maps/rule"
)

// Leases says which lease files of miniupnpd the daemon follows. Each mapping in them becomes a forward for clients of LANs.
type Leases struct {
	Files []string `json:"files,omitempty"` // absolute paths
	Max   uint32   `json:"max,omitempty"`   // how many mappings may become forwards; 0: DefaultLeases
}

// DefaultLeases is how many mappings may become forwards if the configuration does not say it.
const DefaultLeases = 256

// Limits of Leases. Programs of the LAN ask for mappings without anybody's consent, and every change of them builds all tables.
const (
	maxLeases     = 4096
	maxLeaseFiles = 8
)

// Limit returns how many mappings may become forwards.
func (l Leases) Limit() uint32 { return cmp.Or(l.Max, DefaultLeases) }

func (v *validator) leases() {
	if v.Leases.Max > maxLeases {
		v.check(-1, "leases.max", fmt.Errorf("%d is out of range; it is 1 to %d", v.Leases.Max, maxLeases))
	}
	if files := len(v.Leases.Files); files > maxLeaseFiles {
		v.check(-1, "leases.files", fmt.Errorf("there are %d files; at most %d are possible", files, maxLeaseFiles))
		return
	}
	for i, path := range v.Leases.Files {
		var err error
		switch {
		case path == "":
			err = errors.New("it is empty")
		case !filepath.IsAbs(path):
			err = fmt.Errorf("%s is not an absolute path", rule.Quote(path))
		case slices.Contains(v.Leases.Files[:i], path):
			err = fmt.Errorf("%s is listed twice", rule.Quote(path))
		}
		v.check(-1, "leases.files", rule.OfItem(i, err))
	}
}
