// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/loader"
	"hairpin/maps"
)

// status is what `hairpin status` tells.
type status struct {
	Version     string           `json:"version"`
	Kernel      string           `json:"kernel"`
	BPFFS       string           `json:"bpffs"`
	Schema      uint32           `json:"datapath_schema"`
	Daemon      bool             `json:"daemon"` // runs
	Forwards    int              `json:"forwards"`
	Connections connectionStatus `json:"connections"`
	Interfaces  []portRow        `json:"interfaces"`
	Warnings    []string         `json:"warnings"`
}

type connectionStatus struct {
	Used     int    `json:"used"`
	HalfOpen int    `json:"half_open"`
	Limit    uint32 `json:"limit"`
}

// portRow is an interface of the configuration.
type portRow struct {
	Name      string   `json:"name"`
	Role      string   `json:"role"`
	State     string   `json:"state"` // attached, detached, pending
	Mode      string   `json:"mode"`  // "xdp+tcx", "xdp-generic+tcx", "tcx", "clsact"; "" unless attached
	Guard     bool     `json:"leak_guard"`
	RxVLAN    string   `json:"rxvlan,omitempty"` // "off" if hairpin has switched the NIC's offload off
	Reason    string   `json:"reason,omitempty"`
	Index     int      `json:"index,omitempty"`
	Addresses []string `json:"addresses"` // of both families; of a WAN interface: what forwards listen on
}

// nearlyFull is the share of the connection table above which status warns.
const nearlyFull = 0.9

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show interfaces, addresses, table use and problems",
		Args:  takes(0),
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
		Schema:  uint32(bpf.HairpinSchemaSCHEMA), // Open refuses any other
	}
	s, err := a.open()
	if err != nil {
		return st, err
	}
	defer s.Close()
	if st.Kernel, err = kernelRelease(); err != nil {
		return st, err
	}
	if st.Daemon, err = daemonRuns(a.dir); err != nil {
		return st, err
	}
	cfg, err := s.tables.Settings()
	applied := !errors.Is(err, maps.ErrEmpty)
	if err != nil && applied {
		return st, fmt.Errorf("read the running configuration: %w", err)
	}
	if st.Connections, err = s.connectionStatus(); err != nil {
		return st, err
	}
	seen, err := s.look(cfg)
	if err != nil {
		return st, err
	}
	forwards, err := s.surveyForwards(cfg, seen)
	if err != nil {
		return st, err
	}
	st.Forwards = forwards.count
	st.Interfaces = newPortRows(seen.ports)
	st.Warnings = s.warnings(cfg, st, seen.ports, forwards)
	switch {
	case !applied:
		st.Warnings = append(st.Warnings, fmt.Sprintf("no configuration runs: \"hairpin attach\" applies %s", a.configFile))
	case unconfigured(cfg, a.configFile) != "":
		st.Warnings = append(st.Warnings, unconfigured(cfg, a.configFile))
	}
	return st, nil
}

// unconfigured is a warning if cfg, read from file, names no interface; else "". The file that is
// installed names none, and hairpin then does nothing.
func unconfigured(cfg maps.Config, file string) string {
	if len(cfg.WAN)+len(cfg.LAN) > 0 {
		return ""
	}
	return fmt.Sprintf("no interfaces are configured: set wan and lan in %s, then systemctl reload hairpin (without the daemon: hairpin apply)", file)
}

// forwardSurvey is what status tells of the forwards that run: there may be too many to hold.
type forwardSurvey struct {
	count    int
	serves6  bool     // one of them is of IPv6
	deaf     []string // warnings
	problems []string // of their targets on this machine
}

// surveyForwards looks at each forward that runs; cfg is without them.
func (s *session) surveyForwards(cfg maps.Config, seen sight) (forwardSurvey, error) {
	var found forwardSurvey
	check := func(cfg maps.Config, here []maps.Interface) {
		for _, problem := range maps.Problems(cfg.CheckAddresses(here)) {
			found.problems = append(found.problems, problem.Error())
		}
	}
	here, alone := machine(cfg, seen.links), cfg
	alone.StandIns, alone.Forwards = nil, make([]maps.Forward, 1)
	err := s.tables.EachForward(func(f *maps.Forward) bool {
		alone.Forwards[0] = *f
		found.count++
		found.serves6 = found.serves6 || f.Target.Is6()
		found.deaf = append(found.deaf, deaf(alone, seen.ports)...)
		check(alone, here)
		return true
	})
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return found, fmt.Errorf("read the running configuration: %w", err)
	}
	check(cfg, here) // stand-ins
	return found, nil
}

func newPortRows(ports []port) []portRow {
	rows := make([]portRow, 0, len(ports))
	for _, p := range ports {
		row := portRow{Name: p.name, Role: p.role.String(), State: "pending", Mode: p.mode(), Addresses: []string{}}
		if p.link != nil {
			row.State, row.Index = "detached", p.link.Index
			for _, addr := range p.addresses() {
				row.Addresses = append(row.Addresses, addr.String())
			}
		}
		if p.attachment != nil {
			row.State, row.Guard, row.Reason = "attached", p.attachment.Guard, p.attachment.Reason
			if p.attachment.TagsKept {
				row.RxVLAN = "off"
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// warnings names what keeps forwards from working, or soon will.
func (s *session) warnings(cfg maps.Config, st status, ports []port, running forwardSurvey) []string {
	list := []string{}
	warn := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	for _, p := range ports {
		switch {
		case p.link == nil:
		case p.err != nil:
			warn("%s", p.err)
		case p.attachment == nil:
			warn("%s: not attached: run \"hairpin attach\"", p.name)
		case p.guarded() && !p.attachment.Guard:
			warn("%s: the leak guard is not attached: run \"hairpin attach\"", p.name)
		case p.blind(cfg.Mode):
			warn("%s: XDP does not see VLAN tags and may take tagged frames for untagged ones: start the daemon, or run \"hairpin attach\"", p.name)
		case !p.link.Up:
			warn("%s: the link is down", p.name)
		case len(p.addresses()) == 0 && p.role == maps.RoleWAN:
			warn("%s: no address, so nothing reaches its forwards", p.name)
		}
	}
	list = append(list, notForwarding(running.serves6, ports, forwards)...)
	list = append(list, running.deaf...)
	if !st.Daemon && len(ports) > 0 {
		warn("the daemon is not running: changes of addresses, interfaces and routes are not followed")
	}
	if used := float64(st.Connections.Used); used >= nearlyFull*float64(st.Connections.Limit) {
		warn("the connection table is nearly full: raise max_connections")
	}
	return append(list, running.problems...)
}

// serves6 reports whether a forward of cfg is of IPv6.
func serves6(cfg maps.Config) bool {
	return slices.ContainsFunc(cfg.Forwards, func(f maps.Forward) bool { return f.Target.Is6() })
}

// notForwarding says where the kernel does not forward packets; forwards tells, as
// below. IPv6 matters only if there is a forward of IPv6, as v6 says. While every link is down the
// router may still be booting: systemd-networkd turns forwarding on first, and then brings
// links up.
func notForwarding(v6 bool, ports []port, forwards func(sysctl, ifname string) bool) (list []string) {
	if !slices.ContainsFunc(ports, port.up) {
		return nil
	}
	for _, family := range []struct {
		name, sysctl, all string
		wanted            bool
	}{
		{"IPv4", "net.ipv4", "ip_forward", true},
		{"IPv6", "net.ipv6", "conf.all.forwarding", v6},
	} {
		if !family.wanted {
			continue
		}
		if !forwards(family.sysctl, "all") {
			list = append(list, fmt.Sprintf("%s forwarding is off: sysctl -w %s.%s=1", family.name, family.sysctl, family.all))
			continue
		}
		for _, p := range ports {
			if p.attachment != nil && !forwards(family.sysctl, p.name) {
				list = append(list, fmt.Sprintf("%s: %s forwarding is off here: %s", p.name, family.name, sysctlCommand(family.sysctl, p.name, "forwarding=1")))
			}
		}
	}
	return list
}

// sysctlCommand sets something of an interface, for a shell; sysctl is net.ipv4 or
// net.ipv6. The dots of a name such as lan0.10 stay dots only if slashes separate
// the parts of the key (sysctl(8)).
func sysctlCommand(sysctl, ifname, setting string) string {
	key := sysctl + ".conf." + ifname + "." + setting
	if strings.Contains(ifname, ".") {
		key = strings.ReplaceAll(sysctl, ".", "/") + "/conf/" + ifname + "/" + setting
	}
	return "sysctl -w " + shellWord(key)
}

const plainInShell = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/=-"

// shellWord quotes what a shell would not take as it is.
func shellWord(text string) string {
	if strings.Trim(text, plainInShell) != "" {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	return text
}

// forwards reports whether the kernel forwards packets that come in by an
// interface; sysctl is net.ipv4 or net.ipv6. What cannot be read counts as on: the
// interface may just have gone.
func forwards(sysctl, ifname string) bool {
	dir := strings.ReplaceAll(sysctl, ".", "/")
	data, err := os.ReadFile(filepath.Join("/proc/sys", dir, "conf", ifname, "forwarding"))
	return err != nil || strings.TrimSpace(string(data)) != "0"
}

// deaf names the forwards that no interface has an address for, of their family.
// Interfaces without any address have a warning of their own.
func deaf(cfg maps.Config, ports []port) (list []string) {
	for _, f := range cfg.Forwards {
		if f.External.Address.IsValid() || f.Intercept {
			continue
		}
		addressed, hears := false, false
		for _, p := range ports {
			if p.role == maps.RoleWAN && (f.External.Interface == "" || f.External.Interface == p.name) {
				addressed = addressed || len(p.addresses()) > 0
				hears = hears || p.hasFamily(f.Target)
			}
		}
		if addressed && !hears {
			family := "IPv4"
			if f.Target.Is6() {
				family = "IPv6"
			}
			lacks := fmt.Sprintf("no WAN interface has an %s address", family)
			if f.External.Interface != "" {
				lacks = fmt.Sprintf("%s has no %s address", f.External.Interface, family)
			}
			list = append(list, fmt.Sprintf("forward %q: %s, so nothing reaches the forward", f.Name, lacks))
		}
	}
	return list
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
	facts := [][2]string{
		{"version", fmt.Sprintf("%s, datapath schema %d, kernel %s", st.Version, st.Schema, st.Kernel)},
		{"daemon", daemon},
		{"bpffs", st.BPFFS},
		{"forwards", fmt.Sprint(st.Forwards)},
		{"connections", fmt.Sprintf("%d of %d, %d half-open", st.Connections.Used, st.Connections.Limit, st.Connections.HalfOpen)},
	}
	for _, fact := range facts {
		fmt.Fprintf(a.out, "%-12s %s\n", fact[0]+":", printable(fact[1]))
	}
	if len(st.Interfaces) > 0 {
		fmt.Fprintln(a.out)
		t := newTable(a.out, "INTERFACE", "ROLE", "STATE", "MODE", "GUARD", "ADDRESSES")
		for _, p := range st.Interfaces {
			t.row(p.Name, p.Role, p.State, p.Mode, yesNo(p.Guard), strings.Join(p.Addresses, ","))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, p := range st.Interfaces {
		if p.RxVLAN != "" {
			fmt.Fprintf(a.out, "%s: rxvlan is %s, so that XDP sees VLAN tags; detach restores it\n", printable(p.Name), p.RxVLAN)
		}
		if p.Reason != "" {
			fmt.Fprintf(a.out, "%s: %s\n", printable(p.Name), printable(p.Reason))
		}
	}
	if len(st.Warnings) > 0 {
		fmt.Fprintln(a.out)
	}
	for _, warning := range st.Warnings {
		fmt.Fprintln(a.out, "warning: "+printable(warning))
	}
	return nil
}

var _ attacher = (*loader.Datapath)(nil)
