// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// tableSize is small, so that a test can fill the table of connections. TCP may use three quarters.
const tableSize = 120

// watched is a configuration in which every metric can appear.
func watched(dir string) string {
	return strings.Replace(home.Config("xdp", ""), "[datapath]\n", fmt.Sprintf("[datapath]\nmax_connections = %d\nmax_per_source = %[1]d\n", tableSize), 1) +
		fmt.Sprintf("\n[dns.write]\nhosts = %q\n[dns.reload]\nhosts = [\"true\"]\n", filepath.Join(dir, "hosts")) + home.Forwards + `
[[forward]]
name = "closed"
protocol = ["tcp"]
port = "81"
to = "192.168.1.20:8080"
from = ["192.0.2.0/24"]
hosts = ["closed.example.org"]
[[forward]]
name = "pool"
protocol = ["tcp"]
port = "82"
to = ["192.168.1.20:8080", "192.168.1.20:8081"]
`
}

// startWatched starts hairpin, and uses it so that every metric appears.
func startWatched(t *testing.T) *lab.Network {
	t.Helper()
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeTCP(":8081")
	lab.NewHairpin(n.Router, watched(t.TempDir())).Start()
	for _, from := range []*lab.Host{n.Internet, n.Client} {
		home.Waiting(t, from)
		pool, err := from.DialTCP(lab.External+":82", "", lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pool.Close() })
		if c, err := from.DialTCP(lab.External+":81", "", lab.Patience/10); err == nil {
			c.Close()
			t.Fatal("a forward took a client that is not in its list")
		}
	}
	return n
}

func TestMetricsAreDocumented(t *testing.T) {
	n := startWatched(t)
	var text []byte
	known := documented(t)
	// The file for the name server is written after the start.
	lab.Eventually(t, lab.Patience, func() error {
		text, _ = io.ReadAll(home.Get(t, n, "/metrics").Body)
		if !bytes.Contains(text, []byte(`hairpin_dns_reloads_total{format="hosts"} 1`)) {
			return fmt.Errorf("the name server was not reloaded:\n%s", text)
		}
		return nil
	})
	command := exec.Command("promtool", "check", "metrics")
	command.Stdin = bytes.NewReader(text)
	if out, err := command.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for name, family := range families {
		if !strings.HasPrefix(name, "hairpin_") {
			continue
		}
		labels := []string(nil)
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, label.GetName())
		}
		slices.Sort(labels)
		found[name] = append([]string{}, labels...)
	}
	if diff := cmp.Diff(known, found); diff != "" {
		t.Errorf("metrics (-the page +a scrape)\n%s", diff)
	}
	for _, prefix := range []string{"go_", "process_"} {
		if !bytes.Contains(text, []byte("\n"+prefix)) {
			t.Errorf("no metrics %s*", prefix)
		}
	}
}

// prometheus is a real Prometheus on the router, which scrapes hairpin every second.
type prometheus struct {
	t *testing.T
	n *lab.Network
}

// startPrometheus starts Prometheus with the alerts as they are shipped, but without their waits.
func startPrometheus(t *testing.T, n *lab.Network) prometheus {
	t.Helper()
	dir := t.TempDir()
	rules := regexp.MustCompile(`(?m)^( +for:) \w+$`).ReplaceAllString(read(t, filepath.Join(folder, "hairpin.rules.yml")), "$1 1s")
	config := "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [hairpin.rules.yml]\nscrape_configs:\n" +
		"  - job_name: hairpin\n    static_configs: [{targets: ['127.0.0.1:9845']}]\n"
	for name, text := range map[string]string{"hairpin.rules.yml": rules, "prometheus.yml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := prometheus{t, n}
	n.Router.Start("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address=127.0.0.1:9090")
	lab.Eventually(t, lab.Patience, func() error {
		if len(p.query(`up{job="hairpin"} == 1`)) == 0 {
			return fmt.Errorf("prometheus has not scraped hairpin")
		}
		return nil
	})
	return p
}

// sample is one sample of an answer.
type sample struct {
	Metric map[string]string
	Value  [2]any
}

// query returns the answer to a query at this moment; nil while Prometheus starts.
func (p prometheus) query(expr string) (samples []sample) {
	p.t.Helper()
	response, err := home.HTTPClient(p.n.Router).Get("http://127.0.0.1:9090/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil || response.StatusCode == http.StatusServiceUnavailable {
		return nil
	}
	defer response.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct{ Result json.RawMessage }
	}
	err = json.NewDecoder(response.Body).Decode(&answer)
	if err == nil && answer.Status == "success" {
		err = json.Unmarshal(answer.Data.Result, &samples)
	}
	if err != nil || answer.Status != "success" {
		p.t.Fatalf("query %s: %v, %s", expr, err, answer.Error)
	}
	return samples
}

// firing returns the alerts that fire, with the interface that each is about.
func (p prometheus) firing() (alerts []string) {
	for _, s := range p.query(`ALERTS{alertstate="firing"}`) {
		alerts = append(alerts, strings.TrimSpace(s.Metric["alertname"]+" "+s.Metric["interface"]))
	}
	slices.Sort(alerts)
	return alerts
}

func (p prometheus) wantFiring(want ...string) {
	p.t.Helper()
	lab.Eventually(p.t, lab.Patience, func() error {
		if diff := cmp.Diff(want, p.firing()); diff != "" {
			return fmt.Errorf("alerts (-want +firing)\n%s", diff)
		}
		return nil
	})
}

// TestPrometheus: a real Prometheus evaluates the alerts and the queries of the dashboard for a router.
func TestPrometheus(t *testing.T) {
	n := startWatched(t)
	p := startPrometheus(t, n)
	lab.Eventually(t, lab.Patience, func() error {
		if got := p.query(`count_over_time(up{job="hairpin"}[1m]) >= 3`); len(got) == 0 {
			return fmt.Errorf("fewer than three scrapes")
		}
		return nil
	})
	if alerts := p.firing(); len(alerts) > 0 {
		t.Errorf("a healthy router raises %v", alerts)
	}
	for title, queries := range dashboardQueries(t) {
		for _, query := range queries {
			if len(p.query(query)) == 0 {
				t.Errorf("dashboard, %s: no data for %s", title, query)
			}
		}
	}

	n.Router.Run("ip", "link", "del", "lan1")
	p.wantFiring("HairpinInterfaceDetached lan1")

	for range tableSize * 72 / 100 {
		c, err := n.Internet.DialTCP(lab.External+":80", "", lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Echo(1); err != nil {
			t.Fatal(err)
		}
	}
	p.wantFiring("HairpinInterfaceDetached lan1", "HairpinTableNearlyFull")
}
