// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/features"

	"hairpin/test/lab"
)

// floor is LINUX_VERSION_CODE of the oldest kernel that hairpin takes, 6.1.
const floor = 6<<16 | 1<<8

// loadConfig has forwards to targets that the router has no route to.
const loadConfig = `version = 1
[interfaces]
wan = ["wan0"]
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20"
[[forward]]
name = "web6"
protocol = ["tcp"]
port = "80"
to = "fd00:1::20"
`

// The kernel takes the programs, and the program of explain for both IP versions. Or the kernel is refused by a message that names the
// floor, and nothing is left.
func TestLoad(t *testing.T) {
	router := lab.NewHost(t, "router")
	other := lab.NewHost(t, "internet")
	lab.Cable(router, "wan0", other, "eth0")
	hp := lab.NewHairpin(router, loadConfig)
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	if version >= floor {
		for _, setting := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			router.Sysctl(setting, "1")
		}
		router.Enable6()
		router.Run("ip", "address", "add", "203.0.113.2/24", "dev", "wan0")
		router.Address6("wan0", "2001:db8:0:1::2/64")
		hp.Run("attach")
		running := []string{lab.Binary(t), "--bpffs", hp.Dir}
		for _, question := range []string{
			"explain in wan0 tcp 203.0.113.9:4000 to 203.0.113.2:80",
			"explain in wan0 tcp [2001:db8:0:1::9]:4000 to [2001:db8:0:1::2]:80",
		} {
			words := strings.Fields(question)
			for of, said := range map[string]string{"what runs": router.Run(slices.Concat(running, words)...), "the file": hp.Run(words...)} {
				if !strings.Contains(said, "reason no_route") {
					t.Errorf("%s, about %s: %s", question, of, said)
				}
			}
		}
		hp.Run("detach", "--all")
		return
	}
	for _, command := range []string{"attach", "run"} {
		if said := hp.Fail(2, command); !strings.Contains(said, "needs 6.1 or later") {
			t.Errorf("%s: the message does not name the floor: %s", command, said)
		}
	}
	r, err := hp.Try("-j", "doctor")
	if err != nil || r.Code != 1 || !strings.Contains(r.Stdout, `"level":"problem","check":"kernel","code":"kernel-too-old"`) {
		t.Errorf("doctor: %+v, %v", r, err)
	}
}
