// SPDX-License-Identifier: Apache-2.0

// Package control runs the command line and the daemon with the real programs: attach, detach, upgrade, configuration, metrics, name
// servers. Whether every packet is translated right is not its question.
package control

import (
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
