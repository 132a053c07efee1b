// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/bench/measure"
)

// report has all results of one run.
type report struct {
	Schema  int       `json:"schema"`
	Date    time.Time `json:"date"`
	Version string    `json:"version"`
	Kernel  string    `json:"kernel"`
	CPU     string    `json:"cpu"`
	CPUs    int       `json:"cpus"`
	Short   bool      `json:"short"`
	Seconds float64   `json:"seconds"`
	Rows    []row     `json:"rows"`
	Costs   []sample  `json:"costs"`
	Notes   []string  `json:"notes"`
	// Paper has estimates, not measurements.
	Paper []estimate `json:"paper"`
}

// row is a row of the table: an aim and the measured value.
type row struct {
	What     string         `json:"what"`
	Value    measure.Spread `json:"value"`
	Unit     string         `json:"unit"`               // "x": Value is a ratio
	Required *float64       `json:"required,omitempty"` // nil: no aim, only for information
	AtMost   bool           `json:"at_most,omitempty"`  // true: the aim is at most Required; false: at least
	Verdict  string         `json:"verdict,omitempty"`
	Detail   string         `json:"detail,omitempty"`
	// Like names the A/A row that limits this row. Same: this is such a row, of two equal contenders.
	Like noise `json:"like,omitempty"`
	Same bool  `json:"same,omitempty"`
}

// noise names an A/A row: a contender against a second rig of the same contender.
type noise string

const (
	noNoise      noise = ""
	noiseXDPOne  noise = "hairpin XDP, LAN, 1 flow"
	noiseXDPMany noise = "hairpin XDP, LAN, 60000 flows"
	noiseTCOne   noise = "hairpin TC, LAN, 1 flow"
	noiseTCMany  noise = "hairpin TC, LAN, 60000 flows"
	noiseWAN     noise = "hairpin XDP, WAN, 1 flow"
)

// sample has the measured values of one contender in one task.
type sample struct {
	Task      string         `json:"task"`
	Contender string         `json:"contender"`
	Unit      string         `json:"unit"`
	Spread    measure.Spread `json:"spread"`
	Values    []float64      `json:"values"` // one for each slice
}

func newReport(short bool) *report {
	r := &report{Schema: 2, Date: time.Now().UTC().Truncate(time.Second), Short: short, CPUs: runtime.NumCPU(), CPU: "unknown", Version: "unknown"}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		r.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				r.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if out, err := exec.Command("git", "describe", "--tags", "--always", "--dirty").Output(); err == nil {
		r.Version = strings.TrimSpace(string(out))
	}
	return r
}

func atLeast(what, unit string, required float64, value measure.Spread, detail string) row {
	return row{What: what, Unit: unit, Required: &required, Value: value, Detail: detail}
}

func atMost(what, unit string, required float64, value measure.Spread, detail string) row {
	return row{What: what, Unit: unit, Required: &required, AtMost: true, Value: value, Detail: detail}
}

// known returns a row without an aim.
func known(what, unit string, value measure.Spread, detail string) row {
	return row{What: what, Unit: unit, Value: value, Detail: detail}
}

// like returns the row, limited by an A/A row.
func (r row) like(n noise) row {
	r.Like = n
	return r
}

// same returns the A/A row of a kind of measurement, from the ratios of two equal contenders.
func same(n noise, value measure.Spread, detail string) row {
	return row{What: "A/A: " + string(n), Unit: "x", Value: value, Detail: detail, Like: n, Same: true}
}

// judge sets the verdicts of all rows, when all A/A rows are there.
func (r *report) judge() {
	distances := make(map[noise]float64)
	for _, row := range r.Rows {
		if row.Same {
			distances[row.Like] = max(distances[row.Like], row.Value.Distance())
		}
	}
	for i := range r.Rows {
		row := &r.Rows[i]
		switch {
		case row.Same && !row.Value.HasInterval():
			row.Verdict = "tells nothing apart"
		case row.Same:
			row.Verdict = fmt.Sprintf("tells apart %.1f %%", 100*row.Value.Distance())
		case row.Required != nil:
			row.Verdict = string(measure.Aim{Value: *row.Required, AtMost: row.AtMost}.Judge(row.Value, distances[row.Like]))
		}
	}
}

func (r *report) add(rows ...row) { r.Rows = append(r.Rows, rows...) }

// note adds a note below the table; a second equal note is ignored.
func (r *report) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// sample records values, in the order of the slices.
func (r *report) sample(task, contender, unit string, values []float64) {
	r.Costs = append(r.Costs, sample{task, contender, unit, measure.SpreadOf(values), values})
}

// legend explains the table.
const legend = `yes, NO: the whole interval reaches or misses the aim. undecided: the interval contains the aim, or there are too few values for an
interval. undecided (A/A): the distance from the aim is less than what the A/A row of this kind of measurement tells apart.`

// print writes the tables as text.
func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "%s, Linux %s, %d x %s, hairpin %s, %.0f s\n\n", r.Date.Format(time.DateOnly), r.Kernel, r.CPUs, r.CPU, r.Version, r.Seconds)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tMEASURED\t95 % INTERVAL\tVALUES\tREQUIRED\tREACHED\tFROM")
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", row.What, row.number(row.Value.Median),
			row.between(), row.Value.Count, row.required(), row.Verdict, row.Detail)
	}
	fmt.Fprintln(t)
	fmt.Fprintln(t, "TASK\tCONTENDER\tMEDIAN\t95 % INTERVAL\tSLICES")
	for _, s := range r.Costs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\n", s.Task, s.Contender, number(s.Spread.Median, s.Unit), between(s.Spread, s.Unit), s.Spread.Count)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\n"+legend)
	for _, note := range r.Notes {
		fmt.Fprintln(w, "\n"+note)
	}
	return printEstimates(w, r.Paper)
}

func (r row) number(value float64) string { return number(value, r.Unit) }

func (r row) between() string { return between(r.Value, r.Unit) }

// between returns the interval; "" if there is none, or if the value is exact.
func between(s measure.Spread, unit string) string {
	if s.Exact || !s.HasInterval() {
		return ""
	}
	return number(s.Low, unit) + " - " + number(s.High, unit)
}

func (r row) required() string {
	switch {
	case r.Required == nil:
		return ""
	case r.AtMost:
		return "at most " + r.number(*r.Required)
	}
	return "at least " + r.number(*r.Required)
}

// number formats a value with at least three digits.
func number(value float64, unit string) string {
	digits := 0
	switch {
	case value < 10:
		digits = 2
	case value < 100:
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, value, unit)
}

// write writes bench.json, bench.txt, README.md and the plots into a directory.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory for results: %w", err)
	}
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bench.json"), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	var table bytes.Buffer
	if err := r.print(&table); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bench.txt"), table.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	drawn, err := r.plot(dir)
	if err != nil {
		return err
	}
	page := new(bytes.Buffer)
	r.page(page, drawn)
	if err := os.WriteFile(filepath.Join(dir, "README.md"), page.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// page writes README.md of the results: the table of aims, and the plots.
func (r *report) page(w io.Writer, plots []string) {
	run := "make bench"
	if r.Short {
		run = "make bench-short"
	}
	fmt.Fprintf(w, "# One run of `%s`\n\n%s, Linux %s, %d x %s, hairpin %s, %.0f s. [bench.txt](bench.txt) has all tables of the run,\n[bench.json](bench.json) every value. [../README.md](../README.md) says how the bench measures.\n\n",
		run, r.Date.Format(time.DateOnly), r.Kernel, r.CPUs, r.CPU, r.Version, r.Seconds)
	fmt.Fprintln(w, "| what | measured | 95 % interval | required | reached | from |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", row.What, row.number(row.Value.Median), row.between(), row.required(), row.Verdict, row.Detail)
	}
	fmt.Fprintln(w, "\n"+legend)
	for _, note := range r.Notes {
		fmt.Fprintln(w, "\n"+note)
	}
	for _, file := range plots {
		fmt.Fprintf(w, "\n![%s](%s)\n", strings.TrimSuffix(file, ".svg"), file)
	}
}
