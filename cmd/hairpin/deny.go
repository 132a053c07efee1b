// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hairpin/cmd/hairpin/router"
	"hairpin/maps"
	"hairpin/maps/rule"
)

func (a *app) denyCommand() *cobra.Command {
	show := a.denyShowCommand()
	command := &cobra.Command{
		Use:   "deny [show]",
		Short: "Show, add and delete denied sources",
		Long: `Show, add and delete denied sources: addresses and networks that open no connection,
of any forward or intercept. A source that is added loses its connections at once.

What is added here survives a reload and an upgrade, but no reboot and no "hairpin
detach --all", and "hairpin save" does not write it: ban managers add their sources
again. Write permanent sources into the configuration file: deny.sources.

Only forwards are closed to a denied source. Packets to the router itself are not
affected; use the firewall for them.`,
		RunE: show.RunE,
		Args: takes(0),
	}
	command.AddCommand(show, a.denyAddCommand(), a.denyDelCommand())
	return command
}

func (a *app) denyShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Aliases: []string{"list", "ls"},
		Short:   "List the denied sources",
		Long: `List the denied sources. LEFT is the time that is left, BY who denies the source:
the configuration file, or a command.`,
		Args: takes(0),
		RunE: func(*cobra.Command, []string) error { return a.showDenied() },
	}
}

func (a *app) denyAddCommand() *cobra.Command {
	var yes bool
	command := &cobra.Command{
		Use:   "add ADDR|CIDR [TIMEOUT] | -",
		Short: "Deny a source, and end its connections at once",
		Long: `Deny an address or a network, and end its connections at once. TIMEOUT looks like 10m
or 4h; a number alone is seconds. Without it, or with 0, the source is denied until
"hairpin deny del". A source that is denied already gets the new time.

With "-" the sources come from standard input, one per line with its timeout. That
is much faster for many of them. Empty lines and what follows a # are ignored. If a
line is wrong, nothing is added.`,
		Example: `  hairpin deny add 198.51.100.7 10m
  hairpin deny add 2001:db8:bad::/48
  hairpin deny add - < blocklist.txt`,
		Args: func(command *cobra.Command, args []string) error {
			return errors.Join(needs("ADDR, CIDR or -")(command, args), takes(2)(command, args))
		},
		RunE: func(command *cobra.Command, args []string) error {
			denials, err := a.readDenials(args)
			if err != nil {
				return usageError{err}
			}
			return a.deny(command, denials, yes)
		},
	}
	command.Flags().BoolVar(&yes, "yes", false, "also deny addresses of the router's own, or every address")
	return command
}

func (a *app) denyDelCommand() *cobra.Command {
	var ifDenied bool
	command := &cobra.Command{
		Use:     "del ADDR|CIDR..",
		Aliases: []string{"delete", "rm", "remove"},
		Short:   "Deny sources no longer",
		Long: `Take back what "hairpin deny add" has denied. It is an error if no command denies a
source: the exit code is 3, or 1 if the configuration file denies the source.

With --if-denied it is no error: ban managers delete bans that may have ended by
themselves. What the configuration file denies stays denied.`,
		Args: needs("ADDR or CIDR"),
		RunE: func(command *cobra.Command, args []string) error {
			var sources []netip.Prefix
			for _, arg := range args {
				source, err := rule.ParsePrefix(arg)
				if err != nil {
					return usageError{err}
				}
				if !slices.Contains(sources, source) {
					sources = append(sources, source)
				}
			}
			return a.undeny(command, sources, ifDenied)
		},
	}
	command.Flags().BoolVar(&ifDenied, "if-denied", false, "succeed for sources that no command denies")
	return command
}

// maxDenials is the size of a list of sources: a million of the longest lines.
const maxDenials = 8 * maxStdinSize

// readDenials reads the arguments of `deny add`, or standard input. Of a source that is listed twice the last line counts.
func (a *app) readDenials(args []string) ([]maps.Denial, error) {
	if args[0] != stdinPath {
		source, lasts, err := rule.ParseDenial(args)
		return []maps.Denial{{Source: source, Lasts: lasts}}, err
	}
	if len(args) > 1 {
		return nil, fmt.Errorf("%s after -, which reads each source with its time from standard input", rule.Quote(args[1]))
	}
	var denials []maps.Denial
	places := map[netip.Prefix]int{}
	limited := &io.LimitedReader{R: a.stdin, N: maxDenials + 1}
	lines := bufio.NewScanner(limited)
	for number := 1; lines.Scan(); number++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		source, lasts, err := rule.ParseDenial(words)
		if limited.N == 0 {
			break // the limit may have cut this line
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", stdinName, number, err)
		}
		d := maps.Denial{Source: source, Lasts: lasts}
		if i, twice := places[source]; twice {
			denials[i] = d
			continue
		}
		places[source] = len(denials)
		denials = append(denials, d)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", stdinName, err)
	}
	if limited.N == 0 {
		return nil, fmt.Errorf("%s: larger than %d MiB, the limit for a list of sources", stdinName, maxDenials>>20)
	}
	if len(denials) == 0 {
		a.warn("%s lists no source, so nothing is denied", stdinName)
	}
	return denials, nil
}

func (a *app) deny(command *cobra.Command, denials []maps.Denial, yes bool) error {
	s, err := a.openLocked(command.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	if !yes {
		if err := refuseOwn(s, denials); err != nil {
			return err
		}
	}
	ended, err := s.Tables.Deny(denials)
	if err != nil {
		return err
	}
	if len(denials) == 1 {
		a.say("denied %s%s; ended %s", rule.SourceText(denials[0].Source), lastsText(denials[0].Lasts), count(ended, "connection"))
	} else {
		a.say("denied %s; ended %s", count(len(denials), "source"), count(ended, "connection"))
	}
	if a.json {
		return a.printJSON("deny", map[string]int{"added": len(denials), "ended": ended})
	}
	return nil
}

func lastsText(lasts time.Duration) string {
	if lasts == 0 {
		return ""
	}
	return " for " + lasts.String()
}

// refuseOwn refuses sources that are most likely a mistake: everybody, or the router itself.
func refuseOwn(s *router.Session, denials []maps.Denial) error {
	own, err := s.OwnAddresses()
	if err != nil {
		return err
	}
	for _, d := range denials {
		if d.Source.Bits() == 0 {
			return invalid(fmt.Errorf("%s is every %s address: nobody could use a forward; to deny them all the same, add --yes",
				d.Source, rule.Family(d.Source.Addr())))
		}
		for _, at := range own {
			if d.Source.Contains(at.Address) {
				return invalid(fmt.Errorf("%s contains this router's address %s (%s). Servers see reflected clients by this address. To deny it anyway, add --yes",
					rule.SourceText(d.Source), at.Address, at.Interface))
			}
		}
	}
	return nil
}

// undeny takes denials back. With ifDenied a source that no command denies is no error.
func (a *app) undeny(command *cobra.Command, sources []netip.Prefix, ifDenied bool) error {
	s, err := a.openLocked(command.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	missing, configured, err := s.Tables.Undeny(sources)
	if err != nil {
		return err
	}
	var errs []error
	removed := 0
	for _, source := range sources {
		gone, stays := slices.Contains(missing, source), slices.Contains(configured, source)
		text := rule.SourceText(source)
		switch {
		case gone && ifDenied:
		case gone && stays:
			errs = append(errs, invalid(fmt.Errorf("%s is denied by the configuration: remove it from deny.sources in %s, then systemctl reload hairpin", text, a.configFile)))
		case gone:
			errs = append(errs, notFoundError{kind: "denied source", name: text})
		case stays:
			a.warn("%s stays denied by the configuration: deny.sources in %s", text, a.configFile)
			removed++
		default:
			a.say("%s is denied no longer", text)
			removed++
		}
	}
	if a.json {
		errs = append(errs, a.printJSON("deny", map[string]int{"removed": removed}))
	}
	return errors.Join(errs...)
}

// deniedRow is a denied source as other programs may read it.
type deniedRow struct {
	Source     string `json:"source"` // an address or a network
	Configured bool   `json:"configured"`
	Asked      bool   `json:"asked"`                  // by a command
	Left       int64  `json:"left_seconds,omitempty"` // of what a command has asked for; absent: it has no end
}

func (a *app) showDenied() error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	var all []maps.Denied
	if err := s.Tables.EachDenied(func(d maps.Denied) { all = append(all, d) }); err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b maps.Denied) int {
		return cmp.Or(a.Source.Addr().Compare(b.Source.Addr()), cmp.Compare(a.Source.Bits(), b.Source.Bits()))
	})
	if a.json {
		list := a.newJSONList("denied")
		for _, d := range all {
			row := deniedRow{Source: rule.SourceText(d.Source), Configured: d.Configured, Asked: d.Asked, Left: int64((d.Left + time.Second - 1) / time.Second)}
			if err := list.add(row); err != nil {
				return err
			}
		}
		return list.end()
	}
	if len(all) == 0 {
		return a.printNone()
	}
	t := a.newTable("SOURCE", "LEFT", "BY")
	for _, d := range all {
		t.row(rule.SourceText(d.Source), leftText(d), byText(d))
	}
	return t.flush()
}

// leftText is the time that is left, "" for ever.
func leftText(d maps.Denied) string {
	if d.Configured || d.Left == 0 {
		return ""
	}
	return d.Left.Truncate(time.Second).String()
}

func byText(d maps.Denied) string {
	switch {
	case d.Configured && d.Asked:
		return "configuration,command"
	case d.Configured:
		return "configuration"
	}
	return "command"
}
