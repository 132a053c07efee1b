// SPDX-License-Identifier: Apache-2.0

package statuspage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/router"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// tablesFake has forwards and counters. The mutex guards them.
type tablesFake struct {
	sync.Mutex
	forwards, disabled []rule.Forward
	totals             map[string]maps.Totals
	count              maps.Count
	counters           []maps.Counter
	reads              int // of the totals
	settings           int // reads of them
	counting           time.Duration
	listing, listed    time.Duration // how long a read of the forwards takes; all reads together
	err                error
}

func (f *tablesFake) Settings() (config.Config, error) {
	f.settings++
	return config.Config{Disabled: f.disabled}, nil
}

func (f *tablesFake) EachForward(visit func(*rule.Forward) bool) error {
	time.Sleep(f.listing)
	f.listed += f.listing
	for i := range f.forwards {
		visit(&f.forwards[i])
	}
	return nil
}

func (f *tablesFake) ForwardTotals() (map[string]maps.Totals, error) {
	f.Lock()
	defer f.Unlock()
	f.reads++
	totals := map[string]maps.Totals{}
	for name, t := range f.totals {
		totals[name] = t
	}
	return totals, f.err
}

func (f *tablesFake) CountConnections(rule.Selector) (maps.Count, error) {
	f.Lock()
	defer f.Unlock()
	count, wait := f.count, f.counting
	f.Unlock()
	time.Sleep(wait)
	f.Lock()
	return count, nil
}

func (f *tablesFake) Counters() ([]maps.Counter, error) { return f.counters, nil }
func (f *tablesFake) ConnectionsLimit() uint32          { return 1000 }

func forwardOf(t testing.TB, text string) rule.Forward {
	t.Helper()
	f, err := rule.ParseForward(strings.Fields(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func options(tables Tables) Options {
	return Options{
		Tables: tables, Version: "v1", Ports: func() []router.Port { return nil }, Apart: func() string { return "" },
		Log: slog.New(slog.DiscardHandler), Fresh: DefaultFresh, Kept: DefaultKept, DoctorPause: DefaultDoctorPause,
	}
}

// get asks the handler for a path, by the address 127.0.0.1.
func get(t testing.TB, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = "127.0.0.1:9845"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// statusOf returns the status that the API answers.
func statusOf(t testing.TB, h http.Handler, query string) status {
	t.Helper()
	w := get(t, h, "/api/v1/status"+query)
	var doc document
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != http.StatusOK || doc.Schema != 1 {
		t.Fatalf("status %d, %v: %s", w.Code, err, w.Body)
	}
	return doc.Status
}

func names(list []forward) (all []string) {
	for _, f := range list {
		all = append(all, f.Name)
	}
	return all
}

var otherPaths = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/metrics" && r.URL.Path != "/-/healthy" {
		http.NotFound(w, r)
	}
})

// TestStatus compares a whole answer, after two looks.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables := &tablesFake{
			forwards: []rule.Forward{forwardOf(t, "web tcp 80 to 192.168.1.20:8080"), forwardOf(t, "dns udp,tcp wan0:53 to 10.0.0.53"), forwardOf(t, "idle tcp 81 to 192.168.1.20:81")},
			totals: map[string]maps.Totals{
				"web": {Packets: 10, Bytes: 1000, WANBytes: 400, Established: 2, LastHit: 3 * time.Second},
				"dns": {Packets: 500, Bytes: 50000, Refused: 7},
			},
			count:    maps.Count{HalfOpen: 1, Established: 2, Closing: 3, Forwards: map[string]int{"web": 6}},
			counters: []maps.Counter{{Index: 2, Verdict: "refuse", Reason: "table_full", Packets: 5}, {Index: 3, Verdict: "refuse", Reason: "table_full", Packets: 1}, {Index: 2, Verdict: "send", Reason: "none", Packets: 99}, {Index: 2, Verdict: "drop", Reason: "private_thing", Packets: 8}},
		}
		off := forwardOf(t, "cam tcp 82 to 192.168.1.22:82")
		off.Disabled, off.Comment = true, "<b>old</b>"
		tables.disabled = []rule.Forward{off}
		o := options(tables)
		o.Apart = func() string { return "a change waits" }
		o.Ports = func() []router.Port {
			return []router.Port{
				{Name: "wan0", Role: config.RoleWAN},
				{Name: "lan0", Role: config.RoleLAN, Link: &loader.Link{Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24")}}, Attachment: &loader.Attachment{TC: "tcx"}},
			}
		}
		o.Doctor = func() ([]diagnose.Finding, error) {
			return []diagnose.Finding{{Level: diagnose.OK, Text: "fine"}, {Level: diagnose.Problem, Text: "broken"}}, nil
		}
		h := Handler(o, otherPaths)
		began := time.Now()
		first := statusOf(t, h, "")
		if first.Seconds != 0 || first.Forwards.Bytes != 0 || first.Findings != nil {
			t.Errorf("first look: %+v", first)
		}
		time.Sleep(2 * time.Second)
		tables.totals["web"] = maps.Totals{Packets: 30, Bytes: 5000, WANBytes: 1400, Established: 4, LastHit: time.Second}
		tables.totals["dns"] = maps.Totals{Packets: 1, Bytes: 100} // it was added anew
		tables.counters[0].Packets = 25
		hits := []uint64{1, 0}
		want := status{
			Time: began.Add(2 * time.Second), Version: "v1", Seconds: 2, Apart: "a change waits",
			Interfaces:  []port{{"wan0", "wan", "pending", "", []string{}}, {"lan0", "lan", "attached", "tcx", []string{"192.168.1.1"}}},
			Targets:     []target{{"192.168.1.20", "lan0", 2, []string{"web", "idle"}, 6, 2000}, {"10.0.0.53", "", 1, []string{"dns"}, 0, 0}},
			Connections: connections{1, 2, 3, 1000},
			Forwards: forwards{Total: 4, Matching: 4, Bytes: 2000, WANBytes: 500, List: []forward{
				{Name: "web", Protocol: []string{"tcp"}, Port: "80", Target: "192.168.1.20:8080", State: "enabled", Connections: 6, Opened: 1, Packets: 10, Bytes: 2000, TotalBytes: 5000, LastHit: &hits[0]},
				{Name: "cam", Protocol: []string{"tcp"}, Port: "82", Target: "192.168.1.22:82", Comment: "<b>old</b>", State: "disabled"},
				{Name: "dns", Protocol: []string{"udp", "tcp"}, External: "wan0", Port: "53", Target: "10.0.0.53:53", State: "enabled", TotalBytes: 100, LastHit: &hits[1]},
				{Name: "idle", Protocol: []string{"tcp"}, Port: "81", Target: "192.168.1.20:81", State: "enabled"},
			}},
			Dropped: []dropped{{"table_full", true, 26, 10, "the table of connections is full"}, {"private_thing", false, 8, 0, ""}},
			Findings: &diagnosedStatus{Age: 2, Problems: 1, List: []diagnose.Finding{
				{Level: diagnose.Problem, Text: "broken"}, {Level: diagnose.OK, Text: "fine"}}},
		}
		if diff := cmp.Diff(want, statusOf(t, h, "")); diff != "" {
			t.Errorf("status (-want +got)\n%s", diff)
		}
	})
}

// TestListOfForwards: the list has the busiest that match, and no more than asked for.
func TestListOfForwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables := &tablesFake{totals: map[string]maps.Totals{}, count: maps.Count{Forwards: map[string]int{"f0007": 3, "f0008": 2}}}
		for i := range 2000 {
			tables.forwards = append(tables.forwards, forwardOf(t, fmt.Sprintf("f%04d tcp %d to 192.168.%d.%d:80", i, 1000+i, i/250, i%250+1)))
		}
		tables.forwards[1234].Comment, tables.forwards[1235].Hosts = "The Printer", []string{"printer.example.org"}
		h := Handler(options(tables), otherPaths)
		statusOf(t, h, "?limit=0")
		time.Sleep(time.Second)
		for i, name := range []string{"f1999", "f0000", "f1000"} {
			tables.totals[name] = maps.Totals{Bytes: uint64(100 - i)}
		}
		for query, want := range map[string]struct {
			matching int
			names    []string
		}{
			"?limit=0":                         {2000, nil},
			"?limit=1":                         {2000, []string{"f1999"}},
			"?limit=6":                         {2000, []string{"f1999", "f0000", "f1000", "f0007", "f0008", "f0001"}},
			"?filter=F199&limit=2":             {10, []string{"f1999", "f1990"}},
			"?filter=pRINTER":                  {2, []string{"f1234", "f1235"}},
			"?filter=2235":                     {1, []string{"f1235"}},
			"?filter=192.168.7.250%3A&limit=5": {1, []string{"f1999"}},
			"?filter=%3Cb%3E":                  {0, nil},
		} {
			got := statusOf(t, h, query).Forwards
			if diff := cmp.Diff(want.names, names(got.List)); diff != "" || got.Matching != want.matching || got.Total != 2000 {
				t.Errorf("%s: %d of %d match, want %d (-want +got)\n%s", query, got.Matching, got.Total, want.matching, diff)
			}
		}
		if got := statusOf(t, h, ""); len(got.Forwards.List) != defaultRows || len(got.Targets) != maxTargets || got.MoreTargets != 2000-maxTargets {
			t.Errorf("%d forwards, %d targets and %d more", len(got.Forwards.List), len(got.Targets), got.MoreTargets)
		}
	})
}

// TestManyClients: the counters are read once a second at most, and the doctor looks once a minute, however many clients ask.
func TestManyClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tables, looks := &tablesFake{}, 0
		o := options(tables)
		o.Doctor = func() ([]diagnose.Finding, error) { looks++; return nil, errors.New("no permission") }
		h := Handler(o, otherPaths)
		for range 10 {
			var clients sync.WaitGroup
			for i := range 200 {
				clients.Go(func() { get(t, h, fmt.Sprintf("/api/v1/status?limit=%d", i)) })
			}
			clients.Wait()
			time.Sleep(time.Second)
		}
		if tables.reads != 10 || looks != 1 {
			t.Errorf("the tables were read %d times in ten seconds, and the doctor looked %d times; want 10 and 1", tables.reads, looks)
		}
		if got := statusOf(t, h, "").Findings; got == nil || got.Error != "no permission" {
			t.Errorf("findings %+v", got)
		}
		time.Sleep(o.Kept + o.DoctorPause)
		if got := statusOf(t, h, ""); got.Seconds != 0 {
			t.Errorf("rates over %v s: results are kept for too long", got.Seconds)
		}
		synctest.Wait()
		if looks != 2 {
			t.Errorf("the doctor looked %d times, want 2", looks)
		}
		time.Sleep(o.Kept)
	})
}

// TestManyFilters: clients that change their filter without end make the daemon work for at most half of the time. What does not depend on
// the filter is read once a second at most. A question that was answered in this second does not wait.
func TestManyFilters(t *testing.T) {
	const clients, listing, minute = 64, 100 * time.Millisecond, time.Minute
	synctest.Test(t, func(t *testing.T) {
		tables := &tablesFake{forwards: []rule.Forward{forwardOf(t, "web tcp 80 to 192.168.1.20:8080")}}
		h := Handler(options(tables), otherPaths)
		statusOf(t, h, "")
		tables.listing, tables.settings = listing, 0
		began := time.Now()
		var all sync.WaitGroup
		answered := make([]int, clients)
		for i := range clients {
			all.Go(func() {
				for time.Since(began) < minute {
					statusOf(t, h, fmt.Sprintf("?filter=%d-%d", i, answered[i]))
					answered[i]++
				}
			})
		}
		all.Wait()
		took := time.Since(began)
		if tables.listed > took/2+2*listing {
			t.Errorf("the forwards were read for %v of %v", tables.listed, took)
		}
		if most := int(took/time.Second) + 1; tables.settings > most {
			t.Errorf("the settings were read %d times in %v, want %d at most", tables.settings, took, most)
		}
		if fewest := slices.Min(answered); fewest+1 < slices.Max(answered) {
			t.Errorf("answers of each client %v: some wait for longer than others", answered)
		}
		time.Sleep(2 * DefaultKept)
		statusOf(t, h, "?filter=a")
		asked := time.Now()
		all.Go(func() { statusOf(t, h, "?filter=b") })
		synctest.Wait()
		statusOf(t, h, "?filter=a")
		if waited := time.Since(asked); waited != 0 {
			t.Errorf("the answer to a known question took %v", waited)
		}
		all.Wait()
		time.Sleep(2 * DefaultKept)
	})
}

// TestCountBesideAnswers: only the first answer waits for a count of the connections. Later answers have the last count, and one count is
// made at a time.
func TestCountBesideAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const counting = 1500 * time.Millisecond
		tables := &tablesFake{counting: counting}
		h := Handler(options(tables), otherPaths)
		began := time.Now()
		for second, established := range []int{0, 0, 0, 0, 2, 2, 4} {
			got := statusOf(t, h, "").Connections.Established
			if waited := time.Since(began) - time.Duration(second)*time.Second; waited != counting {
				t.Errorf("answer %d comes %v after its time", second, waited-counting)
			}
			if got != established {
				t.Errorf("answer %d: %d connections, want %d", second, got, established)
			}
			time.Sleep(time.Second / 2)
			tables.Lock()
			tables.count.Established = second + 1
			tables.Unlock()
			time.Sleep(time.Second / 2)
		}
		time.Sleep(2 * DefaultKept)
	})
}

// TestUnreadableTables: the answer names no detail, and the next request tries again.
func TestUnreadableTables(t *testing.T) {
	tables := &tablesFake{err: errors.New("map 17")}
	o := options(tables)
	o.Doctor = func() ([]diagnose.Finding, error) { panic("a fault") }
	h := Handler(o, otherPaths)
	if w := get(t, h, "/api/v1/status"); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "17") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	tables.err = nil
	statusOf(t, h, "")
}

// TestClientThatLeaves: a request whose client has gone does not wait for its turn.
func TestClientThatLeaves(t *testing.T) {
	h := newStatus(options(&tablesFake{})).(*statusHandler)
	h.turn <- struct{}{}
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if _, err := h.answer(ctx, question{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	<-h.turn
}

func TestQuestionsThatAreRefused(t *testing.T) {
	h := Handler(options(&tablesFake{}), otherPaths)
	for _, query := range []string{"?limit=501", "?limit=-1", "?limit=1e2", "?limit=", "?limit=1&limit=1", "?filter=a&filter=b", "?other=1", "?filter=%ff", "?filter=%",
		"?filter=" + strings.Repeat("a", maxFilter+1), "?limit=" + strings.Repeat("0", maxQueryBytes)} {
		if w := get(t, h, "/api/v1/status"+query); w.Code != http.StatusBadRequest {
			t.Errorf("%s: status %d, want 400", query, w.Code)
		}
	}
	if w := get(t, h, "/api/v1/status?limit=500&filter="+strings.Repeat("a", maxFilter)); w.Code != http.StatusOK {
		t.Errorf("status %d for the longest question", w.Code)
	}
}

// TestHeaders: each file of the page has the headers that keep other sites out, and nobody may write.
func TestHeaders(t *testing.T) {
	h := Handler(options(&tablesFake{}), otherPaths)
	for path, kind := range map[string]string{"/": "text/html; charset=utf-8", "/page.css": "text/css; charset=utf-8", "/page.js": "text/javascript; charset=utf-8",
		"/icon.svg": "image/svg+xml", "/api/v1/status": "application/json", "/api/v1/status?limit=x": "text/plain; charset=utf-8"} {
		w := get(t, h, path)
		for name, want := range map[string]string{"Content-Type": kind, "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff",
			"Cross-Origin-Resource-Policy": "same-origin", "Access-Control-Allow-Origin": ""} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
			r := httptest.NewRequest(method, path, nil)
			r.Host = "localhost"
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: status %d", method, path, w.Code)
			}
		}
	}
	for _, unsafe := range []string{"unsafe", "http:", "https:", "*", "data:"} {
		if strings.Contains(policy, unsafe) {
			t.Errorf("the policy has %s", unsafe)
		}
	}
	if w := get(t, h, "/page.html"); w.Code != http.StatusNotFound {
		t.Errorf("status %d for a file that is not there", w.Code)
	}
}

// TestHost: a page of another site that has led its name to this router gets nothing (DNS rebinding).
func TestHost(t *testing.T) {
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	h := Handler(options(&tablesFake{}), otherPaths)
	for host, known := range map[string]bool{
		"127.0.0.1:9845": true, "127.0.0.1": true, "[::1]:9845": true, "[fe80::1%25lan0]:9845": true, "192.168.1.1:80": true, "localhost:9845": true,
		"LocalHost": true, own + ":9845": true, strings.ToUpper(own): true,
		"evil.example": false, "evil.example:9845": false, "localhost.evil.example": false, "127.0.0.1.evil.example:9845": false, "": false,
		"0x7f000001": false, "2130706433": false, own + ".evil.example": false,
	} {
		for _, loopback := range []bool{true, false} {
			local := net.IPv4(192, 168, 1, 1)
			if loopback {
				local = net.IPv4(127, 0, 0, 1)
			}
			for _, path := range []string{"/", "/page.js", "/api/v1/status", "/metrics", "/-/healthy", "/-/../api/v1/status"} {
				r := httptest.NewRequest(http.MethodGet, path, nil)
				r.Host = host
				r = r.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: local}))
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				forOthers := !loopback && (path == "/metrics" || strings.HasPrefix(path, "/-/"))
				if refused := w.Code == http.StatusForbidden; refused == (known || forOthers) {
					t.Errorf("host %q, loopback %t, %s: status %d", host, loopback, path, w.Code)
				}
				if strings.Contains(w.Body.String(), "schema") && !known {
					t.Errorf("host %q gets the status by %s", host, path)
				}
			}
		}
	}
}

// FuzzQuestion: any query gets a bounded document or a refusal.
func FuzzQuestion(f *testing.F) {
	for _, query := range []string{"", "limit=3", "filter=web&limit=500", "filter=%00", "limit=501", "filter=a;limit=1", "filter=%C3%A9", "filter=\xff"} {
		f.Add(query)
	}
	tables := &tablesFake{count: maps.Count{Forwards: map[string]int{}}}
	for i := range 600 {
		tables.forwards = append(tables.forwards, forwardOf(f, fmt.Sprintf("f%d tcp %d to 192.168.1.20:80", i, i+1)))
	}
	h := newStatus(options(tables))
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest(http.MethodGet, "/api/v1/status", nil)
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var doc document
		switch {
		case w.Code == http.StatusBadRequest:
		case w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &doc) != nil:
			t.Errorf("status %d: %s", w.Code, w.Body)
		case len(doc.Status.Forwards.List) > maxRows || len(doc.Status.Forwards.List) > doc.Status.Forwards.Matching || doc.Status.Forwards.Matching > 600:
			t.Errorf("%d forwards of %d", len(doc.Status.Forwards.List), doc.Status.Forwards.Matching)
		}
	})
}

// TestDocumented: the documentation has every field of the answer.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../doc/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []any{status{}, port{}, target{}, connections{}, forwards{}, forward{}, dropped{}, diagnosedStatus{}} {
		for i := range reflect.TypeOf(of).NumField() {
			name, _, _ := strings.Cut(reflect.TypeOf(of).Field(i).Tag.Get("json"), ",")
			if !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("the documentation lacks %s of %T", name, of)
			}
		}
	}
}
