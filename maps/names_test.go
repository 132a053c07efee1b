// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestLabelsComeFromTheDatapath(t *testing.T) {
	for _, test := range []struct {
		words map[uint32]string
		value uint32
		want  string
	}{
		{names().reasons, uint32(bpf.HairpinReasonREASON_TABLE_FULL), "table_full"},
		{names().verdicts, uint32(bpf.HairpinVerdictVERDICT_REFUSE), "refuse"},
		{names().paths, uint32(bpf.HairpinConnPathPATH_HAIRPIN), "hairpin"},
		{names().reasons, 4711, "unknown_4711"},
	} {
		if got := word(test.words, test.value); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
	for number, path := range rule.PathNames() {
		if got := names().paths[uint32(number)]; got != path {
			t.Errorf("path %d is %q to the datapath, %q here", number, got, path)
		}
	}
	if len(names().paths) != len(rule.PathNames()) {
		t.Errorf("paths %v of the datapath, %v here", names().paths, rule.PathNames())
	}
	spec, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	roles := enumNames(spec.Types, "role")
	for _, role := range []config.Role{config.RoleWAN, config.RoleLAN, config.RoleLocal} {
		if got := roles[uint32(new(compile.Document).InterfaceEntry(config.Interface{Role: role}).Role)]; got != role.String() {
			t.Errorf("role %s is %q to the datapath", role, got)
		}
	}
}

// TestReflectModesAreTheDatapaths: for each mode, Apply writes the number of this mode in enum reflect.
func TestReflectModesAreTheDatapaths(t *testing.T) {
	spec, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	words := enumNames(spec.Types, "reflect")
	if len(words) != len(rule.ReflectNames()) {
		t.Errorf("reflect modes %v of the datapath, %v here", words, rule.ReflectNames())
	}
	for _, mode := range rule.ReflectNames() {
		tables := newTables(t, mapstest.SmallSpec(t))
		mustApply(t, tables, mapstest.WithStandIns(t, "a tcp 80 to 10.0.0.1 reflect "+mode))
		mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
		f := tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
		if got := words[uint32(f.Reflect)]; got != mode {
			t.Errorf("%s is %q to the datapath", mode, got)
		}
	}
}
