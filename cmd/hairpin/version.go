// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"hairpin/bpf"
)

// release is what the linker sets: "make build" does, from the tag or commit.
var release string

// build says what this binary was made from.
type build struct {
	Version  string `json:"version"`            // release, else of the module, "devel" if built from a work tree
	Revision string `json:"revision,omitempty"` // of the work tree
	Modified bool   `json:"modified,omitempty"` // the work tree had changes of its own
	Schema   uint32 `json:"datapath_schema"`    // of the pinned maps that it understands
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func buildInfo() build {
	b := build{
		Version:  "devel",
		Schema:   uint32(bpf.HairpinSchemaSCHEMA),
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	info, ok := debug.ReadBuildInfo()
	if ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		b.Version = info.Main.Version
	}
	if release != "" {
		b.Version = release
	}
	if !ok {
		return b
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			b.Revision = setting.Value
		case "vcs.modified":
			b.Modified = setting.Value == "true"
		}
	}
	return b
}

func (b build) String() string {
	text := "hairpin " + b.Version
	if b.Revision != "" {
		text += fmt.Sprintf(" (%.12s", b.Revision)
		if b.Modified {
			text += ", modified"
		}
		text += ")"
	}
	return fmt.Sprintf("%s datapath schema %d %s %s", text, b.Schema, b.Go, b.Platform)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this binary",
		Args:  takes(0),
		RunE:  func(*cobra.Command, []string) error { return a.printVersion() },
	}
}

// printVersion is also what --version does.
func (a *app) printVersion() error {
	if a.json {
		return a.printJSON("version", buildInfo())
	}
	_, err := fmt.Fprintln(a.out, buildInfo())
	return err
}
