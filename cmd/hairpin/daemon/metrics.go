// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"golang.org/x/sys/unix"
)

// serverLimits limit the time and memory that clients of the metrics server can use.
type serverLimits struct {
	header      time.Duration // for the request line and header
	read        time.Duration // for the whole request
	write       time.Duration // from the end of the header to the end of the answer
	idle        time.Duration // between two requests
	stop        time.Duration // for the last answers when the server stops
	headerBytes int
	bodyBytes   int64
	connections int           // open at the same time; at the limit, see clients
	silence     time.Duration // at the limit, a connection without a request for so long may be closed
	stall       time.Duration // at the limit, a client that takes no data for so long may be cut off
	rest        time.Duration // between two pages
	keptBytes   int           // of earlier pages that clients still read; see pages
	sendBuffer  int           // of a connection, in the kernel; the kernel doubles it
}

var defaultLimits = serverLimits{
	header:      5 * time.Second,
	read:        10 * time.Second,
	write:       30 * time.Second,
	idle:        time.Minute,
	stop:        2 * time.Second,
	headerBytes: 8 << 10,
	bodyBytes:   4 << 10,
	connections: 64,
	silence:     500 * time.Millisecond,
	stall:       200 * time.Millisecond,
	rest:        100 * time.Millisecond,
	keptBytes:   4 << 20,
	sendBuffer:  64 << 10,
}

// health is the state that /-/healthy and /-/ready report.
type health interface {
	Healthy() error // fails if the daemon's loop is stuck
	Ready() error   // fails until the configuration is applied
}

// metricsHandler serves /metrics, /-/healthy and /-/ready, and nothing else.
func metricsHandler(page *metricsPage, health health, limits serverLimits) http.Handler {
	mux := http.NewServeMux()
	page.pages = newPages(page.write, limits)
	mux.Handle("GET /metrics", page)
	answer := func(check func() error) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if err := check(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		}
	}
	mux.HandleFunc("GET /-/healthy", answer(health.Healthy))
	mux.HandleFunc("GET /-/ready", answer(health.Ready))
	return refuseBody(mux, limits.bodyBytes)
}

// metricsPage answers a scrape in the text format. The gatherer has few metrics; the metrics of forwards
// are streamed by forwards. The handler of package promhttp would hold both in memory: more than a gigabyte
// for 65,000 forwards.
type metricsPage struct {
	gatherer prometheus.Gatherer
	forwards func(io.Writer) error // writes the metrics of the forwards
	log      *slog.Logger
	pages    *pages
}

var metricsFormat = expfmt.NewFormat(expfmt.TypeTextPlain)

// ServeHTTP implements http.Handler.
func (m *metricsPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	page, err := m.pages.next(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer m.pages.hold(page, clientOf(r))()
	w.Header().Set("Content-Type", string(metricsFormat))
	w.Header().Set("Vary", "Accept-Encoding")
	send := page.plain
	if acceptsGzip(r.Header) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Length", strconv.Itoa(page.size))
		send = page.compressed
	}
	if err := send(w); err != nil {
		m.log.Debug("a scrape was cut off", "error", err)
		// Break the connection, so that no client takes a part of the metrics for all metrics.
		panic(http.ErrAbortHandler)
	}
}

// write writes all metrics.
func (m *metricsPage) write(to io.Writer) (err error) {
	defer func() {
		if err != nil {
			m.log.Warn("cannot read the metrics", "error", err)
		}
	}()
	families, err := m.gatherer.Gather()
	if err != nil {
		// Gather also returns the metrics that it could collect; serve these.
		m.log.Warn("cannot gather all metrics", "error", err)
	}
	out := bufio.NewWriterSize(to, 64<<10)
	encoder := expfmt.NewEncoder(out, metricsFormat)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return err
		}
	}
	if err := m.forwards(out); err != nil {
		return err
	}
	return out.Flush()
}

// acceptsGzip reports whether a client takes gzip (RFC 9110, 12.5.3).
func acceptsGzip(header http.Header) bool {
	for _, coding := range strings.Split(strings.Join(header.Values("Accept-Encoding"), ","), ",") {
		name, parameters, err := mime.ParseMediaType(coding)
		if err != nil || name != "gzip" {
			continue
		}
		weight, err := strconv.ParseFloat(cmp.Or(parameters["q"], "1"), 64)
		return err == nil && weight > 0
	}
	return false
}

// refuseBody refuses a request with a body of unknown length or of more than limit bytes.
// http.MaxBytesHandler does not help: no handler reads the body, so the server would wait for the end of
// the body.
func refuseBody(next http.Handler, limit int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength < 0 || r.ContentLength > limit {
			w.Header().Set("Connection", "close")
			http.Error(w, "a request must have no body", http.StatusRequestEntityTooLarge)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// metricsServer is a running server.
type metricsServer struct {
	http     *http.Server
	clients  *clients
	listener net.Listener
	stop     time.Duration
	ended    chan struct{} // closed when Serve has returned
}

// startMetrics serves handler at a place.
func startMetrics(at place, handler http.Handler, limits serverLimits, log *slog.Logger) (*metricsServer, error) {
	guard, secure, err := at.guard(handler, log)
	if err != nil {
		return nil, err
	}
	// IP_FREEBIND: at boot the router may get the address only later.
	free := net.ListenConfig{Control: freebind}
	listener, err := free.Listen(context.Background(), tcpFamily(at.listen), at.listen)
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	clients := newClients(limits)
	s := &metricsServer{
		clients: clients,
		http: &http.Server{
			Handler:           clients.answering(guard),
			TLSConfig:         secure,
			ConnContext:       clients.admit,
			ConnState:         clients.forget,
			ReadHeaderTimeout: limits.header,
			ReadTimeout:       limits.read,
			WriteTimeout:      limits.write,
			IdleTimeout:       limits.idle,
			MaxHeaderBytes:    limits.headerBytes,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
			Protocols:         onlyHTTP1(),
		},
		listener: listener,
		stop:     limits.stop,
		ended:    make(chan struct{}),
	}
	said := log.With("address", s.address())
	if at.webConfig != "" {
		said = said.With("web_config", at.webConfig)
	}
	said.Info("serving metrics")
	go func() {
		defer close(s.ended)
		serve := s.http.Serve
		if secure != nil {
			serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
		}
		if err := serve(listener); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Warn("metrics server stopped", "error", err)
		}
	}()
	return s, nil
}

// tcpFamily returns "tcp4" for an IPv4 address: with "tcp", 0.0.0.0 would include every IPv6 address.
func tcpFamily(listen string) string {
	if address, err := netip.ParseAddrPort(listen); err == nil && address.Addr().Is4() {
		return "tcp4"
	}
	return "tcp"
}

func freebind(network, _ string, conn syscall.RawConn) error {
	var err error
	control := conn.Control(func(fd uintptr) {
		if network == "tcp6" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
	})
	return errors.Join(control, err)
}

// address returns the listening address. If the configured port is 0, it has the port that the kernel
// chose.
func (s *metricsServer) address() string { return s.listener.Addr().String() }

// serves reports whether the server still runs.
func (s *metricsServer) serves() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// Close waits a moment for running answers, then closes all connections.
func (s *metricsServer) Close() error {
	// Shutdown does not close the listener if Serve has not started yet.
	s.listener.Close()
	s.clients.close()
	ctx, cancel := context.WithTimeout(context.Background(), s.stop)
	defer cancel()
	if s.http.Shutdown(ctx) == nil {
		return nil
	}
	return s.http.Close()
}

// metricsPort keeps a metrics server at the configured place. Only the daemon's loop uses it. If the
// address is in use or refused, the daemon continues, and ensure tries again.
type metricsPort struct {
	start  func(at place) (*metricsServer, error)
	log    *slog.Logger
	at     place
	server *metricsServer
	logged string // last logged error: an error is logged only once
}

// move serves at a place. If this is the present place, it only restarts a stopped server.
func (p *metricsPort) move(at place) {
	if at != p.at {
		// Stop first, because the addresses may share a port: 0.0.0.0 includes 127.0.0.1.
		p.stop()
		p.at, p.logged = at, ""
	}
	p.ensure()
}

// ensure starts the server if it does not run.
func (p *metricsPort) ensure() {
	if p.at.listen == "" || p.server != nil && p.server.serves() {
		return
	}
	p.stop()
	server, err := p.start(p.at)
	if err != nil {
		if p.logged != err.Error() {
			p.log.Warn("cannot serve metrics; forwarding continues, and the daemon tries this address again", "address", p.at.listen, "error", err)
		}
		p.logged = err.Error()
		return
	}
	p.server, p.logged = server, ""
}

func (p *metricsPort) stop() {
	if err := p.Close(); err != nil {
		p.log.Warn("cannot stop the metrics server cleanly", "error", err)
	}
}

// Close stops the server, if there is one.
func (p *metricsPort) Close() error {
	if p.server == nil {
		return nil
	}
	server := p.server
	p.server = nil
	return server.Close()
}
