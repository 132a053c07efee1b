// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"hairpin/maps/rule"
)

// modelRule is a rule of nftables, with only as much as the model needs.
type modelRule struct {
	in, dest   string // "": any
	office     int    // 1: clients of the office alone, 2: all but these
	protocols  []string
	first, end uint16 // ports
	mark       bool   // hairpin has no such condition
	target     int    // 0: return
	port       uint16 // of the target; 0: as the packet has
}

// modelPacket opens a connection.
type modelPacket struct {
	in, dest, protocol string
	office, mark       bool
	port               uint16
}

// modelAnswer is where a packet goes: no target means that it is not translated.
type modelAnswer struct {
	target  int
	port    uint16
	refused bool
}

var (
	officeClient = netip.MustParseAddr("198.51.100.7")
	otherClient  = netip.MustParseAddr("192.0.2.7")
	// wanAddresses are those of the interfaces; 203.0.113.9 is one that the model's rules name, too.
	wanAddresses = map[string]string{"wan0": "203.0.113.2", "wan1": "203.0.113.3"}
)

func randomRule(r *rand.Rand) modelRule {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	m := modelRule{
		in: pick("", "wan0", "wan0", "wan1", "lan0"), dest: pick("", "", "203.0.113.2", "203.0.113.3", "203.0.113.9"),
		protocols: [][]string{{"tcp"}, {"udp"}, {"tcp", "udp"}}[r.IntN(3)], first: 80 + uint16(r.IntN(4)), target: r.IntN(5), mark: r.IntN(8) == 0,
	}
	if own := wanAddresses[m.in]; own != "" && m.dest != "" {
		m.dest = own // an address is behind one WAN
	}
	m.end = m.first + uint16(max(0, r.IntN(6)-2))
	if r.IntN(3) == 0 {
		m.office = 1 + r.IntN(2)
	}
	if m.target != 0 && m.first == m.end && r.IntN(2) == 0 {
		m.port = 8080
	}
	return m
}

// line returns the rule in the short form of ruleset.
func (m *modelRule) line() string {
	var words []string
	if m.in != "" {
		words = append(words, fmt.Sprintf("iif=%q", m.in))
	}
	if m.dest != "" {
		words = append(words, fmt.Sprintf("ip.daddr=%q", m.dest))
	}
	if m.office > 0 {
		words = append(words, []string{"", `ip.saddr=`, `ip.saddr!=`}[m.office]+`{"prefix":{"addr":"198.51.100.0","len":24}}`)
	}
	if m.mark {
		words = append(words, "mark=5")
	}
	words = append(words, fmt.Sprintf(`proto={"set":["%s"]}`, strings.Join(m.protocols, `","`)), fmt.Sprintf(`th={"range":[%d,%d]}`, m.first, m.end))
	switch {
	case m.target == 0:
		words = append(words, "return")
	case m.port != 0:
		words = append(words, fmt.Sprintf("dnat=192.168.1.%d,%d", m.target, m.port))
	default:
		words = append(words, fmt.Sprintf("dnat=192.168.1.%d", m.target))
	}
	return strings.Join(words, " ")
}

func (m *modelRule) matches(p modelPacket) bool {
	return (m.in == "" || m.in == p.in) && (m.dest == "" || m.dest == p.dest) && slices.Contains(m.protocols, p.protocol) && m.first <= p.port && p.port <= m.end &&
		(m.office == 0 || (m.office == 1) == p.office) && (!m.mark || p.mark)
}

// netfilter returns what the first rule that matches does, and its index; -1: none.
func netfilter(rules []modelRule, p modelPacket) (modelAnswer, int) {
	for i := range rules {
		if m := &rules[i]; m.matches(p) {
			if m.port != 0 {
				return modelAnswer{target: m.target, port: m.port}, i
			}
			if m.target == 0 {
				return modelAnswer{}, i
			}
			return modelAnswer{target: m.target, port: p.port}, i
		}
	}
	return modelAnswer{}, -1
}

// hairpin returns what the most specific forward does, as the shipped hairpin.toml and config.Validate describe it, and whether there
// is one.
func hairpin(forwards []Translated, p modelPacket) (answer modelAnswer, found bool) {
	var best *rule.Forward
	rank := func(f *rule.Forward) int {
		at := map[bool]int{true: 2}[f.External.Address.IsValid()] + map[bool]int{true: 1}[f.External.Interface != ""]
		return at*100000 - f.Ports.Len()
	}
	for i := range forwards {
		f := &forwards[i].Forward
		protocol, _ := rule.ParseProtocol(p.protocol)
		listens := f.External.Address.IsValid() && f.External.Address.String() == p.dest ||
			!f.External.Address.IsValid() && f.External.Interface != "" && wanAddresses[f.External.Interface] == p.dest ||
			f.External == rule.External{} && (p.dest == wanAddresses["wan0"] || p.dest == wanAddresses["wan1"])
		if f.Intercept || !listens || !slices.Contains(f.Protocols, protocol) || !f.Ports.Has(p.port) {
			continue
		}
		if best == nil || rank(f) > rank(best) {
			best = f
		}
	}
	if best == nil {
		return modelAnswer{}, false
	}
	client := otherClient
	if p.office {
		client = officeClient
	}
	if len(best.From) > 0 && !slices.ContainsFunc(best.From, func(n netip.Prefix) bool { return n.Contains(client) }) {
		return modelAnswer{refused: true}, true
	}
	last := best.Target.As4()[3]
	return modelAnswer{target: int(last), port: p.port + best.PortShift()}, true
}

// TestSamePacketsGoToTheSameTargets: for random rules, each packet of the Internet goes where the first rule sends it. If this rule was
// left, no forward may take the packet, because the rule still does.
func TestSamePacketsGoToTheSameTargets(t *testing.T) {
	options := Options{WAN: []string{"wan0", "wan1"}, LAN: []string{"lan0"}}
	translated, left := 0, 0
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 0))
		rules := make([]modelRule, 1+r.IntN(9))
		text := "chain prerouting prerouting -100\n"
		for i := range rules {
			rules[i] = randomRule(r)
			text += rules[i].line() + "\n"
		}
		result, err := Import("nft", "rules", []byte(ruleset(text)), options)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		stays := map[int]bool{}
		for _, l := range result.Left {
			var handle int
			if _, err := fmt.Sscanf(l.Place, "rule %d of", &handle); err != nil {
				t.Fatal(err)
			}
			stays[handle-2] = true
		}
		translated, left = translated+len(result.Forwards), left+len(stays)
		for _, p := range modelPackets() {
			want, by := netfilter(rules, p)
			got, found := hairpin(result.Forwards, p)
			switch {
			case !found && (want.target == 0 || stays[by]):
			case found && got.refused && want.target == 0:
			case found && got == want:
			default:
				t.Fatalf("seed %d: %+v goes to %+v by rule %d (left: %v), but with hairpin to %+v (%v)\n%s", seed, p, want, by+2, stays, got, found, text)
			}
		}
	}
	if translated < 1000 || left < 1000 {
		t.Errorf("only %d forwards, and %d rules that were left", translated, left)
	}
}

// modelPackets returns packets from the Internet to the address of the interface by which they come.
func modelPackets() (list []modelPacket) {
	for in, dest := range wanAddresses {
		for _, protocol := range []string{"tcp", "udp"} {
			for port := uint16(79); port < 88; port++ {
				for i := range 4 {
					list = append(list, modelPacket{in: in, dest: dest, protocol: protocol, port: port, office: i&1 != 0, mark: i&2 != 0})
				}
			}
		}
	}
	return list
}
