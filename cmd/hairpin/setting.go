// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// settingText formats the value of a key as in a configuration file.
func settingText(cfg config.Config, key string) string {
	switch key {
	case "interfaces.wan":
		return listText(cfg.WAN)
	case "interfaces.lan":
		return listText(cfg.LAN)
	case "interfaces.private_sources":
		return listText(cfg.PrivateSources)
	case "datapath.mode":
		return strconv.Quote(cfg.Mode)
	case "datapath.xdp_tx":
		return strconv.Quote(cfg.XDPTx)
	case "datapath.max_connections":
		return strconv.FormatUint(uint64(cfg.MaxConnections), 10)
	case "datapath.max_per_source":
		return strconv.FormatUint(uint64(cfg.PerSource()), 10)
	case "datapath.mss_clamp":
		if cfg.MSSClamp == nil {
			return "(absent: PPP, WireGuard and tun devices)" // a value cannot express this default
		}
		return listText(cfg.MSSClamp)
	case "timeouts.tcp_established":
		return durationText(cfg.Timeouts.TCPEstablished)
	case "timeouts.tcp_transitory":
		return durationText(cfg.Timeouts.TCPTransitory)
	case "timeouts.tcp_opening":
		return durationText(cfg.Timeouts.Opening())
	case "timeouts.tcp_closing":
		return durationText(cfg.Timeouts.Closing())
	case "timeouts.udp":
		return durationText(cfg.Timeouts.UDP)
	case "timeouts.icmp":
		return durationText(cfg.Timeouts.ICMP)
	case "timeouts.port_hold":
		return durationText(cfg.Timeouts.PortHold)
	case "timeouts.address_grace":
		return durationText(cfg.Timeouts.AddressGrace)
	case "icmp.refuse":
		return listText(cfg.ICMP.Refuse)
	case "icmp.rate":
		return strconv.FormatUint(uint64(cfg.ICMP.Rate), 10)
	case "reflection.default":
		return strconv.Quote(string(cfg.Reflection))
	case "reflection.ports":
		return strconv.Quote(cfg.ReflectPorts.String())
	case "reflection.prefixes":
		return standInsText(cfg.StandIns)
	case "deny.sources":
		return sourcesText(cfg.Deny)
	case "metrics.listen":
		return strconv.Quote(cfg.MetricsListen)
	case "metrics.web_config":
		return strconv.Quote(cfg.MetricsWeb)
	case "log.connections":
		return strconv.Quote(cfg.LogConnections)
	case "leases.files":
		return listText(cfg.Leases.Files)
	case "leases.max":
		return strconv.FormatUint(uint64(cfg.Leases.Limit()), 10)
	case "dns.write":
		return dnsText(cfg, func(file config.DNSFile) string { return strconv.Quote(file.Path) })
	case "dns.reload":
		return dnsText(cfg, func(file config.DNSFile) string {
			if file.Reload == nil {
				return ""
			}
			return listText(file.Reload)
		})
	}
	return "(differs)"
}

// dnsText formats a TOML inline table with one entry for each DNS file. text returns the entry's value; ""
// leaves the entry out.
func dnsText(cfg config.Config, text func(config.DNSFile) string) string {
	var entries []string
	for _, file := range cfg.DNS {
		if value := text(file); value != "" {
			entries = append(entries, string(file.Format)+" = "+value)
		}
	}
	if entries == nil {
		return "{}"
	}
	return "{ " + strings.Join(entries, ", ") + " }"
}

func durationText(duration time.Duration) string { return strconv.Quote(duration.String()) }

// listText formats a TOML array of strings.
func listText(list []string) string {
	quoted := make([]string, len(list))
	for i, text := range list {
		quoted[i] = strconv.Quote(text)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// sourcesText is a list of sources as a configuration has it, shortened where it is long.
func sourcesText(sources []netip.Prefix) string {
	const most = 16
	texts := make([]string, 0, most)
	for _, source := range sources[:min(most, len(sources))] {
		texts = append(texts, rule.SourceText(source))
	}
	if left := len(sources) - most; left > 0 {
		return strings.TrimSuffix(listText(texts), "]") + fmt.Sprintf(", and %d more]", left)
	}
	return listText(texts)
}

// standInsText formats a TOML inline table of networks.
func standInsText(list []rule.StandIn) string {
	if len(list) == 0 {
		return "{}"
	}
	pairs := make([]string, len(list))
	for i, s := range list {
		pairs[i] = fmt.Sprintf("%q = %q", s.Clients, s.Network)
	}
	return "{ " + strings.Join(pairs, ", ") + " }"
}
