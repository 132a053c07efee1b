// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

var base = flag.String("base", "", "object that TestDifferential compares this tree's with, itself by default; its maps have to be the same, but for what the programs alone use")

// fateMap holds the time and the state of the random numbers that decreed programs see.
const fateMap = "fate"

// decree replaces what the programs of spec ask of the clock and of chance: both come from fateMap. A replacement has one
// instruction, as what it replaces, so that no jump has to be changed.
func decree(spec *ebpf.CollectionSpec) {
	const now, random = "fate_now", "fate_random"
	spec.Maps[fateMap] = &ebpf.MapSpec{Name: fateMap, Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE}
	replaced := map[asm.BuiltinFunc]string{
		asm.FnJiffies64: now, asm.FnKtimeGetCoarseNs: now, asm.FnKtimeGetNs: now, asm.FnGetPrandomU32: random,
	}
	begin := func(name string, program *ebpf.ProgramSpec) asm.Instruction {
		// The kernel wants a source line of every function.
		fate := asm.LoadMapValue(asm.R1, 0, 0).WithReference(fateMap).WithSymbol(name).WithSource(program.Instructions[0].Source())
		proto := &btf.FuncProto{Return: &btf.Int{Name: "u64", Size: 8}}
		return btf.WithFuncMetadata(fate, &btf.Func{Name: name, Type: proto, Linkage: btf.StaticFunc})
	}
	for _, program := range spec.Programs {
		used := map[string]bool{}
		for i, ins := range program.Instructions {
			if name := replaced[asm.BuiltinFunc(ins.Constant)]; name != "" && ins.IsBuiltinCall() {
				call := asm.Instruction{OpCode: ins.OpCode, Src: asm.PseudoCall, Constant: -1}
				program.Instructions[i] = call.WithMetadata(ins.Metadata).WithReference(name)
				used[name] = true
			}
		}
		if used[now] {
			program.Instructions = append(program.Instructions, begin(now, program),
				asm.LoadMem(asm.R0, asm.R1, 0, asm.DWord), asm.Return())
		}
		if used[random] { // Knuth's linear congruential generator
			program.Instructions = append(program.Instructions, begin(random, program),
				asm.LoadMem(asm.R0, asm.R1, 8, asm.DWord),
				asm.LoadImm(asm.R2, 6364136223846793005, asm.DWord), asm.Mul.Reg(asm.R0, asm.R2), asm.Add.Imm(asm.R0, 1),
				asm.StoreMem(asm.R1, 8, asm.R0, asm.DWord), asm.RSh.Imm(asm.R0, 32), asm.Return())
		}
	}
}

// decreed is the same router with programs and tables of its own, which see the time and the random numbers that foretell sets.
type decreed struct {
	*executor
	fate *ebpf.Memory
}

// newDecreed loads spec into x's router. Both sets of programs share the maps that the control plane writes.
func newDecreed(tb testing.TB, x *executor, spec *ebpf.CollectionSpec) decreed {
	tb.Helper()
	decree(spec)
	own := *x.b.Rig
	b := &bench{Rig: &own, narrow: x.b.narrow}
	shared := map[string]*ebpf.Map{
		bpf.HairpinMapLive: b.Objects.Live, bpf.HairpinMapRoutes: b.Objects.Routes, bpf.HairpinMapSettings: b.Objects.Settings,
		bpf.HairpinMapExternals: b.Objects.Externals, bpf.HairpinMapMaybeExternal: b.Objects.MaybeExternal, bpf.HairpinMapMaybePorts: b.Objects.MaybePorts,
		bpf.HairpinMapForwards: b.Objects.Forwards, bpf.HairpinMapAllow: b.Objects.Allow, bpf.HairpinMapStandIns: b.Objects.StandIns,
		bpf.HairpinMapOrigins: b.Objects.Origins, bpf.HairpinMapListeners: b.Objects.Listeners, bpf.HairpinMapEpochs: b.Objects.Epochs,
		bpf.HairpinMapTargets: b.Objects.Targets, bpf.HairpinMapOwnAddresses: b.Objects.OwnAddresses, bpf.HairpinMapInterfaces: b.Objects.Interfaces,
		bpf.HairpinMapPolicies: b.Objects.Policies, bpf.HairpinMapDenied: b.Objects.Denied, bpf.HairpinMapDeniedNets: b.Objects.DeniedNets,
		bpf.HairpinMapTxPorts: b.Objects.TxPorts, bpf.HairpinMapSecrets: b.Objects.Secrets, bpf.HairpinMapTables: b.Objects.Tables,
	}
	for name := range shared {
		if spec.Maps[name] == nil {
			delete(shared, name) // an older object
			continue
		}
		spec.Maps[name].Contents = nil // would be written into what is shared
	}
	for name, table := range map[string]*ebpf.Map{
		bpf.HairpinMapConns4: b.Objects.Conns4, bpf.HairpinMapConns6: b.Objects.Conns6, bpf.HairpinMapPlaces: b.Objects.Places,
		bpf.HairpinMapScratchPackets: b.Objects.ScratchPackets,
	} {
		spec.Maps[name].MaxEntries = table.MaxEntries()
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		tb.Fatalf("load: %+v", err)
	}
	tb.Cleanup(collection.Close)
	fate, err := collection.Maps[fateMap].Memory()
	lab.Must(err)
	d := decreed{&executor{family: x.family, b: b, sides: x.sides}, fate}
	b.Objects = bpf.HairpinObjects{}
	if err := collection.Assign(&b.Objects); err != nil {
		tb.Fatalf("its maps are not those of this tree: %v", err)
	}
	tb.Cleanup(func() { b.Objects.Close() })
	b.Tables = maps.New(&b.Objects)
	for index := range x.b.Objects.Rings.MaxEntries() {
		var ring bpf.HairpinRing
		lab.Must(x.b.Objects.Rings.Lookup(index, &ring))
		lab.Must(b.Objects.Rings.Put(index, ring))
	}
	page, err := ebpf.NewMap(spec.Maps[bpf.HairpinMapForwardStats].InnerMap)
	lab.Must(err)
	tb.Cleanup(func() { page.Close() })
	lab.Must(b.Objects.ForwardStats.Put(uint32(0), page))
	for i := range d.out {
		d.out[i] = make([]byte, longestFrame+1024)
	}
	d.context = [2][]byte{make([]byte, 192), make([]byte, 24)}
	return d
}

func (d decreed) foretell(now time.Duration, random uint64) error {
	fate := binary.NativeEndian.AppendUint64(nil, uint64(now))
	_, err := d.fate.WriteAt(binary.NativeEndian.AppendUint64(fate, random), 0)
	return err
}

// left is all that the programs have left in their tables, by name and key.
func (d decreed) left() (map[string]string, error) {
	all := map[string]string{}
	o := &d.b.Objects
	for name, m := range map[string]*ebpf.Map{
		"conns4": o.Conns4, "conns6": o.Conns6, "rings": o.Rings, "places": o.Places, "hops": o.Hops,
		"sources": o.Sources, "loads": o.Loads, "proven": o.Proven, "serials": o.Serials, "mappings": o.Mappings,
		"fragments": o.Fragments, "icmp_budgets": o.IcmpBudgets, "counters": o.Counters, "conn_events": o.ConnEvents,
	} {
		var key []byte
		value := any(new([]byte))
		if m.Type() == ebpf.PerCPUHash || m.Type() == ebpf.PerCPUArray {
			value = new([][]byte)
		}
		entries := m.Iterate()
		for entries.Next(&key, value) {
			all[fmt.Sprintf("%s %x", name, key)] = fmt.Sprintf("%x", reflect.ValueOf(value).Elem())
		}
		if err := entries.Err(); err != nil {
			return nil, fmt.Errorf("read %s: %w", m, err)
		}
	}
	return all, nil
}

// twins are both objects, in one router.
type twins struct {
	this, base decreed
	mutator
	now time.Duration
}

// compare puts a frame through both objects: the same verdict, and the same bytes.
func (w *twins) compare(at int, data []byte) error {
	switch w.IntN(4096) { // mostly packets come close together
	case 0:
		w.now += time.Duration(w.Int64N(int64(20 * time.Minute)))
	case 1, 2, 3, 4, 5, 6, 7, 8:
		w.now += time.Duration(w.Int64N(int64(20 * time.Second)))
	default:
		w.now += time.Duration(w.IntN(3)) * time.Millisecond
	}
	random := w.Uint64()
	for _, i := range []int{1, 0} {
		if i == 1 && w.sides[at].Index == loopback.Index {
			continue
		}
		var answers [2]rig.Answer
		for j, d := range []decreed{w.this, w.base} {
			if err := d.foretell(w.now, random); err != nil {
				return err
			}
			var err error
			if answers[j], err = d.run(i, w.sides[at].Port, data); err != nil {
				return err
			}
		}
		if answers[0].Code != answers[1].Code || !bytes.Equal(answers[0].Data, answers[1].Data) {
			return fmt.Errorf("%s: this object answers %d\n%x\nthe base %d\n%x",
				hooks[i].name, int32(answers[0].Code), answers[0].Data, int32(answers[1].Code), answers[1].Data)
		}
	}
	return nil
}

// compareLeft compares all tables, drop reasons among them.
func (w *twins) compareLeft() error {
	this, err := w.this.left()
	if err != nil {
		return err
	}
	base, err := w.base.left()
	if err != nil {
		return err
	}
	for key, value := range base {
		if this[key] != value {
			return fmt.Errorf("%s is %s, the base's %s", key, this[key], value)
		}
	}
	if len(this) != len(base) {
		return fmt.Errorf("%d entries, the base has %d", len(this), len(base))
	}
	return nil
}

// state runs all frames of one state: the frames that open connections, the frames of the corpus, and mutated frames.
func (w *twins) state(steps []step, count int) error {
	for _, s := range steps {
		for at, side := range w.sides {
			if side.Index == s.at.Index {
				if err := w.compare(at, s.in); err != nil {
					return fmt.Errorf("corpus, interface %d, %x: %w", at, s.in, err)
				}
			}
		}
	}
	for i := range count {
		at, data := w.next()
		if err := w.compare(at, data); err != nil {
			return fmt.Errorf("frame %d, interface %d, %x: %w", i, at, data, err)
		}
	}
	return w.compareLeft()
}

// TestDifferential runs the corpus and mutated frames through this tree's object and through another object (make fuzz BASE=object). Both
// objects get equal frames, times and random numbers. Their verdicts, output bytes and tables must be equal.
func TestDifferential(t *testing.T) {
	count, workers, families := *executions, runtime.GOMAXPROCS(0), families
	if *base == "" {
		// Enough to see that the frames alone decide.
		count, workers, families = min(count, executionsPerState), 1, families[:1]
	}
	var all sync.WaitGroup
	for worker := range workers {
		for _, f := range families {
			x := newExecutor(t, f)
			w := &twins{now: time.Hour, mutator: mutator{rand.New(rand.NewPCG(*fuzzSeed, uint64(worker))), x.samples(), x.sides}}
			this, err := bpf.LoadHairpin()
			lab.Must(err)
			w.this = newDecreed(t, x, this)
			other, err := bpf.LoadHairpin()
			if *base != "" {
				other, err = ebpf.LoadCollectionSpec(*base)
			}
			lab.Must(err)
			w.base = newDecreed(t, x, other)
			flows, corpus := x.flows(x.b), x.family.samples(x.b)
			all.Go(func() {
				for done := 0; done < count/workers/len(families) && !t.Failed(); done += executionsPerState {
					err := x.b.Router.Do(func() error {
						var cpu, before unix.CPUSet
						cpu.Set(worker)
						lab.Must(unix.SchedGetaffinity(0, &before))
						lab.Must(unix.SchedSetaffinity(0, &cpu)) // serials and counters are each CPU's own
						defer unix.SchedSetaffinity(0, &before)
						steps := flows
						if done == 0 {
							steps = append(corpus, flows...)
						}
						return w.state(steps, executionsPerState)
					})
					if err != nil {
						t.Errorf("%s, seed %d, worker %d of %d, after %d: %v", f.name, *fuzzSeed, worker, workers, done, err)
					}
					w.this.b.Forget(t)
					w.base.b.Forget(t)
				}
			})
		}
	}
	all.Wait()
}
