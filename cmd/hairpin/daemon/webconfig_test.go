// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/statuspage"
	"hairpin/maps/config"
	"hairpin/test/lab"
)

// webFiles are a file about TLS and passwords, and the certificate that it names.
type webFiles struct {
	t    *testing.T
	dir  string
	path string
}

func newWebFiles(t *testing.T) webFiles {
	t.Helper()
	dir := t.TempDir()
	return webFiles{t, dir, filepath.Join(dir, "web.yml")}
}

func (f webFiles) write(name, content string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(content), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// certify writes a certificate for 127.0.0.1 with a serial number, and its key.
func (f webFiles) certify(serial int64) {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	certificate, err := x509.CreateCertificate(rand.Reader, about, about, &key.PublicKey, key)
	if err != nil {
		f.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	f.write("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})))
}

const withTLS = "tls_server_config: { cert_file: cert.pem, key_file: key.pem }\n"

// withPassword lets anna in.
func withPassword(t *testing.T, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("basic_auth_users: { anna: %q }\n", hash)
}

// ask sends one request to a path as anna, and returns the status, 0 if there was no answer. The connection has TLS if the URL says
// https; serial is the number of the server's certificate.
func ask(t *testing.T, base, path, password, host string) (status int, serial int64) {
	t.Helper()
	request, err := http.NewRequest("GET", base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if password != "" {
		request.SetBasicAuth("anna", password)
	}
	request.Host = host
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	if err != nil {
		return 0, 0
	}
	defer response.Body.Close()
	if response.ProtoMajor != 1 {
		t.Errorf("%s is served by %s, want HTTP/1.1", path, response.Proto)
	}
	if response.TLS != nil {
		serial = response.TLS.PeerCertificates[0].SerialNumber.Int64()
	}
	return response.StatusCode, serial
}

// TestWebConfig: TLS and passwords are asked for on every path. A renewed certificate and another password are there at once. A reload
// with a broken file changes nothing, and TLS comes and goes by reloads.
func TestWebConfig(t *testing.T) {
	files := newWebFiles(t)
	d := newDaemonFake(t)
	handler := listenerHandler(statuspage.Options{Tables: tablesFake{}, Ports: d.state.load, Apart: func() string { return "" }, Log: d.log},
		metricsHandler(pageOf(), &healthFake{}, defaultLimits), defaultLimits)
	d.port.start = func(at place) (*metricsServer, error) { return startMetrics(at, handler, defaultLimits, d.log) }
	d.file.MetricsListen, d.file.MetricsWeb = "127.0.0.1:0", files.path
	reload := func(taken bool) {
		t.Helper()
		d.taken = nil
		d.reload(context.Background())
		if len(d.taken) != 1 || d.taken[0] != taken {
			t.Fatalf("reloads taken: %v, want %v; log:\n%s", d.taken, taken, &d.output)
		}
	}
	base := func(scheme string) string { return scheme + "://" + d.port.server.address() }
	t.Cleanup(func() { d.port.Close() })

	files.write("web.yml", withPassword(t, "first"))
	reload(true)
	for path, want := range map[string]int{"/": 200, "/api/v1/status": 200, "/metrics": 200, "/-/healthy": 200} {
		for password, want := range map[string]int{"": 401, "second": 401, "first": want} {
			if got, _ := ask(t, base("http"), path, password, ""); got != want {
				t.Errorf("%s with password %q: %d, want %d", path, password, got, want)
			}
		}
	}
	if got, _ := ask(t, base("http"), "/", "first", "elsewhere.example"); got != 403 {
		t.Errorf("another host name without TLS: %d, want 403", got)
	}
	files.write("web.yml", withPassword(t, "second"))
	if got, _ := ask(t, base("http"), "/metrics", "second", ""); got != 200 {
		t.Errorf("another password: %d, want 200", got)
	}

	files.certify(1)
	files.write("web.yml", withTLS+withPassword(t, "second"))
	reload(true)
	if got, _ := ask(t, base("http"), "/metrics", "second", ""); got != 400 {
		t.Errorf("without TLS: %d, want 400", got)
	}
	if got, serial := ask(t, base("https"), "/metrics", "", ""); got != 401 || serial != 1 {
		t.Errorf("without password: %d with certificate %d, want 401 with 1", got, serial)
	}
	if got, _ := ask(t, base("https"), "/", "second", "elsewhere.example"); got != 200 {
		t.Errorf("another host name with TLS: %d, want 200", got)
	}
	files.certify(2)
	if got, serial := ask(t, base("https"), "/metrics", "second", ""); got != 200 || serial != 2 {
		t.Errorf("after renewal: %d with certificate %d, want 200 with 2", got, serial)
	}

	address := d.port.server.address()
	for broken, says := range map[string]string{
		"basic_auth_users: { anna: second }\n": "hashedSecret", "basic_auth: {}\n": "basic_auth not found",
		"tls_server_config: { cert_file: none.pem, key_file: key.pem }\n": "none.pem",
	} {
		files.write("web.yml", broken)
		d.output.Reset()
		reload(false)
		if log := d.output.String(); !strings.Contains(log, "metrics.web_config: "+files.path) || !strings.Contains(log, says) {
			t.Errorf("%q: the log does not say %q:\n%s", broken, says, log)
		}
		if got, _ := ask(t, "https://"+address, "/metrics", "", ""); got == 200 {
			t.Errorf("%q lets everybody in", broken)
		}
	}
	files.write("web.yml", "")
	reload(true)
	if got, _ := ask(t, base("http"), "/metrics", "", ""); got != 200 {
		t.Errorf("without TLS and passwords again: %d, want 200", got)
	}
}

// TestStartWithBrokenWebConfig: forwarding starts, and nobody is served without the password that was asked for.
func TestStartWithBrokenWebConfig(t *testing.T) {
	d := newDaemonFake(t)
	files := newWebFiles(t)
	files.write("web.yml", "nonsense")
	d.port.move(placeOf(config.Config{MetricsListen: "127.0.0.1:0", MetricsWeb: files.path}))
	if d.port.server != nil {
		t.Error("metrics are served")
	}
	if !strings.Contains(d.output.String(), "forwarding continues") {
		t.Errorf("log:\n%s", &d.output)
	}
	files.write("web.yml", withPassword(t, "first"))
	d.port.ensure()
	if d.port.server == nil {
		t.Fatalf("the file is right now, but no metrics are served; log:\n%s", &d.output)
	}
	defer d.port.Close()
	if got, _ := ask(t, "http://"+d.port.server.address(), "/", "", ""); got != 401 {
		t.Errorf("without password: %d, want 401", got)
	}
}

// TestHostileClientsOfTLS: clients that begin TLS and say nothing more, or send something else, keep nobody out.
func TestHostileClientsOfTLS(t *testing.T) {
	files := newWebFiles(t)
	files.certify(1)
	files.write("web.yml", withTLS)
	limits := tightLimits
	limits.header = patience // not these clients' end
	s, err := startMetrics(placeOf(config.Config{MetricsListen: "127.0.0.1:0", MetricsWeb: files.path}),
		metricsHandler(pageOf(), &healthFake{}, limits), limits, pageOf().log)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const hello = "\x16\x03\x01\x02\x00" // the header of a record that does not come
	for _, sent := range []string{"", hello, "GET / HTTP/1.1\r\n\r\n", hello} {
		for range limits.connections {
			if _, err := io.WriteString(dial(t, s), sent); err != nil {
				t.Fatal(err)
			}
		}
		if got, _ := ask(t, "https://"+s.address(), "/metrics", "", ""); got != 200 {
			t.Errorf("beside clients that sent %q: %d, want 200", sent, got)
		}
	}
}

// TestLimitsBelowTLS: the limits are those of the TCP connection, as without TLS: its buffer, and its end without a message of TLS, for
// which the client would have to make room.
func TestLimitsBelowTLS(t *testing.T) {
	files := newWebFiles(t)
	files.certify(1)
	files.write("web.yml", withTLS)
	s, err := startMetrics(placeOf(config.Config{MetricsListen: "127.0.0.1:0", MetricsWeb: files.path}),
		metricsHandler(pageOf(), &healthFake{}, tightLimits), tightLimits, pageOf().log)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	conn := tls.Client(dial(t, s), &tls.Config{InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	open := func() []*client {
		s.clients.mu.Lock()
		defer s.clients.mu.Unlock()
		return slices.Clone(s.clients.open)
	}
	served, ok := open()[0].conn.(*net.TCPConn)
	if !ok {
		t.Fatalf("the limits are for a %T, want TCP", open()[0].conn)
	}
	raw, err := served.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if size, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil || size != 2*tightLimits.sendBuffer {
			t.Errorf("the send buffer is %d, %v, want %d", size, err, 2*tightLimits.sendBuffer)
		}
	}); err != nil {
		t.Error(err)
	}
	conn.Close()
	lab.Eventually(t, patience, func() error {
		if len(open()) > 0 {
			return errors.New("a connection that has ended counts as open")
		}
		return nil
	})
}
