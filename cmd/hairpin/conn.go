// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/router"
	"hairpin/maps"
	"hairpin/maps/rule"
)

// selectorHelp is the last part of the help of every conn command.
var selectorHelp = "SELECTOR := " + rule.SelectorSyntax + "\nP := " +
	strings.Join(connectionProtocols(), "|") + "\n" + `
client is the address of the client, dst the external address or the target, port a
port of either. src is another word for client. A connection must match all conditions,
and none of those after "not". Connections that have ended are selected only by
state ended.`

// connectionProtocols returns the protocols that a connection can have: every protocol name except "any",
// the last.
func connectionProtocols() []string {
	names := rule.ProtocolNames()
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
	command.Flags().AddFlagSet(show.Flags())
	command.AddCommand(show, a.connCountCommand(), a.connFlushCommand())
	return command
}

func (a *app) connShowCommand() *cobra.Command {
	var order string
	var names bool
	command := &cobra.Command{
		Use:     "show [SELECTOR..]",
		Aliases: []string{"list", "ls"},
		Short:   "List connections",
		Long: `List connections, one per line, in the direction of the client that opened them.
SOURCE is the address that the target sees. CLIENT and SOURCE of an icmp connection
are ADDR:ID, with the identifier of the echo request. For protocols without ports,
such as gre, there is an address only; JSON has ADDR:0. An IPv6 address with a port
is in brackets. For IPv6, icmp means ICMPv6. FORWARD "-": the client connected
to the target directly. Its source port was in use by a connection of a forward, so
hairpin gave it another one.

The list is printed while the table is read. Up to ` + strconv.Itoa(connBlock) + ` connections are sorted by
protocol, external address and client; a longer list consists of such sorted blocks.
With --sort the whole table is read before the first line, and the highest figure comes
first.

` + selectorHelp,
		ValidArgsFunction: a.completeSelector,
		RunE: func(_ *cobra.Command, args []string) error {
			compare, err := findSortKey(connectionKeys, order)
			if err != nil {
				return err
			}
			resolve, err := a.newTableResolver(names)
			if err != nil {
				return err
			}
			defer resolve.close()
			return a.withSelector(args, func(s *router.Session, selector rule.Selector) error {
				return a.printConnections(compare, resolve, func(visit func(*maps.Connection)) error {
					return s.Tables.EachConnection(selector, visit)
				})
			})
		},
	}
	addSortFlag(command, &order, connectionKeys, "")
	addResolveFlag(command, &names)
	return command
}

func (a *app) connCountCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "count [SELECTOR..]",
		Short:             "Count connections",
		Long:              "Count connections.\n\n" + selectorHelp,
		ValidArgsFunction: a.completeSelector,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withSelector(args, func(s *router.Session, selector rule.Selector) error {
				count, err := s.Tables.CountConnections(selector)
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
		Short: "End connections at once; both ends of TCP get a RST",
		Long: `End connections at once. Both ends of a TCP connection get a RST. To end all
connections, run it twice: with client 0.0.0.0/0 for IPv4 and with client ::/0 for IPv6.

` + selectorHelp,
		Args:              needs("a SELECTOR, " + rule.SelectorSyntax),
		ValidArgsFunction: a.completeSelector,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withSelector(args, func(s *router.Session, selector rule.Selector) error {
				ended, err := s.Tables.EndConnections(selector)
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

// withSelector parses args and calls do with the open datapath. It fails for a forward that does not exist,
// because the name must be mistyped.
func (a *app) withSelector(args []string, do func(*router.Session, rule.Selector) error) error {
	selector, err := rule.ParseSelector(args)
	if err != nil {
		return usageError{err}
	}
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	for name := range selector.Forwards() {
		_, there, err := s.Tables.Find(name)
		if err != nil && !errors.Is(err, maps.ErrEmpty) {
			return err
		}
		if !there {
			return notFound(s, []string{name})
		}
	}
	return do(s, selector)
}

// connBlock is the number of connections that an unsorted listing holds in memory at a time.
const connBlock = 4096

// sortedGC is the GC percentage of a sorted listing: it keeps all connections, so garbage must not double its memory. A collection is cheap: a
// connectionList has no pointers.
const sortedGC = 25

// compareConnections is the order of connections within a block, and of connections that are equal by --sort.
func compareConnections(a, b *maps.Connection) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.External.Compare(b.External), a.Client.Compare(b.Client))
}

// printConnections calls walk to get the connections, and prints them: in sorted blocks while it walks, or in the order of compare
// after the walk. compare may be nil, and resolve too.
func (a *app) printConnections(compare func(a, b *maps.Connection) int, resolve *resolver, walk func(visit func(*maps.Connection)) error) error {
	debug.SetGCPercent(usualGC)
	if compare != nil {
		debug.SetGCPercent(sortedGC)
	}
	print, end := a.connectionRows(resolve)
	var list connectionList
	var failed error
	flush := func() {
		if failed == nil {
			failed = printList(&list, compare, resolve, print)
		}
		list.clear()
	}
	err := walk(func(c *maps.Connection) {
		if list.len() == connBlock && compare == nil {
			flush()
		}
		list.add(c)
	})
	flush()
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	return end()
}

// printList prints the connections of a list in the order of compare, which may be nil.
func printList(list *connectionList, compare func(a, b *maps.Connection) int, resolve *resolver, print func(*maps.Connection) error) error {
	order := make([]uint32, list.len())
	for i := range order {
		order[i] = uint32(i)
	}
	var a, b maps.Connection
	slices.SortFunc(order, func(i, j uint32) int {
		list.at(i, &a)
		list.at(j, &b)
		if compare != nil {
			if order := compare(&a, &b); order != 0 {
				return order
			}
		}
		return compareConnections(&a, &b)
	})
	block := make([]maps.Connection, min(connBlock, len(order)))
	for some := range slices.Chunk(order, connBlock) {
		for i, number := range some {
			list.at(number, &block[i])
		}
		resolveConnections(resolve, block[:len(some)])
		for i := range some {
			if err := print(&block[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// resolveConnections looks up the names of all addresses of connections.
func resolveConnections(resolve *resolver, connections []maps.Connection) {
	if resolve == nil {
		return
	}
	addrs := make([]netip.Addr, 0, 4*len(connections))
	for i := range connections {
		c := &connections[i]
		addrs = append(addrs, c.Client.Addr(), c.External.Addr(), c.Source.Addr(), c.Target.Addr())
	}
	resolve.resolve(addrs)
}

// connectionRows returns a function that prints one connection, as JSON or as a table row, and a function
// to call after the last connection.
func (a *app) connectionRows(resolve *resolver) (print func(*maps.Connection) error, end func() error) {
	if a.json {
		list := a.newJSONList("connections")
		return func(c *maps.Connection) error { return list.add(c) }, list.end
	}
	var t *table // nil until the first connection: an empty list has no header
	print = func(c *maps.Connection) error {
		if t == nil {
			t = a.newTable("PROTO", "PATH", "FORWARD", "STATE", "CLIENT", "EXTERNAL", "SOURCE", "TARGET", "AGE", "IDLE", "PACKETS", "BYTES")
		}
		t.row(c.Protocol.String(), c.Path, cmp.Or(c.Forward, "-"), c.State,
			resolve.endpoint(c.Client), resolve.endpoint(c.External), resolve.endpoint(c.Source), resolve.endpoint(c.Target),
			seconds(c.AgeSeconds), seconds(c.IdleSeconds),
			strconv.FormatUint(c.Packets, 10), strconv.FormatUint(c.Bytes, 10))
		return nil
	}
	return print, func() error {
		if t == nil {
			return a.printNone()
		}
		return t.flush()
	}
}

// endpoint formats an address with its port. It leaves out port 0, which stands for a protocol without
// ports.
func endpoint(at netip.AddrPort) string {
	if at.Port() == 0 {
		return at.Addr().String()
	}
	return at.String()
}

// portText formats a port, "" for port 0.
func portText(port uint16) string {
	if port == 0 {
		return ""
	}
	return strconv.Itoa(int(port))
}

// seconds formats a number of seconds: "7s", "4m0s", "2h4m0s".
func seconds(n uint64) string {
	return (time.Duration(n) * time.Second).String()
}

// connectionUse returns the use of the connection table. The limit applies to established connections only:
// half-open and closing connections have their own places.
func connectionUse(s *router.Session) (connectionStatus, error) {
	count, err := s.Tables.CountConnections(rule.Selector{})
	if err != nil {
		return connectionStatus{}, err
	}
	return connectionStatus{
		Used:     count.Established,
		HalfOpen: count.HalfOpen,
		Limit:    s.MaxConnections(),
	}, nil
}
