// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hairpin/cmd/hairpin/diagnose"
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
	facts, done, err := s.facts(cfg, seen)
	if err != nil {
		return Survey{}, err
	}
	defer done()
	diagnosis := diagnose.New(facts, diagnose.Status)
	var problems []string
	check := func(cfg config.Config, here []config.Interface) {
		for _, problem := range rule.Problems(cfg.CheckAddresses(here)) {
			problems = append(problems, problem.Error())
		}
	}
	found.Conntrack = facts.Conntrack
	if found.Outdated, err = s.datapath.Outdated(); err != nil {
		return Survey{}, err
	}
	here, alone := machine(cfg, seen.links), cfg
	alone.StandIns, alone.Forwards = nil, make([]rule.Forward, 1)
	err = s.Tables.EachForward(func(f *rule.Forward) bool {
		alone.Forwards[0] = *f
		found.Forwards++
		diagnosis.Add(f)
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
	found.Warnings = append(diagnose.Notices(diagnosis.Findings()), problems...)
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
// forward runs.
func (r *Router) NotForwarding(ipv6 bool, ports []Port) []string {
	facts := &diagnose.Facts{Ports: r.judged(ports, ""), Forwarding: r.forwarding("all")}
	return diagnose.Notices(diagnose.Forwarding(facts, ipv6))
}

// forwards reads Options.Forwards from /proc. It returns true on an error: the interface may just have been
// deleted.
func forwards(sysctl, ifname string) bool {
	dir := strings.ReplaceAll(sysctl, ".", "/")
	data, err := os.ReadFile(filepath.Join("/proc/sys", dir, "conf", ifname, "forwarding"))
	return err != nil || strings.TrimSpace(string(data)) != "0"
}
