// SPDX-License-Identifier: Apache-2.0

package coverage

import "github.com/cilium/ebpf/asm"

// registers is a set of registers, one bit for each.
type registers uint16

func set(list ...asm.Register) (s registers) {
	for _, r := range list {
		s |= 1 << r
	}
	return s
}

// dead returns a register that is not in the set.
func (s registers) dead() (asm.Register, bool) {
	for r := asm.R0; r <= asm.R9; r++ {
		if s&set(r) == 0 {
			return r, true
		}
	}
	return 0, false
}

var (
	arguments = set(asm.R1, asm.R2, asm.R3, asm.R4, asm.R5)
	scratched = arguments | set(asm.R0) // by a call
)

// liveness returns the registers that are read later, for the place before each instruction. targets has the index of each jump and the
// index of its target.
func liveness(code asm.Instructions, targets map[int]int) []registers {
	live := make([]registers, len(code))
	for changed := true; changed; {
		changed = false
		for i := len(code) - 1; i >= 0; i-- {
			var after registers
			if to, jumps := targets[i]; jumps {
				after |= live[to]
			}
			if op := code[i].OpCode.JumpOp(); op != asm.Exit && op != asm.Ja && i+1 < len(code) {
				after |= live[i+1]
			}
			reads, writes := effect(&code[i])
			if before := reads | after&^writes; before != live[i] {
				live[i], changed = before, true
			}
		}
	}
	return live
}

// effect returns the registers that an instruction reads, and those that it overwrites. Where it is not clear, a register is read and not
// overwritten.
func effect(i *asm.Instruction) (reads, writes registers) {
	op, both := i.OpCode, set(i.Dst, i.Src)
	source := registers(0)
	if op.Source() == asm.RegSource {
		source = set(i.Src)
	}
	switch class := op.Class(); {
	case op.JumpOp() == asm.Call:
		return arguments, scratched
	case op.JumpOp() == asm.Exit:
		return set(asm.R0), 0
	case op.JumpOp() == asm.Ja:
		return 0, 0
	case class.IsJump():
		return set(i.Dst) | source, 0
	case class.IsALU() && op.ALUOp() == asm.Mov:
		return source, set(i.Dst)
	case class.IsALU():
		return set(i.Dst) | source, set(i.Dst)
	case class == asm.LdXClass:
		return set(i.Src), set(i.Dst)
	case op.IsDWordLoad():
		return 0, set(i.Dst)
	}
	return both | set(asm.R0), 0 // a store; some atomic ones read R0
}
