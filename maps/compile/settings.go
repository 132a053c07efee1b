// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// longestIdle limits each idle time. The datapath compares times as signed 32-bit milliseconds, at most 24.8 days. For a
// held port it adds two idle times.
const longestIdle = 12 * 24 * time.Hour

// idleTime returns an idle time for the datapath in nanoseconds, at most longestIdle.
func idleTime(d time.Duration) uint64 { return uint64(min(d, longestIdle)) }

// SettingsEntry returns the value for map settings.
func SettingsEntry(c config.Config) bpf.HairpinSettings {
	settings := bpf.HairpinSettings{
		TcpEstablished: idleTime(c.Timeouts.TCPEstablished),
		TcpOpening:     idleTime(c.Timeouts.Opening()),
		TcpClosing:     idleTime(c.Timeouts.Closing()),
		Udp:            idleTime(c.Timeouts.UDP),
		Icmp:           idleTime(c.Timeouts.ICMP),
		PortHold:       idleTime(c.Timeouts.PortHold),
		IcmpInterval:   uint64(time.Second) / uint64(max(1, c.ICMP.Rate)),
		SourceLimit:    c.PerSource(),
		InterfaceLimit: c.PerInterface(),
	}
	settings.ReflectFirst, settings.ReflectLast = c.ReflectPorts.First, c.ReflectPorts.Last
	settings.InterceptFirst, settings.InterceptLast = c.InterceptSpan()
	if len(c.StandIns) > 0 {
		settings.StandIns = 1
	}
	if slices.ContainsFunc(c.Forwards, func(f rule.Forward) bool { return f.Affinity() != 0 }) {
		settings.Affinity = 1
	}
	for name, side := range map[string]bpf.HairpinSide{
		config.SideLAN: bpf.HairpinSideSIDE_LAN,
		config.SideWAN: bpf.HairpinSideSIDE_WAN,
	} {
		if slices.Contains(c.ICMP.Refuse, name) {
			settings.Told |= side
		}
	}
	return settings
}
