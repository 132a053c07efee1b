// SPDX-License-Identifier: Apache-2.0

package gather

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"hairpin/cmd/hairpin/diagnose"
)

// iptablesTargets are the targets of iptables that matter.
var iptablesTargets = map[string]diagnose.Action{
	"DNAT": diagnose.DNAT, "REDIRECT": diagnose.DNAT, "NETMAP": diagnose.DNAT, "MASQUERADE": diagnose.SNAT, "SNAT": diagnose.SNAT, "REJECT": diagnose.Drop,
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

// statusDNAT is the bit of conntrack's status for a destination that was translated (IPS_DST_NAT).
const statusDNAT = 0x20

func (d *decoder) meetConntrack(flags, inverted uint16, state, status uint32) {
	if flags&^uint16(xt.ConntrackState|xt.ConntrackStatus|xt.ConntrackStateAlias) != 0 {
		d.other()
	}
	if flags&uint16(xt.ConntrackState) != 0 {
		not := inverted&uint16(xt.ConntrackState) != 0
		if state&xtStateDNAT != 0 {
			d.meet(diagnose.Condition{Field: diagnose.FieldStatus, Not: not, Numbers: []diagnose.Range{{First: statusDNAT}}})
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
