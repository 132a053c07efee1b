// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"syscall"
	"testing"
)

// SetFault makes fail decide which steps fail, until the test ends.
func SetFault(tb testing.TB, fail func(step string) error) {
	before := fault
	fault = fail
	tb.Cleanup(func() { fault = before })
}

// ClassifyRoute and ClassifyNetdev are what Follow makes of a message of either family.
func ClassifyRoute(message syscall.NetlinkMessage) Event  { return classifyRoute(message) }
func ClassifyNetdev(message syscall.NetlinkMessage) Event { return classifyNetdev(message) }

// CheckVersion is what Load does with LINUX_VERSION_CODE.
func CheckVersion(code uint32) error { return checkVersion(code) }
