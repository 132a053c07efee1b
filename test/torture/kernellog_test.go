// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kernelLog reads the kernel's messages from when it was opened.
type kernelLog struct{ fd int }

func openKernelLog(t *testing.T) *kernelLog {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Seek(fd, 0, unix.SEEK_END)
	}
	if err != nil {
		t.Fatalf("open the kernel's log: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &kernelLog{fd}
}

// warning is the highest level of a message that is a warning: linux/kern_levels.h, KERN_WARNING.
const warning = 4

// report is messages that a scenario causes on purpose: the message that contains from, and all up to the message that contains to.
type report struct{ from, to string }

// complaints returns the new messages of level warning and worse, without the expected reports.
func (l *kernelLog) complaints(t *testing.T, expected []report) (complaints []string) {
	t.Helper()
	record := make([]byte, 8192)
	var within *report
	for {
		n, err := unix.Read(l.fd, record)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return complaints
		case err != nil: // EPIPE: the kernel has overwritten messages before they were read
			t.Fatalf("read the kernel's log: %v", err)
		}
		// Documentation/ABI/testing/dev-kmsg: PRIORITY,SEQUENCE,TIME,FLAGS;TEXT. The priority includes the facility.
		head, text, _ := strings.Cut(string(record[:n]), ";")
		priority, _, _ := strings.Cut(head, ",")
		level, err := strconv.Atoi(priority)
		if err != nil {
			t.Fatalf("the kernel's log: %q has no priority", record[:n])
		}
		for i, e := range expected {
			if within == nil && strings.Contains(text, e.from) {
				within = &expected[i]
			}
		}
		if within != nil {
			if strings.Contains(text, within.to) {
				within = nil
			}
		} else if level&7 <= warning {
			complaints = append(complaints, text)
		}
	}
}
