// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

// serverLimits bound what a client of the metrics server can cost.
type serverLimits struct {
	header      time.Duration // to send the request line and header
	read        time.Duration // to send the whole request
	write       time.Duration // from the end of the header to the end of the answer
	idle        time.Duration // between two requests
	stop        time.Duration // for the last answers when the server stops
	headerBytes int
	bodyBytes   int64
	connections int // open at once; more wait in the backlog
	scrapes     int // answered at once; more are told to come again
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
	scrapes:     4,
}

// health is what /-/healthy and /-/ready answer by.
type health interface {
	Healthy() error // the daemon's loop turns
	Ready() error   // the configuration is applied
}

// metricsHandler serves /metrics, /-/healthy and /-/ready, and nothing else.
func metricsHandler(gatherer prometheus.Gatherer, health health, limits serverLimits, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: limits.scrapes,
		Timeout:             limits.write / 2,
	}))
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

// refuseBody answers for next where a request has a body of more than limit
// bytes or of a length that it does not say. No handler reads one, so
// http.MaxBytesHandler would never count: the server waited for it to end.
func refuseBody(next http.Handler, limit int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength < 0 || r.ContentLength > limit {
			w.Header().Set("Connection", "close")
			http.Error(w, "no body is wanted", http.StatusRequestEntityTooLarge)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// metricsServer is a running server; its zero value serves nothing.
type metricsServer struct {
	http     *http.Server
	listener net.Listener
	stop     time.Duration
	listen   string // as configured
}

// startMetrics serves handler on listen, "HOST:PORT"; empty: nothing is served.
func startMetrics(listen string, handler http.Handler, limits serverLimits, log *slog.Logger) (*metricsServer, error) {
	if listen == "" {
		return &metricsServer{}, nil
	}
	// An address that is to come, as the router's at boot, can be listened at.
	free := net.ListenConfig{Control: freebind}
	listener, err := free.Listen(context.Background(), tcpFamily(listen), listen)
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	s := &metricsServer{
		http: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: limits.header,
			ReadTimeout:       limits.read,
			WriteTimeout:      limits.write,
			IdleTimeout:       limits.idle,
			MaxHeaderBytes:    limits.headerBytes,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		listener: listener,
		stop:     limits.stop,
		listen:   listen,
	}
	log.Info("serving metrics", "address", s.address())
	go func() {
		if err := s.http.Serve(limitListener(listener, limits.connections)); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			log.Error("metrics server stopped", "error", err)
		}
	}()
	return s, nil
}

// tcpFamily keeps 0.0.0.0 from meaning every IPv6 address as well.
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

// address is where it listens, with the port that the kernel gave for 0.
func (s *metricsServer) address() string { return s.listener.Addr().String() }

// Close lets running answers end, for a moment, and closes all connections.
func (s *metricsServer) Close() error {
	if s.http == nil {
		return nil
	}
	// Not left to Shutdown, which does not know of it before Serve has begun.
	s.listener.Close()
	ctx, cancel := context.WithTimeout(context.Background(), s.stop)
	defer cancel()
	if s.http.Shutdown(ctx) == nil {
		return nil
	}
	return s.http.Close()
}

// limitListener accepts at most n connections at once from l.
func limitListener(l net.Listener, n int) net.Listener {
	return &limitedListener{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: conn, release: func() { <-l.slots }}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

func (c *limitedConn) Close() error {
	defer c.once.Do(c.release)
	return c.Conn.Close()
}
