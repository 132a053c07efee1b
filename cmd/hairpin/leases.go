// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/leases"
	"hairpin/cmd/hairpin/router"
	"hairpin/maps/config"
)

// diagnoseLeases reads the lease files as the daemon does, and compares them with what runs. It returns nil if none is configured.
func diagnoseLeases(s *router.Session, cfg config.Config) (*diagnose.Leases, error) {
	if len(cfg.Leases.Files) == 0 {
		return nil, nil
	}
	found := new(diagnose.Leases)
	var contents []leases.Content
	for _, path := range cfg.Leases.Files {
		content, err := leases.Read(path)
		file := diagnose.LeaseFile{Path: path, Bad: content.Bad, Err: err, Unseen: errors.Is(err, fs.ErrPermission)}
		if len(content.Problems) > 0 {
			file.First = content.Problems[0].String()
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			file.Missing = true
		}
		found.Files, contents = append(found.Files, file), append(contents, content)
	}
	wanted, refused := leases.Choose(contents, time.Now(), int(cfg.Leases.Limit()))
	for _, r := range refused {
		found.Refused = append(found.Refused, diagnose.RefusedLease{Name: r.Name, Text: r.Text})
	}
	running, err := s.Running()
	if err != nil {
		return nil, err
	}
	inside, err := s.Inside(cfg)
	if err != nil {
		return nil, err
	}
	for i := range running.Forwards {
		if f := &running.Forwards[i]; f.IsLease() && !f.Drains() {
			found.Running++
		}
	}
	running.Forwards = change.WithoutLeases(running.Forwards)
	_, denied := change.FitLeases(running, wanted, inside)
	for _, r := range denied {
		found.Refused = append(found.Refused, diagnose.RefusedLease{Name: r.Name, Text: r.Text})
	}
	return found, nil
}
