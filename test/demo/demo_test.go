// SPDX-License-Identifier: Apache-2.0

// Package demo tests that the demonstration shows what the README says it shows.
package demo

import (
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// number is a word that differs from run to run, such as a counter or a time in seconds. Addresses and their ports do not.
var number = regexp.MustCompile(`^[0-9]+s?$`)

// plain is a line without what differs from run to run: numbers, and how wide columns are therefore.
func plain(line string) string {
	words := strings.Fields(line)
	for i := range words {
		words[i] = number.ReplaceAllString(words[i], "0")
	}
	return strings.Join(words, " ")
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
	// The demo must not outlive a test that is killed. The signal comes when the thread ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	demo.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
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
		printed = printed[1:]
	}
}
