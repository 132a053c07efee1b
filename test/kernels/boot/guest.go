// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// guest is a machine that boots, runs tests and powers off.
type guest struct {
	arch  *arch
	image image
	tests string // archive of the root file system
	runs  []testRun
}

// lanes is the number of runs at the same time: a guest has two processors.
const lanes = 2

// alone is the lane of runs that go before those of all others: one test needs a kernel that nobody has used, others all of the processors.
const alone = -1

// testRun is one process of tests in a guest.
type testRun struct {
	lane    int // or alone
	name    string
	binary  string
	pattern string // as for go test -run
}

// outcome is the result of a run.
type outcome struct {
	ended bool
	code  int               // exit code of the run's process
	tests map[string]string // PASS, FAIL or SKIP by full name
}

// boot runs the guest until it powers off, and returns the outcomes by run. With an error, it returns the outcomes so far.
func (g guest) boot(ctx context.Context) (map[string]*outcome, error) {
	work, err := os.MkdirTemp("", "hairpin-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	initrd, err := g.initrd(ctx, work)
	if err != nil {
		return nil, err
	}
	console := filepath.Join(work, "console")
	cmd := exec.CommandContext(ctx, g.arch.qemu[0], append(g.arch.qemu[1:],
		"-accel", "tcg,thread=multi", "-smp", "2", "-m", "2G",
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(g.image.dir, kernelFile), "-initrd", initrd,
		"-append", g.arch.commandLine(),
		"-serial", "file:"+console)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	var outcomes map[string]*outcome
	if hasRun(g.runs, virtioRun) {
		outcomes, err = followWithCards(ctx, g.arch, cmd)
	} else {
		outcomes, err = follow(g.arch, cmd)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil {
		err = g.complete(outcomes)
	}
	if err != nil {
		text, _ := os.ReadFile(console)
		fmt.Printf("  console:\n%s\n", text[max(0, len(text)-8000):])
	}
	return outcomes, err
}

func hasRun(runs []testRun, name string) bool {
	return slices.ContainsFunc(runs, func(r testRun) bool { return r.name == name })
}

// follow runs qemu with an additional serial port for each lane, and reads these ports until qemu ends.
func follow(a *arch, cmd *exec.Cmd) (map[string]*outcome, error) {
	var ports []*os.File
	for lane := range lanes {
		port, end, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer port.Close()
		defer end.Close()
		ports, cmd.ExtraFiles = append(ports, port), append(cmd.ExtraFiles, end)
		cmd.Args = append(cmd.Args, a.serial(lane, fmt.Sprintf("/dev/fd/%d", 3+lane))...)
	}
	// Pdeathsig is sent when the thread that started qemu ends, so this thread must live as long as qemu.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start qemu: %w; run sudo make deps-kernels", err)
	}
	for _, end := range cmd.ExtraFiles {
		end.Close()
	}
	outcomes := make(map[string]*outcome)
	errs := make([]error, lanes)
	var listening sync.WaitGroup
	var mu sync.Mutex
	for lane, port := range ports {
		listening.Go(func() {
			heard, err := listen(port, os.Stdout)
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(outcomes, heard)
			errs[lane] = err
		})
	}
	listening.Wait()
	return outcomes, errors.Join(append(errs, cmd.Wait())...)
}

// initrd makes the guest's initrd and returns its path.
func (g guest) initrd(ctx context.Context, work string) (string, error) {
	modules, plan := filepath.Join(work, "modules.cpio"), filepath.Join(work, "plan.cpio")
	if err := pack(ctx, filepath.Join(g.image.dir, moduleRoot), modules); err != nil {
		return "", err
	}
	dir := filepath.Join(work, "plan", inGuest)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for lane := alone; lane < lanes; lane++ {
		var lines strings.Builder
		for _, r := range g.runs {
			if r.lane == lane {
				fmt.Fprintln(&lines, r.name, r.binary, r.pattern)
			}
		}
		file := filepath.Join(dir, fmt.Sprintf("plan.%d", lane+1))
		if err := os.WriteFile(file, []byte(lines.String()), 0o644); err != nil {
			return "", err
		}
	}
	if err := pack(ctx, filepath.Dir(dir), plan); err != nil {
		return "", err
	}
	file := filepath.Join(work, "initrd")
	return file, join(file, g.tests, modules, plan)
}

// complete returns an error if the guest powered off before all runs had ended.
func (g guest) complete(outcomes map[string]*outcome) error {
	for _, r := range g.runs {
		if o := outcomes[r.name]; o == nil || !o.ended {
			return fmt.Errorf("the guest ended before the tests %q", r.name)
		}
	}
	return nil
}

var (
	mark    = regexp.MustCompile(`^== (begin|end) (\S+)(?: (\d+))?$`)
	verdict = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)
	chatter = regexp.MustCompile(`^(=== |\s*--- PASS|PASS$|FAIL$)`)
)

// listen reads the output of a guest's tests until the guest powers off. It writes the progress, and the output of failed tests, to
// tell.
func listen(port io.Reader, tell io.Writer) (map[string]*outcome, error) {
	outcomes := make(map[string]*outcome)
	current := new(outcome) // for lines before the first mark
	var said []string
	began := time.Now()
	lines := bufio.NewScanner(port)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if m := mark.FindStringSubmatch(line); m != nil && m[1] == "begin" {
			current = &outcome{tests: make(map[string]string)}
			outcomes[m[2]], said, began = current, nil, time.Now()
		} else if m != nil {
			current.ended = true
			current.code, _ = strconv.Atoi(m[3])
			tellOutcome(tell, m[2], current, time.Since(began), said)
		} else if v := verdict.FindStringSubmatch(line); v != nil && current.tests != nil {
			current.tests[v[2]] = v[1]
		}
		if !chatter.MatchString(line) {
			said = append(said, line)
		}
	}
	if !current.ended {
		fmt.Fprintln(tell, strings.Join(said, "\n"))
	}
	return outcomes, lines.Err()
}

func tellOutcome(tell io.Writer, name string, o *outcome, took time.Duration, said []string) {
	if o.passed("") {
		fmt.Fprintf(tell, "  %-8s ok      %v\n", name, took.Round(time.Second))
		return
	}
	fmt.Fprintf(tell, "  %-8s FAILED  %v\n%s\n", name, took.Round(time.Second), strings.Join(said, "\n"))
}

// passed reports whether a test and its subtests ran and passed; "": all tests of the run.
func (o *outcome) passed(name string) bool {
	if o == nil {
		return false
	}
	ran := false
	for test, verdict := range o.tests {
		if name != "" && test != name && !strings.HasPrefix(test, name+"/") {
			continue
		}
		if verdict != "PASS" {
			return false
		}
		ran = ran || name == "" || test == name
	}
	return ran && (name != "" || o.ended && o.code == 0)
}
