// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/cmd/hairpin/toml"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// TestPrintedSettingsAreConfiguration: a setting that diff prints can be pasted into a file.
func TestPrintedSettingsAreConfiguration(t *testing.T) {
	file := config.Default()
	file.WAN, file.LAN, file.Mode = []string{"wan0", "ppp0"}, []string{}, config.ModeTC
	var out bytes.Buffer
	a := newApp(env{stdout: &out})
	a.printChange(config.Default(), file, config.Change{Settings: []string{"interfaces.wan", "interfaces.lan", "datapath.mode"}})
	if err := a.out.Flush(); err != nil {
		t.Fatal(err)
	}
	want := `- interfaces.wan = []
+ interfaces.wan = ["wan0", "ppp0"]
- interfaces.lan = []
+ interfaces.lan = []
- datapath.mode = "auto"
+ datapath.mode = "tc"
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("change (-want +got):\n%s", diff)
	}
}

// TestEverySettingHasText: every setting that can differ has its own text, and the parser accepts this
// text.
func TestEverySettingHasText(t *testing.T) {
	cfg := config.Default()
	cfg.WAN, cfg.LAN, cfg.MSSClamp, cfg.PrivateSources = []string{"wan0", "ppp0"}, []string{"lan0"}, []string{"ppp0"}, []string{"wan0"}
	cfg.StandIns = []rule.StandIn{
		{Clients: netip.MustParsePrefix("192.168.1.0/24"), Network: netip.MustParsePrefix("198.18.1.0/24")},
		{Clients: netip.MustParsePrefix("fd00:1::/64"), Network: netip.MustParsePrefix("fd00:2::/64")},
	}
	cfg.Deny = []netip.Prefix{netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("2001:db8:bad::/48")}
	for _, key := range []string{
		"interfaces.wan", "interfaces.lan", "interfaces.private_sources", "datapath.mode", "datapath.xdp_tx", "datapath.max_connections", "datapath.max_per_source",
		"datapath.mss_clamp",
		"timeouts.tcp_established", "timeouts.tcp_transitory", "timeouts.tcp_opening", "timeouts.tcp_closing",
		"timeouts.udp", "timeouts.icmp", "timeouts.port_hold", "timeouts.address_grace", "icmp.refuse", "icmp.rate", "reflection.default", "reflection.ports", "reflection.prefixes",
		"deny.sources",
		"metrics.listen", "metrics.web_config", "log.connections",
	} {
		text := "version = 1\n" + key + " = " + settingText(cfg, key) + "\n"
		if key == "datapath.mss_clamp" || key == "interfaces.private_sources" {
			text += "interfaces.wan = " + settingText(cfg, "interfaces.wan") + "\n"
		}
		if _, err := toml.Parse("setting", []byte(text)); err != nil {
			t.Errorf("%s: %v\n%s", key, err, text)
		}
	}
}

func TestCheckResultListsEveryProblem(t *testing.T) {
	result := newCheckResult("x.toml", config.Config{}, errors.Join(errors.New("x.toml:1:1: one"), errors.New("x.toml:2:1: two")))
	want := checkResult{File: "x.toml", Problems: []string{"x.toml:1:1: one", "x.toml:2:1: two"}}
	if diff := cmp.Diff(want, result); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}
