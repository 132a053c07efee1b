// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	folder = "../../cmd/hairpin/observability"
	page   = "../../cmd/hairpin/doc/observability.md"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// documented returns the labels, sorted, of each metric in the table of the page.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	rows := map[string][]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(hairpin_\\w+)` \\| ([a-z, ]*)\\|").FindAllStringSubmatch(read(t, page), -1) {
		labels := strings.FieldsFunc(row[2], func(r rune) bool { return r == ',' || r == ' ' })
		slices.Sort(labels)
		rows[row[1]] = labels
	}
	return rows
}

// TestRules runs promtool's own tests of the alerts. Every alert is tested there, and explained on the page.
func TestRules(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "hairpin.rules.yml"}, {"test", "rules", "hairpin.rules.test.yml"}} {
		command := exec.Command("promtool", args...)
		command.Dir = folder
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	rules := read(t, filepath.Join(folder, "hairpin.rules.yml"))
	tests, text := read(t, filepath.Join(folder, "hairpin.rules.test.yml")), read(t, page)
	alerts := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(rules, -1)
	if len(alerts) < 5 {
		t.Fatalf("%d alerts", len(alerts))
	}
	for _, alert := range alerts {
		if !regexp.MustCompile(`"` + alert[1] + `"[^\n]*firing|alertname: ` + alert[1] + `\n\s+eval_time: \w+\n\s+exp_alerts:\n\s+- `).MatchString(tests) {
			t.Errorf("no test in which %s fires", alert[1])
		}
		if !strings.Contains(text, "\n| "+alert[1]+" |") {
			t.Errorf("the page does not explain %s", alert[1])
		}
	}
}

// TestNamesOfMetrics: the alerts and the dashboard name only metrics that exist.
func TestNamesOfMetrics(t *testing.T) {
	known := documented(t)
	for _, file := range []string{"hairpin.rules.yml", "hairpin.rules.test.yml", "dashboard.json"} {
		names := regexp.MustCompile(`\bhairpin_\w+`).FindAllString(read(t, filepath.Join(folder, file)), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, name := range names {
			if _, ok := known[name]; !ok {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
}

// dashboardQueries returns the queries of the panels, by title, with all variables set to everything.
func dashboardQueries(t *testing.T) map[string][]string {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, filepath.Join(folder, "dashboard.json"))), &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := map[string][]string{}
	variables := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$forward", ".*")
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries[panel.Title] = append(queries[panel.Title], variables.Replace(target.Expr))
		}
	}
	return queries
}
