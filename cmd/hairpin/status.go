// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/control"
	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/places"
	"hairpin/cmd/hairpin/presence"
	"hairpin/cmd/hairpin/router"
	"hairpin/loader"
	"hairpin/maps"
)

// status is the output of "hairpin status".
type status struct {
	Version     string           `json:"version"`
	Kernel      string           `json:"kernel"`
	BPFFS       string           `json:"bpffs"`
	Schema      uint32           `json:"datapath_schema"`
	Daemon      bool             `json:"daemon"`                     // a daemon runs
	Apart       string           `json:"files_do_not_run,omitempty"` // why the forwards are not as in the files, as the daemon says
	Pending     *pendingStatus   `json:"unconfirmed,omitempty"`      // the change that waits for "hairpin confirm"
	Conntrack   conntrackStatus  `json:"conntrack"`
	Forwards    int              `json:"forwards"`
	Disabled    int              `json:"disabled_forwards"` // not among Forwards
	Connections connectionStatus `json:"connections"`
	Drops       []dropRow        `json:"drops"` // by reason, the most packets first
	Interfaces  []portRow        `json:"interfaces"`
	Warnings    []string         `json:"warnings"`
}

// conntrackStatus is whether the kernel's connection tracking is asked before a forward takes a packet.
type conntrackStatus struct {
	Asked  bool   `json:"asked"`
	Reason string `json:"reason,omitempty"` // why not
}

func newConntrackStatus(c loader.Conntrack) conntrackStatus {
	if c == loader.ConntrackAsked {
		return conntrackStatus{Asked: true}
	}
	return conntrackStatus{Reason: c.String()}
}

// String is for the text output.
func (c conntrackStatus) String() string {
	if c.Asked {
		return "asked"
	}
	return "not asked: " + c.Reason
}

// pendingStatus is a change that is taken back unless it is confirmed.
type pendingStatus struct {
	Command string  `json:"command"`
	Left    float64 `json:"seconds_left"`
}

type connectionStatus struct {
	Used     int    `json:"used"`
	HalfOpen int    `json:"half_open"`
	Limit    uint32 `json:"limit"`
}

// portRow is one interface in the output.
type portRow struct {
	Name      string   `json:"name"`
	Role      string   `json:"role"`
	State     string   `json:"state"` // attached, detached, pending
	Mode      string   `json:"mode"`  // "xdp+tcx", "xdp-generic+tcx", "tcx", "clsact"; "" unless attached
	Guard     bool     `json:"leak_guard"`
	XDPTx     bool     `json:"xdp_tx"`           // XDP sends with XDP_TX what leaves by the interface that it came in by
	RxVLAN    string   `json:"rxvlan,omitempty"` // "off" if hairpin switched off this offload of the NIC
	Reason    string   `json:"reason,omitempty"`
	Index     int      `json:"index,omitempty"`
	Addresses []string `json:"addresses"` // IPv4 and IPv6; on a WAN interface: the addresses that forwards listen on
	// PrivateSources says that interfaces.private_sources names the interface.
	PrivateSources bool `json:"private_sources,omitempty"`
	// PrivateDropped counts packets that were dropped because their sources are private.
	PrivateDropped uint64 `json:"private_sources_dropped,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show interfaces, addresses, table use, drops and problems",
		Long: `Show interfaces, addresses, table use, drops and problems.

"dropped" has the packets that were dropped since the datapath was loaded, by reason,
on all interfaces together. "refused" has those that would have opened a connection.
The reasons are those of hairpin_packets_dropped_total in the metrics, which has them
by interface.`,
		Args: takes(0),
		RunE: func(*cobra.Command, []string) error {
			st, err := a.status()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON("status", st)
			}
			return a.printStatus(st)
		},
	}
}

func (a *app) status() (status, error) {
	st := status{
		Version: buildInfo().Version,
		BPFFS:   a.dir,
		Schema:  uint32(bpf.HairpinSchemaSCHEMA), // Open fails if the schema is another
		// Not nil, so that JSON has [] instead of null.
		Warnings: []string{},
	}
	s, err := a.open()
	if err != nil {
		return st, err
	}
	defer s.Close()
	if st.Kernel, err = kernelRelease(); err != nil {
		return st, err
	}
	if st.Daemon, err = presence.Running(a.dir); err != nil {
		return st, err
	}
	a.changeStatus(&st, s)
	cfg, err := s.Tables.Settings()
	applied := !errors.Is(err, maps.ErrEmpty)
	if err != nil && applied {
		return st, fmt.Errorf("read the running configuration: %w", err)
	}
	if st.Connections, err = connectionUse(s); err != nil {
		return st, err
	}
	counters, err := s.Tables.Counters()
	if err != nil {
		return st, err
	}
	st.Drops = newDropRows(counters)
	survey, err := s.Survey(cfg)
	if err != nil {
		return st, err
	}
	st.Disabled = len(cfg.Disabled)
	st.Forwards, st.Interfaces = survey.Forwards, newPortRows(survey.Ports)
	for i := range st.Interfaces {
		row := &st.Interfaces[i]
		row.PrivateSources, row.PrivateDropped = slices.Contains(cfg.PrivateSources, row.Name), survey.Private[row.Name]
	}
	st.Conntrack = newConntrackStatus(survey.Conntrack)
	if !st.Daemon {
		if err := st.warnWithoutDaemon(s, survey); err != nil {
			return st, err
		}
	}
	st.Warnings = append(st.Warnings, survey.Warnings...)
	if diagnose.NearlyFull(st.Connections.Used, st.Connections.Limit) {
		st.Warnings = append(st.Warnings, "the connection table is nearly full; raise max_connections in the configuration file")
	}
	switch {
	case !applied:
		st.Warnings = append(st.Warnings, fmt.Sprintf("no configuration is active; run \"hairpin attach\" to apply %s", a.configFile))
	case router.Unconfigured(cfg, a.configFile) != "":
		st.Warnings = append(st.Warnings, router.Unconfigured(cfg, a.configFile))
	}
	return st, nil
}

// warnWithoutDaemon adds what only a daemon would do.
func (st *status) warnWithoutDaemon(s *router.Session, survey router.Survey) error {
	warn := func(text string) { st.Warnings = append(st.Warnings, text) }
	if survey.Conntrack == loader.ConntrackLate {
		warn("conntrack is not asked, but could be: run \"hairpin upgrade\", or start the daemon")
	}
	if survey.Outdated != "" {
		warn(survey.Outdated + ": run \"hairpin upgrade\", or start the daemon")
	}
	if len(survey.Ports) > 0 {
		warn("the daemon is not running, so changes of addresses, interfaces and routes are not followed; run \"systemctl start hairpin\"")
	}
	away, err := s.Tables.AwayAddresses()
	for _, addr := range away {
		warn(fmt.Sprintf("address %s is away; without the daemon its connections end with the next \"hairpin attach\"", addr))
	}
	return err
}

// changeStatus adds what does not run, or not for good.
func (a *app) changeStatus(st *status, s *router.Session) {
	warn := func(text string) { st.Warnings = append(st.Warnings, text) }
	if st.Daemon {
		answer, err := control.AskStatus(context.Background(), places.Socket(a.dir))
		if err != nil {
			warn(fmt.Sprintf("the daemon cannot be asked whether the files run: %s", err))
		}
		if st.Apart = answer.Apart; st.Apart != "" {
			warn(st.Apart)
		}
	}
	keeper := &change.Keeper{Router: s.Router, Store: a.store()}
	pending, err := keeper.Waiting()
	if err != nil {
		warn(err.Error())
	} else if pending != nil {
		st.Pending = &pendingStatus{pending.Command, change.Left(pending).Seconds()}
		warn(fmt.Sprintf("a change waits for \"hairpin confirm\": %s", change.Describe(pending)))
	}
	refused, err := keeper.Store.Refused()
	if err != nil {
		warn(err.Error())
	} else if refused != nil && st.Apart == "" { // else the daemon says it
		warn(fmt.Sprintf("%q was not confirmed; correct the files, then run \"hairpin reload\": a start of the daemon does not run these files", refused.Command))
	}
}

func newPortRows(ports []router.Port) []portRow {
	rows := make([]portRow, 0, len(ports))
	for _, p := range ports {
		row := portRow{Name: p.Name, Role: p.Role.String(), State: p.State(), Mode: p.Mode(), Addresses: []string{}}
		if p.Link != nil {
			row.Index = p.Link.Index
		}
		for _, addr := range p.Addresses() {
			row.Addresses = append(row.Addresses, addr.String())
		}
		if p.Attachment != nil {
			row.Guard, row.Reason = p.Attachment.Guard, p.Attachment.Reason
			var why string
			if row.XDPTx, why = p.XDPTx(); why != "" {
				row.Reason = why
			}
			if p.Attachment.TagsKept {
				row.RxVLAN = "off"
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func yesNo(answer bool) string {
	if answer {
		return "yes"
	}
	return "no"
}

func kernelRelease() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("read kernel release: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

func (a *app) printStatus(st status) error {
	daemon := "not running"
	if st.Daemon {
		daemon = "running"
	}
	forwards := fmt.Sprint(st.Forwards)
	if st.Disabled > 0 {
		forwards += fmt.Sprintf(", and %d disabled", st.Disabled)
	}
	facts := [][2]string{
		{"version", fmt.Sprintf("%s, datapath schema %d, kernel %s", st.Version, st.Schema, st.Kernel)},
		{"daemon", daemon},
		{"bpffs", st.BPFFS},
		{"conntrack", st.Conntrack.String()},
		{"forwards", forwards},
		{"connections", fmt.Sprintf("%d of %d, %d half-open", st.Connections.Used, st.Connections.Limit, st.Connections.HalfOpen)},
		{"dropped", dropsText(st.Drops, verdictDrop)},
		{"refused", dropsText(st.Drops, verdictRefuse)},
	}
	for _, fact := range facts {
		fmt.Fprintf(a.out, "%-12s %s\n", fact[0]+":", printable(fact[1]))
	}
	fmt.Fprintln(a.out)
	if len(st.Interfaces) == 0 {
		fmt.Fprintln(a.out, "interfaces:  "+none)
	} else {
		t := a.newTable("INTERFACE", "ROLE", "STATE", "MODE", "GUARD", "ADDRESSES")
		for _, p := range st.Interfaces {
			t.row(p.Name, p.Role, p.State, p.Mode, yesNo(p.Guard), strings.Join(p.Addresses, ","))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, p := range st.Interfaces {
		if p.RxVLAN != "" {
			fmt.Fprintf(a.out, "%s: the offload rxvlan is %s, so that XDP sees VLAN tags; \"hairpin detach\" restores the offload\n", printable(p.Name), p.RxVLAN)
		}
		if p.Reason != "" {
			fmt.Fprintf(a.out, "%s: %s\n", printable(p.Name), printable(p.Reason))
		}
		if p.PrivateDropped > 0 && !p.PrivateSources {
			fmt.Fprintf(a.out, "%s: %d packets were dropped because their sources are private; if the provider routes private addresses to %[1]s, name %[1]s in interfaces.private_sources\n",
				printable(p.Name), p.PrivateDropped)
		}
	}
	if len(st.Warnings) > 0 {
		fmt.Fprintln(a.out)
	}
	for _, warning := range st.Warnings {
		fmt.Fprintln(a.out, a.styled.paint(styleYellow, warningPrefix), printable(warning))
	}
	return nil
}
