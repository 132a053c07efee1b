// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"slices"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
)

// longestIdle is half of what the datapath's clock of milliseconds can tell apart, and some days less: two such times are
// added for a held port.
const longestIdle = 12 * 24 * time.Hour

// idleTime is an idle time in nanoseconds as the datapath takes it. A longer one than it can tell is cut to what it can.
func idleTime(d time.Duration) uint64 { return uint64(min(d, longestIdle)) }

// SettingsEntry is the entry of the settings map.
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
	settings.InterceptFirst, settings.InterceptLast = c.InterceptSpan()
	if len(c.StandIns) > 0 {
		settings.StandIns = 1
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
