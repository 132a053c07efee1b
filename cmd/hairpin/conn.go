// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hairpin/maps"
)

// selectorHelp ends the help of every conn command.
var selectorHelp = "SELECTOR := " + maps.SelectorSyntax + "\nP := " +
	strings.Join(connectionProtocols(), "|") + "\nport is that of the external address or of the target. Several must all match."

// connectionProtocols are those of forwards without "any", which no connection is.
func connectionProtocols() []string {
	names := maps.ProtocolNames()
	return names[:len(names)-1]
}

func (a *app) connCommand() *cobra.Command {
	show := a.connShowCommand()
	command := &cobra.Command{
		Use:               "conn [show] [SELECTOR..]",
		Aliases:           []string{"conns", "connection", "connections"},
		Short:             "Show, count and end connections",
		Long:              "Show, count and end connections.\n\n" + selectorHelp,
		RunE:              show.RunE,
		ValidArgsFunction: a.completeSelector,
	}
	command.AddCommand(show, a.connCountCommand(), a.connFlushCommand())
	return command
}

func (a *app) connShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show [SELECTOR..]",
		Aliases: []string{"list", "ls"},
		Short:   "List connections",
		Long: `List connections, one a line, as whoever opened them sees them. CLIENT and SOURCE
of an icmp connection are ADDR:ID, the identifier of the echo; what has no port,
such as gre, is an address alone. JSON has ADDR:0 there. An IPv6 address with a
port is in brackets; icmp is ICMPv6 there.

` + selectorHelp,
		ValidArgsFunction: a.completeSelector,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withSelector(args, func(s *session, selector maps.Selector) error {
				list, err := s.tables.Connections(selector)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON("connections", append([]maps.Connection{}, list...))
				}
				return a.printConnections(list)
			})
		},
	}
}

func (a *app) connCountCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "count [SELECTOR..]",
		Short:             "Count connections",
		Long:              "Count connections.\n\n" + selectorHelp,
		ValidArgsFunction: a.completeSelector,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withSelector(args, func(s *session, selector maps.Selector) error {
				count, err := s.tables.CountConnections(selector)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON("count", count)
				}
				_, err = fmt.Fprintln(a.out, count.Total)
				return err
			})
		},
	}
}

func (a *app) connFlushCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "flush SELECTOR..",
		Short: "End connections at once; the other ends are not told",
		Long: `End connections at once; the other ends are not told. To end all of them,
select src 0.0.0.0/0, and once more src ::/0 for those of IPv6.

` + selectorHelp,
		Args:              needs("a SELECTOR, " + maps.SelectorSyntax),
		ValidArgsFunction: a.completeSelector,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withSelector(args, func(s *session, selector maps.Selector) error {
				ended, err := s.tables.EndConnections(selector)
				if err != nil {
					return err
				}
				a.say("ended %s", count(ended, "connection"))
				if a.json {
					return a.printJSON("flush", map[string]int{"ended": ended})
				}
				return nil
			})
		},
	}
}

// withSelector opens the datapath for what the arguments select. Connections of
// a forward that does not exist are not none: the name is mistyped.
func (a *app) withSelector(args []string, do func(*session, maps.Selector) error) error {
	selector, err := maps.ParseSelector(args)
	if err != nil {
		return usageError{err}
	}
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	if selector.Forward != "" {
		cfg, err := s.tables.Running()
		if err != nil && !errors.Is(err, maps.ErrEmpty) {
			return err
		}
		if _, err := findForwards(cfg, []string{selector.Forward}); err != nil {
			return err
		}
	}
	return do(s, selector)
}

func (a *app) printConnections(list []maps.Connection) error {
	if len(list) == 0 {
		return nil
	}
	t := newTable(a.out, "PROTO", "PATH", "FORWARD", "STATE", "CLIENT", "EXTERNAL", "SOURCE", "TARGET", "AGE", "IDLE", "PACKETS", "BYTES")
	for _, c := range list {
		t.row(c.Protocol.String(), c.Path, c.Forward, c.State,
			endpoint(c.Client), endpoint(c.External), endpoint(c.Source), endpoint(c.Target),
			seconds(c.AgeSeconds), seconds(c.IdleSeconds),
			strconv.FormatUint(c.Packets, 10), strconv.FormatUint(c.Bytes, 10))
	}
	return t.flush()
}

// endpoint is the address alone where the protocol has no port: JSON has port 0
// there.
func endpoint(at netip.AddrPort) string {
	if at.Port() == 0 {
		return at.Addr().String()
	}
	return at.String()
}

// seconds is a duration as people read it: "7s", "4m0s", "2h4m0s".
func seconds(n uint64) string {
	return (time.Duration(n) * time.Second).String()
}

// connectionStatus counts against the limit: what opens has a table of its own.
func (s *session) connectionStatus() (connectionStatus, error) {
	count, err := s.tables.CountConnections(maps.Selector{})
	if err != nil {
		return connectionStatus{}, err
	}
	return connectionStatus{
		Used:     count.Total - count.HalfOpen,
		HalfOpen: count.HalfOpen,
		Limit:    s.maxConnections(),
	}, nil
}
