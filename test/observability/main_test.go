// SPDX-License-Identifier: Apache-2.0

// Package observability tests what watches hairpin: the metrics as Prometheus takes them, the alerts, the dashboard and the status page.
package observability

import (
	"testing"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
