// SPDX-License-Identifier: Apache-2.0

// Package screen redraws lines on a terminal. It knows nothing of what the lines say.
package screen

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Control sequences of ECMA-48 and xterm.
const (
	enter = "\x1b[?1049h\x1b[?25l" // the alternate screen, without a cursor
	leave = "\x1b[?25h\x1b[?1049l"
	home  = "\x1b[H"
	erase = "\x1b[K" // the rest of the line
	below = "\x1b[J" // all lines below
)

const interrupt = 3 // Ctrl-C, which is no signal while keys are read one by one

// Screen is a terminal that shows lines.
type Screen struct {
	out     *os.File
	in      *os.File
	before  *term.State // of in; nil: in is no terminal
	resized chan os.Signal
	quit    chan struct{}
}

// IsTerminal reports whether a command's output is a terminal.
func IsTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// Open takes the terminal out. Keys come from in, if that is a terminal, too. The caller must call Close, which gives the terminal
// back as it was.
func Open(in io.Reader, out *os.File) (*Screen, error) {
	s := &Screen{out: out, resized: make(chan os.Signal, 1), quit: make(chan struct{})}
	if file, ok := in.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		before, err := term.MakeRaw(int(file.Fd()))
		if err != nil {
			return nil, fmt.Errorf("read single keys: %w", err)
		}
		s.in, s.before = file, before
		go s.readKeys()
	}
	signal.Notify(s.resized, unix.SIGWINCH)
	if _, err := io.WriteString(out, enter); err != nil {
		return nil, errors.Join(fmt.Errorf("take the terminal: %w", err), s.Close())
	}
	return s, nil
}

// readKeys waits for the key that ends the command. It ends with the process: nobody can interrupt a read of a terminal.
func (s *Screen) readKeys() {
	key := make([]byte, 1)
	for {
		n, err := s.in.Read(key)
		if err != nil || n == 1 && (key[0] == 'q' || key[0] == 'Q' || key[0] == interrupt) {
			close(s.quit)
			return
		}
	}
}

// Quit is closed when the user presses q or Ctrl-C.
func (s *Screen) Quit() <-chan struct{} { return s.quit }

// Resized gets a signal when the terminal has another size: draw again.
func (s *Screen) Resized() <-chan os.Signal { return s.resized }

// Draw shows the lines that fit, each cut at the width of the terminal.
func (s *Screen) Draw(text string) error {
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	var frame strings.Builder
	frame.WriteString(home)
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines[:min(len(lines), height)] {
		if i > 0 {
			frame.WriteString("\r\n")
		}
		frame.WriteString(cut(line, width) + erase)
	}
	frame.WriteString(below)
	if _, err := io.WriteString(s.out, frame.String()); err != nil {
		return fmt.Errorf("draw: %w", err)
	}
	return nil
}

// cut returns the first columns of a line of printable characters.
func cut(line string, width int) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width])
}

// Close gives the terminal back.
func (s *Screen) Close() error {
	signal.Stop(s.resized)
	_, err := io.WriteString(s.out, leave)
	if s.before != nil {
		if restored := term.Restore(int(s.in.Fd()), s.before); err == nil {
			err = restored
		}
	}
	if err != nil {
		return fmt.Errorf("give the terminal back: %w", err)
	}
	return nil
}
