// SPDX-License-Identifier: Apache-2.0

package gather

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/diagnose"
)

// decoder reads the expressions of one rule. An expression loads a part of a packet into a register, and a later one compares it.
type decoder struct {
	reader *reader
	table  *nftables.Table
	loads  map[uint32]load
	rule   diagnose.Rule
	cases  []diagnose.Rule // of a verdict map: one for each of its elements
}

// load is what a register holds.
type load struct {
	field diagnose.Field
	size  int    // bytes of the field that were loaded
	mask  []byte // nil: every bit
}

// decode returns a rule, or several for a rule with a verdict map.
func (r *reader) decode(rule *nftables.Rule, table *nftables.Table) []diagnose.Rule {
	d := &decoder{reader: r, table: table, loads: map[uint32]load{}, rule: diagnose.Rule{Handle: rule.Handle}}
	for _, e := range rule.Exprs {
		d.take(e)
	}
	if len(d.cases) == 0 {
		return []diagnose.Rule{d.rule}
	}
	for i := range d.cases {
		d.cases[i].Handle = rule.Handle
		d.cases[i].Conditions = append(slices.Clone(d.rule.Conditions), d.cases[i].Conditions...)
	}
	return d.cases
}

func (d *decoder) meet(c diagnose.Condition) { d.rule.Conditions = append(d.rule.Conditions, c) }

// other notes a condition that is not understood.
func (d *decoder) other() { d.meet(diagnose.Condition{}) }

func (d *decoder) take(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		d.loads[e.Register] = load{field: metaField(e), size: metaSize(e)}
	case *expr.Payload:
		d.loads[e.DestRegister] = load{field: d.payloadField(e), size: int(e.Len)}
	case *expr.Ct:
		field := map[expr.CtKey]diagnose.Field{expr.CtKeySTATE: diagnose.FieldState, expr.CtKeySTATUS: diagnose.FieldStatus}[e.Key]
		d.loads[e.Register] = load{field: field, size: 4}
	case *expr.Bitwise:
		d.mask(e)
	case *expr.Fib:
		// Mostly whether the destination is an address of the router, as external addresses are.
		d.loads[e.Register] = load{}
	case *expr.Cmp:
		d.compare(e)
	case *expr.Range:
		d.between(e)
	case *expr.Lookup:
		d.lookup(e)
	case *expr.Match:
		d.match(e)
	case *expr.Limit, *expr.Quota, *expr.Connlimit, *expr.Dynset:
		d.other()
	case *expr.NAT:
		d.rule.Action = map[expr.NATType]diagnose.Action{expr.NATTypeSourceNAT: diagnose.SNAT, expr.NATTypeDestNAT: diagnose.DNAT}[e.Type]
	case *expr.Redir:
		d.rule.Action = diagnose.DNAT
	case *expr.Masq:
		d.rule.Action = diagnose.SNAT
	case *expr.Reject:
		d.rule.Action = diagnose.Drop
	case *expr.Target:
		d.rule.Action = iptablesTargets[e.Name]
	case *expr.Verdict:
		d.rule.Action, d.rule.Chain = verdict(e)
	}
}

func verdict(e *expr.Verdict) (diagnose.Action, string) {
	switch e.Kind {
	case expr.VerdictAccept:
		return diagnose.Accept, ""
	case expr.VerdictDrop:
		return diagnose.Drop, ""
	case expr.VerdictJump:
		return diagnose.Jump, e.Chain
	case expr.VerdictGoto:
		return diagnose.Goto, e.Chain
	case expr.VerdictReturn:
		return diagnose.Return, ""
	}
	return diagnose.Nothing, ""
}

func metaField(e *expr.Meta) diagnose.Field {
	switch e.Key {
	case expr.MetaKeyL4PROTO:
		return diagnose.FieldProtocol
	case expr.MetaKeyNFPROTO:
		return diagnose.FieldVersion
	case expr.MetaKeyIIFNAME:
		return diagnose.FieldIncoming
	case expr.MetaKeyOIFNAME:
		return diagnose.FieldOutgoing
	}
	return diagnose.FieldOther
}

func metaSize(e *expr.Meta) int {
	if e.Key == expr.MetaKeyIIFNAME || e.Key == expr.MetaKeyOIFNAME {
		return unix.IFNAMSIZ
	}
	return 1
}

// Offsets in headers, in bytes: struct iphdr, struct ipv6hdr, and the ports of TCP and UDP.
const (
	ipv4Protocol, ipv4Destination = 9, 16
	ipv6Protocol, ipv6Destination = 6, 24
	destinationPort               = 2
)

func (d *decoder) payloadField(e *expr.Payload) diagnose.Field {
	// A rule of inet compares the version first, but the order of the conditions does not matter here: an IPv6 address is longer.
	six := d.table.Family == nftables.TableFamilyIPv6 || d.table.Family == nftables.TableFamilyINet && e.Offset == ipv6Destination
	switch {
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == destinationPort && e.Len == 2:
		return diagnose.FieldPort
	case e.Base != expr.PayloadBaseNetworkHeader:
	case !six && e.Offset == ipv4Destination && e.Len <= 4, six && e.Offset == ipv6Destination && e.Len <= 16:
		return diagnose.FieldDestination
	case e.Len == 1 && (!six && e.Offset == ipv4Protocol || six && e.Offset == ipv6Protocol):
		return diagnose.FieldProtocol
	}
	return diagnose.FieldOther
}

// mask notes that later comparisons look at some bits alone.
func (d *decoder) mask(e *expr.Bitwise) {
	from, known := d.loads[e.SourceRegister]
	if !known || len(bytes.Trim(e.Xor, "\x00")) > 0 {
		from = load{}
	}
	from.mask = e.Mask
	d.loads[e.DestRegister] = from
}

func (d *decoder) compare(e *expr.Cmp) {
	from := d.loads[e.Register]
	switch {
	case from.field == diagnose.FieldState || from.field == diagnose.FieldStatus:
		d.compareBits(from, e)
		return
	case e.Op == expr.CmpOpEq || e.Op == expr.CmpOpNeq:
		c := from.condition(e.Data, e.Data)
		if e.Op == expr.CmpOpNeq {
			c = not(c)
		}
		d.meet(c)
		return
	}
	first, last := make([]byte, len(e.Data)), bytes.Repeat([]byte{0xff}, len(e.Data))
	switch e.Op {
	case expr.CmpOpGte:
		first = e.Data
	case expr.CmpOpGt:
		first = e.Data
		d.meet(not(from.condition(e.Data, e.Data)))
	case expr.CmpOpLte:
		last = e.Data
	case expr.CmpOpLt:
		last = before(e.Data)
	}
	d.meet(from.condition(first, last))
}

// not reverses a condition; one that is not understood stays.
func not(c diagnose.Condition) diagnose.Condition {
	c.Not = c.Field != diagnose.FieldOther
	return c
}

// compareBits reads "ct state new": the bits are masked and compared with 0.
func (d *decoder) compareBits(from load, e *expr.Cmp) {
	zero := len(bytes.Trim(e.Data, "\x00")) == 0
	bits := from.mask
	if bits == nil {
		bits, zero = e.Data, true // compared as a whole
	}
	if !zero || len(bits) != 4 {
		d.other()
		return
	}
	c := diagnose.Condition{Field: from.field, Numbers: []diagnose.Range{{First: binary.NativeEndian.Uint32(bits)}}}
	c.Not = (e.Op == expr.CmpOpEq) == (from.mask != nil)
	d.meet(c)
}

func (d *decoder) between(e *expr.Range) {
	c := d.loads[e.Register].condition(e.FromData, e.ToData)
	if e.Op == expr.CmpOpNeq {
		c = not(c)
	}
	d.meet(c)
}

// lookup reads a set, a map, or a verdict map.
func (d *decoder) lookup(e *expr.Lookup) {
	from := d.loads[e.SourceRegister]
	verdicts := e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT
	items, known := d.reader.elements(d.table, e.SetName)
	if !known || from.field == diagnose.FieldOther {
		if !verdicts {
			d.other()
			return
		}
		for _, item := range items {
			d.addCase(item, diagnose.Condition{})
		}
		return
	}
	if verdicts {
		for _, span := range spans(items) {
			d.addCase(span.item, from.condition(span.first, span.last))
		}
		return
	}
	all := diagnose.Condition{Field: from.field}
	for _, span := range spans(items) {
		c := from.condition(span.first, span.last)
		if c.Field == diagnose.FieldOther {
			d.other()
			return
		}
		all.Numbers, all.Networks, all.Names = append(all.Numbers, c.Numbers...), append(all.Networks, c.Networks...), append(all.Names, c.Names...)
	}
	all.Not = e.Invert
	d.meet(all)
}

func (d *decoder) addCase(item nftables.SetElement, c diagnose.Condition) {
	if item.IntervalEnd {
		return
	}
	r := diagnose.Rule{Conditions: []diagnose.Condition{c}}
	r.Action, r.Chain = verdict(elementVerdict(item.Val))
	d.cases = append(d.cases, r)
}

// elementVerdict reads the verdict of an element of a verdict map, which the library leaves as the kernel sent it: the attributes
// NFTA_VERDICT_CODE and NFTA_VERDICT_CHAIN.
func elementVerdict(data []byte) *expr.Verdict {
	v := &expr.Verdict{Kind: expr.VerdictContinue}
	attributes, err := nl.ParseRouteAttr(data)
	if err != nil {
		return v
	}
	for _, a := range attributes {
		switch {
		case a.Attr.Type == unix.NFTA_VERDICT_CODE && len(a.Value) == 4:
			v.Kind = expr.VerdictKind(int32(binary.BigEndian.Uint32(a.Value)))
		case a.Attr.Type == unix.NFTA_VERDICT_CHAIN:
			v.Chain = unix.ByteSliceToString(a.Value)
		}
	}
	return v
}

func (r *reader) elements(table *nftables.Table, name string) ([]nftables.SetElement, bool) {
	if items, known := r.items[name]; known {
		return items, true
	}
	set := r.sets[name]
	if set == nil {
		return nil, false
	}
	set.Table = table
	items, err := r.conn.GetSetElements(set)
	if err != nil {
		return nil, false
	}
	r.items[name] = items
	return items, true
}

// span is one element of a set: a value, or an interval with both ends.
type span struct {
	first, last []byte
	item        nftables.SetElement
}

// spans joins the ends of intervals. The kernel lists an interval as its first value and the value after its last.
func spans(items []nftables.SetElement) (list []span) {
	sorted := slices.Clone(items)
	slices.SortFunc(sorted, func(a, b nftables.SetElement) int {
		if order := bytes.Compare(a.Key, b.Key); order != 0 || a.IntervalEnd == b.IntervalEnd {
			return order
		}
		if a.IntervalEnd { // of the interval before
			return -1
		}
		return 1
	})
	intervals := slices.ContainsFunc(items, func(item nftables.SetElement) bool { return item.IntervalEnd })
	for i, item := range sorted {
		if item.IntervalEnd {
			continue
		}
		s := span{first: item.Key, last: item.Key, item: item}
		if item.KeyEnd != nil {
			s.last = item.KeyEnd
		} else if intervals {
			s.last = bytes.Repeat([]byte{0xff}, len(item.Key))
			for _, end := range sorted[i+1:] {
				if end.IntervalEnd {
					s.last = before(end.Key)
					break
				}
			}
		}
		list = append(list, s)
	}
	return list
}

// before returns the number before a big-endian number.
func before(number []byte) []byte {
	less := slices.Clone(number)
	for i := len(less) - 1; i >= 0; i-- {
		less[i]--
		if less[i] != 0xff {
			break
		}
	}
	return less
}

// condition returns the condition that the register is between first and last.
func (l load) condition(first, last []byte) diagnose.Condition {
	c := diagnose.Condition{Field: l.field}
	switch l.field {
	case diagnose.FieldProtocol, diagnose.FieldVersion, diagnose.FieldPort:
		if len(first) != l.size || len(last) != l.size || l.mask != nil {
			return diagnose.Condition{}
		}
		c.Numbers = []diagnose.Range{{First: number(first), Last: number(last)}}
	case diagnose.FieldState, diagnose.FieldStatus:
		if len(first) != 4 {
			return diagnose.Condition{}
		}
		c.Numbers = []diagnose.Range{{First: binary.NativeEndian.Uint32(first)}}
	case diagnose.FieldIncoming, diagnose.FieldOutgoing:
		name, whole := strings.CutSuffix(string(first), "\x00")
		if !whole && len(first) < unix.IFNAMSIZ {
			name += "*"
		}
		c.Names = []string{strings.TrimRight(name, "\x00")}
	case diagnose.FieldDestination:
		c.Networks = l.networks(first, last)
		if c.Networks == nil {
			return diagnose.Condition{}
		}
	}
	return c
}

func number(data []byte) (n uint32) {
	for _, b := range data {
		n = n<<8 | uint32(b)
	}
	return n
}

// networks returns the network of an address that was compared in part, or the networks from first to last.
func (l load) networks(first, last []byte) []netip.Prefix {
	length := 4
	if l.size > 4 || len(first) > 4 {
		length = 16
	}
	if len(first) != l.size || len(last) != l.size {
		return nil
	}
	from, _ := netip.AddrFromSlice(append(slices.Clone(first), make([]byte, length-len(first))...))
	to, _ := netip.AddrFromSlice(append(slices.Clone(last), bytes.Repeat([]byte{0xff}, length-len(last))...))
	if l.mask != nil {
		ones := 0
		for _, b := range l.mask {
			for bit := 7; bit >= 0 && b&(1<<bit) != 0; bit-- {
				ones++
			}
		}
		return []netip.Prefix{netip.PrefixFrom(from, ones)}
	}
	return prefixes(from, to)
}

// prefixes returns the networks that hold the addresses from first to last, and no others.
func prefixes(first, last netip.Addr) (list []netip.Prefix) {
	for first.IsValid() && first.Compare(last) <= 0 {
		bits := first.BitLen()
		for bits > 0 {
			wider := netip.PrefixFrom(first, bits-1)
			if wider.Masked().Addr() != first || lastOf(wider).Compare(last) > 0 {
				break
			}
			bits--
		}
		network := netip.PrefixFrom(first, bits)
		list = append(list, network)
		first = lastOf(network).Next()
	}
	return list
}

func lastOf(network netip.Prefix) netip.Addr {
	data := network.Masked().Addr().AsSlice()
	for bit := network.Bits(); bit < len(data)*8; bit++ {
		data[bit/8] |= 1 << (7 - bit%8)
	}
	addr, _ := netip.AddrFromSlice(data)
	return addr
}
