// SPDX-License-Identifier: Apache-2.0

// Package conformance measures hairpin against the RFCs on the behaviour of NATs, requirement by requirement, and keeps the result in
// CONFORMANCE.md.
package conformance

import (
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
