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
	Detail   string         `json:"detail,omitempty"`
}

// sample has the measured values of one contender in one task.
type sample struct {
	Task      string         `json:"task"`
	Contender string         `json:"contender"`
	Unit      string         `json:"unit"`
	Spread    measure.Spread `json:"spread"`
	Values    []float64      `json:"values"` // one for each round
}

func newReport(short bool) *report {
	r := &report{Schema: 1, Date: time.Now().UTC().Truncate(time.Second), Short: short, CPUs: runtime.NumCPU(), CPU: "unknown", Version: "unknown"}
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

// reached reports whether the aim is reached. It is true for a row without an aim.
func (r row) reached() bool {
	switch {
	case r.Required == nil:
		return true
	case r.AtMost:
		return r.Value.Median <= *r.Required
	}
	return r.Value.Median >= *r.Required
}

func atLeast(what, unit string, required float64, value measure.Spread, detail string) row {
	return row{What: what, Unit: unit, Required: &required, Value: value, Detail: detail}
}

func atMost(what, unit string, required float64, value measure.Spread, detail string) row {
	return row{What: what, Unit: unit, Required: &required, AtMost: true, Value: value, Detail: detail}
}

func (r *report) add(rows ...row) { r.Rows = append(r.Rows, rows...) }

// note adds a note below the table; a second equal note is ignored.
func (r *report) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// sample records values, in the order of the rounds.
func (r *report) sample(task, contender, unit string, values []float64) {
	r.Costs = append(r.Costs, sample{task, contender, unit, measure.SpreadOf(values), values})
}

// print writes the tables as text.
func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "%s, Linux %s, %d x %s, hairpin %s, %.0f s\n\n", r.Date.Format(time.DateOnly), r.Kernel, r.CPUs, r.CPU, r.Version, r.Seconds)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tMEASURED\tMIDDLE HALF\tREQUIRED\tREACHED\tFROM")
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", row.What, row.number(row.Value.Median),
			row.between(), row.required(), row.verdict(), row.Detail)
	}
	fmt.Fprintln(t)
	fmt.Fprintln(t, "TASK\tCONTENDER\tMEDIAN\tMIDDLE HALF\tROUNDS")
	for _, s := range r.Costs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s - %s\t%d\n", s.Task, s.Contender, number(s.Spread.Median, s.Unit),
			number(s.Spread.Low, s.Unit), number(s.Spread.High, s.Unit), s.Spread.Count)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, note := range r.Notes {
		fmt.Fprintln(w, "\n"+note)
	}
	return printEstimates(w, r.Paper)
}

func (r row) number(value float64) string { return number(value, r.Unit) }

func (r row) between() string {
	if r.Value.Count < 2 {
		return ""
	}
	return r.number(r.Value.Low) + " - " + r.number(r.Value.High)
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

func (r row) verdict() string {
	switch {
	case r.Required == nil:
		return ""
	case r.reached():
		return "yes"
	}
	return "NO"
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
	fmt.Fprintln(w, "| what | measured | required | reached | from |")
	fmt.Fprintln(w, "|---|---|---|---|---|")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", row.What, row.number(row.Value.Median), row.required(), row.verdict(), row.Detail)
	}
	for _, file := range plots {
		fmt.Fprintf(w, "\n![%s](%s)\n", strings.TrimSuffix(file, ".svg"), file)
	}
}
