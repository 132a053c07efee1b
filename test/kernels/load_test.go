// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/features"

	"hairpin/test/lab"
)

// floor is LINUX_VERSION_CODE of the oldest kernel that hairpin takes, 6.1.
const floor = 6<<16 | 1<<8

// The kernel takes the programs, or is refused by a message that names the floor, and nothing is left.
func TestLoad(t *testing.T) {
	router := lab.NewHost(t, "router")
	other := lab.NewHost(t, "internet")
	lab.Cable(router, "wan0", other, "eth0")
	hp := lab.NewHairpin(router, "version = 1\n[interfaces]\nwan = [\"wan0\"]\n")
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	if version >= floor {
		hp.Run("attach")
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
