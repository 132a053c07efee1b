// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/cmd/hairpin/router"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

func TestUnsaved(t *testing.T) {
	forward := func(name, source string) rule.Forward {
		f, err := rule.ParseForward([]string{name, "tcp", "80", "to", "192.168.1.20"})
		if err != nil {
			t.Fatal(err)
		}
		f.Source = source
		return f
	}
	const own = "/etc/hairpin/forwards.d/50-cli.toml"
	names := func(list []rule.Forward) (names []string) {
		for _, f := range list {
			names = append(names, f.Name)
		}
		return names
	}
	running := config.Config{Forwards: []rule.Forward{forward("web", "/etc/hairpin/hairpin.toml:9"), forward("kept", own+":4"), forward("new", router.SourceCLI)}}

	t.Run("what no other file defines", func(t *testing.T) {
		files := config.Config{Forwards: []rule.Forward{running.Forwards[0], running.Forwards[1], forward("dropped", own+":9")}}
		list, err := unsaved(running, files, config.Change{Added: []string{"dropped"}, Removed: []string{"new"}}, own)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"kept", "new"}, names(list)); diff != "" {
			t.Errorf("saved (-want +got):\n%s", diff)
		}
	})
	t.Run("what somebody wrote", func(t *testing.T) {
		files := config.Config{Forwards: []rule.Forward{running.Forwards[0], forward("gone", "/etc/hairpin/forwards.d/10-a.toml:3")}}
		_, err := unsaved(running, files, config.Change{Added: []string{"gone"}, Changed: []string{"web"}}, own)
		if exitCode(err) != exitInvalid {
			t.Fatalf("unsaved: %v, exit code %d", err, exitCode(err))
		}
		for _, want := range []string{`/etc/hairpin/hairpin.toml:9: forward "web" was changed`, `/etc/hairpin/forwards.d/10-a.toml:3: forward "gone" was deleted`} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error lacks %q:\n%v", want, err)
			}
		}
	})
}
