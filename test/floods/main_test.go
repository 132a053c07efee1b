// SPDX-License-Identifier: Apache-2.0

package floods

import (
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
