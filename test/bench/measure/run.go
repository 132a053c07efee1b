// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"

	"hairpin/test/bench/traffic"
	"hairpin/test/lab"
)

// The verdicts of TC and XDP programs: linux/pkt_cls.h and linux/bpf.h.
const (
	TCUnspec   = math.MaxUint32
	TCRedirect = 7

	XDPPass     = 2
	XDPRedirect = 4
)

// repeats is the number of runs in a slice: a slice then takes some 10 ms.
const repeats = 100_000

// ErrAnswer: a program returned a verdict other than Run.Code.
var ErrAnswer = errors.New("wrong answer")

// Run is a program, and the stream of packets that it is run on.
type Run struct {
	Hook    traffic.Hook
	Program *ebpf.Program
	In      string // the router's interface that the packets come in by
	Stream  traffic.Stream
	Code    uint32 // the expected verdict
}

// Over returns the time of one run of the program, less the time of an empty program, in nanoseconds. It calls prepare before
// the program runs; prepare may be nil. The error is ErrAnswer if the verdict for the last packet was not r.Code. The next call
// continues the stream.
func (r *Run) Over(c *Clock, t *traffic.Traffic, router *lab.Host, prepare func() error) (float64, error) {
	empty, _, err := r.once(c, t, router, nil)
	if err != nil {
		return 0, err
	}
	if prepare != nil {
		if err := prepare(); err != nil {
			return 0, err
		}
	}
	full, code, err := r.once(c, t, router, r.Program)
	if err == nil && code != r.Code {
		err = fmt.Errorf("%w: %d, want %d", ErrAnswer, int32(code), int32(r.Code))
	}
	if r.Stream.Flows >= traffic.Block {
		r.Stream.From = (r.Stream.From + repeats) % r.Stream.Flows / traffic.Block * traffic.Block
	}
	return full - empty, err
}

func (r *Run) once(c *Clock, t *traffic.Traffic, router *lab.Host, program *ebpf.Program) (ns float64, code uint32, err error) {
	if err := t.Set(r.Stream); err != nil {
		return 0, 0, err
	}
	index := router.Index(r.In)
	took, err := c.Time(func() error {
		return router.Do(func() (err error) {
			code, err = t.Run(r.Hook, program, index, r.Stream.Frames[0].Data, repeats)
			return err
		})
	})
	return float64(took.CPU.Nanoseconds()) / repeats, code, err
}
