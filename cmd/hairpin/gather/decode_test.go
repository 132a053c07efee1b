// SPDX-License-Identifier: Apache-2.0

package gather

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"hairpin/cmd/hairpin/diagnose"
)

// An interval of a set is its first value, and the value after its last.
func TestSpans(t *testing.T) {
	value := func(b ...byte) nftables.SetElement { return nftables.SetElement{Key: b} }
	end := func(b ...byte) nftables.SetElement { return nftables.SetElement{Key: b, IntervalEnd: true} }
	for _, test := range []struct {
		name  string
		items []nftables.SetElement
		want  [][2][]byte
	}{
		{"values", []nftables.SetElement{value(0, 80), value(0, 22)}, [][2][]byte{{{0, 22}, {0, 22}}, {{0, 80}, {0, 80}}}},
		{"an interval", []nftables.SetElement{end(0, 0), value(0, 70), end(0, 91)}, [][2][]byte{{{0, 70}, {0, 90}}}},
		{"neighbours", []nftables.SetElement{value(0, 81), end(0, 81), value(0, 80), end(0, 82)}, [][2][]byte{{{0, 80}, {0, 80}}, {{0, 81}, {0, 81}}}},
		{"carry", []nftables.SetElement{value(0, 1), end(1, 0)}, [][2][]byte{{{0, 1}, {0, 255}}}},
		{"to the end", []nftables.SetElement{end(0, 0), value(255, 0)}, [][2][]byte{{{255, 0}, {255, 255}}}},
	} {
		var got [][2][]byte
		for _, s := range spans(test.items) {
			got = append(got, [2][]byte{s.first, s.last})
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for _, test := range []struct {
		first, last string
		want        []string
	}{
		{"10.0.0.0", "10.0.0.255", []string{"10.0.0.0/24"}},
		{"10.0.0.1", "10.0.0.6", []string{"10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"}},
		{"0.0.0.0", "255.255.255.255", []string{"0.0.0.0/0"}},
		{"255.255.255.254", "255.255.255.255", []string{"255.255.255.254/31"}},
		{"fd00::", "fd00::ffff", []string{"fd00::/112"}},
		{"10.0.0.2", "10.0.0.1", nil},
	} {
		var got []string
		for _, p := range prefixes(netip.MustParseAddr(test.first), netip.MustParseAddr(test.last)) {
			got = append(got, p.String())
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s-%s (-want +got):\n%s", test.first, test.last, diff)
		}
	}
}

// What is not understood becomes a condition that a packet may meet, not one that every packet meets.
func TestUnknownConditions(t *testing.T) {
	ip := &nftables.Table{Family: nftables.TableFamilyIPv4}
	other := []diagnose.Condition{{}}
	for _, test := range []struct {
		name string
		list []expr.Any
	}{
		{"a source", []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}, &expr.Cmp{Register: 1, Data: []byte{10, 0, 0, 1}}}},
		{"a register that nothing loaded", []expr.Any{&expr.Cmp{Register: 1, Data: []byte{6}}}},
		{"a set that is gone", []expr.Any{&expr.Meta{Register: 1, Key: expr.MetaKeyL4PROTO}, &expr.Lookup{SourceRegister: 1, SetName: "s"}}},
		{"a limit", []expr.Any{&expr.Limit{}}},
		{"a match of iptables", []expr.Any{&expr.Match{Name: "owner", Info: &xt.Unknown{}}}},
		{"a multiport that is too short", []expr.Any{&expr.Match{Name: "multiport", Info: &xt.Unknown{1, 1}}}},
		{"part of a port", []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Mask: []byte{0, 1}, Xor: []byte{0, 0}}, &expr.Cmp{Register: 1, Data: []byte{0, 1}}}},
	} {
		got := (&reader{}).decode(&nftables.Rule{Exprs: test.list}, ip)
		if len(got) != 1 || !cmp.Equal(got[0].Conditions, other) {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}
