// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/router"
	"hairpin/cmd/hairpin/screen"
	"hairpin/cmd/hairpin/trace"
	"hairpin/loader"
	tables "hairpin/maps"
	"hairpin/maps/rule"
)

// minInterval is the shortest time between two looks at the counters: each reads the counters of every forward, and walks the tables
// of connections.
const minInterval = 100 * time.Millisecond

func (a *app) watchCommand() *cobra.Command {
	var limits limits
	interval := time.Second
	command := &cobra.Command{
		Use:   "watch",
		Short: "Show forwards with their rates, and refusals, again and again",
		Long: `Show the forwards with their connections, and with the new connections, packets and bytes of
each second; and how many packets of which reason were dropped. A terminal is redrawn; q ends.
In a pipe, lines are appended: one for each forward with traffic, one for each reason.

Only forwards are listed that have a connection, or had traffic since the command began.`,
		Example: `  hairpin watch --interval 5s
  hairpin watch conn forward web`,
		Args: takesNoMore,
		RunE: func(command *cobra.Command, _ []string) error {
			if err := limits.check(); err != nil {
				return err
			}
			if interval < minInterval {
				return usageError{fmt.Errorf("--interval %s is too short; the shortest is %s", interval, minInterval)}
			}
			return a.watchForwards(command.Context(), interval, limits)
		},
	}
	command.Flags().DurationVar(&interval, "interval", time.Second, "`TIME` between two looks")
	limits.flags(command, "looks")
	command.AddCommand(a.watchConnCommand())
	return command
}

// takesNoMore is the check of a command that has subcommands and no arguments.
func takesNoMore(command *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return unknownCommand(command, args[0])
}

// look is what the counters say at one moment.
type look struct {
	at          time.Time
	forwards    map[string]tables.Totals
	connections tables.Count
	dropped     map[string]uint64 // packets, by reason
}

// looker looks at the datapath again and again.
type looker struct {
	app        *app
	session    *router.Session
	generation uint64 // of the programs of session
}

// take looks once. After an upgrade, or after hairpin was detached and attached again, it looks at the new datapath.
func (k *looker) take() (l look, err error) {
	generation, err := loader.ProgramsGeneration(k.app.dir)
	if err != nil {
		return l, err
	}
	if k.session == nil || generation != k.generation {
		k.close()
		if k.session, err = k.app.open(); err != nil {
			return l, err
		}
		k.generation = generation
	}
	return takeLook(k.session)
}

func (k *looker) close() {
	if k.session != nil {
		k.session.Close()
		k.session = nil
	}
}

func takeLook(s *router.Session) (l look, err error) {
	l.at = time.Now()
	if l.forwards, err = s.Tables.ForwardTotals(); err != nil {
		return l, err
	}
	if l.connections, err = s.Tables.CountConnections(rule.Selector{}); err != nil {
		return l, err
	}
	counters, err := s.Tables.Counters()
	if err != nil {
		return l, err
	}
	l.dropped = map[string]uint64{}
	for _, c := range counters {
		if c.Verdict == "drop" || c.Verdict == "refuse" {
			l.dropped[c.Reason] += c.Packets
		}
	}
	return l, nil
}

// forwardRate is one forward between two looks. Rates are of a second.
type forwardRate struct {
	Name        string  `json:"name"`
	Connections int     `json:"connections"` // now
	Opened      float64 `json:"connections_per_second"`
	Packets     float64 `json:"packets_per_second"`
	Bytes       float64 `json:"bytes_per_second"`
}

// dropRate is one reason between two looks.
type dropRate struct {
	Reason  string  `json:"reason"`
	Packets uint64  `json:"packets"` // since the command began
	Rate    float64 `json:"packets_per_second"`
}

// rates is what has happened between two looks.
type rates struct {
	Time        time.Time     `json:"time"`
	Established int           `json:"established"`
	HalfOpen    int           `json:"half_open"`
	Closing     int           `json:"closing"`
	Forwards    []forwardRate `json:"forwards"`
	Dropped     []dropRate    `json:"dropped"`
}

// compareLooks returns the rates between two looks. first is the look with which the command began.
func compareLooks(first, before, now look) rates {
	elapsed := now.at.Sub(before.at).Seconds()
	of := func(now, before uint64) float64 {
		if now < before || elapsed <= 0 { // the forward was added anew
			return 0
		}
		return float64(now-before) / elapsed
	}
	r := rates{
		Time: now.at, Established: now.connections.Established, HalfOpen: now.connections.HalfOpen, Closing: now.connections.Closing,
		Forwards: []forwardRate{}, Dropped: []dropRate{},
	}
	for _, name := range slices.Sorted(maps.Keys(now.forwards)) {
		new, old := now.forwards[name], before.forwards[name]
		if now.connections.Forwards[name] == 0 && new == first.forwards[name] {
			continue
		}
		r.Forwards = append(r.Forwards, forwardRate{
			Name: name, Connections: now.connections.Forwards[name],
			Opened: of(new.Established, old.Established), Packets: of(new.Packets, old.Packets), Bytes: of(new.Bytes, old.Bytes),
		})
	}
	for _, reason := range slices.Sorted(maps.Keys(now.dropped)) {
		total := now.dropped[reason]
		if old := first.dropped[reason]; total >= old { // else the counters began again
			total -= old
		}
		if total > 0 {
			r.Dropped = append(r.Dropped, dropRate{Reason: reason, Packets: total, Rate: of(now.dropped[reason], before.dropped[reason])})
		}
	}
	return r
}

func (a *app) watchForwards(ctx context.Context, interval time.Duration, limits limits) (err error) {
	ctx, stop := limits.until(ctx)
	defer stop()
	looker := &looker{app: a}
	defer looker.close()
	first, err := looker.take()
	if err != nil {
		return err
	}
	show, resized, quit := a.appendRates, (<-chan os.Signal)(nil), (<-chan struct{})(nil)
	if terminal, ok := a.stdout.(*os.File); ok && screen.IsTerminal(terminal) && !a.json {
		page, failed := screen.Open(a.stdin, terminal)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, page.Close()) }()
		resized, quit = page.Resized(), page.Quit()
		show = func(r rates) error { return page.Draw(ratesPage(r)) }
		if err := show(compareLooks(first, first, first)); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	before, now := first, first
	for shown := uint64(0); !limits.enough(shown); {
		select {
		case <-ctx.Done():
			return ended(context.Cause(ctx))
		case <-quit:
			return nil
		case <-resized:
			if err := show(compareLooks(first, before, now)); err != nil {
				return err
			}
			continue
		case <-ticker.C:
		}
		next, err := looker.take()
		if err != nil {
			return err
		}
		before, now = now, next
		if err := show(compareLooks(first, before, now)); err != nil {
			return err
		}
		shown++
	}
	return nil
}

// appendRates prints rates as lines, or as one JSON document.
func (a *app) appendRates(r rates) error {
	if a.json {
		if err := a.printJSON("watch", r); err != nil {
			return err
		}
		return a.flush()
	}
	at := r.Time.Format("15:04:05")
	fmt.Fprintf(a.out, "%s connections established %d half-open %d closing %d\n", at, r.Established, r.HalfOpen, r.Closing)
	for _, f := range r.Forwards {
		fmt.Fprintf(a.out, "%s forward %s connections %d new/s %s packets/s %s bytes/s %s\n", at, f.Name, f.Connections,
			rate(f.Opened), rate(f.Packets), rate(f.Bytes))
	}
	for _, d := range r.Dropped {
		fmt.Fprintf(a.out, "%s dropped %s packets %d packets/s %s\n", at, d.Reason, d.Packets, rate(d.Rate))
	}
	return a.flush()
}

// ratesPage formats rates for a terminal.
func ratesPage(r rates) string {
	var page bytes.Buffer
	fmt.Fprintf(&page, "%s  connections: %d established, %d half-open, %d closing                q ends\n\n",
		r.Time.Format("15:04:05"), r.Established, r.HalfOpen, r.Closing)
	forwards := newTable(&page, "FORWARD", "CONNECTIONS", "NEW/S", "PACKETS/S", "BYTES/S")
	for _, f := range r.Forwards {
		forwards.row(f.Name, strconv.Itoa(f.Connections), rate(f.Opened), rate(f.Packets), rate(f.Bytes))
	}
	_ = forwards.flush() // a bytes.Buffer takes everything
	page.WriteByte('\n')
	dropped := newTable(&page, "DROPPED", "PACKETS", "PACKETS/S")
	for _, d := range r.Dropped {
		dropped.row(d.Reason, strconv.FormatUint(d.Packets, 10), rate(d.Rate))
	}
	_ = dropped.flush()
	return page.String()
}

// rate formats a number of a second: with one digit after the point below 10.
func rate(perSecond float64) string {
	if perSecond > 0 && perSecond < 10 {
		return strings.TrimSuffix(strconv.FormatFloat(perSecond, 'f', 1, 64), ".0")
	}
	return strconv.FormatFloat(perSecond, 'f', 0, 64)
}

func (a *app) watchConnCommand() *cobra.Command {
	var limits limits
	command := &cobra.Command{
		Use:   "conn [SELECTOR..]",
		Short: "Show connections as they open, are established, close and are refused",
		Long: `Show connections as they open, are established, close and are refused: one line is one event.

  open         the first packet has come; TCP: the SYN
  established  TCP: the handshake is complete; others: the server has answered
  closed       with packets and bytes of both directions, and a reason: fin, reset, idle,
               unanswered, ended (the forward or the address was removed, or a command ended
               the connection), evicted
  refused      a packet that would have opened a connection, with the reason

SOURCE is the client as the server sees it. No packet waits for the reader: events that come
faster than they are printed are lost, and counted at the end. It ends with Ctrl-C. The daemon
writes the same events with [log] connections.

` + selectorHelp,
		ValidArgsFunction: a.completeSelector,
		RunE: func(command *cobra.Command, args []string) error {
			if err := limits.check(); err != nil {
				return err
			}
			return a.withSelector(args, func(_ *router.Session, selector rule.Selector) error {
				return a.watchConnections(command.Context(), selector, limits)
			})
		},
	}
	limits.flags(command, "events")
	return command
}

// watchResult is the last document of a watch of connections.
type watchResult struct {
	Events uint64 `json:"events"` // printed
	Lost   uint64 `json:"lost"`
}

func (a *app) watchConnections(ctx context.Context, selector rule.Selector, limits limits) (err error) {
	ctx, stop := limits.until(ctx)
	defer stop()
	running, err := trace.OpenConnections(a.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, running.Close()) }()
	a.say("watching; Ctrl-C ends")
	var result watchResult
	for !limits.enough(result.Events) {
		event, err := running.Next(ctx)
		if err != nil {
			if err = ended(err); err != nil {
				return err
			}
			break
		}
		if !event.Selected(&selector) {
			continue
		}
		if err := a.printEvent(event); err != nil {
			return err
		}
		result.Events++
	}
	if result.Lost = running.Lost(); result.Lost > 0 {
		a.warn("lost %s, which came faster than they were printed", count(int(result.Lost), "event"))
	}
	if !a.json {
		return nil
	}
	return a.printJSON("watch", result)
}

func (a *app) printEvent(e *trace.Event) error {
	if a.json {
		if err := a.printJSON("event", e); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(a.out, printable(e.Text()))
	}
	return a.flush()
}
