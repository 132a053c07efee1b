// SPDX-License-Identifier: Apache-2.0

// Package imports keeps the packages in layers.
package imports

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layers has the packages from the bottom up. A package imports only packages of lower layers. "..." matches a folder and all
// folders below it.
var layers = [][]string{
	{"hairpin/bpf"},
	{"hairpin/loader/dirlock", "hairpin/maps/slots"},
	{"hairpin/maps/rule", "hairpin/maps/layout"},
	{"hairpin/maps/config", "hairpin/maps/entries"},
	{"hairpin/maps/compile", "hairpin/maps/mapstest"},
	{"hairpin/maps", "hairpin/loader"},
	{"hairpin/maps/metrics"},
	{"hairpin/cmd/hairpin/atomicfile", "hairpin/cmd/hairpin/screen", "hairpin/cmd/hairpin/trust", "hairpin/cmd/hairpin/presence", "hairpin/cmd/hairpin/places", "hairpin/cmd/hairpin/detached", "hairpin/cmd/hairpin/trace"},
	{"hairpin/cmd/hairpin/diagnose"},
	{"hairpin/cmd/hairpin/gather"},
	{"hairpin/cmd/hairpin/toml", "hairpin/cmd/hairpin/leases", "hairpin/cmd/hairpin/man", "hairpin/cmd/hairpin/pcapng", "hairpin/cmd/hairpin/dns", "hairpin/cmd/hairpin/history", "hairpin/cmd/hairpin/control", "hairpin/cmd/hairpin/router", "hairpin/cmd/hairpin/router/routertest"},
	{"hairpin/cmd/hairpin/change", "hairpin/cmd/hairpin/explain", "hairpin/cmd/hairpin/importer"},
	{"hairpin/cmd/hairpin/statuspage"},
	{"hairpin/cmd/hairpin/daemon"},
	{"hairpin/cmd/hairpin"},
	{"hairpin/test/build"},
	{"hairpin/test/tables", "hairpin/test/bench/traffic", "hairpin/test/lab", "hairpin/test/frames", "hairpin/test/record", "hairpin/test/coverage"},
	{"hairpin/test/rig", "hairpin/test/home", "hairpin/test/debian"},
	{"hairpin/test/..."},
}

func layerOf(path string) int {
	return slices.IndexFunc(layers, func(layer []string) bool {
		return slices.ContainsFunc(layer, func(pattern string) bool {
			folder, all := strings.CutSuffix(pattern, "/...")
			return path == folder || all && strings.HasPrefix(path, folder+"/")
		})
	})
}

// TestImportsRunDownward: every package is in a layer, and imports nothing of its own layer or one above.
func TestImportsRunDownward(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "hairpin/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		path, imports := strings.Fields(line)[0], strings.Fields(line)[1:]
		layer := layerOf(path)
		if layer < 0 {
			t.Errorf("%s is in no layer", path)
		}
		for _, imported := range imports {
			if strings.HasPrefix(imported, "hairpin/") && layerOf(imported) >= layer && layer < len(layers)-1 {
				t.Errorf("%s imports %s, which is not below it", path, imported)
			}
		}
	}
}

// forbidden are imports of packages that are for work which others must not do.
var forbidden = []struct {
	reason   string
	field    string   // of go list: Imports, or Deps for what these import in turn, too
	packages []string // as arguments of go list
	imports  []string
}{
	{"values know no kernel", "Deps", []string{"hairpin/maps/rule", "hairpin/maps/config"}, []string{"hairpin/bpf", "github.com/cilium/ebpf"}},
	{"package maps alone opens maps", "Imports", []string{"hairpin/maps/layout", "hairpin/maps/compile", "hairpin/maps/metrics"}, []string{"github.com/cilium/ebpf"}},
	{"values look at no machine", "Imports", []string{"hairpin/maps/rule", "hairpin/maps/config", "hairpin/maps/compile"}, []string{"os", "os/exec"}},
	{"an import reads its input alone", "Imports", []string{"hairpin/cmd/hairpin/importer"}, []string{"os", "os/exec", "net", "github.com/vishvananda/netlink", "hairpin/loader"}},
	{"what judges looks at no machine", "Imports", []string{"hairpin/cmd/hairpin/diagnose"}, []string{"os", "os/exec", "net", "github.com/vishvananda/netlink"}},
	{"tests alone use fixtures", "Deps", []string{"hairpin/cmd/hairpin"}, []string{"hairpin/maps/mapstest", "hairpin/cmd/hairpin/router/routertest", "testing"}},
	{"the command line and the daemon alone write a log", "Imports", []string{
		"hairpin/bpf", "hairpin/maps/...", "hairpin/loader/...", "hairpin/cmd/hairpin/atomicfile", "hairpin/cmd/hairpin/trust",
		"hairpin/cmd/hairpin/presence", "hairpin/cmd/hairpin/toml", "hairpin/cmd/hairpin/leases", "hairpin/cmd/hairpin/man", "hairpin/cmd/hairpin/pcapng", "hairpin/cmd/hairpin/dns", "hairpin/cmd/hairpin/router/...",
		"hairpin/cmd/hairpin/diagnose", "hairpin/cmd/hairpin/gather", "hairpin/cmd/hairpin/explain",
		"hairpin/cmd/hairpin/places", "hairpin/cmd/hairpin/detached", "hairpin/cmd/hairpin/history", "hairpin/cmd/hairpin/control", "hairpin/cmd/hairpin/change",
		"hairpin/cmd/hairpin/importer",
	}, []string{"log/slog", "log"}},
}

func TestForbiddenImports(t *testing.T) {
	for _, rule := range forbidden {
		arguments := []string{"list", "-f", "{{.ImportPath}} {{join ." + rule.field + " \" \"}}"}
		out, err := exec.Command("go", append(arguments, rule.packages...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			path, imported := strings.Fields(line)[0], strings.Fields(line)[1:]
			for _, name := range rule.imports {
				if slices.Contains(imported, name) {
					t.Errorf("%s imports %s, but %s", path, name, rule.reason)
				}
			}
		}
	}
}
