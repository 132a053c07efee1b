// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func mustAdd(t testing.TB, tables *Tables, line string) {
	t.Helper()
	if added, err := tables.Add(mapstest.Forward(t, line)); !added || err != nil {
		t.Fatalf("add %s: %v, %v", line, added, err)
	}
}

// admits reports whether the live from lists allow a source address to use the forward with this id.
func (t *Tables) admits(tb testing.TB, id uint32, source string) bool {
	tb.Helper()
	generation, err := t.generation()
	if err != nil {
		tb.Fatal(err)
	}
	var allowed uint8
	err = mapstest.Slot(tb, t.objs.Allow, generation&1).Lookup(layout.AllowKey(id, netip.MustParsePrefix(source+"/32")), &allowed)
	return err == nil && allowed == 1
}

func TestAdd(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	old := mapstest.Config(t, "a tcp 80 to 10.0.0.1", "b tcp 203.0.113.7:81 to 10.0.0.2")
	mustApply(t, tables, old)
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"), mapstest.WAN("wan1", 3, "198.51.100.1/24"))
	before := tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
	generation, _ := tables.generation()

	lines := []string{"c tcp,udp 90-95 to 10.0.0.3:190 from 10.0.0.0/8", "d tcp 203.0.113.7:82 to 10.0.0.4", "e tcp wan1:81 to 10.0.0.5 host e.example"}
	mustAdd(t, tables, lines[0])
	mustAdd(t, tables, lines[1])
	mustAdd(t, tables.again(), lines[2])
	if now, _ := tables.generation(); now != generation+6 {
		t.Errorf("generation %d after three additions, was %d", now, generation)
	}
	for name, tables := range map[string]*Tables{"this": tables, "the next": tables.again()} {
		running, err := tables.Running()
		want := old
		for _, line := range lines {
			want.Forwards = append(slices.Clip(want.Forwards), mapstest.Forward(t, line))
		}
		if diff := cmp.Diff(want, running, mapstest.NetipValues, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("%s process reads %v (-want +got)\n%s", name, err, diff)
		}
	}
	if again := tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80"); again.EpochRef != before.EpochRef {
		t.Error("a forward that was there lost its connections")
	}
	for port := uint16(90); port < 96; port++ {
		for _, addr := range []string{"203.0.113.1", "198.51.100.1"} {
			tables.wantRoute(t, addr, port, fmt.Sprintf("10.0.0.3:%d", port+100))
		}
	}
	c, found, _ := mapstest.Route(t, tables.objs, "203.0.113.1", rule.UDP, 95)
	if !found || c.Restricted != 1 || !tables.admits(t, c.EpochRef.Id, "10.1.2.3") || tables.admits(t, c.EpochRef.Id, "11.1.2.3") {
		t.Errorf("from list of %+v (found: %v)", c, found)
	}
	tables.wantRoute(t, "203.0.113.1", 96, "")
	tables.wantRoute(t, "203.0.113.7", 82, "10.0.0.4:82")
	tables.wantRoute(t, "198.51.100.1", 81, "10.0.0.5:81")
	tables.wantRoute(t, "203.0.113.1", 81, "")
	tables.wantTargets(t, "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5")
	if roster, err := tables.again().Roster(); err != nil || len(roster.Names) != 1+5 || slices.Contains(roster.Names[1:], "") {
		t.Errorf("roster %v, %v", roster, err)
	}

	// Apply with the added forwards keeps their connections; it can remove an added forward.
	running, _ := tables.Running()
	running.Forwards = slices.DeleteFunc(slices.Clone(running.Forwards), func(f rule.Forward) bool { return f.Name == "d" })
	if change := mustApply(t, tables.again(), running); fmt.Sprint(change.Removed) != "[d]" || change.Unchanged != 4 {
		t.Errorf("change %+v", change)
	}
	tables.wantRoute(t, "203.0.113.7", 82, "")
	if again := tables.wantRoute(t, "203.0.113.1", 90, "10.0.0.3:190"); again.EpochRef != c.EpochRef || !tables.admits(t, again.EpochRef.Id, "10.1.2.3") {
		t.Errorf("%+v, was %+v", again, c)
	}
}

// TestWhatIsNotSimpleIsLeftToApply: Add returns false for forwards that it cannot add, and changes nothing.
func TestWhatIsNotSimpleIsLeftToApply(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	if added, err := tables.Add(mapstest.Forward(t, "x tcp 80 to 10.0.0.1")); added || !errors.Is(err, ErrEmpty) {
		t.Errorf("fresh maps: %v, %v", added, err)
	}
	base := mapstest.Config(t, "a tcp 100-200 to 10.0.0.1 host a.example", "b udp wan0:any to 10.0.0.1", "c tcp 203.0.113.7:80 to 10.0.0.1", "gre gre wan1:any to 10.0.0.1")
	mustApply(t, tables, base)
	generation, _ := tables.generation()
	for name, f := range map[string]rule.Forward{
		"the name":                    mapstest.Forward(t, "a tcp 80 to 10.0.0.2"),
		"a port of a range":           mapstest.Forward(t, "x tcp 150 to 10.0.0.2"),
		"a port of an interface's":    mapstest.Forward(t, "x tcp wan1:150 to 10.0.0.2"),
		"every port":                  mapstest.Forward(t, "x tcp any to 10.0.0.2"),
		"a port of a 1:1 forward":     mapstest.Forward(t, "x tcp,udp wan0:80 to 10.0.0.2"),
		"a protocol":                  mapstest.Forward(t, "x gre any to 10.0.0.2"),
		"any protocol":                mapstest.Forward(t, "x any 203.0.113.7:any to 10.0.0.2"),
		"an address of its own":       mapstest.Forward(t, "x tcp 203.0.113.8:80 to 10.0.0.2"),
		"an unknown interface":        mapstest.Forward(t, "x tcp wan7:80 to 10.0.0.2"),
		"a target that is external":   mapstest.Forward(t, "x tcp 80 to 203.0.113.7"),
		"a host of another":           mapstest.Forward(t, "x tcp 80 to 10.0.0.2 host a.example"),
		"a mode without its networks": mapstest.Forward(t, "x tcp 80 to 10.0.0.2 reflect prefix"),
		"no mode":                     {Name: "x", Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: 80, Last: 80}, Target: netip.MustParseAddr("10.0.0.2"), Reflect: "none"},
		"no target":                   {Name: "x", Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: 80, Last: 80}},
		"an intercept":                {Name: "x", Protocols: []rule.Protocol{rule.UDP}, Ports: rule.Ports{First: 53, Last: 53}, Target: netip.MustParseAddr("10.0.0.2"), Intercept: true},
	} {
		if added, err := tables.Add(f); added || err != nil {
			t.Errorf("%s: %v, %v", name, added, err)
		}
	}
	if now, _ := tables.generation(); now != generation {
		t.Errorf("generation %d, was %d", now, generation)
	}
	for _, line := range []string{"x tcp 99 to 10.0.0.2", "y udp wan1:any to 10.0.0.2", "z tcp 203.0.113.7:81 to 10.0.0.2", "v6 tcp 150 to fd00::2", "g gre wan0:any to 10.0.0.2"} {
		mustAdd(t, tables, line)
	}
}

// TestAnAdditionThatWasKilledIsMadeOrNot kills Add before each of its steps. The forward must be added completely or not at
// all.
func TestAnAdditionThatWasKilledIsMadeOrNot(t *testing.T) {
	t.Parallel()
	const line = "new tcp,udp 90-95 to 10.0.0.9 from 10.0.0.0/8"
	links := []config.Interface{mapstest.WAN("wan0", 2, "203.0.113.1/24")}
	recoveries := map[string]func(*Tables){
		"the daemon":     func(tables *Tables) { mustSetInterfaces(t, tables, links...) },
		"an addition":    func(tables *Tables) { mustAdd(t, tables, "other tcp 99 to 10.0.0.3 from 172.16.0.0/12") },
		"an application": func(tables *Tables) { c, _ := tables.Running(); c.Digest = "x"; mustApply(t, tables, c) },
	}
	for name, recover := range recoveries {
		for step := 0; ; step++ {
			tables := newTables(t, mapstest.SmallSpec(t))
			mustApply(t, tables, mapstest.Config(t, "keep tcp 80 to 10.0.0.1 from 192.168.0.0/16"))
			mustSetInterfaces(t, tables, links...)
			keep := tables.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80")
			at, killed := 0, false
			tables.step = func(_ string, do func() error) error {
				if at++; at > step {
					killed = true
					return errKilled
				}
				return do()
			}
			_, err := tables.Add(mapstest.Forward(t, line))
			if killed != errors.Is(err, errKilled) {
				t.Fatalf("step %d: %v", step, err)
			}

			after := tables.again()
			running, err := after.Running()
			if err != nil {
				t.Fatal(err)
			}
			recover(after)
			want := ""
			if len(running.Forwards) == 2 {
				want = "10.0.0.9:92"
			}
			f := after.wantRoute(t, "203.0.113.1", 92, want)
			if want != "" && (!after.admits(t, f.EpochRef.Id, "10.1.1.1") || after.admits(t, f.EpochRef.Id, "172.16.1.1")) {
				t.Errorf("%s, step %d: not the from list of the addition", name, step)
			}
			if other, found, _ := mapstest.Route(t, after.objs, "203.0.113.1", rule.TCP, 99); found &&
				(other.EpochRef.Id == f.EpochRef.Id || after.admits(t, other.EpochRef.Id, "10.1.1.1") || !after.admits(t, other.EpochRef.Id, "172.16.1.1")) {
				t.Errorf("%s, step %d: not the from list of the other one", name, step)
			}
			if again := after.wantRoute(t, "203.0.113.1", 80, "10.0.0.1:80"); again.EpochRef != keep.EpochRef {
				t.Errorf("%s, step %d: a forward that was there lost its connections", name, step)
			}
			if doc, _, err := after.again().running(); err != nil || !slices.ContainsFunc(doc.Config.Forwards, func(f rule.Forward) bool { return f.Name == "keep" }) {
				t.Errorf("%s, step %d: %+v, %v", name, step, doc, err)
			} else if finished, err := after.isFinished(doc); !finished || err != nil {
				t.Errorf("%s, step %d: recovery left something undone (%v)", name, step, err)
			}
			if !killed {
				t.Logf("%d steps", step)
				break
			}
		}
	}
}

// TestAdditionsFillTheirRoom: after AdditionsRoom additions, Add returns false. Apply then makes room for more.
func TestAdditionsFillTheirRoom(t *testing.T) {
	spec := mapstest.SmallSpec(t)
	spec.Maps[bpf.HairpinMapEpochs].MaxEntries = 512
	tables := newTables(t, spec)
	c := mapstest.Config(t)
	mustApply(t, tables, c)
	for i := range compile.AdditionsRoom {
		mustAdd(t, tables, fmt.Sprintf("f%d tcp %d to 10.0.0.1", i, 1000+i))
	}
	last := mapstest.Forward(t, "last tcp 999 to 10.0.0.1")
	if added, err := tables.Add(last); added || err != nil {
		t.Errorf("one more: %v, %v", added, err)
	}
	running, err := tables.again().Running()
	if err != nil || len(running.Forwards) != compile.AdditionsRoom {
		t.Fatalf("%d forwards, %v", len(running.Forwards), err)
	}
	running.Forwards = append(running.Forwards, last)
	mustApply(t, tables, running)
	mustAdd(t, tables.again(), "next tcp 998 to 10.0.0.1")
	mustSetInterfaces(t, tables, mapstest.WAN("wan0", 2, "203.0.113.1/24"))
	for _, port := range []uint16{998, 999, 1000, 1000 + compile.AdditionsRoom - 1} {
		tables.wantRoute(t, "203.0.113.1", port, fmt.Sprintf("10.0.0.1:%d", port))
	}
	doc, _, err := tables.again().running()
	if err != nil || doc.Entries != 2*len(doc.EpochRefs) { // one entry for each of the two WAN interfaces
		t.Errorf("%d entries of %d forwards, %v", doc.Entries, len(doc.EpochRefs), err)
	}
}

// TestFullTriesTakeNoAddition: Add must check the room in the tries before the forward is in the document.
func TestFullTriesTakeNoAddition(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	mustApply(t, tables, mapstest.Config(t, "a tcp 80 to 10.0.0.1"))
	running, _, err := tables.outline()
	if err != nil {
		t.Fatal(err)
	}
	running.Entries = 4194304 - 3
	if got, err := tables.extend(running, mapstest.Forward(t, "b tcp 82-83 to 10.0.0.1")); got == nil || err != nil {
		t.Errorf("two entries, and room for three: %v, %v", got, err)
	}
	if got, err := tables.extend(running, mapstest.Forward(t, "b tcp 81-82 to 10.0.0.1")); got != nil || err != nil {
		t.Errorf("four entries, and room for three: %v, %v", got, err)
	}
}

// TestReadersSeeAdditionsInOrder: readers without a lock see whole additions only, in their order.
func TestReadersSeeAdditionsInOrder(t *testing.T) {
	t.Parallel()
	spec := mapstest.SmallSpec(t)
	spec.Maps[bpf.HairpinMapEpochs].MaxEntries = 1024
	tables := newTables(t, spec)
	mustApply(t, tables, mapstest.Config(t))
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			c, err := tables.again().Running()
			for i, f := range c.Forwards {
				if f.Name != fmt.Sprintf("f%d", i) {
					err = errors.Join(err, fmt.Errorf("forward %d is %s", i, f.Name))
				}
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	for i := range 200 {
		f := mapstest.Forward(t, fmt.Sprintf("f%d tcp %d to 10.0.0.1", i, 1000+i))
		added, err := tables.Add(f)
		if err != nil {
			t.Fatal(err)
		}
		if !added {
			c, _ := tables.Running()
			c.Forwards = append(c.Forwards, f)
			mustApply(t, tables, c)
		}
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Error(err)
	}
	if c, err := tables.again().Running(); err != nil || len(c.Forwards) != 200 {
		t.Errorf("%d forwards, %v", len(c.Forwards), err)
	}
}

// TestAddDoesWhatApplyDoes adds random forwards to two datapaths, to one with Add and to the other with Apply. The target
// of every port must be equal.
func TestAddDoesWhatApplyDoes(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	const last = 24
	pick := func(words ...string) string { return words[random.IntN(len(words))] }
	links := []config.Interface{mapstest.WAN("wan0", 2, "203.0.113.1/24"), mapstest.WAN("wan1", 3, "198.51.100.1/24")}
	added := 0
	for range 6 {
		fast, slow := newTables(t, mapstest.SmallSpec(t)), newTables(t, mapstest.SmallSpec(t))
		c := mapstest.Config(t, "base tcp 203.0.113.1:5 to 10.0.0.1")
		mustApply(t, fast, c)
		mustApply(t, slow, c)
		mustSetInterfaces(t, fast, links...)
		mustSetInterfaces(t, slow, links...)
		for i := range 12 {
			first := 1 + random.IntN(last)
			ports := fmt.Sprintf("%d-%d", first, min(last, first+random.IntN(6)))
			f := mapstest.Forward(t, fmt.Sprintf("f%d %s %s%s to 10.0.1.%d", i, pick("tcp", "udp", "tcp,udp"), pick("", "wan0:", "wan1:", "203.0.113.1:"), ports, i+1))
			next := c
			if next.Forwards = append(slices.Clip(c.Forwards), f); next.Validate() != nil {
				if done, err := fast.Add(f); done || err != nil {
					t.Fatalf("%s beside %v: %v, %v", f, c.Forwards, done, err)
				}
				continue
			}
			c = next
			mustApply(t, slow, c)
			done, err := fast.Add(f)
			if err != nil {
				t.Fatal(err)
			}
			if done {
				added++
			} else {
				mustApply(t, fast, c)
			}
			for _, addr := range []string{"203.0.113.1", "198.51.100.1"} {
				for port := range uint16(last + 2) {
					for _, protocol := range []rule.Protocol{rule.TCP, rule.UDP} {
						got, found, lives := mapstest.Route(t, fast.objs, addr, protocol, port)
						want, there, _ := mapstest.Route(t, slow.objs, addr, protocol, port)
						if found != there || found && (!lives || got.Target != want.Target || got.PortShift != want.PortShift) {
							t.Fatalf("%s %s:%d of %v: %+v (%v), want %+v (%v)", protocol, addr, port, c.Forwards, got, found, want, there)
						}
					}
				}
			}
		}
	}
	if added < 10 {
		t.Errorf("only %d were added in place", added)
	}
}
