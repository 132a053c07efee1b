// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	"hairpin/maps/config"
	"hairpin/maps/rule"
)

const version = 1

// reader makes one configuration of the documents, and collects the problems.
type reader struct {
	cfg      config.Config
	files    map[config.DNSFormat]*config.DNSFile
	problems []*problem
	places   map[place]position // positions of the fields that were read
	lists    map[place][]*value // items of the fields that are arrays
	broken   map[place]bool     // fields that have a problem
	known    fields             // keys of the forward that is being read; one map for all forwards saves memory

	// lean saves memory: no positions of forwards are kept. If there is a problem, parse reads everything
	// again without lean.
	lean  bool
	wrong bool // there is a problem

	begun                          begun
	forwardFields, interceptFields fields
}

// place is a field of the forward with this index; index -1 means a field outside forwards.
type place struct {
	index int
	field string
}

type position struct {
	doc    *document
	offset int
}

func parse(sources []source) (config.Config, error) {
	r := newReader(true)
	r.read(sources)
	if r.wrong {
		r = newReader(false)
		r.read(sources)
	}
	if len(r.problems) > 0 {
		return config.Config{}, joinSorted(r.problems, sources)
	}
	r.cfg.Digest = digest(sources)
	return r.cfg, nil
}

func newReader(lean bool) *reader {
	r := &reader{
		cfg: config.Default(), files: map[config.DNSFormat]*config.DNSFile{},
		places: map[place]position{}, lists: map[place][]*value{}, broken: map[place]bool{}, known: fields{}, lean: lean,
	}
	r.beginFields()
	return r
}

func (r *reader) read(sources []source) {
	for _, s := range sources {
		doc := newDocument(s)
		if r.lean {
			r.cfg.Forwards = slices.Grow(r.cfg.Forwards, bytes.Count(s.data, []byte("[[forward]]")))
			doc.forward = func(t *table) { r.forward(doc, t) }
		}
		if offset, err := doc.read(); err != nil {
			r.report(position{doc, offset}, place{-1, ""}, err)
			continue
		}
		r.document(doc)
	}
	r.cfg.DNS = r.dnsFiles()
	r.validate()
	r.cfg.Split()
}

// report records a problem at a position.
func (r *reader) report(at position, about place, err error) {
	r.wrong = true
	if r.lean {
		return
	}
	p := newProblem(at, rule.Problem{Index: about.index, Field: about.field, Message: err.Error()})
	if about.index >= 0 {
		f := &r.cfg.Forwards[about.index]
		p.Forward, p.Kind = f.Name, f.Kind()
	}
	r.problems = append(r.problems, p)
	r.broken[about] = true
}

// fields maps the keys of a table to the functions that read their values.
type fields map[string]func(at position, v *value) error

// table reads every key of a table. prefix is the name of the table with a dot.
func (r *reader) table(doc *document, t *table, index int, prefix string, known fields) {
	for _, e := range t.entries {
		about := place{index, prefix + e.key}
		read, ok := known[e.key]
		if !ok {
			// No field here: the message already quotes the key, which may be any text.
			err := unknownKey(e.key, prefix, known)
			if index >= 0 && r.ofOtherKind(index, e.key) {
				err = otherKind(r.cfg.Forwards[index].Intercept, e.key)
			}
			r.report(position{doc, e.offset}, place{index, ""}, err)
			continue
		}
		at := position{doc, e.value.offset}
		r.remember(about, at, e.value)
		for _, err := range splitJoined(read(at, e.value)) {
			at := at
			var item itemError
			if errors.As(err, &item) {
				at.offset = item.offset
			}
			r.report(at, about, err)
		}
	}
}

// remember stores the position of a field; v is its value, nil for a whole table.
func (r *reader) remember(about place, at position, v *value) {
	if r.lean && about.index >= 0 {
		return
	}
	r.places[about] = at
	if v != nil && v.kind == unstable.Array {
		r.lists[about] = v.items
	}
}

// itemError is the error of one item of a list.
type itemError struct {
	offset int
	error
}

// splitJoined returns the errors that err joins.
func splitJoined(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func unknownKey(key, prefix string, known fields) error {
	words := make([]string, 0, len(known))
	for word := range known {
		words = append(words, word)
	}
	slices.Sort(words)
	where := ""
	if prefix != "" {
		where = " in [" + prefix[:len(prefix)-1] + "]"
	}
	return fmt.Errorf("unknown key %s%s; %s", rule.Quote(key), where, rule.Suggest(key, words...))
}

// ofOtherKind reports whether an unknown key of a forward is one of intercepts, or the other way round.
func (r *reader) ofOtherKind(index int, key string) bool {
	others := r.interceptFields
	if r.cfg.Forwards[index].Intercept {
		others = r.forwardFields
	}
	return others[key] != nil
}

func otherKind(intercept bool, key string) error {
	if intercept {
		return fmt.Errorf("intercepts have no %s; only forwards have", key)
	}
	return fmt.Errorf("forwards have no %s; only intercepts have", key)
}

func (r *reader) document(doc *document) {
	known := fields{
		"version":   readVersion,
		"forward":   func(at position, v *value) error { return r.forwards(doc, v, "forward", r.forward) },
		"intercept": func(at position, v *value) error { return r.forwards(doc, v, "intercept", r.intercept) },
	}
	for section, read := range r.sections() {
		known[section] = func(at position, v *value) error {
			if doc.dropIn {
				return errors.New("a file in " + DropInDir + " may have only version, [[forward]] and [[intercept]]; move this to the main file")
			}
			if v.table == nil {
				return typeError(v, "a table")
			}
			r.table(doc, v.table, -1, section+".", read)
			return nil
		}
	}
	if doc.root.get("version") == nil && !doc.dropIn {
		r.report(position{doc, 0}, place{-1, "version"}, fmt.Errorf("it is missing; begin the file with version = %d", version))
	}
	r.table(doc, doc.root, -1, "", known)
}

func readVersion(_ position, v *value) error {
	number, err := integer(v)
	if err == nil && number != version {
		err = fmt.Errorf("%s is not supported; this hairpin reads version = %d", v.text, version)
	}
	return err
}

// sections returns the tables of the main file, without [[forward]] and [[intercept]].
func (r *reader) sections() map[string]fields {
	c := &r.cfg
	return map[string]fields{
		"interfaces": {
			"wan":             intoStrings(&c.WAN),
			"lan":             intoStrings(&c.LAN),
			"private_sources": intoStrings(&c.PrivateSources),
		},
		"datapath": {
			"mode":            intoString(&c.Mode),
			"xdp_tx":          intoString(&c.XDPTx),
			"max_connections": intoUint32(&c.MaxConnections),
			"max_per_source":  intoLimit(&c.MaxPerSource),
			"mss_clamp":       intoList(&c.MSSClamp),
		},
		"timeouts": {
			"tcp_established": intoDuration(&c.Timeouts.TCPEstablished),
			"tcp_transitory":  intoDuration(&c.Timeouts.TCPTransitory),
			"tcp_opening":     intoTimeout(&c.Timeouts.TCPOpening),
			"tcp_closing":     intoTimeout(&c.Timeouts.TCPClosing),
			"udp":             intoDuration(&c.Timeouts.UDP),
			"icmp":            intoDuration(&c.Timeouts.ICMP),
			"port_hold":       intoDuration(&c.Timeouts.PortHold),
			"address_grace":   intoDuration(&c.Timeouts.AddressGrace),
		},
		"icmp": {"refuse": intoList(&c.ICMP.Refuse), "rate": intoUint32(&c.ICMP.Rate)},
		"reflection": {
			"default": func(_ position, v *value) (err error) {
				c.Reflection, err = reflectMode(v)
				return err
			},
			"ports":    intoPorts(&c.ReflectPorts),
			"prefixes": r.standIns,
		},
		"deny":    {"sources": intoNetworks(&c.Deny)},
		"metrics": {"listen": intoString(&c.MetricsListen), "web_config": intoString(&c.MetricsWeb)},
		"log":     {"connections": intoString(&c.LogConnections)},
		"leases":  {"files": intoStrings(&c.Leases.Files), "max": intoLeases(&c.Leases.Max)},
		"dns": {
			"write":  r.perFormat("dns.write.", readDNSPath),
			"reload": r.perFormat("dns.reload.", readDNSReload),
		},
	}
}

// standIns reads a table whose keys are networks of clients.
func (r *reader) standIns(at position, v *value) error {
	const field = "reflection.prefixes"
	if v.table == nil {
		return typeError(v, "a table")
	}
	for _, e := range v.table.entries {
		at.offset = e.offset
		about := place{-1, field}
		clients, err := rule.ParsePrefix(e.key)
		s := rule.StandIn{Clients: clients}
		if err == nil {
			about.field = s.Field()
			s.Network, err = network(e.value)
		}
		if _, twice := r.places[about]; err == nil && twice {
			err = errors.New("the network is there twice, in two spellings; remove one of them")
		}
		if err != nil {
			r.report(at, about, err)
			r.broken[place{-1, field}] = true
			continue
		}
		r.places[about] = at
		r.cfg.StandIns = append(r.cfg.StandIns, s)
	}
	return nil
}

func network(v *value) (netip.Prefix, error) {
	if v.kind != unstable.String {
		return netip.Prefix{}, typeError(v, "a network")
	}
	return rule.ParsePrefix(v.text)
}

// perFormat reads a table whose keys are formats of DNS files.
func (r *reader) perFormat(prefix string, read func(*config.DNSFile, position, *value) error) func(position, *value) error {
	return func(at position, v *value) error {
		if v.table == nil {
			return typeError(v, "a table")
		}
		known := fields{}
		for _, format := range config.DNSFormats() {
			known[string(format)] = func(at position, v *value) error {
				if r.files[format] == nil {
					r.files[format] = &config.DNSFile{Format: format}
				}
				return read(r.files[format], at, v)
			}
		}
		r.table(at.doc, v.table, -1, prefix, known)
		return nil
	}
}

func readDNSPath(file *config.DNSFile, at position, v *value) error {
	line, _ := at.doc.position(at.offset)
	file.Source = fmt.Sprintf("%s:%d", at.doc.name, line)
	err := intoString(&file.Path)(at, v)
	if err == nil && file.Path == "" {
		err = errors.New("it is empty; leave the key out to write no file")
	}
	return err
}

func readDNSReload(file *config.DNSFile, at position, v *value) error {
	if v.kind != unstable.Array {
		return fmt.Errorf("%w; write the program and each argument as one item, as in [\"unbound-control\", \"reload\"]", typeError(v, "a list"))
	}
	return intoList(&file.Reload)(at, v)
}

// dnsFiles returns the DNS files whose path could be read, in the order of the formats.
func (r *reader) dnsFiles() (files []config.DNSFile) {
	for _, format := range config.DNSFormats() {
		if file := r.files[format]; file != nil && !r.broken[place{-1, config.DNSWriteKey(format)}] {
			files = append(files, *file)
		}
	}
	return files
}

// forwards reads [[forward]] or [[intercept]], or an array of inline tables.
func (r *reader) forwards(doc *document, v *value, kind string, read func(*document, *table)) error {
	if v.kind != unstable.Array {
		return fmt.Errorf("it is a single table; write [[%s]] with two brackets", kind)
	}
	r.cfg.Forwards = slices.Grow(r.cfg.Forwards, len(v.items))
	for _, item := range v.items {
		if item.table == nil {
			r.report(position{doc, item.offset}, place{-1, kind}, typeError(item, "a table"))
			continue
		}
		read(doc, item.table)
	}
	return nil
}

func (r *reader) forward(doc *document, t *table) {
	r.oneForward(doc, t, rule.Forward{}, r.forwardFields, "name", "protocol", "to")
}

func (r *reader) intercept(doc *document, t *table) {
	r.oneForward(doc, t, rule.Forward{Intercept: true}, r.interceptFields, "name", "protocol", "port", "to")
}

// begun is the forward or intercept being read. The functions that read its keys are made once, because a file may have tens of thousands
// of forwards.
type begun struct {
	rule.Forward
	to      []written // the servers; their ports are read when those of the forward are known
	several bool      // to is a list
}

// written is a server as it is in the file.
type written struct {
	offset int
	text   string
	weight uint16
}

// beginFields makes what reads the keys of forwards, and of intercepts, into r.begun.
func (r *reader) beginFields() {
	f := &r.begun
	both := func() fields {
		return fields{
			"name":     intoString(&f.Name),
			"protocol": intoProtocols(&f.Protocols),
			"port":     intoPorts(&f.Ports),
			"to":       f.intoServers,
			"affinity": func(_ position, v *value) error {
				if v.kind != unstable.String {
					return fmt.Errorf("%w; write a string with a unit, as in \"30m\"", typeError(v, "a duration"))
				}
				affinity, err := rule.ParseAffinity(v.text)
				f.SetAffinity(affinity)
				return err
			},
			"comment": intoString(&f.Comment),
			"enabled": func(_ position, v *value) error {
				if v.kind != unstable.Bool {
					return fmt.Errorf("%w; write true or false", typeError(v, "a boolean"))
				}
				f.Disabled = v.text == "false"
				return nil
			},
			"reflect": func(_ position, v *value) (err error) {
				f.Reflect, err = reflectMode(v)
				return err
			},
		}
	}
	r.forwardFields = both()
	r.forwardFields["external"] = intoExternal(&f.External)
	r.forwardFields["from"] = intoPrefixes(&f.From)
	r.forwardFields["hosts"] = intoHosts(&f.Hosts)
	r.forwardFields["clients"] = func(_ position, v *value) (err error) {
		if v.kind != unstable.String {
			return typeError(v, "a string")
		}
		f.Clients, err = rule.ParseClients(v.text)
		return err
	}
	r.forwardFields["rate"] = intoRate(&f.Rate)
	r.forwardFields["rate_per_source"] = intoRate(&f.RatePerSource)
	r.interceptFields = both()
	r.interceptFields["lan"] = intoInterfaces(&f.LAN)
	r.interceptFields["except"] = intoNetworks(&f.Except)
}

// oneForward reads a forward or an intercept; required are keys that must be there.
func (r *reader) oneForward(doc *document, t *table, empty rule.Forward, known fields, required ...string) {
	index := len(r.cfg.Forwards)
	line, _ := doc.position(t.offset)
	f := &r.begun
	*f = begun{Forward: empty}
	f.Source = fmt.Sprintf("%s:%d", doc.name, line)
	// The name goes first, for the messages about the others.
	if e := t.get("name"); e != nil && e.value.kind == unstable.String {
		f.Name = e.value.text
	}
	r.cfg.Forwards = append(r.cfg.Forwards, f.Forward)
	r.remember(place{index, ""}, position{doc, t.offset}, nil)
	r.table(doc, t, index, "", known)
	for _, key := range required {
		if t.get(key) == nil {
			r.report(r.places[place{index, ""}], place{index, key}, errors.New("it is missing"))
		}
	}
	about := place{index, "to"}
	if t.get(about.field) != nil && !r.broken[about] {
		for _, s := range f.to {
			r.server(f, s, about)
		}
		f.ServersRead()
	}
	r.cfg.Forwards[index] = f.Forward
}

// server adds a server to the forward that is being read.
func (r *reader) server(f *begun, s written, about place) {
	if r.broken[place{about.index, "port"}] && strings.Count(s.text, ":") == 1 {
		// The port could not be read, so the target's ports cannot be compared with it. The address is
		// still checked.
		s.text, _, _ = strings.Cut(s.text, ":")
	}
	set := f.SetTarget
	if f.several {
		set = func(text string) error { return f.AddServer(text, s.weight) }
	}
	if err := set(s.text); err != nil {
		at := r.places[about]
		at.offset = s.offset
		r.report(at, about, err)
	}
}

// intoServers reads to: a server, or a list of servers, each a string or a table with its weight.
func (f *begun) intoServers(_ position, v *value) error {
	if v.kind == unstable.String {
		f.to = []written{{v.offset, v.text, rule.DefaultWeight}}
		return nil
	}
	if v.kind != unstable.Array {
		return typeError(v, "a string or a list")
	}
	if len(v.items) == 0 {
		return errors.New("the list is empty, so the forward would lead nowhere")
	}
	f.several = true
	var errs []error
	for _, item := range v.items {
		s, err := oneServer(item)
		if err != nil {
			errs = append(errs, itemError{item.offset, err})
		}
		f.to = append(f.to, s)
	}
	return errors.Join(errs...)
}

// oneServer reads "ADDR:PORT", or { target = "ADDR:PORT", weight = N }.
func oneServer(v *value) (written, error) {
	s := written{v.offset, v.text, rule.DefaultWeight}
	if v.kind == unstable.String {
		return s, nil
	}
	if v.table == nil {
		return s, typeError(v, "a string or a table")
	}
	s.text = ""
	for _, e := range v.table.entries {
		var err error
		switch {
		case e.key == "target" && e.value.kind != unstable.String:
			err = typeError(e.value, "a string")
		case e.key == "target":
			s.text = e.value.text
		case e.key == "weight" && e.value.kind != unstable.Integer:
			err = typeError(e.value, "an integer")
		case e.key == "weight":
			s.weight, err = rule.ParseWeight(e.value.text)
		default:
			err = fmt.Errorf("%s is not a key of a server; %s", rule.Quote(e.key), rule.Suggest(e.key, "target", "weight"))
		}
		if err != nil {
			return s, err
		}
	}
	if s.text == "" {
		return s, errors.New("it has no target")
	}
	return s, nil
}

// validate adds the problems of values that could be read. A value that could not be read already has a
// problem; validate does not add a second problem.
func (r *reader) validate() {
	if r.lean {
		r.wrong = r.wrong || r.cfg.Validate() != nil
		return
	}
	checked := r.cfg
	checked.Forwards = slices.Clone(r.cfg.Forwards)
	unread := map[int]bool{}
	for about := range r.broken {
		if about.index >= 0 {
			// A forward without protocols conflicts with no other forward.
			checked.Forwards[about.index].Protocols = nil
			unread[about.index] = true
		}
	}
	noWAN := r.broken[place{-1, "interfaces"}] || r.broken[place{-1, "interfaces.wan"}]
	noLAN := r.broken[place{-1, "interfaces"}] || r.broken[place{-1, "interfaces.lan"}]
	noPrefixes := r.broken[place{-1, "reflection"}] || r.broken[place{-1, "reflection.prefixes"}]
	for _, p := range rule.Problems(checked.Validate()) {
		about := place{p.Index, p.Field}
		switch {
		case r.broken[about],
			unread[p.Index] && p.Field == "protocol",
			unread[p.Index] && p.Field == "affinity",
			noWAN && (p.Field == "external" || p.Field == "interfaces.private_sources"),
			(noWAN || noLAN) && p.Field == "datapath.mss_clamp",
			noLAN && p.Field == "lan",
			noPrefixes && (p.Field == "reflect" || p.Field == "reflection.default"):
			continue
		}
		at, ok := r.places[about]
		if !ok {
			at = r.places[place{p.Index, ""}]
		}
		if items := r.lists[about]; p.Item > 0 && p.Item <= len(items) {
			at.offset = items[p.Item-1].offset
		}
		r.problems = append(r.problems, newProblem(at, *p))
	}
}

func typeError(v *value, expected string) error {
	kind := map[unstable.Kind]string{
		unstable.String: "a string", unstable.Bool: "a boolean", unstable.Integer: "an integer", unstable.Float: "a number with a fraction",
		unstable.Array: "a list", unstable.Table: "a table",
	}[v.kind]
	if kind == "" {
		kind = "a date or time"
	}
	if v.kind == unstable.Array || v.kind == unstable.Table {
		return fmt.Errorf("it is %s where %s was expected", kind, expected)
	}
	return fmt.Errorf("%s is %s where %s was expected", rule.Quote(v.text), kind, expected)
}

func integer(v *value) (int64, error) {
	if v.kind != unstable.Integer {
		return 0, typeError(v, "an integer")
	}
	number, err := strconv.ParseInt(v.text, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is out of range", v.text)
	}
	return number, nil
}

func intoString(into *string) func(position, *value) error {
	return func(_ position, v *value) error {
		if v.kind != unstable.String {
			return typeError(v, "a string")
		}
		*into = v.text
		return nil
	}
}

// list calls each for the strings of a list. A single string counts as a list of one. It returns an
// itemError for each item that each refuses.
func list(v *value, each func(string) error) error {
	items := v.items
	if v.kind != unstable.Array {
		items = []*value{v}
	}
	var errs []error
	for _, item := range items {
		var err error
		if item.kind == unstable.String {
			err = each(item.text)
		} else {
			err = typeError(item, "a string")
		}
		if err != nil {
			errs = append(errs, itemError{item.offset, err})
		}
	}
	return errors.Join(errs...)
}

func intoStrings(into *[]string) func(position, *value) error {
	return func(_ position, v *value) error {
		return list(v, func(text string) error {
			*into = append(*into, text)
			return nil
		})
	}
}

// intoList replaces the default, also if the list is empty: an empty list differs from an absent key.
func intoList(into *[]string) func(position, *value) error {
	return func(at position, v *value) error {
		*into = []string{}
		return intoStrings(into)(at, v)
	}
}

func intoUint32(into *uint32) func(position, *value) error {
	return func(_ position, v *value) error {
		number, err := integer(v)
		if err == nil && (number < 0 || number > math.MaxUint32) {
			err = fmt.Errorf("%s is out of range", v.text)
		}
		*into = uint32(number)
		return err
	}
}

// intoLimit reads a number whose key may be absent. It refuses 0, because 0 stands for an absent key.
func intoLimit(into *uint32) func(position, *value) error {
	return func(at position, v *value) error {
		err := intoUint32(into)(at, v)
		if err == nil && *into == 0 {
			err = errors.New("0 would refuse every connection; leave the key out for the default")
		}
		return err
	}
}

// intoLeases reads leases.max. It refuses 0, because 0 stands for an absent key.
func intoLeases(into *uint32) func(position, *value) error {
	return func(at position, v *value) error {
		err := intoUint32(into)(at, v)
		if err == nil && *into == 0 {
			err = errors.New("with 0 no mapping would become a forward; leave the section out instead")
		}
		return err
	}
}

// intoTimeout reads a duration whose key may be absent. It refuses 0, because 0 stands for an absent key.
func intoTimeout(into *time.Duration) func(position, *value) error {
	return func(at position, v *value) error {
		err := intoDuration(into)(at, v)
		if err == nil && *into == 0 {
			err = config.CheckTimeout(*into)
		}
		return err
	}
}

func intoDuration(into *time.Duration) func(position, *value) error {
	return func(_ position, v *value) error {
		if v.kind != unstable.String {
			return fmt.Errorf("%w; write a string with a unit, as in \"90s\"", typeError(v, "a duration"))
		}
		duration, err := time.ParseDuration(v.text)
		if err != nil {
			return fmt.Errorf("%s is not a duration; write for example 2h4m or 90s", rule.Quote(v.text))
		}
		*into = duration
		return nil
	}
}

func intoProtocols(into *[]rule.Protocol) func(position, *value) error {
	return func(_ position, v *value) error {
		return list(v, func(text string) error {
			protocol, err := rule.ParseProtocol(text)
			if err == nil {
				*into = append(*into, protocol)
			}
			return err
		})
	}
}

func intoExternal(into *rule.External) func(position, *value) error {
	return func(_ position, v *value) (err error) {
		if v.kind != unstable.String {
			return typeError(v, "a string")
		}
		if v.text == "" {
			return errors.New("it is empty; leave the key out to listen on every WAN interface")
		}
		*into, err = rule.ParseExternal(v.text)
		return err
	}
}

// intoPorts accepts "443", "6000-6010", and 443 without quotes.
func intoPorts(into *rule.Ports) func(position, *value) error {
	return func(_ position, v *value) (err error) {
		if v.kind != unstable.String && v.kind != unstable.Integer {
			return typeError(v, "a port")
		}
		*into, err = rule.ParsePorts(v.text)
		return err
	}
}

func intoHosts(into *[]string) func(position, *value) error {
	return func(_ position, v *value) error {
		return list(v, func(text string) error {
			host, err := rule.ParseHost(text)
			if err == nil {
				*into = append(*into, host)
			}
			return err
		})
	}
}

func intoRate(into *rule.Rate) func(position, *value) error {
	return func(_ position, v *value) (err error) {
		if v.kind != unstable.String {
			return fmt.Errorf("%w; write it with its unit, as in \"100/s\"", typeError(v, "a rate"))
		}
		*into, err = rule.ParseRate(v.text)
		return err
	}
}

func reflectMode(v *value) (rule.Reflect, error) {
	if v.kind != unstable.String {
		return "", typeError(v, "a string")
	}
	return rule.ParseReflect(v.text)
}

func intoPrefixes(into *[]netip.Prefix) func(position, *value) error {
	return func(at position, v *value) error {
		if v.kind == unstable.Array && len(v.items) == 0 {
			return errors.New("the list is empty, so nobody could connect; leave the key out to let everybody in")
		}
		return intoNetworks(into)(at, v)
	}
}

func intoNetworks(into *[]netip.Prefix) func(position, *value) error {
	return func(_ position, v *value) error {
		return list(v, func(text string) error {
			prefix, err := rule.ParsePrefix(text)
			if err == nil {
				*into = append(*into, prefix)
			}
			return err
		})
	}
}

// intoInterfaces refuses an empty list, because an empty list would mean every LAN interface.
func intoInterfaces(into *[]string) func(position, *value) error {
	return func(at position, v *value) error {
		if v.kind == unstable.Array && len(v.items) == 0 {
			return errors.New("the list is empty, so no interface would be meant; leave the key out for every LAN interface")
		}
		return intoStrings(into)(at, v)
	}
}
