// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"hairpin/bpf"
)

// FuzzDatapath puts frames through both programs. Whatever they are: the verdict is a known
// one, the length stays, only what is translated changes, its checksums are valid after exactly
// if they were before, and only what opens a connection by RFC makes state.
func FuzzDatapath(f *testing.F) {
	b := newBench(f, benchForwards...)
	for _, seed := range fuzzSeeds(b) {
		f.Add(uint8(0), seed)
		f.Add(uint8(1), seed)
		f.Add(uint8(2), seed)
	}
	for _, flow := range fuzzFlows(b) {
		flow.open(f)
	}
	f.Fuzz(func(t *testing.T, from uint8, data []byte) {
		if len(data) < ethernetLength+20 || len(data) > 2048 {
			return
		}
		at := []port{b.wan, b.lan, b.lan2}[from%3]
		data = bytes.Clone(data)
		copy(data, at.mac)
		for _, h := range hooks {
			before := b.opened(t)
			got := h.run(b, t, at, data)
			checkAnswer(t, h, data, got)
			if opened := b.opened(t) - before; opened > 1 || opened == 1 && !opens(data) {
				t.Fatalf("%s: opened %d connections for %x", h.name, opened, data)
			}
		}
	})
}

// opened is how many connections the datapath ever opened.
func (b *bench) opened(tb testing.TB) (total uint64) {
	var perCPU []uint64
	if err := b.objs.ConnEvents.Lookup(bpf.HairpinConnEventCONN_OPENED, &perCPU); err != nil {
		tb.Fatal(err)
	}
	for _, n := range perCPU {
		total += n
	}
	return total
}

func checkAnswer(t *testing.T, h hook, data []byte, got answer) {
	t.Helper()
	if len(got.data) != len(data) {
		t.Fatalf("%s: %d bytes became %d", h.name, len(data), len(got.data))
	}
	switch got.code {
	case h.pass, h.drop:
		if !bytes.Equal(got.data, data) {
			t.Fatalf("%s answers %d and changes\n%x to\n%x", h.name, int32(got.code), data, got.data)
		}
	case h.send:
		checkTranslation(t, h, data, got.data)
	default:
		t.Fatalf("%s answers %d", h.name, int32(got.code))
	}
}

func checkTranslation(t *testing.T, h hook, before, after []byte) {
	t.Helper()
	if before[ethernetLength+8] != after[ethernetLength+8]+1 {
		t.Fatalf("%s: ttl %d became %d", h.name, before[ethernetLength+8], after[ethernetLength+8])
	}
	if ipValid(before) != ipValid(after) {
		t.Fatalf("%s: ip checksum valid %v, then %v\n%x\n%x", h.name, ipValid(before), ipValid(after), before, after)
	}
	if binary.BigEndian.Uint16(before[ethernetLength+6:])&0x3fff != 0 {
		return // a fragment: its checksum is not here to be judged
	}
	if transportValid(before) != transportValid(after) {
		t.Fatalf("%s: transport checksum valid %v, then %v\n%x\n%x", h.name,
			transportValid(before), transportValid(after), before, after)
	}
	end := min(ethernetLength+ipLength(before), len(before))
	if payload := l4Offset(before) + 8; payload < end && before[ethernetLength+9] == 17 &&
		!bytes.Equal(before[payload:], after[payload:]) {
		t.Fatalf("%s: payload changed\n%x\n%x", h.name, before, after)
	}
}

// opens says whether the frame is a whole and sane packet of the kind that opens a connection: a
// TCP packet with SYN and without ACK, FIN, RST, or UDP, to the external address.
func opens(data []byte) bool {
	if len(data) < ethernetLength+20 || binary.BigEndian.Uint16(data[12:]) != 0x0800 || data[14]>>4 != 4 {
		return false
	}
	header, length := int(data[14]&15)*4, ipLength(data)
	if header < 20 || length > len(data)-ethernetLength || length < header+8 {
		return false
	}
	l4 := data[ethernetLength+header : ethernetLength+length]
	to, _ := netip.AddrFromSlice(data[ethernetLength+16 : ethernetLength+20])
	if to != wanAddress || binary.BigEndian.Uint16(l4) == 0 || binary.BigEndian.Uint16(data[20:])&0x1fff != 0 {
		return false
	}
	switch data[ethernetLength+9] {
	case 6:
		return len(l4) >= 20 && l4[13]&0x17 == 0x02 && int(l4[12]>>4)*4 >= 20 && int(l4[12]>>4)*4 <= len(l4)
	case 17:
		return binary.BigEndian.Uint16(l4[4:]) >= 8
	}
	return false
}

// fuzzSeeds are packets of open connections, openings, and some of each kind of oddity.
func fuzzSeeds(b *bench) (seeds [][]byte) {
	flows := fuzzFlows(b)
	for _, fresh := range b.flows(false, 31000) {
		flows = append(flows, fresh)
	}
	for _, f := range flows {
		for _, changes := range [][]func(*frame){
			with(tcp("S", clientISN, 0)), with(tcp("SA", serverISN, clientISN+1)),
			with(tcp("PA", clientISN+1, serverISN+1), payload("data")),
			with(tcp("FA", clientISN+1, serverISN+1)), with(tcp("R", clientISN+1, 0)),
			with(tcp("S", clientISN, 0), options(12), trailer(6)),
			with(payload("first of a few"), func(f *frame) { f.more, f.id = true, 9 }),
			with(payload("later fragment"), func(f *frame) { f.offset, f.id = 16, 9 }),
		} {
			in, _ := f.in(changes...)
			back, _ := f.back(changes...)
			seeds = append(seeds, in.bytes(), back.bytes())
		}
	}
	return seeds
}

// fuzzFlows are one connection a way and protocol, each from a port of its own: two hairpin
// clients with the same port would not both keep it.
func fuzzFlows(b *bench) (flows []flow) {
	clientPort := uint16(30000)
	for _, udp := range []bool{false, true} {
		for way := range b.flows(udp, 0) {
			clientPort++
			flows = append(flows, b.flows(udp, clientPort)[way])
		}
	}
	return flows
}
