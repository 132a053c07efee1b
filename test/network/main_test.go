// SPDX-License-Identifier: Apache-2.0

// Package network sends real traffic between namespaces, through the installed programs, with offloads on and off. It looks at what
// arrives, not at what hairpin says of itself.
package network

import (
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
