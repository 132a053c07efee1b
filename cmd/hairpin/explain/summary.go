// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"fmt"
)

// Whether a packet reaches a server, and the answer its client.
const (
	Yes     = "yes"
	No      = "no"
	Unknown = "unknown"
)

// clients names the sender of an opening, by the role of its interface.
var clients = map[string]string{"lan": "A LAN client", "wan": "A client on the Internet", "local": "A process of the router"}

// summarise sets Summary and Reaches.
func (r *Report) summarise() {
	p := &r.Packet
	switch {
	case p.Sent() && p.Connection != nil:
		r.Summary = fmt.Sprintf("The packet belongs to a connection%s (%s), and goes to %s as from %s.", of(p.Connection.Forward), p.Connection.State,
			Endpoint(p.NewDestination), Endpoint(p.NewSource))
	case p.Sent() && p.Opened:
		r.Summary = fmt.Sprintf("%s would reach %s at %s: %s.", clients[p.Role], p.Forward, Endpoint(p.NewDestination), p.sees())
	case p.Sent():
		r.Summary = fmt.Sprintf("The packet goes to %s as from %s.", Endpoint(p.NewDestination), Endpoint(p.NewSource))
	case p.Verdict == "pass":
		r.Summary = fmt.Sprintf("hairpin leaves the packet to the kernel: %s.", p.Why)
	default:
		r.Summary = fmt.Sprintf("%s would not reach %s. The packet is %s: %s.", sender(p.Role), cmp.Or(p.Forward, "a server"), Done(p.Verdict), p.Why)
	}
	r.Reaches = r.reaches()
	if a := r.Answer; a != nil && !a.Sent() {
		r.Summary += fmt.Sprintf(" The answer would not come back: %s.", a.Why)
	} else if r.Reaches == Unknown && p.Verdict != "pass" {
		r.Summary += " Unknown: whether the next hop answers."
	}
}

func (r *Report) reaches() string {
	p, a := &r.Packet, r.Answer
	switch {
	case p.Verdict == "pass":
		return Unknown // the kernel decides
	case !p.Sent(), a != nil && !a.Sent():
		return No
	case p.Gateway.IsValid(), a != nil && a.Gateway.IsValid():
		return Unknown
	}
	return Yes
}

// sees says whose address the server sees.
func (l *Leg) sees() string {
	if l.NewSource.Addr() == l.Source.Addr() {
		return "the server sees the client's own address"
	}
	return fmt.Sprintf("the server sees %s", l.NewSource.Addr())
}

func sender(role string) string { return cmp.Or(clients[role], "The sender") }

func of(forward string) string {
	if forward == "" {
		return ""
	}
	return " of " + forward
}

// Done is the verdict as a participle.
func Done(verdict string) string {
	words := map[string]string{
		"drop": "dropped", "refuse": "refused", "defer": "left to the next step", "hold": "held", "pass": "left to the kernel", "send": "sent",
	}
	return cmp.Or(words[verdict], verdict)
}
