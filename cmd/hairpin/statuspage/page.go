// SPDX-License-Identifier: Apache-2.0

// Package statuspage serves the status page: a picture of the network, the forwards with their rates, connections, refusals and the findings
// of "hairpin doctor". The page takes its data from one document, GET /api/v1/status. Both only read.
//
// However many clients ask, the counters are read once a second at most. Only the list of forwards is read again for every new filter.
// One answer is made at a time, for at most half of the time.
package statuspage

import (
	"embed"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/cmd/hairpin/router"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

//go:embed assets
var assets embed.FS

// Tables has the methods of *maps.Tables that the page needs.
type Tables interface {
	Settings() (config.Config, error)
	EachForward(func(*rule.Forward) bool) error
	ForwardTotals() (map[string]maps.Totals, error)
	CountConnections(rule.Selector) (maps.Count, error)
	Counters() ([]maps.Counter, error)
	ConnectionsLimit() uint32
}

// Options are what the page shows, and limits.
type Options struct {
	Tables  Tables
	Version string
	Ports   func() []router.Port               // the interfaces as the daemon saw them last
	Apart   func() string                      // why the forwards are not as in the files; "": they are
	Doctor  func() ([]diagnose.Finding, error) // takes seconds
	Log     *slog.Logger

	// Fresh is how long the tables are not read again. Kept is how long the results are kept after the last request.
	Fresh, Kept time.Duration
	// DoctorPause is the time between two calls of Doctor, while somebody looks at the page.
	DoctorPause time.Duration
}

// Defaults for Options.
const (
	DefaultFresh       = time.Second
	DefaultKept        = 10 * time.Second
	DefaultDoctorPause = time.Minute
)

// policy lets the page load only its own files, and lets no other page show it in a frame.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Handler serves the page and its API, and leaves all other paths to next.
func Handler(o Options, next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.Handle("GET /{$}", secured(asset("index.html", "text/html; charset=utf-8")))
	mux.Handle("GET /page.css", secured(asset("page.css", "text/css; charset=utf-8")))
	mux.Handle("GET /page.js", secured(asset("page.js", "text/javascript; charset=utf-8")))
	mux.Handle("GET /icon.svg", secured(asset("icon.svg", "image/svg+xml")))
	mux.Handle("GET /api/v1/status", secured(newStatus(o)))
	return guarded(mux)
}

// asset answers with an embedded file.
func asset(name, kind string) http.HandlerFunc {
	data, err := assets.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // cannot happen: the file is embedded
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "no-cache")
		_, _ = w.Write(data)
	}
}

// secured sets the headers that keep other sites from using the page and its data.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", policy)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// guarded refuses requests for a host name that is not this router's. A site on the Internet can let its own name lead to 127.0.0.1, or
// to the router's address (DNS rebinding). A browser then takes the router's answers for the site's own. The name in the header Host is
// still the site's. A site cannot do this with an address in place of a name.
//
// With TLS every name is taken: the router's certificate is not for the name of that site, so the browser refuses it.
//
// A Prometheus elsewhere may know the router by any name. So the metrics and the health have this check only where the connection is
// to a loopback address.
func guarded(next http.Handler) http.Handler {
	own, _ := os.Hostname()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil && !ownName(r.Host, own) && (isPage(r.URL.Path) || toLoopback(r)) {
			http.Error(w, "use the address of the router, localhost, or the router's host name", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func ownName(host, own string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return strings.EqualFold(host, "localhost") || own != "" && strings.EqualFold(host, own)
}

// isPage reports whether a path is not one of those that are for other programs.
func isPage(path string) bool { return path != "/metrics" && !strings.HasPrefix(path, "/-/") }

func toLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.IP.IsLoopback()
}
