// SPDX-License-Identifier: Apache-2.0

// Package torture proves what hairpin promises under attack, death and change, with a figure for each promise. The figures depend on
// the processor time that a scenario gets, so nothing else may run beside it.
package torture

import (
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
