// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBadFiles: malformed files are refused with the place and an escaped reason, and nothing is made.
func TestBadFiles(t *testing.T) {
	const wan = "version = 1\n[interfaces]\nwan = [\"wan0\"]\n"
	forward := func(name, port string) string {
		return fmt.Sprintf("[[forward]]\nname = %q\nprotocol = \"tcp\"\nport = %q\nto = \"192.168.1.20\"\n", name, port)
	}
	to := func(external, target string) string {
		return fmt.Sprintf("[[forward]]\nname = \"f%s\"\nprotocol = \"any\"\nto = %q\nexternal = %q\n", strings.ReplaceAll(external, ":", "."), target, external)
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":             {"", `:1:1: version: it is missing`},
		"truncated":         {wan + "[[forward]]\nname = \"we", ":5:"},
		"byte order mark":   {"\xef\xbb\xbf" + wan, ":1:1: a byte order mark"},
		"NUL":               {"version = 1\n[interfaces]\nwan = [\"w\x00n0\"]\n", ":3:"},
		"binary":            {"\x7fELF\x02\x01\xff\xfe", ":1:"},
		"escape sequence":   {"version = 1\n[interfaces]\nwan = [\"\\u001b[31m\"]\n", ":3:"},
		"escape in key":     {"version = 1\n\"\\u001b[31m\" = 1\n", ":2:1: unknown key"},
		"duplicate key":     {"version = 1\nversion = 1\n", ":2:1: key version is already defined"},
		"duplicate name":    {wan + forward("a", "80") + forward("a", "81"), `name: the name is taken by another forward`},
		"unknown section":   {"version = 1\n[timeout]\n", `unknown key "timeout"; did you mean "timeouts"?`},
		"unknown key":       {wan + "lann = []\n", `:4:1: unknown key "lann" in [interfaces]; did you mean "lan"?`},
		"wrong type":        {"version = 1\n[interfaces]\nwan = 7\n", ":3:7: interfaces.wan: "},
		"another version":   {"version = 2\n", "2 is not supported"},
		"one port twice":    {wan + forward("a", "80") + forward("b", "80"), `forward "b": port: 80 is taken by forward "a"`},
		"overlapping range": {wan + forward("a", "6000-6010") + forward("b", "6005-6020"), `forward "b": port: 6005-6020 shares some ports with forward "a"`},
		"a ring": {wan + to("203.0.113.1", "203.0.113.2") + to("203.0.113.2", "203.0.113.1"),
			`:12:6: forward "f203.0.113.2": to: 203.0.113.1 is the external address of forward "f203.0.113.1" (`},
		"to itself":       {wan + to("203.0.113.1", "203.0.113.1"), `:7:6: forward "f203.0.113.1": to: 203.0.113.1 is the external address of forward "f203.0.113.1"`},
		"to loopback":     {wan + to("203.0.113.1", "127.0.0.1"), `:7:6: forward "f203.0.113.1": to: 127.0.0.1 is a loopback address`},
		"to multicast":    {wan + to("203.0.113.1", "224.0.0.9"), `:7:6: forward "f203.0.113.1": to: 224.0.0.9 is a multicast address`},
		"to everybody":    {wan + to("203.0.113.1", "255.255.255.255"), `:7:6: forward "f203.0.113.1": to: 255.255.255.255 is the broadcast address`},
		"to link-local":   {wan + to("2001:db8::1", "fe80::1"), `:7:6: forward "f2001.db8..1": to: fe80::1 is a link-local address`},
		"across families": {wan + to("203.0.113.1", "fd00::1"), `:7:6: forward "f203.0.113.1": to: fd00::1 is an IPv6 address, but the external address 203.0.113.1 is IPv4`},
		"escape in name":  {wan + forward("\x1b[31m\n", "80"), "is not a name for a forward"},
		"huge":            {wan + "#" + strings.Repeat("x", 17<<20), "larger than 16 MiB"},
		"many problems":   {wan + strings.Repeat("[[forward]]\n", 5000), "more problems"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "x.toml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			pins := filepath.Join(dir, "none")
			for _, words := range [][]string{{"check", path}, {"diff", path}, {"apply", path}, {"-c", path, "attach"}, {"-c", path, "run"}} {
				stdout, stderr, code := try(t, append([]string{"--bpffs", pins}, words...)...)
				if code != exitInvalid || stdout != "" {
					t.Fatalf("%s: exit code %d, want %d; stdout %q, stderr %.500s", words, code, exitInvalid, stdout, stderr)
				}
				if !strings.Contains(stderr, c.want) || !strings.Contains(stderr, path) {
					t.Errorf("%s: %.1000s\nlacks %q or the file", words, stderr, c.want)
				}
				if strings.ContainsAny(stderr, "\x00\x1b\x7f") || len(stderr) > 64<<10 {
					t.Errorf("%s: %d bytes of message, or something in it moves the cursor: %.500q", words, len(stderr), stderr)
				}
			}
			if _, err := os.Lstat(pins); !os.IsNotExist(err) {
				t.Errorf("the directory of the pins: %v, want none", err)
			}
		})
	}
}

func TestOddFilesThatAreValid(t *testing.T) {
	var many strings.Builder
	many.WriteString("version = 1\n[interfaces]\nwan = [\"wan0\"]\n")
	for port := 1; port <= 65535; port++ {
		fmt.Fprintf(&many, "[[forward]]\nname = \"p%d\"\nprotocol = \"tcp\"\nport = %d\nto = \"192.168.1.20\"\n", port, port)
	}
	for name, c := range map[string]struct{ text, want string }{
		"CR LF":            {"version = 1\r\n[interfaces]\r\nwan = [\"wan0\"]\r\n", "valid, 0 forwards"},
		"every port there": {many.String(), "valid, 65535 forwards"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.toml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, stderr, code := try(t, "check", path); code != exitDone || !strings.Contains(stderr, c.want) {
				t.Errorf("exit code %d, want %d and %q: %.500s", code, exitDone, c.want, stderr)
			}
		})
	}
}

// try runs one command in this process.
func try(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, talk bytes.Buffer
	code = run(context.Background(), env{stdin: strings.NewReader(""), stdout: &out, stderr: &talk, getenv: func(string) string { return "" }}, args)
	return out.String(), talk.String(), code
}
