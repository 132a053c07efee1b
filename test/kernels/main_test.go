// SPDX-License-Identifier: Apache-2.0

// Package kernels tests what depends on the kernel: every kind of device, nftables beside hairpin, the
// floor. Its tests run anywhere, but for the devices that the kernel lacks; in the guests of boot
// nothing may be lacking.
package kernels

import (
	"os"
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// lacking skips a test for want of something in the kernel or among the programs, or fails it in a
// guest, which was built to have it.
func lacking(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("HAIRPIN_GUEST") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
