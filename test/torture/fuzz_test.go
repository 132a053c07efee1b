// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

var fuzz = scenario{
	number: 7, name: "Mutated frames through both programs, IPv4 and IPv6",
	demanded: "0 frames with a wrong answer: a wrong verdict, a wrong checksum, a field that no translation changes, a connection that no packet opens, an inside address on the WAN, a change of state by another interface",
	run:      mutate,
}

// fuzzSeed makes the frames of two runs the same.
const fuzzSeed = 1

// mutate runs TestMutations, which needs single runs of the programs instead of a network.
func mutate(t *trial) figures {
	executions := t.choose(120_000, 500_000, 500_000_000)
	run := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-v", "-timeout=0", "-run=^TestMutations$", "hairpin/test/program",
		"-args", "-executions="+strconv.Itoa(executions), "-seed="+strconv.Itoa(fuzzSeed))
	began := time.Now()
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(run.Args, " "), err, out)
	}
	// Without a test of this name the command succeeds, too.
	if done := fmt.Sprintf("%d executions, seed %d", executions, fuzzSeed); !strings.Contains(string(out), done) {
		t.Fatalf("%s does not say %q:\n%s", strings.Join(run.Args, " "), done, out)
	}
	return figures{measured: fmt.Sprintf("%d runs, seed %d: 0 wrong; %d a second", executions, fuzzSeed, int(float64(executions)/time.Since(began).Seconds()))}
}
