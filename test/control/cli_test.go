// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/test/home"
	"hairpin/test/lab"
)

// Every command that does something says in JSON what it did, as one document and nothing else.
func TestCommandsPrintDocuments(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	for _, step := range []struct {
		args string
		key  string
		want string // of the document's body; "" is not looked at
	}{
		{"attach", "attach", ""},
		{"forward add late tcp,sctp 8443 to 192.168.1.20", "add", `{"forwards":[{"name":"late","protocol":["tcp","sctp"],` +
			`"external":"","port":"8443","target":"192.168.1.20:8443","reflect":"auto","from":[],"enabled":true,"source":"cli","connections":0,"packets":0,"bytes":0,"refused":0}]}`},
		{"save", "save", fmt.Sprintf(`{"file":%q,"forwards":1,"written":true}`, filepath.Join(filepath.Dir(hp.File), "forwards.d", "50-cli.toml"))},
		{"save", "save", fmt.Sprintf(`{"file":%q,"forwards":1,"written":false}`, filepath.Join(filepath.Dir(hp.File), "forwards.d", "50-cli.toml"))},
		{"apply", "apply", `{"added":[],"removed":[],"changed":[],"unchanged":3,"settings":[],"ends":{}}`},
		{"forward replace late tcp 8443 to 192.168.1.21 comment x", "replace", `{"ends":{},"forwards":[{"name":"late","protocol":["tcp"],` +
			`"external":"","port":"8443","target":"192.168.1.21:8443","reflect":"auto","from":[],"comment":"x","enabled":true,"source":"cli","connections":0,"packets":0,"bytes":0,"refused":0}]}`},
		{"forward disable late", "disable", ""},
		{"forward enable late", "enable", ""},
		{"forward enable late", "enable", `{"ends":{},"forwards":[]}`},
		{"rollback --list", "generations", ""},
		{"rollback", "rollback", `{"added":[],"removed":[],"changed":["late"],"unchanged":2,"settings":[],"ends":{}}`},
		{"apply --confirm 1h", "apply", `{"added":[],"removed":[],"changed":["late"],"unchanged":2,"settings":[],"ends":{},"confirm_within_seconds":3600}`},
		{"confirm", "confirm", fmt.Sprintf(`{"command":"apply %s"}`, hp.File)},
		{"forward del late", "del", ""},
		{"upgrade", "upgrade", ""},
		{"detach", "detach", ""},
		{"detach", "detach", `{"interfaces":[]}`},
		{"attach", "attach", ""},
		{"detach --all", "detach", ""},
		{"detach --all", "detach", `{"interfaces":[]}`},
	} {
		out := hp.Run(append([]string{"-j"}, strings.Fields(step.args)...)...)
		var document map[string]json.RawMessage
		if err := json.Unmarshal([]byte(out), &document); err != nil {
			t.Fatalf("%s: %v\n%s", step.args, err, out)
		}
		if string(document["schema"]) != "1" || document[step.key] == nil || len(document) != 2 {
			t.Errorf("%s: not a document of schema 1 with %q alone: %s", step.args, step.key, out)
		}
		if got := string(document[step.key]); step.want != "" && withoutOrder(got) != withoutOrder(step.want) {
			t.Errorf("%s:\ngot  %s\nwant %s", step.args, got, step.want)
		}
	}
}

// Interfaces are the same objects in every document, as they are when the command is done.
func TestInterfacesHaveOneShape(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	type row struct {
		Name      string
		Role      string
		State     string
		Mode      *string
		LeakGuard *bool `json:"leak_guard"`
		Index     int
		Addresses []string
	}
	for _, step := range []struct{ args, state, mode string }{
		{"attach", "attached", "tcx"}, {"status", "attached", "tcx"}, {"upgrade", "attached", "tcx"}, {"detach", "detached", ""},
		{"attach", "attached", "tcx"}, {"detach --all", "detached", ""},
	} {
		args := strings.Fields(step.args)
		var document map[string]json.RawMessage
		var body struct{ Interfaces []row }
		out := hp.Run(append([]string{"-j"}, args...)...)
		if err := errors.Join(json.Unmarshal([]byte(out), &document), json.Unmarshal(document[args[0]], &body)); err != nil {
			t.Fatalf("%s: %v\n%s", step.args, err, out)
		}
		var names []string
		for _, i := range body.Interfaces {
			names = append(names, i.Name+" "+i.Role)
			guard := i.Role == "wan" && step.state == "attached"
			if i.State != step.state || i.Mode == nil || *i.Mode != step.mode || i.LeakGuard == nil || *i.LeakGuard != guard || i.Index == 0 || i.Addresses == nil {
				t.Errorf("%s: %s: state %q, index %d, addresses %q\n%s", step.args, i.Name, i.State, i.Index, i.Addresses, out)
			}
		}
		if diff := cmp.Diff([]string{"wan0 wan", "lan0 lan", "lan1 lan", "lo local"}, names); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", step.args, diff)
		}
	}
}

// A slash at the end of the pin directory, as completion of a shell writes it, is no part of its name.
func TestBpffsWithASlash(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	for _, ending := range []string{"/", "//", "/."} {
		hp.Run("--bpffs", hp.Dir+ending, "attach")
		hp.Run("status")
		hp.Run("--bpffs", hp.Dir+ending, "detach", "--all")
		if _, err := os.Lstat(hp.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("DIR%s: the directory stays: %v", ending, err)
		}
	}
}

// withoutOrder makes texts equal that differ in the order of interfaces alone.
func withoutOrder(text string) string {
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '[' || r == ']' })
	slices.Sort(words)
	return strings.Join(words, ",")
}

// Adding a forward that already runs is no error and changes nothing, in every spelling. Adding a different forward with
// the name of a running forward is an error.
func TestAddAForwardAgain(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	hp.Run("attach")
	hp.Run("forward", "add", "late", "tcp,udp", "8443", "to", lab.Server+":8443", "from", "10.0.0.0/8,192.0.2.1", "host", "a.example,b.example")
	before, generation := hp.Run("forward", "show"), liveGeneration(t, hp)
	for _, line := range []string{
		"late tcp,udp 8443 to 192.168.1.20:8443 from 10.0.0.0/8,192.0.2.1 host a.example,b.example",
		"late udp,tcp 8443-8443 to 192.168.1.20 from 192.0.2.1/32,10.0.0.0/8 host A.example.,b.example reflect auto",
		"web tcp 80 to 192.168.1.20:8080", // of a file
	} {
		r, err := hp.Try(append([]string{"-j", "forward", "add"}, strings.Fields(line)...)...)
		if err != nil || r.Code != 0 || !strings.Contains(r.Stderr, "nothing to do") || strings.TrimSpace(r.Stdout) != `{"schema":1,"add":{"forwards":[]}}` {
			t.Errorf("%s: %+v, %v", line, r, err)
		}
	}
	for _, line := range []string{
		"late tcp 8443 to 192.168.1.20:8443 from 10.0.0.0/8,192.0.2.1 host a.example,b.example",
		"late tcp,udp 8443 to 192.168.1.20:8444 from 10.0.0.0/8,192.0.2.1 host a.example,b.example",
		"late tcp,udp 8443 to 192.168.1.20 from 10.0.0.0/8 host a.example,b.example",
		"late tcp,udp 8443 to 192.168.1.20 from 10.0.0.0/8,192.0.2.1 host a.example",
		"late tcp,udp 8443 to 192.168.1.20 from 10.0.0.0/8,192.0.2.1 host a.example,b.example reflect router",
	} {
		if said := hp.Fail(1, append([]string{"forward", "add"}, strings.Fields(line)...)...); !strings.Contains(said, `"late" exists already`) {
			t.Errorf("%s: %s", line, said)
		}
	}
	if after := hp.Run("forward", "show"); after != before || liveGeneration(t, hp) != generation {
		t.Errorf("forwards changed:\n%s\nwere:\n%s", after, before)
	}
}

// Forwards of every protocol get into the kernel, into a file, and back from there.
func TestEveryProtocolOnTheCommandLine(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	hp.Run("attach")
	want := []string{
		"sctp wan0 2905-2906 192.168.1.20:2905-2906", "icmp,gre,esp,ipip,udplite wan0 any 192.168.1.20", "any 203.0.113.77 any 192.168.1.20",
	}
	for i, line := range []string{"sctp wan0:2905-2906", "icmp,gre,esp,ipip,udplite wan0:any", "any 203.0.113.77:any"} {
		words := append([]string{"forward", "add", fmt.Sprintf("f%d", i)}, strings.Fields(line)...)
		hp.Run(append(words, "to", lab.Server)...)
	}
	listed := func() (list []string) {
		for _, f := range home.Show(t, hp, "forward", "show").Forwards {
			if f.Name[0] != 'f' {
				continue
			}
			var protocols []string
			for _, p := range f.Protocol.([]any) {
				protocols = append(protocols, p.(string))
			}
			list = append(list, strings.Join(protocols, ",")+" "+f.External+" "+f.Port+" "+f.Target)
		}
		return list
	}
	if diff := cmp.Diff(want, listed()); diff != "" {
		t.Errorf("forwards (-want +got)\n%s", diff)
	}
	hp.Run("save")
	hp.Run("detach", "--all")
	hp.Run("check")
	hp.Run("attach")
	if diff := cmp.Diff(want, listed()); diff != "" {
		t.Errorf("forwards after a new start (-want +got)\n%s", diff)
	}
	if said := hp.Fail(1, "forward", "add", "again", "gre", "wan0:any", "to", lab.Server); !strings.Contains(said, `gre is taken by forward "f1"`) {
		t.Errorf("a second forward of gre: %s", said)
	}
}

// Targets that are no host's are refused before anything changes, with where they are written and why.
func TestTargetsThatAreNoHosts(t *testing.T) {
	n := lab.NewNetwork6(t)
	n.Router.Address("wan0", "203.0.113.9/32")
	hp := home.Start(t, n, "tc", home.Forwards)
	for target, why := range map[string]string{
		lab.RouterLAN:     "this router's own address on lan0",
		lab.External:      "this router's own address on wan0",
		"192.168.1.255":   "the broadcast address of lan0",
		"192.168.2.0":     "the network of lan1",
		"239.1.2.3":       "a multicast address",
		"255.255.255.255": "the broadcast address",
		"203.0.113.9":     `the external address of forward "bad"`,
		lab.RouterLAN6:    "this router's own address on lan0",
		"fd00:1::":        "every router's address on the network of lan0",
		"ff05::2":         "a multicast address",
		"fe80::20":        "a link-local address",
	} {
		external := ""
		if strings.Contains(why, "bad") {
			external = "external = \"203.0.113.9\"\n"
		}
		hp.Write(home.Config("tc", home.Forwards+"[[forward]]\nname = \"bad\"\nprotocol = \"udp\"\nport = \"1000\"\n"+external+"to = \""+target+"\"\n"))
		text, err := os.ReadFile(hp.File)
		if err != nil {
			t.Fatal(err)
		}
		before, _, _ := strings.Cut(string(text), "name = \"bad\"")
		first, last := strings.Count(before, "\n"), strings.Count(string(text), "\n")
		for _, command := range []string{"check", "apply"} {
			said := hp.Fail(1, command)
			// The message names the line of the mistake, or the first line of the forward if only the running router shows the mistake.
			placed := strings.Contains(said, fmt.Sprintf("%s:%d:", hp.File, first)) || strings.Contains(said, fmt.Sprintf("%s:%d:", hp.File, last))
			if !placed || !strings.Contains(said, target+" is "+why) {
				t.Errorf("%s: %s\nlacks the place, or %q", command, said, why)
			}
		}
		if said := hp.Fail(1, "forward", "add", "bad", "udp", "1001", "to", target); !strings.Contains(said, target) && external == "" {
			t.Errorf("forward add: %s\nlacks the target", said)
		}
	}
	if got := len(home.Show(t, hp, "forward", "show").Forwards); got != 2 {
		t.Errorf("%d forwards, want the 2 of before", got)
	}
}

// settingLines is the output of diff for a file that sets every ICMP and TCP setting.
const settingLines = `- interfaces.private_sources = []
+ interfaces.private_sources = ["wan0"]
- datapath.mss_clamp = (absent: PPP, WireGuard and tun devices)
+ datapath.mss_clamp = ["wan0"]
- timeouts.tcp_opening = "4m0s"
+ timeouts.tcp_opening = "10s"
- timeouts.tcp_closing = "4m0s"
+ timeouts.tcp_closing = "20s"
- icmp.refuse = ["lan"]
+ icmp.refuse = []
- icmp.rate = 1000
+ icmp.rate = 10
`

func TestDiffShowsEverySetting(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	hp.Run("attach")
	hp.Write(strings.Replace(home.Config("tc", "mss_clamp = [\"wan0\"]\n[timeouts]\ntcp_opening = \"10s\"\ntcp_closing = \"20s\"\n"+
		"[icmp]\nrefuse = []\nrate = 10\n"+home.Forwards), "[datapath]", "private_sources = [\"wan0\"]\n[datapath]", 1))
	r, err := hp.Try("diff")
	if err != nil || r.Code != 3 || r.Stdout != settingLines {
		t.Errorf("diff: exit code %d, %v (-want +got)\n%s", r.Code, err, cmp.Diff(settingLines, r.Stdout))
	}
	hp.Run("apply")
	hp.Run("diff")
	settings := pinnedEntry[bpf.HairpinSettings](t, hp, bpf.HairpinMapSettings, 0)
	if settings.TcpOpening != 10e9 || settings.TcpClosing != 20e9 || settings.IcmpInterval != 1e8 || settings.Told != 0 {
		t.Errorf("settings %+v", settings)
	}
}

func pinnedEntry[T any](t *testing.T, hp *lab.Hairpin, name string, key uint32) T {
	t.Helper()
	value, err := tryPinnedEntry[T](hp, name, key)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func tryPinnedEntry[T any](hp *lab.Hairpin, name string, key uint32) (value T, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(hp.Dir, "datapath", "maps", name), nil)
	if err != nil {
		return value, err
	}
	defer m.Close()
	return value, m.Lookup(key, &value)
}

// The daemon has the clamp follow the MTU of the link.
func TestMSSClampFollowsTheMTU(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", "mss_clamp = [\"wan0\"]\n"+home.Forwards)
	index := uint32(n.Router.Index("wan0"))
	if got := pinnedEntry[bpf.HairpinInterface](t, hp, bpf.HairpinMapInterfaces, index).MssMtu; got != 1500 {
		t.Errorf("MTU %d, want 1500", got)
	}
	n.Router.Run("ip", "link", "set", "wan0", "mtu", "1400")
	lab.Eventually(t, lab.Patience, func() error {
		entry, err := tryPinnedEntry[bpf.HairpinInterface](hp, bpf.HairpinMapInterfaces, index)
		if err == nil && entry.MssMtu != 1400 {
			err = fmt.Errorf("MTU %d, want 1400", entry.MssMtu)
		}
		return err
	})
	if got := pinnedEntry[bpf.HairpinInterface](t, hp, bpf.HairpinMapInterfaces, uint32(n.Router.Index("lan0"))).MssMtu; got != 0 {
		t.Errorf("the LAN has MTU %d, want 0", got)
	}
}

// What is pinned for an interface that was deleted goes, though nothing else is attached any more.
func TestPinsOfVanishedInterfacesGo(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "xdp", home.Forwards)
	ending := fmt.Sprintf("_%d", n.Router.Index("wan0"))
	pins := func() (list []string) {
		err := filepath.WalkDir(filepath.Join(hp.Dir, "datapath", "links"), func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil // went while we looked
			}
			if strings.HasSuffix(path, ending) {
				list = append(list, filepath.Base(path))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if len(pins()) != 3 {
		t.Fatalf("pins of wan0: %q, want those of XDP, TC and the leak guard", pins())
	}
	n.Router.Unplug("wan0")
	lab.Eventually(t, lab.Patience, func() error {
		if left := pins(); len(left) > 0 {
			return fmt.Errorf("pins left: %q", left)
		}
		return nil
	})
	if got := home.Show(t, hp, "forward", "show").Forwards; len(got) != 2 {
		t.Errorf("forwards %+v", got)
	}
}
