// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"

	"github.com/prometheus/exporter-toolkit/web"

	"hairpin/maps/config"
)

// place is where and how metrics are served.
type place struct {
	listen    string // HOST:PORT; "": nowhere
	webConfig string // path of the file about TLS and passwords; "": there are none
	// content is the hash of that file. Package web reads the file again for each connection and each request, but whether there is TLS is
	// decided once.
	content [sha256.Size]byte
}

func placeOf(cfg config.Config) place {
	content, _ := os.ReadFile(cfg.MetricsWeb) // guard says what is wrong with the file
	return place{cfg.MetricsListen, cfg.MetricsWeb, sha256.Sum256(content)}
}

// CheckWebConfig fails if nobody could be served with a file about TLS and passwords: if it cannot be read, or has a mistake, or names a
// certificate that cannot be read.
func CheckWebConfig(path string) error {
	if err := web.Validate(path); err != nil {
		return fmt.Errorf("metrics.web_config: %s: %w", path, err)
	}
	return nil
}

// guard returns a handler that asks for the passwords before it calls next, and the TLS configuration, nil without TLS. The limits of
// clients must be around the question for the password, too. web.Serve puts the question around the handler of a server when it begins to
// serve, so it gets a server and a listener that end at once.
func (p place) guard(next http.Handler, log *slog.Logger) (http.Handler, *tls.Config, error) {
	if p.webConfig == "" {
		return next, nil, nil
	}
	if err := CheckWebConfig(p.webConfig); err != nil {
		return nil, nil, err
	}
	s := &http.Server{Handler: next, Protocols: onlyHTTP1()}
	err := web.Serve(closedListener{}, s, &web.FlagConfig{WebConfigFile: &p.webConfig}, slog.New(warnings{log.Handler()}))
	if !errors.Is(err, net.ErrClosed) {
		return nil, nil, fmt.Errorf("metrics.web_config: %s: %w", p.webConfig, err)
	}
	return s.Handler, s.TLSConfig, nil
}

// onlyHTTP1: clients counts connections, and each of them has one answer at a time.
func onlyHTTP1() *http.Protocols {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return protocols
}

// closedListener accepts nothing.
type closedListener struct{}

// Accept implements net.Listener.
func (closedListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }

// Close implements net.Listener.
func (closedListener) Close() error { return nil }

// Addr implements net.Listener.
func (closedListener) Addr() net.Addr { return &net.TCPAddr{} }

// warnings passes on warnings and errors alone: package web also says where it listens, as hairpin does.
type warnings struct{ slog.Handler }

// Enabled implements slog.Handler.
func (w warnings) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && w.Handler.Enabled(ctx, level)
}
