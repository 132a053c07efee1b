// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"hairpin/maps/rule"
)

// nftReader reads the output of "nft -j list ruleset" (libnftables-json(5)).
type nftReader struct {
	chains []*chain
	byName map[string]*chain
	sets   map[string]*nftSet // sets and maps, by family, table and name
	rules  []nftRule          // read after all chains and sets
}

type nftSet struct {
	items []json.RawMessage
	moves bool // the rules themselves, or timeouts, change it
}

type nftChain struct {
	Family, Table, Name, Type, Hook string
	Prio                            int
	Policy                          string
}

type nftRule struct {
	Family, Table, Chain, Comment string
	Handle                        uint64
	Expr                          []map[string]json.RawMessage
}

func readNFT(name string, data []byte) (*found, error) {
	r := &nftReader{byName: map[string]*chain{}, sets: map[string]*nftSet{}}
	decoder := json.NewDecoder(bytes.NewReader(data))
	fail := func(at int, err error) error {
		var syntax *json.SyntaxError
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
			return problemAt(name, data, len(data), "the text ends too early: it is cut off")
		case errors.As(err, &syntax):
			// Offset is behind the wrong byte, and counts from where the decoder began to read the value.
			return problemAt(name, data, int(decoder.InputOffset())+wrongByte(data[decoder.InputOffset():]), "%s", syntax)
		}
		return problemAt(name, data, at, "%s", err)
	}
	if first := bytes.TrimSpace(data); len(first) > 0 && first[0] != '{' {
		return nil, problemAt(name, data, bytes.IndexByte(data, first[0]), "this is not JSON; write the rules with \"nft -j list ruleset\"")
	}
	for _, want := range []json.Token{json.Delim('{'), "nftables", json.Delim('[')} {
		token, err := decoder.Token()
		if err != nil {
			return nil, fail(0, err)
		}
		if token != want {
			return nil, fail(int(decoder.InputOffset())-1, fmt.Errorf("%v where %v was expected; this is not the output of \"nft -j list ruleset\"", token, want))
		}
	}
	for decoder.More() {
		at := int(decoder.InputOffset())
		var object map[string]json.RawMessage
		if err := decoder.Decode(&object); err != nil {
			return nil, fail(at+skipSpace(data[at:]), err)
		}
		if err := r.object(object); err != nil {
			return nil, fail(at+skipSpace(data[at:]), err)
		}
	}
	for range 2 { // "]" and "}"
		if _, err := decoder.Token(); err != nil {
			return nil, fail(len(data), err)
		}
	}
	return r.finish(name, data)
}

// skipSpace returns the number of bytes before the next value.
func skipSpace(data []byte) int {
	return len(data) - len(bytes.TrimLeft(data, " \t\r\n,"))
}

// wrongByte returns the index of the byte that makes data no JSON.
func wrongByte(data []byte) int {
	data = data[skipSpace(data):]
	var syntax *json.SyntaxError
	var value json.RawMessage
	if errors.As(json.NewDecoder(bytes.NewReader(data)).Decode(&value), &syntax) {
		return max(0, int(syntax.Offset)-1)
	}
	return 0
}

// object reads one object of the list: a table, a chain, a rule, a set.
func (r *nftReader) object(object map[string]json.RawMessage) error {
	for kind, body := range object {
		switch kind {
		case "chain":
			var c nftChain
			if err := json.Unmarshal(body, &c); err != nil {
				return fmt.Errorf("a chain is not understood: %w", err)
			}
			r.addChain(c)
		case "set", "map":
			var s struct {
				Family, Table, Name string
				Flags               flagList
				Elem                []json.RawMessage
			}
			if err := json.Unmarshal(body, &s); err != nil {
				return fmt.Errorf("a %s is not understood: %w", kind, err)
			}
			r.sets[s.Family+" "+s.Table+" "+s.Name] = &nftSet{s.Elem, slices.Contains(s.Flags, "timeout") || slices.Contains(s.Flags, "dynamic")}
		case "rule":
			var rule nftRule
			if err := json.Unmarshal(body, &rule); err != nil {
				return fmt.Errorf("a rule is not understood: %w", err)
			}
			r.rules = append(r.rules, rule)
		}
	}
	return nil
}

// flagList is one word or a list of words.
type flagList []string

func (f *flagList) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*f = flagList{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(f))
}

var nftHooks = map[string]hook{"prerouting": prerouting, "output": output, "postrouting": postrouting, "forward": forwarding}

func (r *nftReader) addChain(c nftChain) {
	at, known := nftHooks[c.Hook]
	wanted := c.Type == "nat" && at != forwarding || c.Type == "filter" && at == forwarding
	made := &chain{
		key: c.Family + " " + c.Table + " " + c.Name, hook: at, priority: c.Prio,
		base: known && wanted && slices.Contains([]string{"ip", "ip6", "inet"}, c.Family),
	}
	r.chains = append(r.chains, made)
	r.byName[made.key] = made
}

func (r *nftReader) finish(name string, data []byte) (*found, error) {
	for i := range r.rules {
		n := &r.rules[i]
		c := r.byName[n.Family+" "+n.Table+" "+n.Chain]
		if c == nil {
			at := max(0, bytes.Index(data, fmt.Appendf(nil, `"handle": %d`, n.Handle)))
			return nil, problemAt(name, data, at, "the rule with handle %d is in the chain %s %s %s, which is not there", n.Handle, n.Family, n.Table, n.Chain)
		}
		c.steps = append(c.steps, r.steps(n)...)
	}
	rules, err := walkChains(r.chains)
	if err != nil {
		return nil, problemAt(name, data, 0, "%s", err)
	}
	return &found{rules: rules}, nil
}

// steps returns the meaning of a rule. A rule with a map, or with a condition about pairs, becomes several.
func (r *nftReader) steps(n *nftRule) []step {
	place := fmt.Sprintf("rule %d of the chain %s %s %s", n.Handle, n.Family, n.Table, n.Chain)
	d := &nftDecoder{reader: r, rule: n, steps: []step{{verdict: goesOn, Rule: Rule{
		place: place, comment: n.Comment,
		remove: fmt.Sprintf("nft delete rule %s %s %s handle %d", n.Family, shellWord(n.Table), shellWord(n.Chain), n.Handle),
	}}}}
	switch n.Family {
	case "ip":
		d.steps[0].match.family = 4
	case "ip6":
		d.steps[0].match.family = 6
	}
	if n.Chain == dockerChain {
		d.steps[0].byDocker()
	}
	// A verdict is the last statement of a rule.
	for _, e := range n.Expr {
		for kind, body := range e {
			d.take(kind, body)
		}
	}
	// A rule of the chains of one family matches all of it; so that it counts as a rule without a condition, leave the family out.
	for i := range d.steps {
		if s := &d.steps[i]; s.verdict != translates {
			family := s.match.family
			s.match.family = 0
			if !s.match.matchesAll() || n.Family == "inet" {
				s.match.family = family
			}
		}
	}
	return d.steps
}

// nftDecoder reads the statements of one rule. Each statement applies to all steps.
type nftDecoder struct {
	reader *nftReader
	rule   *nftRule
	steps  []step
}

func (d *nftDecoder) each(do func(s *step)) {
	for i := range d.steps {
		do(&d.steps[i])
	}
}

func (d *nftDecoder) other(text string) {
	d.each(func(s *step) { s.match.others = join(s.match.others, []string{text}) })
}

func (d *nftDecoder) note(text string) {
	d.each(func(s *step) { s.notes = join(s.notes, []string{text}) })
}

// meet multiplies the steps with alternatives: a packet matches a step if it matches one of them.
func (d *nftDecoder) meet(alternatives []match) {
	var out []step
	for _, s := range d.steps {
		for _, m := range alternatives {
			next := s
			next.match = s.match.and(m)
			out = append(out, next)
		}
	}
	d.steps = out
}

func (d *nftDecoder) take(kind string, body json.RawMessage) {
	switch kind {
	case "match":
		d.match(body)
	case "counter", "comment":
	case "log":
		d.note("it logged connections; hairpin does so for all forwards: see [log] in hairpin.toml")
	case "accept", "drop", "reject":
		d.each(func(s *step) { s.verdict = accepts })
	case "return":
		d.each(func(s *step) { s.verdict = returns })
	case "continue":
	case "jump", "goto":
		d.jump(kind, body)
	case "vmap":
		d.verdictMap(body)
	case "dnat", "snat", "redirect", "masquerade":
		d.nat(kind, body)
	case "xt":
		d.xt(body)
	default:
		d.other(fmt.Sprintf("the statement %s", compact(kind, body)))
	}
}

// xt reads an extension of iptables, of which nft knows the name alone.
func (d *nftDecoder) xt(body json.RawMessage) {
	var x struct{ Type, Name string }
	_ = json.Unmarshal(body, &x)
	switch {
	case x.Type == "match" && x.Name != "comment":
		d.other(compact("xt", body))
	case x.Type == "target" && !slices.Contains([]string{"LOG", "NFLOG", "MARK", "CONNMARK", "TRACE"}, x.Name):
		d.each(func(s *step) {
			s.verdict, s.action = translates, otherNAT
			s.problems = join(s.problems, []string{"iptables made it, and nft does not show what it does; import the output of iptables-save instead"})
		})
	}
}

// compact returns a statement as it was written, on one line and not too long.
func compact(kind string, body json.RawMessage) string {
	var out bytes.Buffer
	if json.Compact(&out, body) != nil {
		return kind
	}
	text := fmt.Sprintf("{%q:%s}", kind, out.String())
	if runes := []rune(text); len(runes) > 120 {
		text = string(runes[:120]) + "..."
	}
	return text
}

func (d *nftDecoder) jump(kind string, body json.RawMessage) {
	var to struct{ Target string }
	if json.Unmarshal(body, &to) != nil {
		d.other("a jump that is not understood")
		return
	}
	d.each(func(s *step) { d.setJump(s, kind, to.Target) })
}

func (d *nftDecoder) setJump(s *step, kind, target string) {
	s.jump, s.verdict = d.rule.Family+" "+d.rule.Table+" "+target, jumpsTo
	if kind == "goto" {
		s.verdict = goesTo
	}
}

// verdictMap reads "tcp dport vmap { 80 : jump web }".
func (d *nftDecoder) verdictMap(body json.RawMessage) {
	var v struct{ Key, Data json.RawMessage }
	if json.Unmarshal(body, &v) != nil {
		d.other("a verdict map that is not understood")
		return
	}
	var out []step
	for _, pair := range d.pairs(v.Key, v.Data) {
		for _, s := range d.steps {
			s.match = s.match.and(pair.match)
			var verdict map[string]json.RawMessage
			if json.Unmarshal(pair.data, &verdict) != nil {
				continue // match.others says why
			}
			for kind, body := range verdict {
				one := &nftDecoder{reader: d.reader, rule: d.rule, steps: []step{s}}
				one.take(kind, body)
				out = append(out, one.steps...)
			}
		}
	}
	d.steps = out
}

// pair is one element of a map.
type pair struct {
	match match
	data  json.RawMessage
}

// pairs returns the elements of a map with the conditions that choose them. A map that is not understood is one pair without data.
func (d *nftDecoder) pairs(key, data json.RawMessage) []pair {
	unknown := []pair{{match: match{others: []string{fmt.Sprintf("the map %s", compact("map", key))}}}}
	items, moves, ok := d.elements(data)
	if !ok {
		return unknown
	}
	if moves {
		return []pair{{match: match{others: []string{fmt.Sprintf("the map %s, whose elements change while it runs", compact("map", data))}}}}
	}
	var list []pair
	for _, item := range items {
		var two []json.RawMessage
		if json.Unmarshal(item, &two) != nil || len(two) != 2 {
			return unknown
		}
		for _, m := range d.compare(key, "==", unwrap(two[0])) {
			list = append(list, pair{m, two[1]})
		}
	}
	return list
}

// unwrap returns the value of an element that has more than a value, such as a comment.
func unwrap(item json.RawMessage) json.RawMessage {
	var e struct{ Elem struct{ Val json.RawMessage } }
	if begins(item, '{') && json.Unmarshal(item, &e) == nil && e.Elem.Val != nil {
		return e.Elem.Val
	}
	return item
}

// elements returns the elements of a set or map: a set in the rule, or "@name". moves: they change while the rules run.
func (d *nftDecoder) elements(data json.RawMessage) (items []json.RawMessage, moves, ok bool) {
	var name string
	if begins(data, '"') && json.Unmarshal(data, &name) == nil {
		set := d.reader.sets[d.rule.Family+" "+d.rule.Table+" "+strings.TrimPrefix(name, "@")]
		if set == nil || !strings.HasPrefix(name, "@") {
			return nil, false, false
		}
		return set.items, set.moves, true
	}
	var inline struct{ Set json.RawMessage }
	if !begins(data, '{') || json.Unmarshal(data, &inline) != nil || inline.Set == nil {
		return nil, false, false
	}
	if json.Unmarshal(inline.Set, &items) != nil {
		items = []json.RawMessage{inline.Set} // nft writes a set of one element without a list
	}
	return items, false, true
}

func (d *nftDecoder) match(body json.RawMessage) {
	var m struct {
		Op          string
		Left, Right json.RawMessage
	}
	if json.Unmarshal(body, &m) != nil {
		d.other("a condition that is not understood")
		return
	}
	d.meet(d.compare(m.Left, m.Op, m.Right))
}

// compare returns the alternatives of a condition.
func (d *nftDecoder) compare(left json.RawMessage, op string, right json.RawMessage) []match {
	var parts struct{ Concat []json.RawMessage }
	if bytes.Contains(left, []byte(`"concat"`)) && json.Unmarshal(left, &parts) == nil && parts.Concat != nil {
		return d.compareAll(parts.Concat, op, right)
	}
	values, ok := d.values(right)
	m := match{}
	if ok {
		m, ok = d.condition(left, op, values)
	}
	if !ok {
		// The protocols say at least what the condition is not about.
		m = match{protocols: m.protocols, others: []string{fmt.Sprintf("the condition %s %s %s", compactValue(left), op, compactValue(right))}}
	}
	return []match{m}
}

// compareAll reads a condition about several fields at once: "ip daddr . tcp dport { 203.0.113.2 . 80 }".
func (d *nftDecoder) compareAll(fields []json.RawMessage, op string, right json.RawMessage) []match {
	unknown := []match{{others: []string{fmt.Sprintf("a condition %s %s", op, compactValue(right))}}}
	items, moves, ok := d.elements(right)
	if !ok {
		items = []json.RawMessage{right}
	}
	if moves || op != "==" {
		return unknown
	}
	var list []match
	for _, item := range items {
		var values struct{ Concat []json.RawMessage }
		if json.Unmarshal(unwrap(item), &values) != nil || len(values.Concat) != len(fields) {
			return unknown
		}
		all := match{}
		for i, field := range fields {
			one := d.compare(field, op, values.Concat[i])
			all = all.and(one[0]) // a field that is not itself several has one alternative
		}
		list = append(list, all)
	}
	return list
}

func compactValue(value json.RawMessage) string {
	var out bytes.Buffer
	if json.Compact(&out, value) != nil {
		return "?"
	}
	text := out.String()
	if runes := []rune(text); len(runes) > 80 {
		text = string(runes[:80]) + "..."
	}
	return text
}

// value is an address, a network, a number, a word, or a range of them; first and last are equal for a single value.
type value struct{ first, last string }

// values returns the right side of a condition as a list. It reports false for values that cannot be listed.
func (d *nftDecoder) values(right json.RawMessage) (list []value, ok bool) {
	items, moves, isSet := d.elements(right)
	if moves {
		return nil, false
	}
	if !isSet && (!begins(right, '[') || json.Unmarshal(right, &items) != nil) {
		items = []json.RawMessage{right}
	}
	for _, item := range items {
		v, ok := readValue(unwrap(item))
		if !ok {
			return nil, false
		}
		list = append(list, v)
	}
	return list, true
}

func readValue(item json.RawMessage) (value, bool) {
	if text, ok := scalar(item); ok {
		return value{text, text}, true
	}
	var v struct {
		Range  []json.RawMessage
		Prefix struct {
			Addr string
			Len  int
		}
	}
	if json.Unmarshal(item, &v) != nil {
		return value{}, false
	}
	if v.Prefix.Addr != "" {
		text := fmt.Sprintf("%s/%d", v.Prefix.Addr, v.Prefix.Len)
		return value{text, text}, true
	}
	if len(v.Range) != 2 {
		return value{}, false
	}
	first, ok1 := scalar(v.Range[0])
	last, ok2 := scalar(v.Range[1])
	return value{first, last}, ok1 && ok2
}

// begins reports whether a value begins with a byte. It saves decoding a value only to learn of what kind it is.
func begins(value json.RawMessage, first byte) bool {
	value = bytes.TrimLeft(value, " \t\r\n")
	return len(value) > 0 && value[0] == first
}

// scalar returns a string or a number as text.
func scalar(item json.RawMessage) (string, bool) {
	var text string
	if begins(item, '"') {
		err := json.Unmarshal(item, &text)
		return text, err == nil && !strings.HasPrefix(text, "@")
	}
	if begins(item, '{') || begins(item, '[') {
		return "", false
	}
	var number json.Number
	if json.Unmarshal(item, &number) == nil {
		return number.String(), true
	}
	return "", false
}

// condition returns one condition. It reports false for a condition that hairpin does not know.
func (d *nftDecoder) condition(left json.RawMessage, op string, values []value) (match, bool) {
	var l struct {
		Payload struct{ Protocol, Field string }
		Meta    struct{ Key string }
		Fib     struct {
			Result string
			Flags  flagList
		}
		Ct struct{ Key string }
	}
	if json.Unmarshal(left, &l) != nil || !slices.Contains([]string{"==", "!=", "in", "<", ">", "<=", ">="}, op) {
		return match{}, false
	}
	not := op == "!="
	if slices.Contains([]string{"<", ">", "<=", ">="}, op) && l.Payload.Field != "dport" {
		return match{}, false
	}
	switch {
	case l.Payload.Field == "dport":
		return portCondition(l.Payload.Protocol, op, values)
	case l.Payload.Field == "saddr", l.Payload.Field == "daddr":
		return addressCondition(l.Payload.Protocol, l.Payload.Field, not, values)
	case l.Payload.Field == "protocol" && l.Payload.Protocol == "ip", l.Payload.Field == "nexthdr", l.Meta.Key == "l4proto":
		m := match{family: map[string]int{"ip": 4, "ip6": 6}[l.Payload.Protocol]}
		if not {
			return m, false
		}
		var ok bool
		m.protocols, ok = protocolList(values)
		return m, ok
	case l.Meta.Key == "iifname", l.Meta.Key == "iif":
		return match{in: nameCondition(not, values)}, true
	case l.Meta.Key == "oifname", l.Meta.Key == "oif":
		return match{out: nameCondition(not, values)}, true
	case l.Meta.Key == "nfproto", l.Meta.Key == "protocol":
		return familyCondition(not, values)
	case l.Fib.Result == "type" && slices.Equal(l.Fib.Flags, flagList{"daddr"}):
		return match{local: true}, !not && len(values) == 1 && values[0].first == "local"
	case l.Ct.Key == "state":
		// The first packet of a connection, the only one that a NAT chain sees, is new.
		return match{}, !not && slices.Contains(values, value{"new", "new"})
	case l.Ct.Key == "status":
		return match{}, !not && len(values) == 1 && values[0].first == "dnat"
	}
	return match{}, false
}

func familyCondition(not bool, values []value) (match, bool) {
	if len(values) != 1 {
		return match{}, false
	}
	family := map[string]int{"ipv4": 4, "ip": 4, "ipv6": 6, "ip6": 6}[values[0].first]
	if not && family != 0 {
		family = 10 - family
	}
	return match{family: family}, family != 0
}

func nameCondition(not bool, values []value) (n names) {
	list := []string{}
	for _, v := range values {
		list = append(list, v.first)
	}
	if not {
		return names{not: list}
	}
	return names{only: list}
}

func addressCondition(protocol, field string, not bool, values []value) (m match, ok bool) {
	list := []netip.Prefix{}
	for _, v := range values {
		networks, ok := readNetworks(v.first, v.last)
		if !ok {
			return match{}, false
		}
		list = append(list, networks...)
	}
	m.family = map[string]int{"ip": 4, "ip6": 6}[protocol]
	n := networks{only: list}
	if not {
		n = networks{not: list}
	}
	if field == "saddr" {
		m.source = n
	} else {
		m.dest = n
	}
	return m, true
}

var portProtocols = map[string][]rule.Protocol{
	"tcp": {rule.TCP}, "udp": {rule.UDP}, "sctp": {rule.SCTP}, "th": nil,
}

func portCondition(protocol, op string, values []value) (m match, ok bool) {
	m.protocols, ok = portProtocols[protocol]
	if !ok {
		return m, false
	}
	m.ports = []rule.Ports{}
	for _, v := range values {
		ports, ok := readPorts(v.first, v.last)
		if !ok {
			return m, false
		}
		m.ports = append(m.ports, ports)
	}
	if op == "==" || op == "in" {
		return m, true
	}
	if op == "!=" {
		m.ports = exceptPorts(m.ports)
		return m, true
	}
	if len(m.ports) != 1 {
		return m, false
	}
	first, last := int(m.ports[0].First), 65535
	switch op {
	case ">":
		first++
	case "<":
		first, last = 1, first-1
	case "<=":
		first, last = 1, first
	}
	if first > last {
		m.never = true
		return m, true
	}
	m.ports = []rule.Ports{{First: uint16(first), Last: uint16(last)}}
	return m, true
}

func (d *nftDecoder) nat(kind string, body json.RawMessage) {
	var n struct {
		Family     string
		Addr, Port json.RawMessage
		Flags      flagList
		TypeFlags  flagList `json:"type_flags"`
	}
	// "masquerade" without more is null.
	if json.Unmarshal(body, &n) != nil {
		d.each(func(s *step) {
			s.verdict, s.problems = translates, join(s.problems, []string{"the statement " + kind + " is not understood"})
		})
		return
	}
	for _, flag := range n.Flags {
		if flag == "random" || flag == "fully-random" || flag == "persistent" {
			d.note(fmt.Sprintf("the flag %s is not needed: hairpin chooses no port for it", flag))
		}
	}
	if family := map[string]int{"ip": 4, "ip6": 6}[n.Family]; family != 0 {
		d.meet([]match{{family: family}})
	}
	d.each(func(s *step) {
		s.verdict = translates
		s.action = map[string]action{"dnat": dnat, "snat": snat, "redirect": redirect, "masquerade": masquerade}[kind]
	})
	var chosen struct {
		Map struct{ Key, Data json.RawMessage }
	}
	if begins(n.Addr, '{') && json.Unmarshal(n.Addr, &chosen) == nil && chosen.Map.Key != nil {
		d.natByMap(chosen.Map.Key, chosen.Map.Data, n.Port)
		return
	}
	if begins(n.Port, '{') && json.Unmarshal(n.Port, &chosen) == nil && chosen.Map.Key != nil {
		d.each(func(s *step) { s.problems = join(s.problems, []string{"a map chooses the port alone"}) })
		return
	}
	d.each(func(s *step) { s.setTarget(n.Addr, n.Port) })
}

// natByMap reads "dnat to tcp dport map { 80 : 192.168.1.20 }".
func (d *nftDecoder) natByMap(key, data, port json.RawMessage) {
	var out []step
	for _, pair := range d.pairs(key, data) {
		for _, s := range d.steps {
			s.match = s.match.and(pair.match)
			var both struct{ Concat []json.RawMessage }
			switch {
			case pair.data == nil:
			case json.Unmarshal(pair.data, &both) == nil && len(both.Concat) == 2:
				s.setTarget(both.Concat[0], both.Concat[1])
			default:
				s.setTarget(pair.data, port)
			}
			s.netmap()
			out = append(out, s)
		}
	}
	d.steps = out
}

// setTarget reads the address and the port of a translation.
func (s *step) setTarget(addr, port json.RawMessage) {
	if addr != nil {
		v, ok := readValue(addr)
		s.readTarget(v.first, v.last, ok)
	}
	if port != nil {
		v, ok := readValue(port)
		ports, fine := readPorts(v.first, v.last)
		if !ok || !fine {
			s.problems = join(s.problems, []string{"its port " + compactValue(port) + " is not understood"})
		}
		s.ports = ports
	}
}

// netmap makes a rule whose target is a network one that keeps the place in the network.
func (s *step) netmap() {
	if s.network.IsValid() && len(s.match.dest.only) == 1 && s.match.dest.only[0].Bits() == s.network.Bits() {
		s.action = oneToOne
	}
}
