// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"

	"hairpin/maps/rule"
)

// FuzzArguments checks the arguments of every command. No command runs.
func FuzzArguments(f *testing.F) {
	for _, line := range []string{
		"forward add web tcp 80 to 192.168.1.20:8080", "forward show -s --sort name", "conn show client 10.0.0.0/8 not port 80", "conn flush --all", "apply --confirm 60s",
		"explain in lan0 tcp 192.168.1.50:1 to 203.0.113.2:80", "explain in lan0 tcp [fe80::1%eth0]:80 to [2001:db8::1]:80", "trace client 10.0.0.1 -w x -n 5", "deny add 1.2.3.4 10m",
		"-c x --bpffs y status -j", "rollback --list", "forward del web --drain 5m", "watch --interval 1s", "--color no status", "-q -v status", "forward \x1b[2J", "help conn", "",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var stdout, stderr bytes.Buffer
		a := newApp(env{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, getenv: func(string) string { return "" }})
		root := a.rootCommand()
		disarm(root)
		code := a.execute(context.Background(), root, strings.Split(line, " "))
		if code != exitDone && code != exitInvalid {
			t.Fatalf("%q: exit code %d: %s", line, code, &stderr)
		}
		if (code == exitInvalid) != (stderr.Len() != 0) {
			t.Fatalf("%q: exit code %d, with the message %q", line, code, &stderr)
		}
		if strings.ContainsFunc(stderr.String(), func(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsPrint(r) }) {
			t.Fatalf("%q: not fit for a terminal: %q", line, &stderr)
		}
	})
}

// disarm makes all commands do nothing, after their arguments were checked.
func disarm(command *cobra.Command) {
	if command.RunE != nil || command.Run != nil {
		command.RunE, command.Run = func(*cobra.Command, []string) error { return nil }, nil
	}
	for _, sub := range command.Commands() {
		disarm(sub)
	}
}

func FuzzQuestion(f *testing.F) {
	for _, line := range []string{
		"in lan0 tcp 192.168.1.50:4711 to 203.0.113.2:80", "in wan0 icmp 198.51.100.7 to 203.0.113.2", "in wan0 icmp 198.51.100.7:9 to 203.0.113.2", "in lan0 tcp [fe80::1%eth0]:80 to [2001:db8::1]:80",
		"in lan0 udp [::ffff:1.2.3.4]:1 to 1.2.3.4:1", "in lan0 gre 1.2.3.4 to 1.2.3.5", "in lan0 any 1.2.3.4 to 1.2.3.5", "in lan0 tcp 1.2.3.4:0 to 1.2.3.5:0",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		q, err := parseQuestion(strings.Split(line, " "))
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Fatalf("not fit for a terminal: %q", err)
			}
			return
		}
		from, to := q.Source, q.Destination
		if from.Addr().Is4() != to.Addr().Is4() || from.Addr().Is4In6() || to.Addr().Is4In6() || from.Addr().Zone()+to.Addr().Zone() != "" {
			t.Fatalf("%q asks about %v to %v", line, from, to)
		}
		if q.Protocol == rule.Any || q.Protocol.HasPorts() && (from.Port() == 0 || to.Port() == 0) {
			t.Fatalf("%q asks about %v, %v to %v", line, q.Protocol, from, to)
		}
	})
}
