// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/trust"
)

// checkProgram fails if another user could have written the program, because it runs as root; see
// trust.Check. A program that does not exist is no error here: running it gives a better error. A user who
// can write to the directory could exchange the program between check and start. Running the open
// descriptor would prevent that, but it does not work for scripts.
func checkProgram(name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return trust.Check(path, info)
}

// runCommand runs a program until it ends. After patience it kills the program and all processes that the
// program started. The error contains the program's output.
func runCommand(ctx context.Context, patience time.Duration, words []string) error {
	if err := checkProgram(words[0]); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	command := exec.CommandContext(limited, words[0], words[1:]...)
	output := &headBuffer{limit: 1024}
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return unix.Kill(-command.Process.Pid, unix.SIGKILL) }
	command.WaitDelay = time.Second
	err := command.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(limited.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("killed because it was not finished after %s", patience)
	}
	err = fmt.Errorf("%q: %w", strings.Join(words, " "), err)
	if text := strings.TrimSpace(string(output.head)); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// headBuffer keeps the first limit bytes that are written to it.
type headBuffer struct {
	head  []byte
	limit int
}

// Write implements io.Writer.
func (b *headBuffer) Write(data []byte) (int, error) {
	b.head = append(b.head, data[:min(len(data), b.limit-len(b.head))]...)
	return len(data), nil
}
