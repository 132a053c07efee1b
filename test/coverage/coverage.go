// SPDX-License-Identifier: Apache-2.0

// Package coverage finds out which lines of the C code run. The kernel does not count the lines of a BPF program, so the package adds
// a probe to each basic block before the program is loaded. A probe is a store of 1 into a map. A basic block runs as a whole, so all
// lines that have code in it have run.
package coverage

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Line is a line of a C file.
type Line struct {
	File   string // without its directory
	Number uint32
}

// String returns "file:number".
func (l Line) String() string { return fmt.Sprintf("%s:%d", l.File, l.Number) }

// Probes are the probes of some programs.
type Probes struct {
	blocks [][]Line        // the lines of each probe's block
	first  map[string]int  // number of the first probe of a program
	text   map[Line]string // of the lines
	blind  map[Line]bool   // lines of blocks that have no place for a probe
	marks  *ebpf.Map
}

// size is the highest number of probes.
const size = 1 << 16

// New returns probes for programs.
func New() (*Probes, error) {
	marks, err := ebpf.NewMap(&ebpf.MapSpec{Name: "coverage", Type: ebpf.Array, KeySize: 4, ValueSize: size, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("create the map of the probes: %w", err)
	}
	return &Probes{first: make(map[string]int), text: make(map[Line]string), blind: make(map[Line]bool), marks: marks}, nil
}

// Close closes the map of the probes.
func (p *Probes) Close() error { return p.marks.Close() }

// Text returns the text of a line.
func (p *Probes) Text(l Line) string { return p.text[l] }

// Add adds probes to a program, which must have line information and must not be loaded yet. The same program in another collection gets
// the same probes.
func (p *Probes) Add(program *ebpf.ProgramSpec) error {
	if first, again := p.first[program.Name]; again {
		known := p.blocks
		defer func() { p.blocks = known }()
		p.blocks = known[:first:first]
	} else {
		p.first[program.Name] = len(p.blocks)
	}
	probed, err := p.insert(program.Instructions)
	if err != nil {
		return fmt.Errorf("add probes to %s: %w", program.Name, err)
	}
	program.Instructions = probed
	return nil
}

// Lines returns the lines that have run, the lines that have not, and the lines whose blocks have no place for a probe. Code of one line
// can be in many blocks; the line has run if one of them has.
func (p *Probes) Lines() (run, missed, blind []Line, err error) {
	marks, err := p.marks.LookupBytes(uint32(0))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the probes: %w", err)
	}
	ran := make(map[Line]bool)
	for i, lines := range p.blocks {
		for _, line := range lines {
			ran[line] = ran[line] || marks[i] != 0
		}
	}
	for line := range p.text {
		has, probed := ran[line]
		switch {
		case has:
			run = append(run, line)
		case probed && !p.blind[line]:
			missed = append(missed, line)
		default:
			blind = append(blind, line)
		}
	}
	for _, list := range [][]Line{run, missed, blind} {
		slices.SortFunc(list, Line.compare)
	}
	return run, missed, blind, nil
}

func (l Line) compare(other Line) int {
	return cmp.Or(cmp.Compare(l.File, other.File), cmp.Compare(l.Number, other.Number))
}

// insert returns the instructions with their probes. A jump to an instruction that has a probe goes to the probe.
func (p *Probes) insert(code asm.Instructions) (asm.Instructions, error) {
	targets, err := jumpTargets(code)
	if err != nil {
		return nil, err
	}
	entered := make(map[int]bool, len(targets))
	for _, target := range targets {
		entered[target] = true
	}
	live := liveness(code, targets)
	out := layout{index: make([]int, len(code)), at: make([]asm.RawInstructionOffset, len(code)), begin: make([]asm.RawInstructionOffset, len(code))}
	var line Line
	var block []Line
	probe := -1 // number of the block's probe; -1: it has none yet
	finish := func() {
		if probe >= 0 {
			p.blocks[probe] = block
			return
		}
		for _, line := range block {
			p.blind[line] = true
		}
	}
	for i, instruction := range code {
		if i > 0 && (entered[i] || isJump(&code[i-1])) {
			finish()
			block, probe = nil, -1
		}
		source, named := instruction.Source().(*btf.Line)
		if named {
			line = Line{filepath.Base(source.FileName()), source.LineNumber()}
			p.text[line] = strings.TrimSpace(source.String())
		}
		if named || len(block) == 0 {
			block = append(block, line)
		}
		out.begin[i] = out.end
		if register, dead := live[i].dead(); probe < 0 && dead && instruction.Symbol() == "" { // a function must begin as before
			if probe = len(p.blocks); probe == size {
				return nil, fmt.Errorf("more than %d probes", size)
			}
			load := asm.LoadMapValue(register, 0, uint32(probe))
			if err := load.AssociateMap(p.marks); err != nil {
				return nil, err
			}
			out.add(load)
			out.add(asm.StoreImm(register, 0, 1, asm.Byte))
			p.blocks = append(p.blocks, nil)
		}
		out.index[i], out.at[i] = len(out.code), out.end
		out.add(instruction)
	}
	finish()
	return out.code, out.retarget(targets)
}

// layout is code with probes. Positions count raw instructions, as jumps do.
type layout struct {
	code  asm.Instructions
	end   asm.RawInstructionOffset
	index []int                      // of each original instruction, in code
	at    []asm.RawInstructionOffset // position of each original instruction
	begin []asm.RawInstructionOffset // position of its probe; the same as at without a probe
}

func (l *layout) add(instruction asm.Instruction) {
	l.code = append(l.code, instruction)
	l.end += instruction.Width()
}

// retarget makes the jumps go where they went before; targets has the index of each jump and the index of its target.
func (l *layout) retarget(targets map[int]int) error {
	for from, to := range targets {
		jump := &l.code[l.index[from]]
		distance := int64(l.begin[to]) - int64(l.at[from]) - 1
		if isLong(jump) {
			jump.Constant = distance
			continue
		}
		if distance != int64(int16(distance)) {
			return fmt.Errorf("a jump of %d instructions is too far", distance)
		}
		jump.Offset = int16(distance)
	}
	return nil
}

// jumpTargets returns the index of each jump, and the index of the instruction to which it jumps.
func jumpTargets(code asm.Instructions) (map[int]int, error) {
	position, at := make(map[asm.RawInstructionOffset]int, len(code)), make([]asm.RawInstructionOffset, len(code))
	var next asm.RawInstructionOffset
	for i := range code {
		position[next], at[i] = i, next
		next += code[i].Width()
	}
	targets := make(map[int]int)
	for i := range code {
		if !isJump(&code[i]) || code[i].OpCode.JumpOp() == asm.Exit {
			continue
		}
		distance := int64(code[i].Offset)
		if isLong(&code[i]) {
			distance = code[i].Constant
		}
		to, there := position[asm.RawInstructionOffset(int64(at[i])+1+distance)]
		if !there {
			return nil, fmt.Errorf("instruction %d jumps to no instruction", i)
		}
		targets[i] = to
	}
	return targets, nil
}

// isJump reports whether the next instruction may be another one than the one behind. A call comes back.
func isJump(i *asm.Instruction) bool {
	return i.OpCode.Class().IsJump() && i.OpCode.JumpOp() != asm.Call
}

// isLong reports whether the distance of a jump is in its constant (gotol).
func isLong(i *asm.Instruction) bool {
	return i.OpCode.Class() == asm.Jump32Class && i.OpCode.JumpOp() == asm.Ja
}
