// SPDX-License-Identifier: Apache-2.0

// Package detached starts a process that outlives the process, the terminal and the service that started it.
//
// The process gets a session of its own, so the end of the terminal does not reach it. Under systemd it gets a scope of its own, too:
// systemd ends every process in the control group of a service, or of a login, with that service or login. A scope, unlike a service
// that systemd itself starts, keeps the network and mount namespaces of the caller, in which the datapath is.
package detached

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readyLine is what the process writes when it has begun its work.
const readyLine = "ready\n"

// patience is the longest wait for readyLine.
const patience = 10 * time.Second

// Options say how the process is started.
type Options struct {
	// Args are the arguments of this program. Their paths must be absolute: the process runs in the root directory.
	Args []string
	// Scope is the program that makes a scope, "" for none; see FindScope.
	Scope string
}

// FindScope returns the path of systemd-run if systemd runs this machine, else "".
func FindScope() string {
	if info, err := os.Stat("/run/systemd/system"); err != nil || !info.IsDir() { // as sd_booted(3) does
		return ""
	}
	path, err := exec.LookPath("systemd-run")
	if err != nil {
		return ""
	}
	return path
}

// Start runs this program as a process of its own, and returns when the process has called Ready. If the scope cannot be made, the
// process runs without one.
func Start(o Options) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	words := append([]string{self}, o.Args...)
	if o.Scope != "" {
		if start(append([]string{o.Scope, "--scope", "--quiet", "--collect", "--"}, words...)) == nil {
			return nil
		}
	}
	return start(words)
}

func start(words []string) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	command := exec.Command(words[0], words[1:]...)
	command.Dir, command.Stdout = "/", writer
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = command.Start()
	writer.Close()
	if err != nil {
		return err
	}
	if err = awaitReady(reader); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", words[0], err), command.Process.Kill(), reap(command))
	}
	return command.Process.Release()
}

func reap(command *exec.Cmd) error {
	_ = command.Wait() // it was killed
	return nil
}

func awaitReady(reader *os.File) error {
	if err := reader.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	line, err := bufio.NewReader(reader).ReadString('\n')
	if err == nil && line != readyLine {
		err = fmt.Errorf("it said %q", line)
	}
	if err != nil {
		return fmt.Errorf("the process did not begin its work: %w", err)
	}
	return nil
}

// Ready tells the process that called Start that this process works now, and lets go of the pipe between them.
func Ready() error {
	if _, err := os.Stdout.WriteString(readyLine); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(int(null.Fd()), int(os.Stdout.Fd()), 0)
}
