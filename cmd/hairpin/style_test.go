// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal and returns its user's side.
func terminal(t *testing.T) *os.File {
	t.Helper()
	main, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { main.Close() })
	number, err := unix.IoctlGetInt(int(main.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(main.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	user, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	return user
}

// TestColorOfOutputs: only a terminal gets colors, unless the user says otherwise.
func TestColorOfOutputs(t *testing.T) {
	tty := terminal(t)
	pipe, _, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, c := range []struct {
		name, mode, noColor, term string
		out                       any
		want                      bool
	}{
		{"a terminal", "auto", "", "xterm", tty, true},
		{"a terminal, NO_COLOR", "auto", "1", "xterm", tty, false},
		{"a terminal without colors", "auto", "", "dumb", tty, false},
		{"a terminal, never", "never", "", "xterm", tty, false},
		{"a terminal, NO_COLOR, always", "always", "1", "xterm", tty, true},
		{"a pipe", "auto", "", "xterm", pipe, false},
		{"a pipe, always", "always", "", "xterm", pipe, true},
		{"a device that is no terminal", "auto", "", "xterm", null, false},
		{"memory", "auto", "", "xterm", &bytes.Buffer{}, false},
	} {
		getenv := func(name string) string { return map[string]string{"NO_COLOR": c.noColor, "TERM": c.term}[name] }
		out := c.out.(interface{ Write([]byte) (int, error) })
		if got := bool(newPainter(c.mode, out, getenv)); got != c.want {
			t.Errorf("%s: colors %v, want %v", c.name, got, c.want)
		}
	}
}

// TestColorOfTables: only the header, states and refusals have colors, and the columns stay where they are without colors. A cell
// cannot bring colors of its own.
func TestColorOfTables(t *testing.T) {
	print := func(styled painter) string {
		var out bytes.Buffer
		table := newTable(&out, "NAME", "STATE", "REFUSED", "LAST")
		table.styled = styled
		table.row("世界", "established", "0", "x")
		table.row("\x1b[31mred", "half-open", "7", "attached")
		if err := table.flush(); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	want := "<1>NAME<0>         <1>STATE<0>        <1>REFUSED<0>  <1>LAST<0>\n" +
		"世界         <32>established<0>  0        x\n" +
		`\x1b[31mred  <33>half-open<0>    <33>7<0>        attached` + "\n"
	got := print(true)
	shown := strings.NewReplacer("\x1b[", "<", "m", ">").Replace(strings.ReplaceAll(got, `[31mred`, `[31MRED`))
	if shown = strings.ReplaceAll(shown, "[31MRED", "[31mred"); shown != want {
		t.Errorf("got\n%s\nwant\n%s", shown, want)
	}
	plain := got
	for _, s := range []style{"0", styleBold, styleGreen, styleYellow} {
		plain = strings.ReplaceAll(plain, "\x1b["+string(s)+"m", "")
	}
	if plain != print(false) || strings.Contains(print(false), "\x1b") {
		t.Errorf("without colors\n%s\nwith colors, less the colors\n%s", print(false), plain)
	}
}

// TestColorOption: an unknown word is refused. What --color says is in force for errors, too, also for those of usage.
func TestColorOption(t *testing.T) {
	for _, c := range []struct {
		args, want string
		lacks      string
	}{
		{"--color red version", `--color "red" is not known; possible are auto, always and never`, "\x1b"},
		{"--color alwas version", `did you mean "always"?`, "\x1b"},
		{"--color always statsu", "\x1b[31mhairpin:\x1b[0m unknown command", ""},
		{"--color always -c none check", "\x1b[31mhairpin:\x1b[0m read configuration", ""},
		{"--color auto -c none check", "hairpin: read configuration", "\x1b"},
		{"-c none check", "hairpin: read configuration", "\x1b"},
	} {
		var out, errs bytes.Buffer
		code := run(context.Background(), env{stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}, strings.Fields(c.args))
		if code != exitInvalid || !strings.Contains(errs.String(), c.want) || c.lacks != "" && strings.Contains(errs.String(), c.lacks) {
			t.Errorf("%s: exit code %d, %q lacks %q, or has %q", c.args, code, &errs, c.want, c.lacks)
		}
	}
}

func TestDisplayWidth(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "abc": 3, "世界": 4, "é": 1, "e\u0301": 1, "ﬁ": 1, "Ａ": 2, "🙂": 2, "Привет": 6,
	} {
		if got := displayWidth(text); got != want {
			t.Errorf("%q takes %d columns, want %d", text, got, want)
		}
	}
}
