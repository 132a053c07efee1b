// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/explain"
	"hairpin/cmd/hairpin/router"
	"hairpin/loader"
	"hairpin/maps/rule"
)

const explainSyntax = "in IF PROTO SRC[:PORT] to DST[:PORT]"

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain " + explainSyntax,
		Short: "Say what would happen to a packet and to its answer; changes nothing, sends nothing",
		Long: `Say what would happen to a packet and to its answer, and why. Changes nothing, and
sends nothing: a program of its own decides, by the same code as the running one.
The packet would be the first of a client, such as a SYN of TCP. If a connection with
these addresses and ports exists, the packet is a later one of this connection.

IF is the interface by which the packet comes in; lo for the router's own processes.
SRC and DST are addresses. tcp, udp, sctp and udplite need both ports. For icmp, PORT
of SRC is the identifier of an echo request; it may be left out. IPv6 with a port is
written [2001:db8::1]:443.

Without --config, the question is about what runs. With --config FILE, the question is
about the configuration in FILE, as if FILE ran on this machine; FILE need not run.

A drawn source port is only likely: a real packet may get another one.`,
		Example: "  hairpin explain in lan0 tcp 192.168.1.33:50000 to 203.0.113.10:443\n" +
			"  hairpin explain --config new.toml in wan0 udp 198.51.100.7:40000 to 203.0.113.10:51820",
		ValidArgsFunction: completeExplain,
		Args:              explainArgs,
		RunE: func(command *cobra.Command, args []string) error {
			question, err := parseQuestion(args)
			if err != nil {
				return usageError{err}
			}
			file := ""
			if command.Flags().Changed("config") {
				file = a.configFile
			}
			report, err := a.explain(file, question)
			if errors.Is(err, loader.ErrNoInterface) {
				return notFoundError{kind: "interface", name: question.Interface, hint: "\"ip link\" lists the interfaces"}
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON("explain", report)
			}
			return a.printReport(&report)
		},
	}
}

func (a *app) explain(file string, question explain.Question) (report explain.Report, err error) {
	rehearsal, done, err := a.rehearse(file)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, done()) }()
	explainer, err := explain.New(explain.Options{
		Program: rehearsal, Tables: rehearsal.Tables, Running: rehearsal.Running, Config: rehearsal.Config, Links: rehearsal.Links,
		NotForwarding: rehearsal.NotForwarding,
	})
	if err != nil {
		return report, err
	}
	return explainer.Explain(question)
}

// rehearse prepares questions about a file; "": about what runs. The caller calls done.
func (a *app) rehearse(file string) (_ *router.Rehearsal, done func() error, err error) {
	if file != "" {
		cfg, err := a.readConfig(file)
		if err != nil {
			return nil, nil, err
		}
		rehearsal, err := router.Rehearse(cfg)
		if err != nil {
			return nil, nil, err
		}
		return rehearsal, rehearsal.Close, nil
	}
	session, err := a.open()
	if err != nil {
		return nil, nil, err
	}
	rehearsal, err := session.Rehearse()
	if err != nil {
		return nil, nil, errors.Join(err, session.Close())
	}
	return rehearsal, func() error { return errors.Join(rehearsal.Close(), session.Close()) }, nil
}

func explainArgs(_ *cobra.Command, args []string) error {
	_, err := parseQuestion(args)
	return err
}

func parseQuestion(args []string) (q explain.Question, err error) {
	const words = 6
	switch {
	case len(args) < words:
		return q, fmt.Errorf("give a packet: %s", explainSyntax)
	case len(args) > words:
		return q, fmt.Errorf("unexpected argument %q; give one packet: %s", clip(args[words]), explainSyntax)
	case args[0] != "in":
		return q, fmt.Errorf("%q instead of \"in\"; give a packet: %s", clip(args[0]), explainSyntax)
	case args[4] != "to":
		return q, fmt.Errorf("%q instead of \"to\"; give a packet: %s", clip(args[4]), explainSyntax)
	}
	q.Interface = args[1]
	if q.Protocol, err = rule.ParseProtocol(args[2]); err != nil {
		return q, err
	}
	if q.Protocol == rule.Any {
		return q, fmt.Errorf("a packet has one protocol, not any; use one of %s", strings.Join(connectionProtocols(), ", "))
	}
	if q.Source, err = parseEndpoint(args[3], q.Protocol, true); err != nil {
		return q, err
	}
	if q.Destination, err = parseEndpoint(args[5], q.Protocol, false); err != nil {
		return q, err
	}
	if q.Source.Addr().Is4() != q.Destination.Addr().Is4() {
		return q, fmt.Errorf("%s and %s are of different IP versions", q.Source.Addr(), q.Destination.Addr())
	}
	return q, nil
}

// echoIdentifier is the identifier of an echo request if none is given.
const echoIdentifier = 1

// parseEndpoint parses an address, with a port if the protocol has ports.
func parseEndpoint(text string, protocol rule.Protocol, source bool) (netip.AddrPort, error) {
	ports := protocol.HasPorts() || protocol == rule.UDPLite
	identified := protocol == rule.ICMP && source
	if addr, err := netip.ParseAddr(text); err == nil {
		switch {
		case addr.Zone() != "":
			return netip.AddrPort{}, fmt.Errorf("%q: leave the zone out, the interface is given by \"in\"", clip(text))
		case ports && addr.Is6():
			return netip.AddrPort{}, fmt.Errorf("%q has no port; write [%s]:PORT", clip(text), addr)
		case ports:
			return netip.AddrPort{}, fmt.Errorf("%q has no port; write %s:PORT", clip(text), addr)
		case identified:
			return netip.AddrPortFrom(addr.Unmap(), echoIdentifier), nil
		}
		return netip.AddrPortFrom(addr.Unmap(), 0), nil
	}
	at, err := netip.ParseAddrPort(text)
	switch {
	case err != nil:
		return at, fmt.Errorf("%q is not an address%s", clip(text), map[bool]string{true: " with a port, such as 192.0.2.1:443 or [2001:db8::1]:443"}[ports])
	case at.Addr().Zone() != "":
		return netip.AddrPort{}, fmt.Errorf("%q: leave the zone out, the interface is given by \"in\"", clip(text))
	case !ports && !identified:
		return at, fmt.Errorf("%q has a port, but %s has none", clip(text), protocol)
	case at.Port() == 0 && ports:
		return at, fmt.Errorf("%q: port 0 is not a port; use 1 to 65535", clip(text))
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}

func completeExplain(_ *cobra.Command, args []string, _ string) (completions, cobra.ShellCompDirective) {
	const nothing = cobra.ShellCompDirectiveNoFileComp
	switch len(args) {
	case 0:
		return completions{"in"}, nothing
	case 1:
		return interfaceNames(""), nothing
	case 2:
		return connectionProtocols(), nothing
	case 4:
		return completions{"to"}, nothing
	}
	return nil, nothing
}

// printReport prints the summary, then each decision on a line.
func (a *app) printReport(r *explain.Report) error {
	fmt.Fprintln(a.out, printable(r.Summary))
	a.printLeg("packet", r.Question.Protocol, &r.Packet)
	if r.Answer != nil {
		a.printLeg("answer", r.Question.Protocol, r.Answer)
	}
	return nil
}

func (a *app) printLeg(title string, protocol rule.Protocol, l *explain.Leg) {
	line := func(name, text string) { fmt.Fprintf(a.out, "  %-11s %s\n", name, printable(text)) }
	fmt.Fprintf(a.out, "\n%s  %s %s -> %s\n", title, protocol, explain.Endpoint(l.Source), explain.Endpoint(l.Destination))
	line("interface", l.Interface+map[string]string{"": ", where hairpin is not attached", "wan": ", a WAN", "lan": ", a LAN", "local": ", the router itself"}[l.Role])
	connection := "none"
	if c := l.Connection; c != nil {
		connection = fmt.Sprintf("%s, path %s, forward %s", c.State, c.Path, orDash(c.Forward))
	} else if title == "answer" {
		connection = "the one that the packet opens"
	}
	line("connection", connection)
	if title == "packet" {
		line("external", map[bool]string{true: "yes, forwards listen on ", false: "no forward listens on "}[l.External]+l.Destination.Addr().String())
		line("forward", orDash(l.Forward)+map[bool]string{true: ", an intercept"}[l.Intercept])
	}
	if l.Sent() {
		to := l.Output
		switch {
		case l.ToRouter:
			to = "to the router itself"
		case l.Gateway.IsValid():
			to += ", next hop " + l.Gateway.String() + ", whose MAC address is not known yet"
		case l.MAC != "":
			to += ", to MAC address " + l.MAC
		}
		if l.MTU != 0 {
			to += ", MTU " + strconv.Itoa(int(l.MTU))
		}
		line("route", to)
		likely := ""
		if l.PortLikely {
			likely = " (source port likely)"
		}
		line("rewrite", fmt.Sprintf("%s -> %s%s", explain.Endpoint(l.NewSource), explain.Endpoint(l.NewDestination), likely))
	}
	verdict := explain.Done(l.Verdict)
	if l.Reason != "" {
		verdict += ", reason " + l.Reason
	}
	line("verdict", verdict)
	if l.Why != "" {
		line("because", l.Why)
	}
	for _, note := range slices.Clip(l.Notes) {
		line("note", note)
	}
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
