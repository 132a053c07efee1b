// SPDX-License-Identifier: Apache-2.0

// Package demo tests that the demonstration shows what the README says it shows.
package demo

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// varying is what differs from run to run: numbers, the state of a counter, and how wide columns are therefore.
var varying = regexp.MustCompile(`[0-9]+|\s+`)

// plain is a line without what differs from run to run.
func plain(line string) string {
	return varying.ReplaceAllStringFunc(strings.TrimSpace(line), func(s string) string {
		if strings.TrimSpace(s) == "" {
			return " "
		}
		return "0"
	})
}

// session is the part of the README that shows the demo.
func session(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "```console\n")
	block, _, ended := strings.Cut(after, "```\n")
	if !found || !ended {
		t.Fatal("the README has no console session")
	}
	return strings.Split(strings.TrimSpace(block), "\n")
}

// TestReadme: every line of the session in the README is a line that the demo prints, in the same order. Only numbers differ.
func TestReadme(t *testing.T) {
	demo := exec.Command("./demo.sh")
	demo.Env = append(os.Environ(), "HAIRPIN_BINARY="+lab.Binary(t))
	output, err := demo.CombinedOutput()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, output)
	}
	printed := strings.Split(string(output), "\n")
	for _, line := range session(t) {
		for len(printed) > 0 && plain(printed[0]) != plain(line) {
			printed = printed[1:]
		}
		if len(printed) == 0 {
			t.Fatalf("the demo does not print, or not in this order:\n%s\nIts output:\n%s", line, output)
		}
	}
}
