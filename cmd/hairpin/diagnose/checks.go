// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"hairpin/maps/rule"
)

// Scope says which command asks.
type Scope uint8

// The scopes.
const (
	Doctor   Scope = 1 << iota // hairpin doctor
	Status                     // hairpin status
	Change                     // check, diff, apply, attach, and the daemon
	Addition                   // forward add
)

const everywhere = Doctor | Status | Change | Addition

// check is one check. Its findings have its name. It has no finding at all if it has nothing to look at.
type check struct {
	name  string
	scope Scope
	// Exactly one of these is set: judge looks at the router, start at one forward after the other.
	judge func(*Facts) []Finding
	start func(*Facts) forwardCheck
}

// forwardCheck takes the forwards one by one, because there may be tens of thousands.
type forwardCheck interface {
	add(*rule.Forward) // add must not keep its argument
	findings() []Finding
}

// ForwardingCheck is the name of the check that looks whether the kernel forwards packets.
const ForwardingCheck = "forwarding"

// checks has all checks, in the order of the output.
var checks = []check{
	{name: "privileges", scope: Doctor, judge: privileges},
	{name: "kernel", scope: Doctor, judge: kernel},
	{name: "hairpin", scope: Doctor, judge: running},
	{name: "configuration", scope: Doctor, judge: configuration},
	{name: "interfaces", scope: Doctor | Status, judge: interfaces},
	{name: ForwardingCheck, scope: everywhere, start: newForwarding},
	{name: "xdp", scope: Doctor, judge: xdp},
	{name: "vlan-tags", scope: Doctor, judge: vlanTags},
	{name: "rp-filter", scope: Doctor, judge: rpFilter},
	{name: "accept-ra", scope: Doctor, start: newAcceptRA},
	{name: "bridge", scope: Doctor, judge: bridge},
	{name: "wan-address", scope: Doctor, judge: wanAddress},
	{name: "private-sources", scope: Doctor, judge: privateSources},
	{name: "listening", scope: Doctor | Status, start: newListening},
	{name: "external", scope: everywhere, start: newForeign},
	{name: "mtu", scope: Doctor, judge: mtu},
	{name: "ipsec", scope: everywhere, start: newIPsec},
	{name: "conntrack", scope: everywhere, start: newConntrack},
	{name: "targets", scope: everywhere, start: newTargets},
	{name: "services", scope: everywhere, start: newServices},
	{name: "nat-rules", scope: everywhere, start: newNATRules},
	{name: "firewall", scope: everywhere, start: newFirewall},
	{name: "flowtables", scope: Doctor, judge: flowtables},
	{name: "leases", scope: Doctor, judge: leases},
	{name: "deny", scope: Doctor | Status | Change, judge: deniesRouter},
	{name: "metrics", scope: Doctor | Status | Change, judge: metricsOpen},
	{name: "shaping", scope: everywhere, judge: shaping},
	{name: "local-ports", scope: everywhere, judge: localPorts},
	{name: "answers", scope: Doctor, start: newAnswers},
	{name: "probe", scope: Doctor, start: newProbe},
	{name: "table", scope: Doctor, judge: table},
}

// Names returns the names of all checks, in the order of the output.
func Names() (list []string) {
	for _, c := range checks {
		list = append(list, c.name)
	}
	return list
}

// Diagnosis judges facts and forwards.
type Diagnosis struct {
	scope   Scope
	facts   *Facts
	started map[string]forwardCheck
}

// New starts a diagnosis.
func New(facts *Facts, scope Scope) *Diagnosis {
	d := &Diagnosis{scope: scope, facts: facts, started: map[string]forwardCheck{}}
	for _, c := range checks {
		if c.scope&scope != 0 && c.start != nil {
			d.started[c.name] = c.start(facts)
		}
	}
	return d
}

// Add takes a forward. It does not keep its argument.
func (d *Diagnosis) Add(forward *rule.Forward) {
	for _, c := range d.started {
		c.add(forward)
	}
}

// Findings returns the findings about the router and about all forwards that Add took.
func (d *Diagnosis) Findings() (list []Finding) {
	for _, c := range checks {
		if c.scope&d.scope == 0 {
			continue
		}
		var found []Finding
		if c.start != nil {
			found = d.started[c.name].findings()
		} else {
			found = c.judge(d.facts)
		}
		for _, f := range found {
			f.Check = c.name
			if f.Level == OK {
				f.Code = c.name + "-ok"
			}
			list = append(list, f)
		}
	}
	return list
}

func ok(text string) []Finding { return []Finding{{Level: OK, Text: text}} }

// orOK returns found, or a finding of level OK if found is empty.
func orOK(found []Finding, text string) []Finding {
	if len(found) > 0 {
		return found
	}
	return ok(text)
}
