// SPDX-License-Identifier: Apache-2.0

// Package gather reads the facts about this machine that package diagnose judges and that the datapath does not need: rules of
// netfilter, sockets, neighbours, and whether targets answer. It changes nothing.
package gather

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/loader"
)

// families are the families whose rules see routed packets, by their names for nft(8).
var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// hooks are the hooks of the families, by the kernel's numbers (enum nf_inet_hooks).
var hooks = []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}

// Ruleset reads the rules of nftables in this network namespace. Those of iptables-nft are among them. A kernel without nftables has
// none. The error wraps loader.ErrPermission without CAP_NET_ADMIN.
func Ruleset() (*diagnose.Ruleset, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, explain(err)
	}
	defer conn.CloseLasting()
	r := &reader{conn: conn, found: &diagnose.Ruleset{}}
	if err := r.read(); err != nil {
		return nil, explain(err)
	}
	return r.found, nil
}

// explain marks a missing privilege. A kernel without nftables is no error.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w", loader.ErrPermission, err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return nil
	}
	return err
}

type reader struct {
	conn  *nftables.Conn
	found *diagnose.Ruleset
	sets  map[string]*nftables.Set // of the present table, by name
	items map[string][]nftables.SetElement
}

func (r *reader) read() error {
	chains, err := r.conn.ListChains()
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	byTable := map[string][]*nftables.Chain{}
	var tables []*nftables.Table
	for _, c := range chains {
		name, known := families[c.Table.Family]
		if !known {
			continue
		}
		key := name + " " + c.Table.Name
		if byTable[key] == nil {
			tables = append(tables, c.Table)
		}
		byTable[key] = append(byTable[key], c)
	}
	for _, table := range tables {
		if err := r.readTable(table, byTable[families[table.Family]+" "+table.Name]); err != nil {
			return fmt.Errorf("table %s %s: %w", families[table.Family], table.Name, err)
		}
	}
	return r.readFlowtables()
}

func (r *reader) readTable(table *nftables.Table, chains []*nftables.Chain) error {
	sets, err := r.conn.GetSets(table)
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	r.sets, r.items = map[string]*nftables.Set{}, map[string][]nftables.SetElement{}
	for _, set := range sets {
		r.sets[set.Name] = set
	}
	for _, c := range chains {
		chain := diagnose.Chain{Family: families[table.Family], Table: table.Name, Name: c.Name, Type: string(c.Type)}
		if c.Hooknum != nil && int(*c.Hooknum) < len(hooks) {
			chain.Hook = hooks[*c.Hooknum]
		}
		if c.Priority != nil {
			chain.Priority = int(*c.Priority)
		}
		chain.Drops = c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		rules, err := r.conn.GetRules(table, c)
		if err != nil {
			return fmt.Errorf("list the rules of chain %s: %w", c.Name, err)
		}
		for _, rule := range rules {
			chain.Rules = append(chain.Rules, r.decode(rule, table)...)
		}
		r.found.Chains = append(r.found.Chains, chain)
	}
	return nil
}

// readFlowtables reads the flowtables of all tables: a table may have no chain.
func (r *reader) readFlowtables() error {
	tables, err := r.conn.ListTables()
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for _, table := range tables {
		family, known := families[table.Family]
		if !known {
			continue
		}
		list, err := r.conn.ListFlowtables(table)
		if err != nil {
			return fmt.Errorf("list flowtables: %w", err)
		}
		for _, f := range list {
			// The kernel may ignore the table in the request.
			if f.Table == nil || f.Table.Name == table.Name && f.Table.Family == table.Family {
				r.found.Flowtables = append(r.found.Flowtables, diagnose.Flowtable{Family: family, Table: table.Name, Name: f.Name, Devices: f.Devices})
			}
		}
	}
	return nil
}

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

// iptablesTargets are the targets of iptables that matter.
var iptablesTargets = map[string]diagnose.Action{
	"DNAT": diagnose.DNAT, "REDIRECT": diagnose.DNAT, "NETMAP": diagnose.DNAT, "MASQUERADE": diagnose.SNAT, "SNAT": diagnose.SNAT, "REJECT": diagnose.Drop,
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

// match reads a match of iptables.
func (d *decoder) match(e *expr.Match) {
	switch info := e.Info.(type) {
	case *xt.Tcp:
		d.meetPorts(info.DstPorts, info.InvFlags&xt.TcpInvDestPorts != 0)
		if info.SrcPorts != [2]uint16{0, 1<<16 - 1} {
			d.other()
		}
	case *xt.Udp:
		d.meetPorts(info.DstPorts, info.InvFlags&xt.UdpInvDestPorts != 0)
		if info.SrcPorts != [2]uint16{0, 1<<16 - 1} {
			d.other()
		}
	case *xt.Comment:
	case *xt.ConntrackMtinfo3:
		d.meetConntrack(info.MatchFlags, info.InvertFlags, uint32(info.StateMask), uint32(info.StatusMask))
	case *xt.ConntrackMtinfo2:
		d.meetConntrack(info.MatchFlags, info.InvertFlags, uint32(info.StateMask), uint32(info.StatusMask))
	default:
		if e.Name == "multiport" && d.multiport(e.Info) {
			return
		}
		if e.Name != "comment" {
			d.other()
		}
	}
}

func (d *decoder) meetPorts(ports [2]uint16, not bool) {
	if ports == [2]uint16{0, 1<<16 - 1} && !not {
		return
	}
	d.meet(diagnose.Condition{Field: diagnose.FieldPort, Not: not, Numbers: []diagnose.Range{{First: uint32(ports[0]), Last: uint32(ports[1])}}})
}

// The state DNAT of the match conntrack of iptables: XT_CONNTRACK_STATE_DNAT of linux/netfilter/xt_conntrack.h. The other states
// have the bits of nftables.
const xtStateDNAT = 1 << 7

func (d *decoder) meetConntrack(flags, inverted uint16, state, status uint32) {
	if flags&^uint16(xt.ConntrackState|xt.ConntrackStatus|xt.ConntrackStateAlias) != 0 {
		d.other()
	}
	if flags&uint16(xt.ConntrackState) != 0 {
		not := inverted&uint16(xt.ConntrackState) != 0
		if state&xtStateDNAT != 0 {
			d.meet(diagnose.Condition{Field: diagnose.FieldStatus, Not: not, Numbers: []diagnose.Range{{First: 0x20}}})
		} else {
			d.meet(diagnose.Condition{Field: diagnose.FieldState, Not: not, Numbers: []diagnose.Range{{First: state}}})
		}
	}
	if flags&uint16(xt.ConntrackStatus) != 0 {
		d.meet(diagnose.Condition{Field: diagnose.FieldStatus, Not: inverted&uint16(xt.ConntrackStatus) != 0, Numbers: []diagnose.Range{{First: status}}})
	}
}

// Layout of struct xt_multiport_v1: flags, count, 15 ports, 15 flags of ranges, invert.
const (
	multiportPorts  = 15
	multiportSource = 0 // of flags; 1 is destination, 2 is either
	multiportSize   = 2 + 2*multiportPorts + multiportPorts + 1
)

// multiport reads the match multiport; it returns false if it cannot.
func (d *decoder) multiport(info xt.InfoAny) bool {
	unknown, is := info.(*xt.Unknown)
	if !is || len(*unknown) < multiportSize {
		return false
	}
	data := []byte(*unknown)
	if data[0] == multiportSource || int(data[1]) > multiportPorts {
		return false
	}
	c := diagnose.Condition{Field: diagnose.FieldPort, Not: data[multiportSize-1] != 0}
	for i := 0; i < int(data[1]); i++ {
		r := diagnose.Range{First: uint32(binary.NativeEndian.Uint16(data[2+2*i:]))}
		r.Last = r.First
		if data[2+2*multiportPorts+i] != 0 && i+1 < int(data[1]) { // a range: the next port is its end
			i++
			r.Last = uint32(binary.NativeEndian.Uint16(data[2+2*i:]))
		}
		c.Numbers = append(c.Numbers, r)
	}
	d.meet(c)
	return true
}
