// SPDX-License-Identifier: Apache-2.0

package statuspage

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/explain"
	"hairpin/cmd/hairpin/router"
	"hairpin/maps"
	"hairpin/maps/rule"
)

// document is the answer of the API. Fields are only added; a change of meaning needs another schema. No field has a client's address.
type document struct {
	Schema int    `json:"schema"`
	Status status `json:"status"`
}

type status struct {
	Time    time.Time `json:"time"` // when the tables were read
	Version string    `json:"version"`
	// Seconds is the time between the two looks that the rates are from. 0: there was only one look, so every rate is 0.
	Seconds     float64          `json:"rates_over_seconds"`
	Apart       string           `json:"files_do_not_run,omitempty"` // why the forwards are not as in the files
	Interfaces  []port           `json:"interfaces"`
	Targets     []target         `json:"targets"` // the busiest
	MoreTargets int              `json:"more_targets"`
	Connections connections      `json:"connections"`
	Forwards    forwards         `json:"forwards"`
	Dropped     []dropped        `json:"dropped"`  // the most packets first
	Findings    *diagnosedStatus `json:"findings"` // null: "hairpin doctor" has not run yet
}

type port struct {
	Name      string   `json:"name"`
	Role      string   `json:"role"`
	State     string   `json:"state"` // as in "hairpin status"
	Mode      string   `json:"mode"`
	Addresses []string `json:"addresses"`
}

type target struct {
	Address     string   `json:"address"`
	Interface   string   `json:"interface"` // whose network the address is in; "": none of the configured ones
	Forwards    int      `json:"forwards"`
	Names       []string `json:"names"` // of a few of its forwards
	Connections int      `json:"connections"`
	Bytes       float64  `json:"bytes_per_second"`
}

type connections struct {
	HalfOpen    int    `json:"half_open"`
	Established int    `json:"established"`
	Closing     int    `json:"closing"`
	Limit       uint32 `json:"limit"`
}

type forwards struct {
	Total    int       `json:"total"`                // disabled ones too
	Matching int       `json:"matching"`             // the filter
	Bytes    float64   `json:"bytes_per_second"`     // of all forwards
	WANBytes float64   `json:"wan_bytes_per_second"` // of them from and to the Internet
	List     []forward `json:"list"`                 // the busiest first, at most as many as asked for
}

type forward struct {
	Name        string   `json:"name"`
	Protocol    []string `json:"protocol"`
	External    string   `json:"external"` // address or interface; "": every WAN; "any" for an intercept
	Port        string   `json:"port"`
	Target      string   `json:"target"`
	Hosts       []string `json:"hosts,omitempty"`
	Comment     string   `json:"comment,omitempty"`
	State       string   `json:"state"` // "enabled", "disabled", "drains"
	Connections int      `json:"connections"`
	Opened      float64  `json:"connections_per_second"`
	Packets     float64  `json:"packets_per_second"`
	Bytes       float64  `json:"bytes_per_second"`
	TotalBytes  uint64   `json:"bytes"`
	Refused     uint64   `json:"refused"`
	LastHit     *uint64  `json:"last_hit_seconds,omitempty"` // absent: no packet has come
}

type dropped struct {
	Reason  string  `json:"reason"`
	Refused bool    `json:"refused"` // the packets would have opened connections
	Packets uint64  `json:"packets"`
	Rate    float64 `json:"packets_per_second"`
	Meaning string  `json:"meaning,omitempty"` // ends the sentence "The packet is dropped: ..."
}

type diagnosedStatus struct {
	Age      float64            `json:"age_seconds"`
	Error    string             `json:"error,omitempty"` // why it could not look
	Problems int                `json:"problems"`
	Warnings int                `json:"warnings"`
	Unknown  int                `json:"unknown"`
	List     []diagnose.Finding `json:"list"` // the worst first, also those of level "ok"; not all if they are many
}

// How much of what may be many the document has.
const (
	maxTargets  = 8
	maxNames    = 3
	maxFindings = 100
	maxAnswers  = 8 // that are kept
)

// statusHandler answers with the document. Between two looks at the tables it answers the same question with the same bytes. Only the list
// of forwards is read for every other question: 65,000 forwards are too many to keep.
type statusHandler struct {
	o Options

	making chan struct{} // has an element while an answer is made, or waits for the rest after the answer before
	rested time.Time     // the end of this rest; making guards it

	turn chan struct{} // has an element while the fields below are used
	look *look
	last *look        // the look before
	next chan counted // gets the count of connections for the next look; nil: none is made
	idle time.Time    // of the last request

	forget *time.Timer

	doctor struct {
		sync.Mutex
		running  bool
		at       time.Time // of the end of the last run; zero: there was none
		findings []diagnose.Finding
		err      error
	}
}

// newStatus returns the handler of the API.
func newStatus(o Options) http.Handler {
	h := &statusHandler{o: o, making: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
	h.forget = time.AfterFunc(o.Kept, h.release)
	h.forget.Stop()
	return h
}

// ServeHTTP implements http.Handler.
func (h *statusHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuestion(r.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	body, err := h.answer(r.Context(), q)
	switch {
	case r.Context().Err() != nil:
		return
	case err != nil:
		h.o.Log.Warn("cannot answer the status page", "error", err)
		http.Error(w, "the tables cannot be read; the log of the daemon says why", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body)
}

// answer returns the document for a question. One answer is made at a time, and after it none is made for as long as it took. So clients
// that change their question without end leave half of a processor's time to others.
func (h *statusHandler) answer(ctx context.Context, q question) ([]byte, error) {
	if body, err := h.known(ctx, q); body != nil || err != nil {
		return body, err
	}
	leave, err := enter(ctx, h.making)
	if err != nil {
		return nil, err
	}
	defer leave()
	// Another client may have asked the same question meanwhile.
	if body, err := h.known(ctx, q); body != nil || err != nil {
		return body, err
	}
	if err := wait(ctx, time.Until(h.rested)); err != nil {
		return nil, err
	}
	return h.make(ctx, q)
}

// enter waits for the room of one element in a channel. leave makes room for the next.
func enter(ctx context.Context, room chan struct{}) (leave func(), err error) {
	select {
	case room <- struct{}{}:
		return func() { <-room }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// known returns the answer that was given before to the same question, nil if there is none since the tables are to be read again.
func (h *statusHandler) known(ctx context.Context, q question) ([]byte, error) {
	leave, err := enter(ctx, h.turn)
	if err != nil {
		return nil, err
	}
	defer leave()
	h.idle = time.Now()
	h.forget.Reset(h.o.Kept)
	h.diagnose()
	if !h.fresh() {
		return nil, nil
	}
	return h.look.answers[q], nil
}

// fresh reports whether the tables need not be read again.
func (h *statusHandler) fresh() bool { return h.look != nil && time.Since(h.look.at) < h.o.Fresh }

// make makes an answer. The caller has entered making.
func (h *statusHandler) make(ctx context.Context, q question) ([]byte, error) {
	leave, err := enter(ctx, h.turn)
	if err != nil {
		return nil, err
	}
	defer leave()
	stale := !h.fresh()
	var connections maps.Count
	if stale {
		if connections, err = h.count(); err != nil {
			return nil, err
		}
	}
	// The count is not part of the work: one count is made at a time, and mostly in the background.
	began := time.Now()
	defer func() { h.rested = time.Now().Add(time.Since(began)) }()
	if stale {
		now, err := h.take(connections)
		if err != nil {
			return nil, err
		}
		h.last, h.look = h.look, now
	}
	doc, err := h.document(q)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	if len(h.look.answers) >= maxAnswers {
		clear(h.look.answers)
	}
	h.look.answers[q] = body
	return body, nil
}

// release gives the memory back when nobody looks any more.
func (h *statusHandler) release() {
	h.turn <- struct{}{}
	if time.Since(h.idle) >= h.o.Kept {
		h.look, h.last, h.next = nil, nil, nil
	}
	<-h.turn
	debug.FreeOSMemory()
}

// look is what the counters say at one moment.
type look struct {
	at          time.Time
	forwards    map[string]maps.Totals
	connections maps.Count
	dropped     map[dropKey]uint64
	disabled    []rule.Forward
	answers     map[question][]byte // by question

	targets     []target // the busiest; nil: not yet read
	moreTargets int
}

// counted is the result of a count of connections.
type counted struct {
	maps.Count
	err error
}

// count returns the last count of connections, and starts the next one. A count walks the tables of connections. This takes longer than
// everything else, so only the first look waits for it; later looks have the count that the look before began.
func (h *statusHandler) count() (maps.Count, error) {
	var now counted
	switch {
	case h.next == nil || h.look == nil:
		now.Count, now.err = h.o.Tables.CountConnections(rule.Selector{})
	default:
		select {
		case now = <-h.next:
		default:
			return h.look.connections, nil // it is not finished
		}
	}
	next := make(chan counted, 1)
	h.next = next
	go func() {
		count, err := h.o.Tables.CountConnections(rule.Selector{})
		next <- counted{count, err}
	}()
	return now.Count, now.err
}

type dropKey struct {
	reason  string
	refused bool
}

func (h *statusHandler) take(connections maps.Count) (*look, error) {
	l := &look{at: time.Now(), connections: connections, dropped: map[dropKey]uint64{}, answers: map[question][]byte{}}
	var err error
	if l.forwards, err = h.o.Tables.ForwardTotals(); err != nil {
		return nil, err
	}
	cfg, err := h.o.Tables.Settings()
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return nil, err
	}
	l.disabled = cfg.Disabled
	counters, err := h.o.Tables.Counters()
	if err != nil {
		return nil, err
	}
	for _, c := range counters {
		if c.Verdict == "drop" || c.Verdict == "refuse" {
			l.dropped[dropKey{c.Reason, c.Verdict == "refuse"}] += c.Packets
		}
	}
	return l, nil
}

// seconds is the time between the two looks; 0: there is only one, or nobody looked for long.
func (h *statusHandler) seconds() float64 {
	if h.last == nil || h.look.at.Sub(h.last.at) > h.o.Kept {
		return 0
	}
	return h.look.at.Sub(h.last.at).Seconds()
}

// rate is the rise of a counter in a second. A counter that is lower than before has begun again.
func (h *statusHandler) rate(now, before uint64) float64 {
	seconds := h.seconds()
	if seconds == 0 || now < before {
		return 0
	}
	return float64(now-before) / seconds
}

func (h *statusHandler) before(name string) maps.Totals {
	if h.last == nil {
		return maps.Totals{}
	}
	return h.last.forwards[name]
}

func (h *statusHandler) bytesRate(name string) float64 {
	return h.rate(h.look.forwards[name].Bytes, h.before(name).Bytes)
}

func (h *statusHandler) wanRate(name string) float64 {
	return h.rate(h.look.forwards[name].WANBytes, h.before(name).WANBytes)
}

func (h *statusHandler) document(q question) (*document, error) {
	var err error
	ports := h.o.Ports()
	count := h.look.connections
	s := status{
		Time: h.look.at, Version: h.o.Version, Seconds: h.seconds(), Apart: h.o.Apart(),
		Interfaces:  showPorts(ports),
		Connections: connections{count.HalfOpen, count.Established, count.Closing, h.o.Tables.ConnectionsLimit()},
		Dropped:     h.showDropped(),
		Findings:    h.findings(),
	}
	if s.Forwards, err = h.showForwards(q); err != nil {
		return nil, err
	}
	if h.look.targets == nil {
		if h.look.targets, h.look.moreTargets, err = h.showTargets(ports); err != nil {
			return nil, err
		}
	}
	s.Targets, s.MoreTargets = h.look.targets, h.look.moreTargets
	return &document{Schema: 1, Status: s}, nil
}

func showPorts(ports []router.Port) []port {
	list := []port{}
	for _, p := range ports {
		shown := port{Name: p.Name, Role: p.Role.String(), State: p.State(), Mode: p.Mode(), Addresses: []string{}}
		for _, addr := range p.Addresses() {
			shown.Addresses = append(shown.Addresses, addr.String())
		}
		list = append(list, shown)
	}
	return list
}

func (h *statusHandler) showDropped() []dropped {
	list := []dropped{}
	for key, packets := range h.look.dropped {
		before := uint64(0)
		if h.last != nil {
			before = h.last.dropped[key]
		}
		list = append(list, dropped{key.reason, key.refused, packets, h.rate(packets, before), explain.Meaning(key.reason)})
	}
	slices.SortFunc(list, func(a, b dropped) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}

// each visits the running forwards and then those in more.
func (h *statusHandler) each(more []rule.Forward, visit func(*rule.Forward)) error {
	err := h.o.Tables.EachForward(func(f *rule.Forward) bool {
		visit(f)
		return true
	})
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return fmt.Errorf("read the forwards: %w", err)
	}
	for i := range more {
		visit(&more[i])
	}
	return nil
}

// showForwards keeps at most twice as many forwards as asked for, so that its memory does not grow with their number.
func (h *statusHandler) showForwards(q question) (forwards, error) {
	found := forwards{List: []forward{}}
	busier := func(a, b forward) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(b.Connections, a.Connections), cmp.Compare(a.Name, b.Name))
	}
	full := func() bool { return len(found.List) >= 2*q.limit }
	trim := func() {
		slices.SortFunc(found.List, busier)
		found.List = found.List[:min(len(found.List), q.limit)]
	}
	var worst *forward // of the last trim
	err := h.each(h.look.disabled, func(f *rule.Forward) {
		found.Total++
		found.Bytes += h.bytesRate(f.Name)
		found.WANBytes += h.wanRate(f.Name)
		if !q.takes(f) {
			return
		}
		found.Matching++
		rank := forward{Name: f.Name, Bytes: h.bytesRate(f.Name), Connections: h.look.connections.Forwards[f.Name]}
		if q.limit == 0 || worst != nil && busier(*worst, rank) < 0 {
			return
		}
		found.List = append(found.List, h.showForward(f))
		if full() {
			trim()
			last := found.List[q.limit-1]
			worst = &last
		}
	})
	trim()
	return found, err
}

// targetText returns the target, or the first of several servers and how many others there are.
func targetText(f *rule.Forward) string {
	if others := len(f.Servers()) - 1; others > 0 {
		return fmt.Sprintf("%s and %d more", f.TargetString(), others)
	}
	return f.TargetString()
}

func (h *statusHandler) showForward(f *rule.Forward) forward {
	shown := forward{
		Name: f.Name, External: f.External.String(), Port: f.Ports.String(), Target: targetText(f), Hosts: slices.Clone(f.Hosts),
		Comment: f.Comment, State: "enabled", Connections: h.look.connections.Forwards[f.Name], Bytes: h.bytesRate(f.Name),
	}
	for _, p := range f.Protocols {
		shown.Protocol = append(shown.Protocol, p.String())
	}
	if f.Ports.Every() {
		shown.Port = "any"
	}
	switch {
	case f.Disabled:
		shown.State = "disabled"
	case f.Drains():
		shown.State = "drains"
	}
	if f.Intercept {
		shown.External = "any"
	}
	if now, used := h.look.forwards[f.Name]; used {
		before := h.before(f.Name)
		shown.Opened, shown.Packets = h.rate(now.Established, before.Established), h.rate(now.Packets, before.Packets)
		shown.TotalBytes, shown.Refused = now.Bytes, now.Refused
		hit := uint64(now.LastHit / time.Second)
		shown.LastHit = &hit
	}
	return shown
}

// showTargets returns the busiest targets, and the number of the others.
func (h *statusHandler) showTargets(ports []router.Port) (list []target, more int, err error) {
	type sum struct {
		forwards, connections int
		bytes                 float64
	}
	sums := map[netip.Addr]sum{}
	err = h.each(nil, func(f *rule.Forward) {
		// Bytes are not counted for each of several servers.
		if f.Balanced() {
			for server := range f.EachServer() {
				s := sums[server.Target]
				of := maps.Served{Forward: f.Name, Target: server.Target, Shift: f.PortShiftOf(server)}
				sums[server.Target] = sum{s.forwards, s.connections + h.look.connections.Servers[of], s.bytes}
			}
			for _, target := range f.Targets() {
				s := sums[target]
				sums[target] = sum{s.forwards + 1, s.connections, s.bytes}
			}
			return
		}
		s := sums[f.Target]
		sums[f.Target] = sum{s.forwards + 1, s.connections + h.look.connections.Forwards[f.Name], s.bytes + h.bytesRate(f.Name)}
	})
	if err != nil {
		return nil, 0, err
	}
	var busiest []netip.Addr
	for addr := range sums {
		at, _ := slices.BinarySearchFunc(busiest, addr, func(a, b netip.Addr) int {
			x, y := sums[a], sums[b]
			return cmp.Or(cmp.Compare(y.bytes, x.bytes), cmp.Compare(y.connections, x.connections), a.Compare(b))
		})
		if at < maxTargets {
			busiest = slices.Insert(busiest, at, addr)
			busiest = busiest[:min(len(busiest), maxTargets)]
		}
	}
	list = []target{}
	for _, addr := range busiest {
		s := sums[addr]
		list = append(list, target{addr.String(), networkOf(addr, ports), s.forwards, []string{}, s.connections, s.bytes})
	}
	err = h.each(nil, func(f *rule.Forward) {
		for _, target := range f.Targets() {
			if i := slices.Index(busiest, target); i >= 0 && len(list[i].Names) < maxNames {
				list[i].Names = append(list[i].Names, f.Name)
			}
		}
	})
	return list, len(sums) - len(list), err
}

// networkOf returns the interface whose network an address is in; "": none.
func networkOf(addr netip.Addr, ports []router.Port) string {
	name, bits := "", -1
	for _, p := range ports {
		if p.Link == nil {
			continue
		}
		for _, network := range slices.Concat(p.Link.Addresses, p.Link.Passive) {
			if network.Contains(addr) && network.Bits() > bits {
				name, bits = p.Name, network.Bits()
			}
		}
	}
	return name
}

var badness = map[diagnose.Level]int{diagnose.Problem: 3, diagnose.Warning: 2, diagnose.Unknown: 1}

// diagnose lets the doctor look again, if the last look is long ago. Nobody waits for it.
func (h *statusHandler) diagnose() {
	d := &h.doctor
	d.Lock()
	defer d.Unlock()
	if h.o.Doctor == nil || d.running || !d.at.IsZero() && time.Since(d.at) < h.o.DoctorPause {
		return
	}
	d.running = true
	go func() {
		findings, err := h.examine()
		slices.SortStableFunc(findings, func(a, b diagnose.Finding) int { return cmp.Compare(badness[b.Level], badness[a.Level]) })
		debug.FreeOSMemory() // it needs much
		d.Lock()
		defer d.Unlock()
		d.running, d.at, d.findings, d.err = false, time.Now(), findings, err
	}()
}

// examine calls the doctor. A fault of the doctor must not end the daemon.
func (h *statusHandler) examine() (findings []diagnose.Finding, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("doctor: %v", fault)
		}
	}()
	return h.o.Doctor()
}

func (h *statusHandler) findings() *diagnosedStatus {
	d := &h.doctor
	d.Lock()
	defer d.Unlock()
	if d.at.IsZero() {
		return nil
	}
	shown := &diagnosedStatus{Age: time.Since(d.at).Seconds(), List: []diagnose.Finding{}}
	if d.err != nil {
		shown.Error = strings.ToValidUTF8(d.err.Error(), "?")
	}
	shown.List = append(shown.List, d.findings[:min(len(d.findings), maxFindings)]...)
	for _, f := range d.findings {
		switch f.Level {
		case diagnose.Problem:
			shown.Problems++
		case diagnose.Warning:
			shown.Warnings++
		case diagnose.Unknown:
			shown.Unknown++
		}
	}
	return shown
}
