// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"fmt"
	"strings"
	"testing"
)

// pfConfig returns a config.xml with two interfaces. Its parts are in the element nat, and before it.
func pfConfig(root, system, nat string) string {
	return fmt.Sprintf(`<?xml version="1.0"?>
<%[1]s>
  <system>%[2]s</system>
  <interfaces>
    <wan><enable/><if>em0</if><ipaddr>dhcp</ipaddr></wan>
    <lan><enable/><if>em1</if><ipaddr>192.168.1.1</ipaddr><subnet>24</subnet></lan>
  </interfaces>
  <aliases>
    <alias><name>servers</name><type>host</type><address>192.168.1.20 192.168.1.21</address></alias>
    <alias><name>server</name><type>host</type><address>192.168.1.20</address></alias>
    <alias><name>office</name><type>network</type><address>198.51.100.0/24 more</address></alias>
    <alias><name>more</name><type>network</type><address>192.0.2.0/24</address></alias>
    <alias><name>web</name><type>port</type><address>80 443 8000:8010</address></alias>
    <alias><name>loop</name><type>host</type><address>loop</address></alias>
  </aliases>
  <nat>
%[3]s
  </nat>
</%[1]s>
`, root, system, nat)
}

// pfRule returns a port forward of the WAN.
func pfRule(protocol, port, target, localPort, more string) string {
	return fmt.Sprintf(`<rule><source><any/></source><destination><network>wanip</network><port>%s</port></destination><ipprotocol>inet</ipprotocol>`+
		`<protocol>%s</protocol><target>%s</target><local-port>%s</local-port><interface>wan</interface><descr><![CDATA[]]></descr>%s</rule>`,
		port, protocol, target, localPort, more)
}

// pfOther returns a rule with its own source, destination and interface.
func pfOther(on, source, destination, target, localPort, more string) string {
	return fmt.Sprintf(`<rule><interface>%s</interface><source>%s</source><destination>%s</destination><protocol>tcp</protocol><target>%s</target><local-port>%s</local-port>%s</rule>`,
		on, source, destination, target, localPort, more)
}

const noReflection = "<disablenatreflection>yes</disablenatreflection>"

func pfCases() []importCase {
	return []importCase{
		{name: "port forwards", rules: pfConfig("pfsense", noReflection, strings.Join([]string{
			`<rule><source><any/></source><destination><network>wanip</network><port>443</port></destination><protocol>tcp</protocol><target>192.168.1.20</target><local-port>8443</local-port><interface>wan</interface><descr><![CDATA[Web & more]]></descr><associated-rule-id>nat_1</associated-rule-id></rule>`,
			pfRule("tcp/udp", "6000-6010", "192.168.1.20", "7000", ""),
			pfRule("udp", "53", "192.168.1.20", "53", "<log/>"),
			pfRule("gre", "", "192.168.1.20", "", ""),
		}, "\n")),
			want: []string{
				`web-more tcp 443 to 192.168.1.20:8443 reflect off comment "Web & more"`,
				"tcp-udp-6000-6010 tcp,udp 6000-6010 to 192.168.1.20:7000-7010 reflect off",
				"udp-53 udp 53 to 192.168.1.20:53 reflect off", "gre gre any to 192.168.1.20 reflect off",
			},
			remove: []string{
				"/pfsense/nat/rule[4] (line 20)", "/pfsense/nat/rule[3] (line 19)", "/pfsense/nat/rule[2] (line 18)", "/pfsense/nat/rule[1] (line 17): Web & more",
			}},
		{name: "aliases", rules: pfConfig("pfsense", noReflection, strings.Join([]string{
			pfRule("tcp", "web", "server", "web", ""),
			pfOther("wan", "<address>office</address>", "<address>203.0.113.5</address><port>25</port>", "192.168.1.25", "25", ""),
			pfRule("tcp", "81", "servers", "81", ""),
			pfRule("tcp", "web", "server", "90", ""),
			pfRule("udp", "nothing", "loop", "91", ""),
		}, "\n")),
			want: []string{
				"tcp-80 tcp 80 to 192.168.1.20:80 reflect off", "tcp-443 tcp 443 to 192.168.1.20:443 reflect off", "tcp-8000-8010 tcp 8000-8010 to 192.168.1.20:8000-8010 reflect off",
				"tcp-25 tcp 203.0.113.5:25 to 192.168.1.25:25 from 198.51.100.0/24,192.0.2.0/24 reflect off",
			},
			left: []string{"rule[3] ... spreads connections", "rule[4] ... its ports lead to \"90\"", "rule[5] ... \"nothing\" is not a list of ports", "rule[5] ... \"loop\" is not an address", "rule[5] ... its ports lead to"}},
		{name: "reflection", rules: pfConfig("pfsense", "<enablenatreflectionpurenat>yes</enablenatreflectionpurenat>", strings.Join([]string{
			pfRule("tcp", "80", "192.168.1.20", "80", ""),
			pfRule("tcp", "81", "192.168.1.20", "81", "<natreflection>disable</natreflection>"),
			pfRule("tcp", "82", "192.168.1.20", "82", "<natreflection>enable</natreflection>"),
		}, "\n")),
			want: []string{"tcp-80 tcp 80 to 192.168.1.20:80 reflect auto", "tcp-81 tcp 81 to 192.168.1.20:81 reflect off", "tcp-82 tcp 82 to 192.168.1.20:82 reflect router"}},
		{name: "reflection without a setting: NAT and proxy on pfSense", rules: pfConfig("pfsense", "", pfRule("tcp", "80", "192.168.1.20", "80", "")),
			want: []string{"tcp-80 tcp 80 to 192.168.1.20:80 reflect router"}},
		{name: "clients that are left out", rules: pfConfig("pfsense", noReflection, strings.Join([]string{
			pfOther("wan", "<address>0.0.0.0/1</address>", "<network>wanip</network><port>80</port>", "", "", "<nordr/>"),
			pfRule("tcp", "80", "192.168.1.20", "80", ""),
			pfOther("wan", "<address>0.0.0.0/1</address><not/>", "<network>wanip</network><port>81</port>", "192.168.1.20", "81", ""),
		}, "\n")),
			want: []string{"tcp-80 tcp 80 to 192.168.1.20:80 from 128.0.0.0/1 reflect off", "tcp-81 tcp 81 to 192.168.1.20:81 from 128.0.0.0/1 reflect off"}},
		{name: "1:1", rules: pfConfig("pfsense", "<enablebinatreflection>yes</enablebinatreflection>", `
<onetoone><external>203.0.113.5</external><descr>mail</descr><interface>wan</interface><source><address>192.168.1.5</address></source><destination><any/></destination></onetoone>
<onetoone><external>203.0.113.16</external><interface>wan</interface><source><address>192.168.1.32/31</address></source><destination><any/></destination><natreflection>disable</natreflection></onetoone>
<onetoone><external>203.0.113.6</external><interface>wan</interface><source><address>192.168.1.6</address></source><destination><address>198.51.100.1</address></destination></onetoone>
<onetoone><disabled/><external>203.0.113.7</external><interface>wan</interface><source><address>192.168.1.7</address></source></onetoone>`),
			want: []string{
				"mail any 203.0.113.5:any to 192.168.1.5 reflect auto comment mail", "any any 203.0.113.16:any to 192.168.1.32 reflect off", "any-2 any 203.0.113.17:any to 192.168.1.33 reflect off",
			},
			left: []string{"/pfsense/nat/onetoone[3] ... clients of a 1:1", "/pfsense/nat/onetoone[4] ... disabled"}},
		{name: "DNS of the LAN", rules: pfConfig("opnsense", "", strings.Join([]string{
			`<rule uuid="1"><interface>lan</interface><ipprotocol>inet</ipprotocol><protocol>tcp/udp</protocol><source><any>1</any></source><destination><network>lanip</network><not>1</not><port>53</port></destination><target>127.0.0.1</target><local-port>53</local-port></rule>`,
			pfRule("tcp", "80", "192.168.1.20", "80", "<disabled>0</disabled><natreflection>enable</natreflection>"),
		}, "\n")),
			want: []string{
				"intercept tcp-udp-53 tcp,udp 53 to 192.168.1.1:53 except 192.168.1.1/32", "tcp-80 tcp 80 to 192.168.1.20:80 reflect auto",
			}},
		{name: "1:1 of the newer OPNsense", rules: strings.Replace(pfConfig("opnsense", "", ""), "</opnsense>", `<OPNsense><Firewall><Filter><onetoone>
<rule uuid="2"><enabled>1</enabled><interface>wan</interface><type>binat</type><external>203.0.113.5/32</external><source_net>192.168.1.5/32</source_net><destination_net>any</destination_net><description>mail</description></rule>
<rule uuid="3"><enabled>0</enabled><interface>wan</interface><external>203.0.113.6</external><source_net>192.168.1.6/32</source_net><destination_net>any</destination_net></rule>
</onetoone></Filter></Firewall></OPNsense></opnsense>`, 1),
			want: []string{"mail any 203.0.113.5:any to 192.168.1.5 reflect off comment mail"},
			left: []string{"/opnsense/OPNsense/Firewall/Filter/onetoone/rule[2] ... disabled"}},
		{name: "what is not translated", rules: pfConfig("pfsense", noReflection, strings.Join([]string{
			pfRule("tcp", "80", "192.168.1.20", "80", "<disabled/>"),
			pfRule("carp", "", "192.168.1.20", "", ""),
			pfRule("tcp", "81", "192.168.1.20", "81", "<sched>night</sched>"),
			pfOther("openvpn", "<any/>", "<any/><port>82</port>", "192.168.1.20", "82", ""),
			pfOther("wan", "<any/><port>1024</port>", "<any/><port>83</port>", "192.168.1.20", "83", ""),
			pfRule("tcp", "84", "127.0.0.1", "8080", ""),
			pfRule("tcp", "65000-65535", "192.168.1.20", "65001", ""),
		}, "\n")),
			left: []string{"rule[1] ... disabled", "rule[2] ... carp", "rule[3] ... <sched>", "rule[4] ... openvpn", "rule[5] ... a source port", "rule[6] ... leads to the router itself", "rule[7] ... beyond 65535"}},
	}
}

func TestPfSense(t *testing.T) { runCases(t, "pfsense", pfCases()) }

// Two WANs: what one of them is called on Linux is not known. A fixed address is.
func TestPfSenseWithTwoWANs(t *testing.T) {
	rules := pfConfig("pfsense", noReflection, strings.Join([]string{
		pfOther("wan", "<any/>", "<network>wanip</network><port>80</port>", "192.168.1.20", "80", ""),
		pfOther("opt1", "<any/>", "<network>opt1ip</network><port>81</port>", "192.168.1.20", "81", ""),
		pfOther("opt1", "<any/>", "<any/><port>82</port>", "192.168.1.20", "82", ""),
	}, "\n"))
	rules = strings.Replace(rules, "</interfaces>", "<opt1><enable/><ipaddr>203.0.113.9</ipaddr><subnet>24</subnet><gateway>GW2</gateway></opt1></interfaces>", 1)
	importCase{rules: rules, want: []string{"tcp-81 tcp 203.0.113.9:81 to 192.168.1.20:81 reflect off"},
		left: []string{`rule[1] ... the addresses of "wanip" are not in the file`, `rule[3] ... it is for the WAN "opt1" alone`}}.check(t, "pfsense")
}

func TestBrokenPfSense(t *testing.T) {
	runBroken(t, "pfsense", []brokenCase{
		{"nothing", "", "the document ends too early"},
		{"another document", "<html></html>", "rules:1:1: the document is <html>"},
		{"cut off", pfConfig("pfsense", "", "")[:300], "the document ends too early: it is cut off"},
		{"an element that is closed twice", "<pfsense>\n<nat></nat></nat></pfsense>", "rules:2:12: </nat> closes an element that is not open"},
		{"a document type", "<?xml version=\"1.0\"?>\n<!DOCTYPE pfsense [<!ENTITY a \"aaaa\">]>\n<pfsense>&a;</pfsense>", "rules:2:1: a document type has no place"},
		{"an entity", "<pfsense>\n&lol;</pfsense>", "invalid character entity &lol;"},
		{"elements inside each other", "<pfsense>" + strings.Repeat("<a>", 100), "or more than 64 inside each other"},
		{"too many elements", "<pfsense>" + strings.Repeat("<a/>", maxXMLElements), "more than 250000 elements"},
		{"two documents", "<pfsense></pfsense><pfsense></pfsense>", "rules:1:20: a second document begins here"},
		{"text behind the document", "<pfsense></pfsense>more", "text outside of the document"},
		{"another encoding", "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><pfsense/>", "ISO-8859-1"},
		{"a wrong character", "<pfsense>\n<nat \x01></nat></pfsense>", "rules:2:"},
	})
}
