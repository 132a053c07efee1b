// SPDX-License-Identifier: Apache-2.0

// Package devices serves both families over every kind of device that this kernel has, and keeps the result in DEVICES.md. Kinds of
// other kernels are in package kernels.
package devices

import (
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
