// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"slices"
	"strings"
	"testing"
)

// What a test would do at its end is done at the end of a play, also where it fails half-way or in a cleanup.
func TestPlay(t *testing.T) {
	var did []string
	err := Play(context.Background(), func(tb testing.TB) {
		tb.Cleanup(func() { did = append(did, "first") })
		tb.Cleanup(func() {
			did = append(did, "second")
			tb.Fatal("cannot", "clean up")
		})
		tb.Errorf("%d is wrong", 1)
		tb.Fatalf("%d is fatal", 2)
		did = append(did, "went on")
	})
	if want := []string{"second", "first"}; !slices.Equal(did, want) {
		t.Errorf("did %q, want %q", did, want)
	}
	for _, problem := range []string{"1 is wrong", "2 is fatal", "cannot clean up"} {
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("error %v, want %q in it", err, problem)
		}
	}
	if err := Play(context.Background(), func(testing.TB) {}); err != nil {
		t.Errorf("a play without problems: %v", err)
	}
}
