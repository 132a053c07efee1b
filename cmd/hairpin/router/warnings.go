// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Survey is the running state and its problems.
type Survey struct {
	Ports    []Port
	Forwards int // number of running forwards
	Warnings []string
	// Private counts, by the names of WANs, the packets that were dropped because their sources are private.
	Private map[string]uint64
	// Conntrack says whether the programs ask the kernel's connection tracking, or why they do not.
	Conntrack loader.Conntrack
	// Outdated says what has changed for the programs since they were loaded, so that they must be loaded anew; "" is nothing.
	Outdated string
}

// Survey checks every interface of cfg, the running configuration, and every running forward. It keeps one
// forward in memory at a time, because there may be tens of thousands.
func (s *Session) Survey(cfg config.Config) (Survey, error) {
	seen, err := s.inventory(cfg)
	if err != nil {
		return Survey{}, err
	}
	found := Survey{Ports: seen.ports}
	findings, err := s.newFinder(cfg, seen)
	if err != nil {
		return Survey{}, err
	}
	var unaddressed, problems []string
	ipv6 := false
	check := func(cfg config.Config, here []config.Interface) {
		for _, problem := range rule.Problems(cfg.CheckAddresses(here)) {
			problems = append(problems, problem.Error())
		}
	}
	found.Conntrack = findings.conntrack
	if found.Outdated, err = s.datapath.Outdated(); err != nil {
		return Survey{}, err
	}
	here, alone := machine(cfg, seen.links), cfg
	alone.StandIns, alone.Forwards = nil, make([]rule.Forward, 1)
	err = s.Tables.EachForward(func(f *rule.Forward) bool {
		alone.Forwards[0] = *f
		found.Forwards++
		ipv6 = ipv6 || f.Target.Is6()
		unaddressed = append(unaddressed, withoutAddress(alone, seen.ports)...)
		findings.add(f)
		check(alone, here)
		return true
	})
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return Survey{}, fmt.Errorf("read the running configuration: %w", err)
	}
	check(cfg, here) // checks the reflect prefixes
	counters, err := s.Tables.Counters()
	if err != nil {
		return Survey{}, err
	}
	found.Private = privateSources(counters, seen.ports)
	found.Warnings = slices.Concat(portWarnings(seen.ports, cfg.Mode), s.NotForwarding(ipv6, seen.ports), unaddressed, findings.list(), problems)
	return found, nil
}

// privateSources counts the packets that were dropped because their sources are private, by WAN interface.
func privateSources(counters []maps.Counter, ports []Port) map[string]uint64 {
	dropped := map[string]uint64{}
	for _, c := range counters {
		if c.Reason != "private_source" {
			continue
		}
		for _, p := range ports {
			if p.Link != nil && p.Link.Index == c.Index && p.Role == config.RoleWAN {
				dropped[p.Name] += c.Packets
			}
		}
	}
	return dropped
}

// portWarnings returns the warnings about interfaces.
func portWarnings(ports []Port, mode string) (list []string) {
	warn := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	for _, p := range ports {
		switch {
		case p.Link == nil:
		case p.Err != nil:
			warn("%s", p.Err)
		case p.Attachment == nil:
			warn("%s: not attached; run \"hairpin attach\"", p.Name)
		case p.needsGuard() && !p.Attachment.Guard:
			warn("%s: the leak guard is not attached; run \"hairpin attach\"", p.Name)
		case p.missesTags(mode):
			warn("%s: XDP does not see VLAN tags and may take tagged frames for untagged frames; run \"hairpin attach\", or start the daemon", p.Name)
		case !p.Link.Up:
			warn("%s: the link is down", p.Name)
		case len(p.Addresses()) == 0 && p.Role == config.RoleWAN:
			warn("%s: no address, so nothing reaches its forwards", p.Name)
		}
	}
	return list
}

// withoutAddress returns a warning for each forward if no interface has an address of its family to listen
// on. If the interface has no address at all, portWarnings warns instead.
func withoutAddress(cfg config.Config, ports []Port) (list []string) {
	for _, f := range cfg.Forwards {
		if f.External.Address.IsValid() || f.Intercept {
			continue
		}
		anyFamily, itsFamily := false, false
		for _, p := range ports {
			if p.Role == config.RoleWAN && (f.External.Interface == "" || f.External.Interface == p.Name) {
				anyFamily = anyFamily || len(p.Addresses()) > 0
				itsFamily = itsFamily || p.hasFamily(f.Target)
			}
		}
		if anyFamily && !itsFamily {
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

// Unconfigured returns a warning if cfg, read from file, names no interface, otherwise "". The installed
// file names none, and hairpin then does nothing.
func Unconfigured(cfg config.Config, file string) string {
	if len(cfg.WAN)+len(cfg.LAN) > 0 {
		return ""
	}
	return fmt.Sprintf("no interfaces are configured; set wan and lan in %s, then systemctl reload hairpin (without the daemon: hairpin apply)", file)
}

// ResizeWarning returns a warning if cfg asks for a different size of the connection table, otherwise "".
func (s *Session) ResizeWarning(cfg config.Config) string {
	if have := s.MaxConnections(); have != cfg.MaxConnections {
		return fmt.Sprintf("the connection table has room for %d connections; max_connections = %d takes effect after \"hairpin detach --all\", which ends every connection, and \"hairpin attach\"",
			have, cfg.MaxConnections)
	}
	return ""
}

// NotForwarding returns a warning for each interface on which the kernel does not forward packets: there
// the kernel finds no next hop for translated packets. IPv6 is checked only if ipv6 says that an IPv6
// forward runs. It returns nothing while every link is down: at boot systemd-networkd turns forwarding on
// before it brings links up.
func (r *Router) NotForwarding(ipv6 bool, ports []Port) (list []string) {
	if !slices.ContainsFunc(ports, Port.isUp) {
		return nil
	}
	for _, family := range []struct {
		name, sysctl, all string
		wanted            bool
	}{
		{"IPv4", "net.ipv4", "ip_forward", true},
		{"IPv6", "net.ipv6", "conf.all.forwarding", ipv6},
	} {
		if !family.wanted {
			continue
		}
		if !r.forwards(family.sysctl, "all") {
			list = append(list, fmt.Sprintf("%s forwarding is off; run sysctl -w %s.%s=1", family.name, family.sysctl, family.all))
			continue
		}
		for _, p := range ports {
			if p.Attachment != nil && !r.forwards(family.sysctl, p.Name) {
				list = append(list, fmt.Sprintf("%s: %s forwarding is off on this interface; run %s", p.Name, family.name, sysctlCommand(family.sysctl, p.Name, "forwarding=1")))
			}
		}
	}
	return list
}

// sysctlCommand returns a shell command for a setting of an interface; sysctl is net.ipv4 or net.ipv6. If
// the name has dots, as lan0.10, slashes must separate the parts of the key (sysctl(8)).
func sysctlCommand(sysctl, ifname, setting string) string {
	key := sysctl + ".conf." + ifname + "." + setting
	if strings.Contains(ifname, ".") {
		key = strings.ReplaceAll(sysctl, ".", "/") + "/conf/" + ifname + "/" + setting
	}
	return "sysctl -w " + shellWord(key)
}

// unquoted are the characters that need no quotes in a shell.
const unquoted = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/=-"

func shellWord(text string) string {
	if strings.Trim(text, unquoted) != "" {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	return text
}

// forwards reads Options.Forwards from /proc. It returns true on an error: the interface may just have been
// deleted.
func forwards(sysctl, ifname string) bool {
	dir := strings.ReplaceAll(sysctl, ".", "/")
	data, err := os.ReadFile(filepath.Join("/proc/sys", dir, "conf", ifname, "forwarding"))
	return err != nil || strings.TrimSpace(string(data)) != "0"
}
