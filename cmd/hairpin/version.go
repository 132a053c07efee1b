// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"hairpin/bpf"
)

// release is the version that "make build" sets by the linker, from the tag or commit.
var release string

// build describes this binary.
type build struct {
	Version  string `json:"version"`            // release; otherwise the module version; "devel" for a build from a work tree
	Revision string `json:"revision,omitempty"` // commit of the work tree
	Modified bool   `json:"modified,omitempty"` // the work tree had uncommitted changes
	Schema   uint32 `json:"datapath_schema"`    // schema of the pinned maps that this binary can open
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

// printVersion prints the version, for "hairpin version" and --version.
func (a *app) printVersion() error {
	if a.json {
		return a.printJSON("version", buildInfo())
	}
	_, err := fmt.Fprintln(a.out, buildInfo())
	return err
}
