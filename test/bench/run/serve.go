// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"hairpin/test/bench/measure"
	"hairpin/test/bench/traffic"
	"hairpin/test/lab"
)

// Each object is measured by a process of its own, because an object of another tree needs that tree's Go code. The parent
// sends each process requests for slices, one a line.

// greeting is the first line that such a process writes.
type greeting struct {
	Sizes map[traffic.Hook]size `json:"sizes"`
	Kinds []string              `json:"kinds"`
}

// request asks for one slice.
type request struct {
	Hook traffic.Hook `json:"hook"`
	Kind int          `json:"kind"` // index of greeting.Kinds
}

// slice is the answer to a request: the time of one run, less the time of an empty program.
type slice struct {
	Nanoseconds float64 `json:"ns"`
	Error       string  `json:"error,omitempty"`
}

var hooks = []traffic.Hook{traffic.XDP, traffic.TC}

// serve answers requests until the input ends.
func serve(ctx context.Context, c *measure.Clock, object string, in io.Reader, out io.Writer) error {
	return lab.Play(ctx, func(tb testing.TB) {
		s := newStand(tb, object)
		all := kinds(s.lanMAC, s.wanMAC)
		answers := json.NewEncoder(out)
		s.must("greet", answers.Encode(s.greet(all)))
		runs := make(map[request]*measure.Run)
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			var r request
			s.must("read request", json.Unmarshal(lines.Bytes(), &r))
			if runs[r] == nil {
				k := all[r.Kind]
				runs[r] = &measure.Run{Hook: r.Hook, Program: s.program(r.Hook), In: k.in, Stream: k.stream, Code: k.code(r.Hook)}
			}
			s.must("answer", answers.Encode(s.slice(c, runs[r], all[r.Kind])))
		}
	})
}

func (s *stand) greet(all []kind) greeting {
	s.tb.Helper()
	g := greeting{Sizes: make(map[traffic.Hook]size)}
	for _, hook := range hooks {
		size, err := sizeOf(s.program(hook))
		s.must("size", err)
		g.Sizes[hook] = size
	}
	for _, k := range all {
		g.Kinds = append(g.Kinds, k.name)
	}
	return g
}

// slice measures one slice. It tries again if a next hop became older than a second meanwhile: XDP then leaves packets to TC.
func (s *stand) slice(c *measure.Clock, r *measure.Run, k kind) (answer slice) {
	var err error
	for range 3 {
		answer.Nanoseconds, err = r.Over(c, s.traffic, s.router, func() error { return s.prepare(k) })
		if !errors.Is(err, measure.ErrAnswer) {
			break
		}
	}
	if err != nil {
		answer.Error = err.Error()
	}
	return answer
}
