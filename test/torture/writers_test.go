// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var writers = scenario{
	number: 5, name: "Many commands that write at the same time, killed at random",
	demanded: "tables, saved file and expectation agree; the lock is free; no temporary file or pin is left",
	run:      writeOften,
}

// shelf is what writers write to: forwards of ports, each with a target port.
type shelf interface {
	// command returns the arguments of a command that changes the target port of a forward from had to to; 0: no such forward.
	command(port, had, to int) []string
	// run runs a command, and kills it after a time.
	run(limit time.Duration, args []string) (lab.Result, error)
	// look returns the target ports of all forwards.
	look() (map[int]int, error)
	// extra returns a command that writers run now and then, and that changes no forward; nil: there is none.
	extra() []string
	// holder returns the process that is in the middle of a change; 0: none.
	holder() int
}

const (
	// Each writer changes only forwards of its own ports. So a writer knows the target port that each of these forwards must have.
	portsPerWriter = 8
	firstPort      = 10_000
	// writerPatience is the time limit for a command that is not killed: it waits for all others.
	writerPatience = 2 * time.Minute
	extraEvery     = 10 // operations
)

// writing is the state of all writers.
type writing struct {
	t     *trial
	shelf shelf

	operations, kills int          // how many there are to be
	done, killed      atomic.Int64 // how many there were
	usual             atomic.Int64 // time that a command takes, in nanoseconds

	mu       sync.Mutex
	expected map[int]int // target ports by port
	problems []string
}

// write lets writers work at the same time, and returns when all have done their operations. Half of the kills hit any command at any
// time, half hit the command that is in the middle of a change.
func (t *trial) write(s shelf, writers, each, kills int) *writing {
	t.Helper()
	w := &writing{t: t, shelf: s, operations: writers * each, kills: kills, expected: make(map[int]int)}
	over := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() { w.killHolders(over) })
	lab.Together(writers, func(i int) {
		ports := make(map[int]int)
		for operation := range each {
			port := firstPort + i*portsPerWriter + rand.IntN(portsPerWriter)
			if err := w.operate(port, operation, ports); err != nil {
				w.complain(err)
				return
			}
			t.progress(int(w.done.Add(1)), w.operations, "operations")
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		maps.Copy(w.expected, ports)
	})
	close(over)
	killer.Wait()
	for _, problem := range w.problems {
		t.Error(problem)
	}
	return w
}

func (w *writing) complain(problem error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.problems) < 5 {
		w.problems = append(w.problems, problem.Error())
	}
}

// operate changes the forward of a port, and keeps what it must have now. A command that was killed has done everything or nothing.
func (w *writing) operate(port, operation int, ports map[int]int) error {
	if extra := w.shelf.extra(); extra != nil && operation%extraEvery == extraEvery-1 {
		if _, err := w.command(extra); err != nil {
			return err
		}
	}
	had, to := ports[port], 8080+rand.IntN(3)
	if had == to || had != 0 && rand.IntN(3) == 0 {
		to = 0
	}
	args := w.shelf.command(port, had, to)
	killed, err := w.command(args)
	if err != nil {
		return err
	}
	if killed {
		all, err := w.shelf.look()
		if err != nil {
			return err
		}
		if all[port] != had && all[port] != to {
			return fmt.Errorf("%q was killed: port %d has target %d, had %d", args, port, all[port], had)
		}
		to = all[port]
	}
	if ports[port] = to; to == 0 {
		delete(ports, port)
	}
	return nil
}

// command runs a command, and reports whether it was killed.
func (w *writing) command(args []string) (killed bool, err error) {
	limit := writerPatience
	if rand.IntN(w.operations) < w.kills/2 {
		limit = rand.N(time.Duration(w.usual.Load()) + 5*time.Millisecond)
	}
	began := time.Now()
	result, err := w.shelf.run(limit, args)
	switch {
	case err != nil:
		return false, err
	case result.Code == -1:
		w.killed.Add(1)
		return true, nil
	case result.Code != 0:
		return false, fmt.Errorf("%q: exit code %d: %s", args, result.Code, result.Stderr)
	}
	w.usual.Store((7*w.usual.Load() + int64(time.Since(began))) / 8)
	return false, nil
}

// killHolders kills half of the commands to be killed while they are in the middle of a change, evenly over the operations.
func (w *writing) killHolders(over <-chan struct{}) {
	pause := time.NewTicker(time.Millisecond)
	defer pause.Stop()
	for hit := 0; hit < w.kills/2; {
		select {
		case <-over:
			return
		case <-pause.C:
		}
		if int(w.done.Load())*w.kills/2 < hit*w.operations {
			continue
		}
		pid := w.shelf.holder()
		if pid == 0 {
			continue
		}
		select {
		case <-over:
			return
		case <-time.After(rand.N(20 * time.Millisecond)): // a random moment of the change
		}
		if w.shelf.holder() == pid && unix.Kill(pid, unix.SIGKILL) == nil {
			hit++
		}
	}
}

// hairpinShelf is the forwards of hairpin.
type hairpinShelf struct{ hp *lab.Hairpin }

func (hairpinShelf) command(port, had, to int) []string {
	name, wait := fmt.Sprintf("port%d", port), "--wait="+writerPatience.String()
	if to == 0 {
		return []string{wait, "forward", "del", name}
	}
	verb := "add"
	if had != 0 {
		verb = "replace"
	}
	return []string{wait, "forward", verb, name, "tcp", strconv.Itoa(port), "to", fmt.Sprintf("%s:%d", lab.Server, to)}
}

func (s hairpinShelf) extra() []string { return []string{"--wait=" + writerPatience.String(), "save"} }

func (s hairpinShelf) run(limit time.Duration, args []string) (lab.Result, error) {
	return s.hp.KillAfter(limit, args...)
}

func (s hairpinShelf) look() (map[int]int, error) {
	out, err := s.hp.Try("--json", "forward", "show")
	if err != nil {
		return nil, err
	}
	var shown home.Document
	if err := json.Unmarshal([]byte(out.Stdout), &shown); err != nil {
		return nil, fmt.Errorf("forward show: %w\n%s%s", err, out.Stdout, out.Stderr)
	}
	ports := make(map[int]int)
	for _, f := range shown.Forwards {
		if strings.HasPrefix(f.Name, "port") {
			add(ports, f.Name, f.Port, f.Target)
		}
	}
	return ports, nil
}

// add adds a forward. One whose name and port do not belong together gets a port that no writer expects.
func add(ports map[int]int, name, port, target string) {
	from, _ := strconv.Atoi(port)
	_, to, _ := strings.Cut(target, ":")
	if name != "port"+port {
		from = -from
	}
	ports[from], _ = strconv.Atoi(to)
}

// holder is the command that holds the writer lock.
func (s hairpinShelf) holder() int {
	var stat unix.Stat_t
	table, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Lstat(s.hp.Dir, &stat) != nil {
		return 0
	}
	id := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	for line := range strings.Lines(string(table)) {
		// proc_locks(5): NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE ...
		if fields := strings.Fields(line); len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == id {
			if pid, _ := strconv.Atoi(fields[4]); pid != s.hp.Pid() {
				return pid
			}
		}
	}
	return 0
}

// saved returns the forwards in the file that "hairpin save" writes.
func (s hairpinShelf) saved() (map[int]int, error) {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(s.hp.File), "forwards.d", "50-cli.toml"))
	if err != nil {
		return nil, err
	}
	var file struct {
		Forward []struct{ Name, Port, To string }
	}
	if err := toml.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	ports := make(map[int]int)
	for _, f := range file.Forward {
		add(ports, f.Name, f.Port, f.To)
	}
	return ports, nil
}

func writeOften(t *trial) figures {
	n := lab.NewNetwork(t)
	hp := t.start(n, "tc", home.Forwards)
	s := hairpinShelf{hp}
	w := t.write(s, t.size(8, 64), t.choose(10, 12, 100), t.choose(20, 120, 1000))

	// A last change, so that the last save writes. It waits for no other command: the lock must be free.
	const last = firstPort - 1
	hp.Run(append([]string{"--wait=2s"}, s.command(last, 0, 8080)[1:]...)...)
	w.expected[last] = 8080
	hp.Run("--wait=2s", "save")
	differ := t.compare("the tables", w.expected, s.look)
	differ += t.compare("the saved file", w.expected, s.saved)
	hp.Run("diff")
	hp.Reload()
	differ += t.compare("after a reload, the tables", w.expected, s.look)
	left := t.temporary(filepath.Dir(hp.File))
	return figures{
		measured: fmt.Sprintf("%d writers, %d operations, %d killed: %d forwards, %d differ, %d temporary files",
			t.size(8, 64), w.done.Load(), w.killed.Load(), len(w.expected), differ, left),
		nftables: t.beside(t.writeNFT),
	}
}

// compare returns the number of forwards that are not as expected.
func (t *trial) compare(what string, expected map[int]int, look func() (map[int]int, error)) (differ int) {
	t.Helper()
	have, err := look()
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return len(expected)
	}
	for port := range union(have, expected) {
		if have[port] != expected[port] {
			differ++
			t.Errorf("%s: port %d has target port %d, want %d", what, port, have[port], expected[port])
		}
	}
	return differ
}

func union(a, b map[int]int) map[int]int {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// temporary returns the number of temporary files below a directory.
func (t *trial) temporary(dir string) (count int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(entry.Name(), ".") {
			count++
			t.Errorf("temporary file %s is left", path)
		}
		return err
	})
	if err != nil {
		t.Errorf("look for temporary files: %v", err)
	}
	return count
}

// nftShelf is the same forwards in a map of nftables.
type nftShelf struct{ router *lab.Host }

func (nftShelf) command(port, had, to int) []string {
	element := func(target int) string {
		return fmt.Sprintf("element ip writers forwards { %d : %s . %d }", port, lab.Server, target)
	}
	var changes []string
	if had != 0 {
		changes = append(changes, "delete "+element(had))
	}
	if to != 0 {
		changes = append(changes, "add "+element(to))
	}
	return []string{"nft", strings.Join(changes, "; ")}
}

func (nftShelf) extra() []string { return nil }

func (nftShelf) holder() int { return 0 }

func (s nftShelf) run(limit time.Duration, args []string) (lab.Result, error) {
	return s.router.KillAfter(limit, args...)
}

func (s nftShelf) look() (map[int]int, error) {
	out, err := s.router.Try("nft", "-j", "list", "map", "ip", "writers", "forwards")
	if err != nil {
		return nil, err
	}
	var list struct {
		Nftables []struct {
			Map *struct {
				Elem [][2]json.RawMessage
			}
		}
	}
	if err := json.Unmarshal([]byte(out.Stdout), &list); err != nil {
		return nil, fmt.Errorf("list map: %w\n%s%s", err, out.Stdout, out.Stderr)
	}
	ports := make(map[int]int)
	for _, entry := range list.Nftables {
		if entry.Map == nil {
			continue
		}
		for _, element := range entry.Map.Elem {
			var port int
			var target struct{ Concat []any }
			if err := json.Unmarshal(element[0], &port); err != nil {
				return nil, err
			}
			if err := json.Unmarshal(element[1], &target); err != nil {
				return nil, err
			}
			if i := slices.IndexFunc(target.Concat, func(part any) bool { _, number := part.(float64); return number }); i >= 0 {
				ports[port] = int(target.Concat[i].(float64))
			}
		}
	}
	return ports, nil
}

// writeNFT lets as many writers change a map of nftables, and returns the figure. nftables has no saved file.
func (t *trial) writeNFT() string {
	t.Helper()
	n := lab.NewNetwork(t)
	n.Router.RunInput(`table ip writers {
		map forwards {
			type inet_service : ipv4_addr . inet_service
		}
	}`, "nft", "-f", "-")
	s := nftShelf{n.Router}
	w := t.write(s, t.size(8, 64), t.choose(10, 12, 100), 2*t.choose(20, 120, 1000)) // twice: half of the kills need a holder of a lock
	differ := t.compare("the map of nftables", w.expected, s.look)
	return fmt.Sprintf("%d operations, %d killed: %d forwards, %d differ in the kernel; it saves nothing", w.done.Load(), w.killed.Load(), len(w.expected), differ)
}
