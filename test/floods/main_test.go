// SPDX-License-Identifier: Apache-2.0

// Package floods measures what clients get while their router is flooded, with hairpin and with nftables. The outcome depends on the
// processor time that a test gets, so nothing else may run beside it.
package floods

import (
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
