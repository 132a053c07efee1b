// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"encoding/binary"
	"regexp"
	"strconv"
	"testing"

	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// TestSplitHeaders is row 19: a frame that is not in one piece, cut at every byte. XDP leaves it alone;
// TC pulls together what it needs.
func TestSplitHeaders(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	for _, udp := range []bool{false, true} {
		f := b.Flows(udp, 20001)["hairpin"]
		f.Open(t)
		in, _ := f.In(middle, frames.Payload("some payload"), frames.Options(8))
		data := in.Bytes()
		for split := frames.EthernetLength; split < len(data); split++ {
			context := make([]byte, 24) // struct xdp_md
			binary.NativeEndian.PutUint32(context[4:], uint32(split))
			binary.NativeEndian.PutUint32(context[12:], uint32(f.At.Index))
			if got := b.Run(t, b.Objects.HairpinXdp, context, data); got.Code != rig.XDPPass || !bytes.Equal(got.Data, data) {
				t.Errorf("udp=%v: of a frame split at %d xdp makes %d", udp, split, got.Code)
			}
		}
	}
}

// elsewhere are the rows that need more than a series of packets.
var elsewhere = map[int]func(*testing.T){
	1: TestTruncated, 19: TestSplitHeaders, 20: TestMutations, 22: TestUDPChecksumZero, 23: TestEveryChecksum,
	48: TestICMPBurst, 75: TestStranger, 79: TestPortsExhausted, 80: TestPortsAtOnce, 82: TestPortsUnpredictable,
	83: TestPortsTaken, 88: TestTableFull, 91: TestExpiry, 92: TestExpiry,
	204: TestReflectCorpus, 213: TestGSOTunnels,
}

// TestRowsAreComplete: every row of the case table that single packets can show has a test that is named
// after it. Row 84 is a benchmark, 97 the control plane's to refuse.
func TestRowsAreComplete(t *testing.T) {
	rows := []int{
		1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24, 29, 30, 31, 32, 33, 34, 36, 37,
		40, 43, 44, 45, 46, 47, 48, 49, 50, 54, 55, 56, 57, 58, 64, 67, 68, 69, 72, 75, 79, 80, 82, 83, 88, 91, 92, 96, 103,
		201, 202, 203, 204, 211, 212, 213,
	}
	named := map[int]bool{}
	names := map[string]bool{}
	number := regexp.MustCompile(`\d+`)
	for _, r := range allRows() {
		if names[r.name] {
			t.Errorf("two cases are named %q", r.name)
		}
		names[r.name] = true
		if numbers := regexp.MustCompile(`^row ([\d, ]+):`).FindStringSubmatch(r.name); numbers != nil {
			for _, text := range number.FindAllString(numbers[1], -1) {
				n, err := strconv.Atoi(text)
				lab.Must(err)
				named[n] = true
			}
		}
	}
	for _, n := range rows {
		if !named[n] && elsewhere[n] == nil {
			t.Errorf("row %d has no test", n)
		}
	}
}
