// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// unitCapabilities starts a command with the capabilities of the service unit.
var unitCapabilities = []string{"setpriv", "--bounding-set=-all,+bpf,+net_admin,+perfmon", "--inh-caps=-all"}

// asModule starts a command where nf_conntrack looks like a module: the kernel gives the types of a module to CAP_SYS_ADMIN alone. Its
// argument is a directory to mount on. The command has its own mount namespace.
var asModule = []string{"unshare", "--mount", "sh", "-ec", `
	mount -t tmpfs types "$0"
	cp /sys/kernel/btf/vmlinux "$0"
	: >"$0/nf_conntrack"
	mount --move "$0" /sys/kernel/btf
	exec "$@"`}

// moduleUnderUnit returns hp with the capabilities of the service unit, where nf_conntrack looks like a module.
func moduleUnderUnit(t *testing.T, hp *lab.Hairpin) *lab.Hairpin {
	return hp.Under(slices.Concat(asModule, []string{t.TempDir()}, unitCapabilities)...)
}

// datapathStatus has what status says about the programs and the tables.
type datapathStatus struct {
	Conntrack struct {
		Asked  bool
		Reason string
	}
	Connections struct{ Limit int }
}

func statusOf(t *testing.T, hp *lab.Hairpin) datapathStatus {
	t.Helper()
	var document struct{ Status datapathStatus }
	if err := json.Unmarshal([]byte(hp.Run("status", "-j")), &document); err != nil {
		t.Fatal(err)
	}
	return document.Status
}

// TestBootAsksConntrack: nothing is loaded at a boot. "hairpin prepare" loads programs that ask conntrack, and the daemon, which may not
// load such programs, takes them into service. The tables have the size of the file, or of what runs in place of a broken file.
func TestBootAsksConntrack(t *testing.T) {
	const sized = "max_connections = 5000\n"
	config := strings.Replace(home.Config("tc", home.Forwards), "[datapath]\n", "[datapath]\n"+sized, 1)
	if !strings.Contains(config, sized) {
		t.Fatalf("no [datapath] in\n%s", config)
	}
	for _, broken := range []bool{false, true} {
		t.Run(fmt.Sprintf("broken file %v", broken), func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.Server.ServeTCP(":8080")
			hp := lab.NewHairpin(n.Router, config)
			if broken {
				hp.Run("attach") // which keeps the configuration
				hp.Run("detach", "--all")
				hp.Write("version = 1\nthis is no configuration")
			}
			hp.Run("prepare")
			if tc, xdp := n.Router.Attached("wan0"); len(tc) > 0 || xdp != 0 {
				t.Error("prepare attached the programs")
			}
			moduleUnderUnit(t, hp).Start()
			status := statusOf(t, hp)
			if !status.Conntrack.Asked {
				t.Errorf("conntrack is not asked: %s", status.Conntrack.Reason)
			}
			if status.Connections.Limit != 5000 {
				t.Errorf("room for %d connections, want 5000", status.Connections.Limit)
			}
			c, err := n.Internet.DialTCP(lab.External+":80", "", lab.Patience)
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
}

// TestPrepareWithoutConfiguration: prepare loads nothing if no configuration can be read. What it loaded for a start that fails goes.
func TestPrepareWithoutConfiguration(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, "this is no configuration")
	pins := filepath.Join(hp.Dir, "datapath")
	hp.Run("prepare")
	if _, err := os.Stat(pins); !os.IsNotExist(err) {
		t.Errorf("pins without a configuration: %v", err)
	}
	hp.Write(home.Config("tc", home.Forwards))
	hp.Run("prepare")
	if _, err := os.Stat(pins); err != nil {
		t.Error(err)
	}
	hp.Write("this is no configuration")
	hp.Fail(1, "run")
	if _, err := os.Stat(pins); !os.IsNotExist(err) {
		t.Errorf("pins after a start that failed: %v", err)
	}
}

// TestPrepareForUnmountedDaemon: if the bpffs is unmounted under a daemon that may not mount, prepare mounts a new one and leaves it to
// the daemon, which pins in it what runs.
func TestPrepareForUnmountedDaemon(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	hp.Run("prepare")
	hp.Under(unitCapabilities...).Start()
	hp.Run("forward", "add", "late", "tcp", "8443", "to", lab.Server+":8080")
	before, _ := n.Router.Attached("wan0")
	if err := unix.Unmount(hp.Dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	hp.Run("prepare")
	lab.Eventually(t, lab.Patience, func() error {
		r, err := hp.Try("forward", "show", "late")
		if err == nil && r.Code != 0 {
			err = fmt.Errorf("the running configuration is not back: %s", r.Stderr)
		}
		return err
	})
	if after, _ := n.Router.Attached("wan0"); !slices.Equal(after, before) {
		t.Errorf("programs %v on wan0, want %v", after, before)
	}
}

// TestStartUpgradesForTheBetter: a start replaces programs of another version, and not those that prepare has loaded. It does not replace
// programs that ask conntrack by programs that do not. "hairpin upgrade" does, and warns.
func TestStartUpgradesForTheBetter(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	restart := func(as *lab.Hairpin, what string, replaces bool) (log string) {
		t.Helper()
		before, _ := n.Router.Attached("wan0")
		as.Start()
		as.Stop()
		if after, _ := n.Router.Attached("wan0"); len(after) != 1 || slices.Equal(after, before) == replaces {
			t.Errorf("%s: programs %v before the start, %v after; replaced has to be %v", what, before, after, replaces)
		}
		if now := statusOf(t, hp).Conntrack; !now.Asked {
			t.Errorf("%s: conntrack is not asked: %s", what, now.Reason)
		}
		return as.Log()
	}
	module, few := moduleUnderUnit(t, hp), hp.Under(unitCapabilities...)
	hp.Run("prepare")
	restart(module, "the first start", true)
	restart(few, "the second start", false)
	ageFit(t, hp)
	if log := restart(module, "programs of another version, a module", false); !strings.Contains(log, "stay active") {
		t.Errorf("no warning of the programs that stay:\n%s", log)
	}
	restart(few, "programs of another version", true)
	r, err := module.Try("upgrade")
	if err != nil || r.Code != 0 || !strings.Contains(r.Stderr, "no longer ask conntrack") {
		t.Errorf("upgrade to programs that do not ask: exit code %d, %v, want a warning\n%s", r.Code, err, r.Stderr)
	}
	if statusOf(t, hp).Conntrack.Asked {
		t.Error("the kernel's BTF of a module was read without CAP_SYS_ADMIN")
	}
}

// ageFit makes the pinned programs those of another version: the first eight bytes of the map say which.
func ageFit(t *testing.T, hp *lab.Hairpin) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(hp.Dir, "datapath/programs/fit"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	fit, err := m.LookupBytes(uint32(0))
	if err != nil {
		t.Fatal(err)
	}
	fit[0] ^= 1
	if err := m.Put(uint32(0), fit); err != nil {
		t.Fatal(err)
	}
}
