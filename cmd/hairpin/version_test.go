// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
)

// TestVersionOfRelease: "make build" sets main.release with -X, so the variable must keep its name.
func TestVersionOfRelease(t *testing.T) {
	t.Cleanup(func() { release = "" })
	release = "v1.2.3-4-gabcdef0"

	var stdout, stderr bytes.Buffer
	world := env{stdout: &stdout, stderr: &stderr}
	if code := run(context.Background(), world, []string{"version"}); code != exitDone {
		t.Fatalf("version: exit code %d: %s", code, &stderr)
	}
	if !strings.HasPrefix(stdout.String(), "hairpin "+release+" ") {
		t.Errorf("version says %q, want %q in it", &stdout, release)
	}

	stdout.Reset()
	if code := run(context.Background(), world, []string{"-j", "version"}); code != exitDone {
		t.Fatalf("-j version: exit code %d: %s", code, &stderr)
	}
	var document struct{ Version build }
	if err := json.Unmarshal(stdout.Bytes(), &document); err != nil {
		t.Fatal(err)
	}
	if document.Version.Version != release {
		t.Errorf("-j version says %q, want %q", document.Version.Version, release)
	}
}

func TestVersionOfWorkTree(t *testing.T) {
	if got := buildInfo(); got.Version == "" || got.Schema == 0 {
		t.Errorf("build info lacks version or schema: %+v", got)
	}
}
