// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/toml"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

func (a *app) saveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "save",
		Short: "Write forwards that were added at run time to forwards.d/50-cli.toml",
		Args:  takes(0),
		RunE: func(command *cobra.Command, _ []string) error {
			return a.save(command)
		},
	}
}

// savePath returns the path of the file that save writes; it is next to the configuration file.
func (a *app) savePath() string {
	return filepath.Join(filepath.Dir(a.configFile), toml.DropInDir, "50-cli.toml")
}

func (a *app) save(command *cobra.Command) error {
	if a.configFile == stdinPath {
		a.started = false // a usage error
		return errors.New("save writes beside the configuration file, and -c - is standard input; name the file")
	}
	s, err := a.openLocked(command.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	running, err := s.Running()
	if err != nil {
		return err
	}
	files, err := a.readConfig(a.configFile)
	if err != nil {
		return err
	}
	// Mappings of lease files are no difference.
	with, err := (&change.Keeper{Router: s.Router}).WithLeases(files)
	if err != nil {
		return err
	}
	change, err := s.Tables.Plan(with)
	if err != nil {
		return err
	}
	path := a.savePath()
	own, err := unsaved(running, files, change, path)
	if err != nil {
		return err
	}
	if len(change.Added)+len(change.Removed)+len(change.Changed) == 0 {
		a.say("nothing to do: the files define exactly the running forwards")
		return a.printSaved(path, len(own), false)
	}
	if err := toml.Write(path, own); err != nil {
		return err
	}
	a.say("saved %s in %s", count(len(own), "forward"), path)
	return a.printSaved(path, len(own), true)
}

// printSaved prints the JSON document of save: the file, its number of forwards, and whether save wrote the
// file.
func (a *app) printSaved(path string, forwards int, written bool) error {
	if !a.json {
		return nil
	}
	return a.printJSON("save", map[string]any{"file": path, "forwards": forwards, "written": written})
}

// unsaved lists the running forwards that belong in the file at path: the forwards that no other file
// defines. It fails if another file defines a forward and the running forward differs, because save does
// not edit files of the administrator. change is the change from the running forwards to the files.
func unsaved(running, files config.Config, change config.Change, path string) ([]rule.Forward, error) {
	var errs []error
	elsewhere := make(map[string]bool)
	deleted, changed := set(change.Added), set(change.Changed)
	for _, f := range files.All() {
		if isFromFile(f.Source, path) {
			continue
		}
		elsewhere[f.Name] = true
		switch {
		case deleted[f.Name]:
			errs = append(errs, fmt.Errorf("%s: %s %q was deleted at run time; delete it from the file, then save again", f.Source, f.Kind(), f.Name))
		case changed[f.Name]:
			now, _ := findForward(running, f.Name)
			errs = append(errs, fmt.Errorf("%s: %s %q was changed at run time to: %s; change the file likewise, then save again", f.Source, f.Kind(), f.Name, now))
		}
	}
	var own []rule.Forward
	for _, f := range running.All() {
		if !elsewhere[f.Name] && !f.Drains() && !f.IsLease() {
			own = append(own, f)
		}
	}
	return own, invalid(errors.Join(errs...))
}

func set(names []string) map[string]bool {
	members := make(map[string]bool, len(names))
	for _, name := range names {
		members[name] = true
	}
	return members
}

// isFromFile reports whether a source, "FILE:LINE", is in the file at path.
func isFromFile(source, path string) bool {
	line, ok := strings.CutPrefix(source, path)
	return ok && (line == "" || line[0] == ':')
}
