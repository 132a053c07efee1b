// SPDX-License-Identifier: Apache-2.0

package control

import (
	"os"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// TestTraceWithoutPrivilege: the message names the privilege that is missing.
func TestTraceWithoutPrivilege(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	hp.Run("attach")
	for _, command := range [][]string{{"trace"}, {"watch", "conn"}} {
		r, err := n.Router.Try(append([]string{"setpriv", "--bounding-set=-sys_admin,-perfmon", lab.Binary(t), "-c", hp.File, "--bpffs", hp.Dir}, command...)...)
		if err != nil || r.Code != 2 || !strings.Contains(r.Stderr, "CAP_PERFMON") {
			t.Errorf("%v: exit code %d, %v\n%s", command, r.Code, err, r.Stderr)
		}
	}
}

// TestTracePageShowsItsSession: the page about traces has the session that TestTraceSession checks.
func TestTracePageShowsItsSession(t *testing.T) {
	session, err := os.ReadFile("../kernels/testdata/trace.txt")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../cmd/hairpin/doc/trace.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "```console\n"+string(session)+"```\n") {
		t.Error("the page has another session than test/kernels/testdata/trace.txt")
	}
}
