// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// serialLine returns two terminals between which bytes are carried until the test ends.
func serialLine(t *testing.T) (devices [2]string) {
	t.Helper()
	var masters [2]*os.File
	for i := range masters {
		var err error
		if masters[i], devices[i], err = pseudoTerminal(t); err != nil {
			t.Fatalf("open pseudo terminal: %v", err)
		}
	}
	for i := range masters {
		go io.Copy(masters[i], masters[1-i])
	}
	return devices
}

// pseudoTerminal opens one that passes every byte on as it is. Its other side stays open, too, so that
// there is no hangup before a daemon opens it.
func pseudoTerminal(t *testing.T) (master *os.File, device string, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", err
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { master.Close() })
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, "", err
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, "", err
	}
	device = fmt.Sprintf("/dev/pts/%d", number)
	slave, err := unix.Open(device, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", err
	}
	t.Cleanup(func() { unix.Close(slave) })
	mode, err := unix.IoctlGetTermios(slave, unix.TCGETS)
	if err != nil {
		return nil, "", err
	}
	mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0
	mode.Cflag = mode.Cflag&^unix.CSIZE | unix.CS8 | unix.CREAD
	return master, device, unix.IoctlSetTermios(slave, unix.TCSETS, mode)
}
