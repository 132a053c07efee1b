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

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/dns"
	"hairpin/cmd/hairpin/router"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

func (a *app) forwardCommand() *cobra.Command {
	show := a.forwardShowCommand()
	command := &cobra.Command{
		Use:     "forward [show] [NAME..] [-s] [--sort KEY] [-r]",
		Aliases: []string{"forwards"},
		Short:   "Show, add, replace, disable and delete forwards",
		Long: `Show, add, replace, disable and delete forwards. An intercept is a forward for LAN traffic to a
port, whatever its destination address. Intercepts are shown and deleted like
other forwards; they are added in the configuration file only, as [[intercept]].`,
		RunE:              show.RunE,
		ValidArgsFunction: a.completeForwards,
	}
	command.Flags().AddFlagSet(show.Flags())
	command.AddCommand(show, a.forwardAddCommand(), a.forwardReplaceCommand(), a.forwardDelCommand(), a.forwardDisableCommand(), a.forwardEnableCommand())
	return command
}

func (a *app) forwardShowCommand() *cobra.Command {
	var o forwardShow
	command := &cobra.Command{
		Use:     "show [NAME..] [-s] [--sort KEY] [-r]",
		Aliases: []string{"list", "ls"},
		Short:   "Show the running forwards",
		Long: `Show the running forwards, intercepts included. Of an intercept, EXTERNAL "any@lan0"
means traffic that arrives on lan0 for any address, and FROM "!192.168.1.53/32"
means every client but that address. "+wan" after REFLECT, as in "router+wan", means that
clients on the Internet are hidden behind the router, too, as clients = "router" says.
With "off+wan" LAN clients are not served on the external address.

EXTERNAL has the addresses on which the forward listens now, with their interface.
"(no address)" means that the interface has none of the forward's family.

"(disabled)" after the name: the forward matches no packet; see "forward enable".
"(drains)": it opens no connection any more, and is deleted when its connections
have ended; see "forward del --drain". -v adds the comments.

SOURCE "lease": the forward is a mapping that a program of the LAN has made with
miniupnpd (section leases of the configuration). FROM "lan" means that it is for LAN
clients: the rules of miniupnpd serve the Internet.

With -s: PACKETS and BYTES count both directions since the forward was added. REFUSED
counts packets that would have opened a connection and were refused: by from, reflect,
a rate, a limit, a denied source, a full table or a missing route. LAST HIT is the time
since the last packet that was translated, or since the last refused opening.`,
		ValidArgsFunction: a.completeForwards,
		RunE: func(_ *cobra.Command, names []string) error {
			return a.showForwards(names, o)
		},
	}
	command.Flags().BoolVarP(&o.stats, "stats", "s", false, "with counters")
	addSortFlag(command, &o.sort, forwardKeys, "; with counters")
	addResolveFlag(command, &o.names)
	return command
}

func (a *app) forwardAddCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "add " + rule.ForwardSyntax,
		Short: "Add a forward at run time",
		Long: `Add a forward at run time. "hairpin save" writes it to a file, so that it outlives
a reload and a reboot.

Without ADDR or IF the forward listens on every address of every WAN interface. A
forward is IPv4 or IPv6, as its target is. PORT "any" forwards every port to the
same port of the target.

` + rule.IPv6Rule + `

Several servers, each after a "to", share the new connections in proportion to their
weights, 1 to 256. A server with weight 0 gets no new connection, and keeps those that
it has. With affinity, a client that comes back within this time gets the server that
it had last.

PROTO is ` + strings.Join(rule.ProtocolNames(), ", ") + `
or several, separated by commas. For sctp the target's port must be the same. icmp
(ping) and the protocols after it have no ports: write "any" for PORT. PROTO any
means all of them.

MODE is ` + strings.Join(rule.ReflectNames(), ", ") + `: the
source address that the target sees of LAN clients. The default is reflection.default
of the configuration.

WHO is ` + strings.Join(rule.ClientsNames(), " or ") + `. With router the target sees the router's address for every
client, also for those of the Internet. Use it if the target's gateway is not this
router.

rate is how many connections may be opened, and how many of them at once: 100/s,
20/min, 5/h. rate_per_source is the same for each client: an IPv4 address, or an
IPv6 /64 on the Internet. A change of a rate ends no connection.

host gives the DNS names of the forward. "hairpin dns" writes them for the name
server of the LAN.

comment says what the forward is for. "forward show -v" shows it.`,
		Example: `  hairpin forward add web tcp,udp 443 to 192.168.1.20:8443
  hairpin forward add game udp wan0:6000-6010 to 192.168.1.30 reflect router
  hairpin forward add ssh tcp 203.0.113.1:2222 to 192.168.1.20:22 from 198.51.100.0/24
  hairpin forward add pool tcp 80 to 192.168.1.20:80 weight 2 to 192.168.1.21:80 affinity 30m
  hairpin forward add mail tcp 25 to 192.168.1.25 rate 100/s rate_per_source 10/min
  hairpin forward add web6 tcp wan0:443 to [fd00::20]:8443
  hairpin forward add tunnel gre,icmp any to 192.168.1.40
  hairpin forward add shop tcp 443 to 192.168.1.21 host www.example.org,shop.example.org`,
		Args:              needs(rule.ForwardSyntax),
		ValidArgsFunction: a.completeForwardAdd,
		RunE: func(command *cobra.Command, args []string) error {
			forward, err := rule.ParseForward(args)
			if err != nil {
				return invalid(err)
			}
			forward.Source = router.SourceCLI
			return a.addForward(command, forward)
		},
	}
}

func (a *app) forwardReplaceCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "replace " + rule.ForwardSyntax,
		Short: "Replace a running forward by another one of the same name, at once",
		Long: `Replace a running forward by another one of the same name, at once: no packet meets
neither or both. The arguments are those of "forward add"; what is not given has its
default, not the value of the old forward. Connections live on if the new forward
does the same for them: a change of the comment, of a rate or of a host ends none.
A disabled forward stays disabled.`,
		Example:           `  hairpin forward replace web tcp 443 to 192.168.1.21:8443`,
		Args:              needs(rule.ForwardSyntax),
		ValidArgsFunction: a.completeForwardReplace,
		RunE: func(command *cobra.Command, args []string) error {
			forward, err := rule.ParseForward(args)
			if err != nil {
				return invalid(err)
			}
			forward.Source = router.SourceCLI
			return a.replaceForward(command, forward)
		},
	}
}

// Limits of --drain: a second is the shortest time worth waiting for.
const (
	shortestDrain = time.Second
	longestDrain  = 30 * 24 * time.Hour
)

func (a *app) forwardDelCommand() *cobra.Command {
	var drain time.Duration
	command := &cobra.Command{
		Use:     "del NAME.. [--drain TIME]",
		Aliases: []string{"delete", "rm", "remove"},
		Short:   "Delete running forwards; their connections end at once, or by and by",
		Long: `Delete running forwards. Their connections end at once.

With --drain the forwards open no connection from now on. Those that exist live on
until they end, at most for TIME; then the forward is deleted. This happens also if
the daemon is not running. A disabled forward is deleted at once.`,
		Args:              needs("NAME"),
		ValidArgsFunction: a.completeForwards,
		RunE: func(command *cobra.Command, names []string) error {
			if command.Flags().Changed("drain") && (drain < shortestDrain || drain > longestDrain) {
				a.started = false // a usage error
				return fmt.Errorf("--drain %s is out of range; it is 1s to 720h", drain)
			}
			return a.delForwards(command, names, drain)
		},
	}
	command.Flags().DurationVar(&drain, "drain", 0, "`TIME` for which connections may live on")
	command.Flags().Lookup("drain").DefValue = ""
	return command
}

func (a *app) forwardDisableCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "disable NAME..",
		Short: "Disable running forwards: they match no packet, and their connections end",
		Long: `Disable running forwards: they match no packet, and their connections end at once.
They stay in the list, and "hairpin save" writes them with enabled = false.`,
		Args:              needs("NAME"),
		ValidArgsFunction: a.completeForwards,
		RunE: func(command *cobra.Command, names []string) error {
			return a.switchForwards(command, names, false)
		},
	}
}

func (a *app) forwardEnableCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "enable NAME..",
		Short:             "Enable disabled forwards",
		Args:              needs("NAME"),
		ValidArgsFunction: a.completeDisabled,
		RunE: func(command *cobra.Command, names []string) error {
			return a.switchForwards(command, names, true)
		},
	}
}

func (a *app) addForward(command *cobra.Command, forward rule.Forward) error {
	s, err := a.openToChange(command.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	running, err := s.Settings()
	if err != nil {
		return err
	}
	old, taken, err := s.Tables.Find(forward.Name)
	if err != nil {
		return fmt.Errorf("read the running configuration: %w", err)
	}
	if taken && running.Same(old, forward) {
		a.say("nothing to do: %s (from %s) exists already", forward, old.Source)
		return a.printForwardRows("add", running, nil, nil)
	}
	if taken && (old.Disabled || old.Drains()) {
		return invalid(fmt.Errorf("%s %q exists already and %s; use \"forward enable\", \"forward replace\" or \"forward del\", or choose another name",
			old.Kind(), old.Name, map[bool]string{true: "is disabled", false: "drains"}[old.Disabled]))
	}
	if taken {
		return invalid(fmt.Errorf("%s %q exists already: %s (from %s); use \"forward replace\", or choose another name",
			old.Kind(), old.Name, old, old.Source))
	}
	if len(forward.Hosts) > 0 {
		// warnNames needs the host names of all running forwards.
		if running, err = s.Running(); err != nil {
			return err
		}
	}
	out, err := s.keeper.Add(running, forward, "forward add "+forward.Name)
	if err != nil {
		return err
	}
	a.say("added %s", forward)
	a.noticeUnkept(out.Unkept)
	if out.Later {
		a.say("there are so many forwards that \"hairpin rollback\" keeps this one only with the next apply, reload or replace")
	}
	a.say("runtime only: a reload removes the forward unless \"hairpin save\" writes it to a file")
	a.warnNames(running, forward)
	a.noticeFindings(s.FindingsOf(running, forward))
	return a.printForwardRows("add", running, []rule.Forward{forward}, nil)
}

// warnNames warns of host names of forward that do not lead to its target, compared with the forwards of
// cfg.
func (a *app) warnNames(cfg config.Config, forward rule.Forward) {
	if len(forward.Hosts) == 0 {
		return
	}
	_, warnings := dns.Names(append(slices.Clip(cfg.Forwards), forward), dns.Options{})
	for _, warning := range warnings {
		if warning.Forward == forward.Name {
			a.warn("%s", warning)
		}
	}
}

// printForwardRows prints the JSON document of a command that changed forwards:
// {"schema":1,"<name>":{"forwards":[..],"ends":{..}}}, without counters. nil leaves ends out: the command cannot end connections.
func (a *app) printForwardRows(name string, cfg config.Config, forwards []rule.Forward, ends map[string]int) error {
	if !a.json {
		return nil
	}
	rows := make([]forwardRow, 0, len(forwards))
	for _, f := range forwards {
		rows = append(rows, newForwardRow(cfg, f))
	}
	document := map[string]any{"forwards": rows}
	if ends != nil {
		document["ends"] = ends
	}
	return a.printJSON(name, document)
}

// edit changes the forwards of the running configuration. doing is the command for the list of kept configurations. edit returns the
// running configuration before.
func (a *app) edit(w *writer, doing string, edit func(*config.Config) error) (config.Config, change.Outcome, error) {
	running, err := w.Running()
	if err != nil {
		return running, change.Outcome{}, err
	}
	wanted := running
	wanted.Forwards, wanted.Disabled = slices.Clone(running.Forwards), slices.Clone(running.Disabled)
	if err := edit(&wanted); err != nil {
		return running, change.Outcome{}, err
	}
	change.DropMet(&wanted)
	if err := wanted.Validate(); err != nil {
		return running, change.Outcome{}, err
	}
	out, err := w.keeper.Edit(wanted, doing)
	if err == nil {
		a.noticeUnkept(out.Unkept)
		if ends := out.Change.EndsText(); ends != "" {
			a.say("%s", ends)
		}
	}
	return running, out, err
}

// sayRuntimeOnly says what to do so that a change of a forward outlives a reload; does is what the reload would do.
func (a *app) sayRuntimeOnly(f rule.Forward, does string) {
	if f.Source == router.SourceCLI || isFromFile(f.Source, a.savePath()) {
		a.say("runtime only: run \"hairpin save\" to update the file")
		return
	}
	a.say("runtime only: %s defines %q, and the next reload %s; change that file, too", f.Source, f.Name, does)
}

func (a *app) replaceForward(command *cobra.Command, forward rule.Forward) error {
	w, err := a.openToChange(command.Context())
	if err != nil {
		return err
	}
	defer w.Close()
	var old rule.Forward
	same := errors.New("nothing to do")
	running, out, err := a.edit(w, "forward replace "+forward.Name, func(wanted *config.Config) error {
		found, err := findForwards(*wanted, []string{forward.Name})
		if err != nil {
			return err
		}
		if err := refuseLeases(found); err != nil {
			return err
		}
		if old = found[0]; old.Intercept {
			return invalid(fmt.Errorf("%q is an intercept; change it in %s, and reload", old.Name, old.Source))
		}
		forward.Disabled = old.Disabled
		if wanted.Same(old, forward) {
			return same
		}
		for _, list := range [][]rule.Forward{wanted.Forwards, wanted.Disabled} {
			if i, there := config.IndexByName(list)[forward.Name]; there {
				list[i] = forward
			}
		}
		return nil
	})
	if errors.Is(err, same) {
		a.say("nothing to do: %s runs already", forward)
		return a.printForwardRows("replace", running, nil, map[string]int{})
	}
	if err != nil {
		return err
	}
	a.say("replaced %s by %s", old, forward)
	a.sayRuntimeOnly(old, "brings the old one back")
	if forward.Disabled {
		a.say("it is still disabled; run \"hairpin forward enable %s\"", forward.Name)
	} else {
		a.warnNames(running, forward)
		a.noticeFindings(w.FindingsOf(running, forward))
	}
	return a.printForwardRows("replace", running, []rule.Forward{forward}, withEmptyLists(out.Change).Ends)
}

// switchForwards enables or disables forwards.
func (a *app) switchForwards(command *cobra.Command, names []string, enable bool) error {
	w, err := a.openToChange(command.Context())
	if err != nil {
		return err
	}
	defer w.Close()
	name, did := "disable", "disabled"
	if enable {
		name, did = "enable", "enabled"
	}
	var switched []rule.Forward
	running, out, err := a.edit(w, "forward "+name+" "+strings.Join(names, " "), func(wanted *config.Config) error {
		found, err := findForwards(*wanted, names)
		if err == nil {
			err = refuseLeases(found)
		}
		if err != nil {
			return err
		}
		for _, f := range found {
			if f.Disabled != enable {
				continue // it is so already
			}
			remove := func(g rule.Forward) bool { return g.Name == f.Name }
			f.Disabled, f.DrainUntil = !enable, 0
			switched = append(switched, f)
			if enable {
				wanted.Disabled, wanted.Forwards = slices.DeleteFunc(wanted.Disabled, remove), append(wanted.Forwards, f)
			} else {
				wanted.Forwards, wanted.Disabled = slices.DeleteFunc(wanted.Forwards, remove), append(wanted.Disabled, f)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(switched) == 0 {
		a.say("nothing to do: %s already", did)
	}
	for _, f := range switched {
		a.say("%s %s", did, f)
		a.sayRuntimeOnly(f, "undoes this")
	}
	return a.printForwardRows(name, running, switched, withEmptyLists(out.Change).Ends)
}

// delForwards deletes forwards: at once, or when they have drained for at most this time.
func (a *app) delForwards(command *cobra.Command, names []string, drain time.Duration) error {
	s, err := a.openToChange(command.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	var deleted []rule.Forward
	running, out, err := a.edit(s, "forward del "+strings.Join(names, " "), func(wanted *config.Config) (err error) {
		if deleted, err = findForwards(*wanted, names); err == nil {
			err = refuseLeases(deleted)
		}
		if err != nil {
			return err
		}
		named := func(f rule.Forward) bool { return slices.Contains(names, f.Name) }
		wanted.Disabled = slices.DeleteFunc(wanted.Disabled, named)
		if drain == 0 {
			wanted.Forwards = slices.DeleteFunc(wanted.Forwards, named)
			return nil
		}
		for i := range wanted.Forwards {
			if named(wanted.Forwards[i]) {
				wanted.Forwards[i].DrainUntil = change.SinceBoot() + drain
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, f := range deleted {
		if drain != 0 && !f.Disabled {
			a.say("%s opens no connection any more, and is deleted when its connections have ended, at most in %s", f.Name, drain)
		} else {
			a.say("deleted %s", f)
		}
		a.sayRuntimeOnly(f, "adds it again")
	}
	if drain != 0 {
		if err := a.startLater(); err != nil {
			a.warn("cannot start the process that deletes the forwards later; the daemon, or the next command that changes something, does so: %s", err)
		}
	}
	return a.printForwardRows("del", running, deleted, withEmptyLists(out.Change).Ends)
}

// refuseLeases returns an error if one of the forwards stands for a mapping in a lease file: the daemon would make it again.
func refuseLeases(forwards []rule.Forward) error {
	var errs []error
	for _, f := range forwards {
		if f.IsLease() && !f.Drains() {
			errs = append(errs, fmt.Errorf("%q is a mapping of a lease file; delete the mapping where it was made, for example by \"upnpc -d %s %s\" on the host %s",
				f.Name, f.Ports, strings.ToUpper(joinProtocols(f.Protocols)), f.Target))
		}
	}
	return invalid(errors.Join(errs...))
}

func joinProtocols(protocols []rule.Protocol) string {
	names := make([]string, len(protocols))
	for i, p := range protocols {
		names[i] = p.String()
	}
	return strings.Join(names, ",")
}

func findForward(cfg config.Config, name string) (rule.Forward, bool) {
	for _, list := range [][]rule.Forward{cfg.Forwards, cfg.Disabled} {
		for i := range list {
			if list[i].Name == name {
				return list[i], true
			}
		}
	}
	return rule.Forward{}, false
}

// findForwards returns the forwards with these names, disabled ones too, in the order of cfg. The error names every missing
// forward.
func findForwards(cfg config.Config, names []string) ([]rule.Forward, error) {
	all := cfg.All()
	known := make([]string, len(all))
	for i, f := range all {
		known[i] = f.Name
	}
	var errs []error
	for _, name := range names {
		if !slices.Contains(known, name) {
			errs = append(errs, notFoundError{kind: "forward", name: clip(name), hint: rule.Suggest(name, known...)})
		}
	}
	var found []rule.Forward
	for _, f := range all {
		if slices.Contains(names, f.Name) {
			found = append(found, f)
		}
	}
	return found, errors.Join(errs...)
}

// forwardRow is the JSON form of a forward.
type forwardRow struct {
	Name        string   `json:"name"`
	Protocol    []string `json:"protocol"`
	External    string   `json:"external"`           // address or interface; "" means every WAN interface; "any" for an intercept: every address
	Port        string   `json:"port"`               // "443", "6000-6010", "any"
	Target      string   `json:"target"`             // "ADDR:PORT", "ADDR:PORT-PORT", or "ADDR" if Port is "any"; of several servers the first one
	Servers     []server `json:"servers,omitempty"`  // of a forward with several
	Affinity    string   `json:"affinity,omitempty"` // such as "30m0s"
	Reflect     string   `json:"reflect"`
	Clients     string   `json:"clients,omitempty"` // "router": the target sees the router's address for every client
	From        []string `json:"from"`              // networks that may connect; empty means all
	Rate        string   `json:"rate,omitempty"`    // of new connections, such as "100/s"
	PerSource   string   `json:"rate_per_source,omitempty"`
	Hosts       []string `json:"hosts,omitempty"` // names for split DNS
	Intercept   bool     `json:"intercept,omitempty"`
	LAN         []string `json:"lan,omitempty"`    // of an intercept: the interfaces whose clients are redirected
	Except      []string `json:"except,omitempty"` // of an intercept: networks that are not redirected
	Comment     string   `json:"comment,omitempty"`
	Enabled     bool     `json:"enabled"`
	LANOnly     bool     `json:"lan_only,omitempty"`       // the kernel gets what comes in by a WAN
	Drains      float64  `json:"drains_seconds,omitempty"` // it opens nothing any more, and is deleted after so long at the latest
	Source      string   `json:"source"`
	Connections int      `json:"connections"` // present number
	Packets     uint64   `json:"packets"`     // in both directions, since the forward was added
	Bytes       uint64   `json:"bytes"`
	Refused     uint64   `json:"refused"` // packets that would have opened a connection, and were refused
	// LastHit is the time since the last packet that was translated, or since the last refused opening. Absent: there was none.
	LastHit *uint64 `json:"last_hit_seconds,omitempty"`
	// Listens has the addresses on which the forward listens now. Absent if they were not looked up; an intercept has none.
	Listens []netip.Addr `json:"external_addresses,omitzero"`

	target netip.Addr
	places []listening // of Listens
}

// server is the JSON form of one of several servers.
type server struct {
	Target      string `json:"target"` // as forwardRow.Target
	Weight      uint16 `json:"weight"` // 0: it gets no new connection
	Connections int    `json:"connections"`

	target netip.Addr
	shift  uint16
}

// listening has the addresses of one WAN interface on which a forward listens now.
type listening struct {
	wan   string // "" for an address that the forward itself names
	addrs []netip.Addr
}

func newForwardRow(cfg config.Config, f rule.Forward) forwardRow {
	row := forwardRow{
		Name:     f.Name,
		Protocol: []string{},
		External: f.External.String(),
		Port:     f.Ports.String(),
		Target:   f.TargetString(),
		Reflect:  string(cfg.ReflectOf(f)),
		Clients:  string(f.Clients),
		From:     []string{},
		Rate:     f.Rate.String(),
		Hosts:    slices.Clone(f.Hosts),
		Comment:  f.Comment,
		Enabled:  !f.Disabled,
		LANOnly:  f.LANOnly,
		Source:   f.Source,
		target:   f.Target,
	}
	for _, s := range f.Servers() {
		row.Servers = append(row.Servers, server{Target: serverText(&f, s), Weight: s.Weight, target: s.Target, shift: f.PortShiftOf(s)})
	}
	if f.Affinity() != 0 {
		row.Affinity = f.Affinity().String()
	}
	if f.Drains() {
		row.Drains = max(0.001, (f.DrainUntil - change.SinceBoot()).Seconds())
	}
	row.PerSource = f.RatePerSource.String()
	for _, p := range f.Protocols {
		row.Protocol = append(row.Protocol, p.String())
	}
	for _, prefix := range f.From {
		row.From = append(row.From, prefix.String())
	}
	if f.Ports.Every() {
		row.Port, row.Target = "any", f.Target.String()
	}
	if f.Intercept {
		row.External, row.Intercept, row.LAN = anyAddress, true, cfg.ListensAt(f)
	}
	for _, prefix := range f.Except {
		row.Except = append(row.Except, prefix.String())
	}
	return row
}

// serverText returns a server as JSON shows it.
func serverText(f *rule.Forward, s rule.Server) string {
	if f.Ports.Every() {
		return s.Target.String()
	}
	return f.ServerString(s)
}

// nameCell returns the text of column NAME: the name, and the state if the forward opens no connections.
func (r forwardRow) nameCell() string {
	switch {
	case !r.Enabled:
		return r.Name + " (disabled)"
	case r.Drains > 0:
		return r.Name + " (drains)"
	}
	return r.Name
}

// anyAddress is the external address of an intercept.
const anyAddress = "any"

// setListens sets the addresses on which the forward listens now. at has them by place, as Tables.Listening returns them.
func (r *forwardRow) setListens(cfg config.Config, f *rule.Forward, at map[rule.Place][]netip.Addr) {
	r.Listens = []netip.Addr{}
	if f.Intercept {
		return
	}
	if f.External.Address.IsValid() {
		r.places = []listening{{addrs: []netip.Addr{f.External.Address}}}
	}
	for _, wan := range cfg.WAN {
		if !f.External.Address.IsValid() && (f.External.Interface == "" || f.External.Interface == wan) {
			r.places = append(r.places, listening{wan, at[rule.AtWAN(wan, f.Target.Is6())]})
		}
	}
	for _, place := range r.places {
		r.Listens = append(r.Listens, place.addrs...)
	}
}

// externalWidth is the width of column EXTERNAL from which on addresses are only counted: two IPv4 addresses with their interfaces, or
// one IPv6 address.
const externalWidth = 52

// externalCell returns the text of column EXTERNAL: "203.0.113.2 (wan0)". For an intercept it is "any@lan0".
func (r *forwardRow) externalCell(resolve *resolver) string {
	switch {
	case r.Intercept:
		return r.External + "@" + strings.Join(r.LAN, ",")
	case len(r.Listens) == 0:
		return cmp.Or(r.External, "any") + " (no address)"
	}
	var cell string
	shown := 0
	for _, place := range r.places {
		for i, addr := range place.addrs {
			text := resolve.host(addr)
			if i == len(place.addrs)-1 && place.wan != "" {
				text += " (" + place.wan + ")"
			}
			if cell != "" && len(cell)+len(text) > externalWidth {
				return fmt.Sprintf("%s, %d more", cell, len(r.Listens)-shown)
			}
			if cell != "" {
				cell += ", "
			}
			cell += text
			shown++
		}
	}
	return cell
}

// targetCell returns the text of column TARGET: how many servers there are, or the only one.
func (r *forwardRow) targetCell(resolve *resolver) string {
	if len(r.Servers) > 0 {
		return count(len(r.Servers), "server")
	}
	return targetName(r.Target, r.target, resolve)
}

// cell returns the text of column TARGET in the line of a server.
func (s *server) cell(resolve *resolver) string {
	return fmt.Sprintf("%s weight %d", targetName(s.Target, s.target, resolve), s.Weight)
}

// targetName returns the text of a target, with a name in place of its address if there is one.
func targetName(text string, addr netip.Addr, resolve *resolver) string {
	host := resolve.host(addr)
	if resolve == nil || host == addr.String() {
		return text
	}
	for _, prefix := range []string{"[" + addr.String() + "]", addr.String()} {
		if port, ok := strings.CutPrefix(text, prefix); ok {
			return host + port
		}
	}
	return text
}

// lastHitCell returns the text of column LAST HIT, "" if no packet has reached the forward.
func (r *forwardRow) lastHitCell() string {
	if r.LastHit == nil {
		return ""
	}
	return seconds(*r.LastHit)
}

// reflectCell returns the text of column REFLECT. "router+wan", "off+wan": clients on the Internet are hidden behind the router, too.
func (r *forwardRow) reflectCell() string {
	if r.Clients == string(rule.ClientsRouter) {
		return r.Reflect + "+wan"
	}
	return r.Reflect
}

// fromCell returns the text of column FROM: the networks that may connect. For an intercept these are the
// networks that are not redirected: "!192.168.1.53/32".
func (r *forwardRow) fromCell() string {
	switch {
	case len(r.Except) > 0:
		return "!" + strings.Join(r.Except, ",!")
	case len(r.From) == 0 && r.LANOnly:
		return "lan"
	case len(r.From) == 0:
		return "any"
	}
	return strings.Join(r.From, ",")
}

// rateCell is the rate of all clients, and of each: "100/s, 10/s each".
func (r *forwardRow) rateCell() string {
	cell := r.Rate
	if r.PerSource != "" {
		cell += ", " + r.PerSource + " each"
	}
	return strings.TrimPrefix(cell, ", ")
}

// forwardShow has the options of "forward show".
type forwardShow struct {
	stats bool   // with counters
	sort  string // the name of one of forwardKeys
	names bool   // names instead of addresses
}

func (a *app) showForwards(names []string, o forwardShow) error {
	compare, err := findSortKey(forwardKeys, o.sort)
	if err != nil {
		return err
	}
	resolve, err := a.newTableResolver(o.names)
	if err != nil {
		return err
	}
	defer resolve.close()
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	cfg, err := s.Settings()
	if err != nil {
		return err
	}
	stats := o.stats || compare != nil
	var counters forwardCounters
	if stats || a.json {
		if counters, err = readCounters(s); err != nil {
			return err
		}
	}
	listens, err := s.Tables.Listening()
	if err != nil {
		return err
	}
	debug.SetGCPercent(usualGC)
	print, end := a.forwardRows(stats, resolve)
	var failed error
	var kept []forwardRow // rows that are printed after the last one is read
	missing := slices.Clone(names)
	show := func(f *rule.Forward) bool {
		if len(names) == 0 || slices.Contains(names, f.Name) {
			missing = slices.DeleteFunc(missing, func(name string) bool { return name == f.Name })
			row := newForwardRow(cfg, *f)
			row.setListens(cfg, f, listens)
			counters.fill(&row)
			if compare != nil || resolve != nil {
				kept = append(kept, row)
				return true
			}
			failed = print(&row)
		}
		return failed == nil
	}
	err = s.Tables.EachForward(show)
	for i := range cfg.Disabled {
		if err == nil && failed == nil {
			show(&cfg.Disabled[i])
		}
	}
	if err == nil && failed == nil {
		failed = printKept(kept, compare, resolve, print)
	}
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	if len(names) > 0 && len(missing) == len(names) && !a.json {
		return notFound(s, missing)
	}
	return errors.Join(end(), notFound(s, missing))
}

// printKept prints rows in the order of compare, which may be nil, with the names of their addresses.
func printKept(rows []forwardRow, compare func(a, b *forwardRow) int, resolve *resolver, print func(*forwardRow) error) error {
	if compare != nil {
		slices.SortStableFunc(rows, func(a, b forwardRow) int { return compare(&a, &b) })
	}
	if resolve != nil {
		var addrs []netip.Addr
		for i := range rows {
			addrs = append(append(addrs, rows[i].target), rows[i].Listens...)
		}
		resolve.resolve(addrs)
	}
	for i := range rows {
		if err := print(&rows[i]); err != nil {
			return err
		}
	}
	return nil
}

// notFound returns the error for missing forwards, nil if missing is empty. It reads the running forwards
// only to suggest similar names.
func notFound(s *router.Session, missing []string) error {
	if len(missing) == 0 {
		return nil
	}
	cfg, err := s.Tables.Running()
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return err
	}
	_, err = findForwards(cfg, missing)
	return err
}

// Columns of forwardRows in which the line of a server has a text.
const targetColumn, connectionsColumn = 4, 7

// forwardRows returns a function that prints one forward, as JSON or as a table row, and a function to call
// after the last forward.
func (a *app) forwardRows(stats bool, resolve *resolver) (print func(*forwardRow) error, end func() error) {
	if a.json {
		list := a.newJSONList("forwards")
		return func(r *forwardRow) error { return list.add(r) }, list.end
	}
	header := []string{"NAME", "PROTO", "EXTERNAL", "PORT", "TARGET", "REFLECT", "FROM"}
	if stats {
		header = append(header, "CONNECTIONS", "PACKETS", "BYTES", "REFUSED", "LAST HIT")
	} else {
		header = append(header, "RATE", "SOURCE")
	}
	if a.verbose {
		header = append(header, "COMMENT")
	}
	var t *table // nil until the first forward: an empty list has no header
	print = func(r *forwardRow) error {
		if t == nil {
			t = a.newTable(header...)
		}
		cells := []string{r.nameCell(), strings.Join(r.Protocol, ","), r.externalCell(resolve), r.Port, r.targetCell(resolve), r.reflectCell(), r.fromCell()}
		if stats {
			cells = append(cells, strconv.Itoa(r.Connections), strconv.FormatUint(r.Packets, 10), strconv.FormatUint(r.Bytes, 10),
				strconv.FormatUint(r.Refused, 10), r.lastHitCell())
		} else {
			cells = append(cells, r.rateCell(), r.Source)
		}
		if a.verbose {
			cells = append(cells, r.Comment)
		}
		t.row(cells...)
		for i := range r.Servers {
			line := make([]string, len(cells))
			line[targetColumn] = r.Servers[i].cell(resolve)
			if stats {
				line[connectionsColumn] = strconv.Itoa(r.Servers[i].Connections)
			}
			t.row(line...)
		}
		return nil
	}
	return print, func() error {
		if t == nil {
			return a.printNone()
		}
		return t.flush()
	}
}

// forwardCounters holds the counters of the running forwards, by the forward's name.
type forwardCounters struct {
	totals      map[string]maps.Totals
	connections maps.Count
}

func readCounters(s *router.Session) (forwardCounters, error) {
	totals, err := s.Tables.ForwardTotals()
	if err != nil {
		return forwardCounters{}, err
	}
	now, err := s.Tables.CountConnections(rule.Selector{})
	return forwardCounters{totals, now}, err
}

func (c forwardCounters) fill(row *forwardRow) {
	row.Connections = c.connections.Forwards[row.Name]
	for i := range row.Servers {
		row.Servers[i].Connections = c.connections.Servers[maps.Served{Forward: row.Name, Target: row.Servers[i].target, Shift: row.Servers[i].shift}]
	}
	sum, hit := c.totals[row.Name]
	row.Packets, row.Bytes, row.Refused = sum.Packets, sum.Bytes, sum.Refused
	if hit {
		seconds := uint64(sum.LastHit.Seconds())
		row.LastHit = &seconds
	}
}
