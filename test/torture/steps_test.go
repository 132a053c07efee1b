// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var steps = scenario{
	number: 4, name: "A fault, and a kill -9, at every step of attach, apply, save, upgrade, detach",
	demanded: "after a fault everything is as before or as after the command; after a kill each interface, the forwards, their addresses, the saved file are; " +
		"the command then works; the lock is free; no temporary file or pin is left",
	run: stepOften,
}

// bpfReads are the commands of bpf(2) that change nothing: look-ups, lists of ids, descriptors of objects, queries.
var bpfReads = []int{
	unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_GET_NEXT_KEY, unix.BPF_OBJ_GET, unix.BPF_PROG_GET_NEXT_ID, unix.BPF_MAP_GET_NEXT_ID,
	unix.BPF_PROG_GET_FD_BY_ID, unix.BPF_MAP_GET_FD_BY_ID, unix.BPF_OBJ_GET_INFO_BY_FD, unix.BPF_PROG_QUERY, unix.BPF_BTF_GET_FD_BY_ID,
	unix.BPF_TASK_FD_QUERY, unix.BPF_BTF_GET_NEXT_ID, unix.BPF_MAP_LOOKUP_BATCH, unix.BPF_LINK_GET_FD_BY_ID, unix.BPF_LINK_GET_NEXT_ID,
}

// bpfDecides are the commands of bpf(2) after which packets are handled in another way: a batch of entries, links.
var bpfDecides = []int{unix.BPF_MAP_UPDATE_BATCH, unix.BPF_LINK_CREATE, unix.BPF_LINK_UPDATE, unix.BPF_LINK_DETACH}

// changesAnything reports whether a step may change something. A kill at another step is a kill at the next step that does.
func changesAnything(s lab.Step) bool { return s.BPF < 0 || !slices.Contains(bpfReads, s.BPF) }

// faults are the errors by which steps fail, in turn.
var faults = []unix.Errno{unix.EPERM, unix.ENOSPC, unix.ENOMEM}

// rejected is the error of the verifier. Every later program is rejected, too.
const rejected = unix.EACCES

// ordeal is a command that is disturbed at its steps.
type ordeal struct {
	name    string
	args    []string
	prepare func(s *stepping) // makes the state before the command
	serves  bool              // afterwards the router forwards
	apart   bool              // after a fault, too, each part is by itself: what can be taken off is taken off
}

var ordeals = []ordeal{
	{"attach", []string{"attach"}, func(s *stepping) { s.hp.Run("detach", "--all") }, true, false},
	{"apply", []string{"apply"}, func(s *stepping) {
		s.attach()
		s.hp.Write(home.Config("tc", strings.Replace(home.Forwards, `port = "53"`, `port = "54"`, 1)))
	}, true, false},
	{"save", []string{"save"}, func(s *stepping) {
		s.attach()
		s.hp.Run("forward", "add", "late", "tcp", "8443", "to", lab.Server+":8080")
	}, true, false},
	{"upgrade", []string{"upgrade"}, (*stepping).attach, true, false},
	{"detach", []string{"detach"}, (*stepping).attach, false, true},
	{"detach --all", []string{"detach", "--all"}, (*stepping).attach, false, true},
}

// stepping is a router without a daemon.
type stepping struct {
	t  *trial
	n  *lab.Network
	hp *lab.Hairpin

	programs map[string]string // on each interface before the command

	steps         int // that there are to be disturbed
	kills, faults int // that have hit
	missed        int // disturbances that have not
	mixed         int // states
	stuck         int // commands that did not work afterwards
	left          int // temporary files and pins
}

// attach makes the router run home.Forwards, whatever it ran before.
func (s *stepping) attach() {
	s.t.Helper()
	s.hp.Write(home.Config("tc", home.Forwards))
	s.check(os.RemoveAll(s.dropIns()))
	s.hp.Run("attach")
	s.hp.Run("apply")
}

func (s *stepping) dropIns() string { return filepath.Join(filepath.Dir(s.hp.File), "forwards.d") }

func (s *stepping) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// state is what a user sees, part by part.
type state map[string]string

// look returns the state now.
func (s *stepping) look() state {
	s.t.Helper()
	now := make(state)
	show, err := s.hp.Try("--json", "forward", "show")
	s.check(err)
	var running home.Document
	if show.Code == 0 {
		s.check(json.Unmarshal([]byte(show.Stdout), &running))
	}
	now["forwards"] = fmt.Sprintf("exit code %d", show.Code)
	for _, f := range running.Forwards {
		now["forwards"] += fmt.Sprintf("; %s %v %s to %s %s %v", f.Name, f.Protocol, f.Port, f.Target, f.Reflect, f.From)
		if len(f.Listens) > 0 { // otherwise the forward takes no packet, as before it was there
			now["addresses"] += fmt.Sprintf("; %s %s %v", f.Name, f.External, f.Listens)
		}
	}
	for dev, programs := range s.attached() {
		now[dev] = programs
		if programs != "" {
			now[dev] = fmt.Sprintf("attached, programs of before: %v", programs == s.programs[dev])
		}
	}
	if _, err := os.Lstat(filepath.Join(s.hp.Dir, "datapath")); err == nil {
		now["datapath"] = "pinned"
	}
	saved, err := filepath.Glob(filepath.Join(s.dropIns(), "*.toml"))
	s.check(err)
	for _, path := range saved {
		text, err := os.ReadFile(path)
		s.check(err)
		now["saved"] += path + "\n" + string(text)
	}
	return now
}

// attached returns the programs of each interface; "": none.
func (s *stepping) attached() map[string]string {
	s.t.Helper()
	all := make(map[string]string)
	for _, dev := range []string{"wan0", "lan0", "lan1", "lo"} {
		all[dev] = ""
		if tc, xdp := s.n.Router.Attached(dev); len(tc) != 0 || xdp != 0 {
			all[dev] = fmt.Sprint(tc, xdp)
		}
	}
	return all
}

// mixedParts returns the parts that are neither as before nor as after. If together is set, all parts must be of one state.
func (now state) mixedParts(before, after state, together bool) (list []string) {
	for part := range maps.Keys(union3(now, before, after)) {
		if now[part] != before[part] && now[part] != after[part] {
			list = append(list, fmt.Sprintf("%s: %q, was %q, becomes %q", part, now[part], before[part], after[part]))
		}
	}
	if together && len(list) == 0 && !maps.Equal(now, before) && !maps.Equal(now, after) {
		list = append(list, fmt.Sprintf("partly before, partly after: %v", now))
	}
	return list
}

func union3(states ...state) state {
	all := make(state)
	for _, s := range states {
		maps.Copy(all, s)
	}
	return all
}

// ready brings the router into the state before the command.
func (s *stepping) ready(o ordeal) state {
	s.t.Helper()
	o.prepare(s)
	s.programs = s.attached()
	return s.look()
}

// walk goes through a command: a kill and a fault at each chosen step.
func (s *stepping) walk(o ordeal) {
	s.t.Helper()
	before := s.ready(o)
	var all []lab.Step
	r, _, err := s.hp.Steps(func(step lab.Step) lab.Fate {
		all = append(all, step)
		return lab.Happens
	}, o.args...)
	s.check(err)
	if r.Code != 0 {
		s.t.Fatalf("hairpin %s by steps: exit code %d\n%s", o.name, r.Code, r.Stderr)
	}
	after := s.look()
	chosen := s.choose(all)
	for i, d := range chosen {
		if now := s.ready(o); !maps.Equal(now, before) {
			s.t.Fatalf("%s is not prepared: %v, was %v", o.name, now, before)
		}
		s.disturb(o, d, before, after)
		if s.mixed > 5 {
			return
		}
		s.t.progress(i+1, len(chosen), "steps of "+o.name)
	}
}

// disturbance is what happens to the step that is the nth of its kind: the numbers of the steps differ a little from run to run.
type disturbance struct {
	kind string
	nth  int
	fate lab.Fate
}

func kindOf(step lab.Step) string { return fmt.Sprint(step.Call, step.BPF) }

// choose returns disturbances for the steps of a command. The long form kills at each step that changes something, and lets it fail; of
// the other steps every twentieth fails. The full form takes an even spread of these steps, and kills and faults in turn. The short form
// has one disturbance for each command, and only at renames and at the commands of bpfDecides. The commands take turns: one gets a fault at
// the middle one of these steps, the next is killed at the last one.
func (s *stepping) choose(all []lab.Step) (list []disturbance) {
	seen := make(map[string]int)
	var fates [][]disturbance // of each step
	for i, step := range all {
		kind := kindOf(step)
		seen[kind]++
		fault := lab.Fate(faults[i%len(faults)])
		if step.BPF == unix.BPF_PROG_LOAD {
			fault = lab.Fate(rejected)
		}
		switch {
		case s.t.scale <= short && !slices.Contains(bpfDecides, step.BPF) && !strings.HasPrefix(step.Call, "rename"):
		case changesAnything(step):
			fates = append(fates, []disturbance{{kind, seen[kind], lab.Killed}, {kind, seen[kind], fault}})
		case i%20 == 0:
			fates = append(fates, []disturbance{{kind, seen[kind], fault}})
		}
	}
	list = slices.Concat(fates...)
	s.steps += len(list)
	switch s.t.scale {
	case brief, short:
		if s.faults > s.kills {
			return fates[len(fates)-1][:1]
		}
		return fates[len(fates)/2][1:]
	case full:
		return spread(fates, min(fullSteps, len(list)))
	default:
		return list
	}
}

// spread takes disturbances evenly from the steps, at most this many. Kills and faults take turns.
func spread(fates [][]disturbance, count int) (some []disturbance) {
	for i := range count {
		of := fates[i*len(fates)/count]
		if d := of[i%len(of)]; !slices.Contains(some, d) {
			some = append(some, d)
		}
	}
	return some
}

// A full form with kills only would prove nothing about faults.
func TestSpread(t *testing.T) {
	for _, steps := range []int{1, 5, 6, 11, 12, 22, 33, 153, 500} {
		var fates [][]disturbance
		for i := range steps {
			fates = append(fates, []disturbance{{"step", i, lab.Killed}, {"step", i, lab.Fate(unix.EPERM)}})
		}
		count := min(fullSteps, 2*steps)
		some := spread(fates, count)
		kills := 0
		for _, d := range some {
			if d.fate == lab.Killed {
				kills++
			}
		}
		if len(some) != count || 2*kills-count < 0 || 2*kills-count > 1 {
			t.Errorf("%d steps: %d disturbances, %d of them kills, want %d, and half of them kills", steps, len(some), kills, count)
		}
		if last := some[len(some)-1].nth; last < steps-1-steps/count {
			t.Errorf("%d steps: the last disturbance is at step %d", steps, last)
		}
	}
}

// fullSteps is the number of disturbances of a command in the full form.
const fullSteps = 11

// disturb runs the command with a disturbance, and looks at what it leaves.
func (s *stepping) disturb(o ordeal, d disturbance, before, after state) {
	s.t.Helper()
	var hit lab.Step
	nth := 0
	r, _, err := s.hp.Steps(func(step lab.Step) lab.Fate {
		if kindOf(step) != d.kind {
			return lab.Happens
		}
		if nth++; nth == d.nth {
			hit = step
		}
		if nth == d.nth || d.fate == lab.Fate(rejected) && nth > d.nth {
			return d.fate
		}
		return lab.Happens
	}, o.args...)
	s.check(err)
	if hit.Number == 0 {
		s.missed++ // the command had fewer steps this time
		s.t.Logf("%s had no step %d of %s", o.name, d.nth, d.kind)
		return
	}
	killed := d.fate == lab.Killed
	what := fmt.Sprintf("%s, %v: killed", o.name, hit)
	if killed {
		s.kills++
	} else {
		s.faults++
		what = fmt.Sprintf("%s, %v: %v, exit code %d", o.name, hit, unix.Errno(d.fate), r.Code)
	}
	now := s.look()
	if parts := now.mixedParts(before, after, !killed && !o.apart); len(parts) != 0 {
		s.mixed++
		s.t.Errorf("%s: a mixed state:\n%s\n%s", what, strings.Join(parts, "\n"), r.Stderr)
	} else if r.Code == 0 && !maps.Equal(now, after) {
		s.mixed++
		s.t.Errorf("%s: the command says that it has done its work: %v, want %v", what, now, after)
	}
	retry, err := s.hp.Try(append([]string{"--wait=0s"}, o.args...)...)
	s.check(err)
	if now := s.look(); retry.Code != 0 || !maps.Equal(now, after) {
		s.stuck++
		s.t.Errorf("%s; again: exit code %d, %v, want %v\n%s", what, retry.Code, now, after, retry.Stderr)
	}
	if left := s.leftovers(); len(left) != 0 {
		s.left += len(left)
		s.t.Errorf("%s; after the next command there are still %v", what, left)
	}
	if o.serves {
		c, err := s.n.Internet.DialTCP(lab.External+":80", "", lab.Patience)
		if err == nil {
			err = c.Echo(crowdBytes)
			c.Close()
		}
		if err != nil {
			s.t.Errorf("%s; after the next command: %v", what, err)
		}
	}
}

// leftovers returns the temporary files and pins, and the number of pins of inner maps that are in no slot.
func (s *stepping) leftovers() (list []string) {
	s.t.Helper()
	dir := filepath.Dir(s.hp.File)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		name := filepath.Base(path)
		if err == nil && (strings.HasPrefix(name, "new-") || strings.Contains(name, ".tmp") || strings.HasPrefix(name, ".")) && path != dir {
			list = append(list, path)
		}
		return err
	})
	s.check(err)
	o, err := objectsOf(s.hp.Dir)
	s.check(err)
	stale, err := o.stale(s.hp.Dir)
	s.check(err)
	if stale != 0 {
		list = append(list, fmt.Sprintf("%d pins of inner maps that are in no slot", stale))
	}
	return list
}

func stepOften(t *trial) figures {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	s := &stepping{t: t, n: n, hp: lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))}
	inside := n.Internet.WatchInside("eth0")
	s.attach() // the first command has more steps than later ones: it writes the history of changes
	for _, o := range ordeals {
		s.walk(o)
	}
	if hit := s.kills + s.faults; s.missed > hit/20 {
		t.Errorf("%d disturbances have hit a step, and %d have not", hit, s.missed)
	}
	s.attach()
	left := detached(t.T, s.hp)
	t.none(len(inside.Stop()), "packets with an inside source left by the WAN")
	return figures{
		measured: fmt.Sprintf("%d faults, %d kills, of %d that are possible: %d mixed states, %d commands did not work afterwards, %d left", s.faults, s.kills, s.steps, s.mixed, s.stuck, s.left+left),
	}
}
