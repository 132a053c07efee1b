// SPDX-License-Identifier: Apache-2.0

// Package program puts single packets through both programs by BPF_PROG_TEST_RUN: a table of packets, fuzzed packets, races.
// Every byte that leaves is compared. No packet of it crosses a wire.
package program

import (
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(covered{m}) }
