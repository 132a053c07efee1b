// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// TestPrometheusWithPassword: as the page says, a Prometheus in the LAN scrapes over TLS with a password, and the page is served to nobody
// without this password.
func TestPrometheusWithPassword(t *testing.T) {
	dir := t.TempDir()
	const password = "correct horse"
	here := strings.NewReplacer("/etc/hairpin", dir, "/etc/prometheus", dir)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := lab.NewNetwork(t)
	config := home.Config("tc", home.Forwards)
	for _, b := range blocksOf(t, "observability.md") {
		if b.section != "TLS and passwords" {
			continue
		}
		switch {
		case b.path != "":
			write(filepath.Base(b.path), here.Replace(b.text))
		case b.language == "toml":
			config += here.Replace(b.text)
		case b.language == "sh":
			for line := range strings.Lines(b.text) {
				said := n.Router.RunInput(password+"\n", "sh", "-c", here.Replace(strings.Replace(line, "htpasswd -n", "htpasswd -in", 1)))
				if name, hash, found := strings.Cut(strings.TrimSpace(said), ":"); found && name == "prometheus" {
					here = strings.NewReplacer("/etc/hairpin", dir, "/etc/prometheus", dir, "HASH", hash)
				}
			}
		}
	}
	write("hairpin.password", password)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	write("web.yml", here.Replace(read("web.yml")))
	write("hairpin.crt", read("web.crt"))
	write("prometheus.yml", "global: { scrape_interval: 1s }\n"+read("prometheus.yml"))
	hp := lab.NewHairpin(n.Router, config)
	hp.Start()

	const url = "https://192.168.1.1:9845"
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM([]byte(read("web.crt")))
	client := home.HTTPClient(n.Client)
	client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: trusted}
	for _, attempt := range []struct {
		name, password string
		want           int
	}{{"", "", http.StatusUnauthorized}, {"prometheus", "guessed", http.StatusUnauthorized}, {"prometheus", password, http.StatusOK}} {
		request, err := http.NewRequest("GET", url+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if attempt.name != "" {
			request.SetBasicAuth(attempt.name, attempt.password)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != attempt.want {
			t.Errorf("with %q and %q: %s, want %d", attempt.name, attempt.password, response.Status, attempt.want)
		}
	}

	n.Client.Start("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address=127.0.0.1:9090")
	lab.Eventually(t, lab.Patience, func() error {
		response, err := home.HTTPClient(n.Client).Get("http://127.0.0.1:9090/api/v1/query?query=up%3D%3D1")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err == nil && !bytes.Contains(text, []byte(`"job":"hairpin"`)) {
			err = fmt.Errorf("prometheus has not scraped hairpin: %s", text)
		}
		return err
	})
}
