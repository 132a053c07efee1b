// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// tracedPacket has the JSON fields of a traced packet.
type tracedPacket struct {
	Interface      string
	Hook           string
	Protocol       string
	Source         string
	Destination    string
	Flags          string `json:"tcp_flags"`
	Length         int
	Verdict        string
	Reason         string
	Told           bool
	Forward        string
	Sender         string
	NewSource      string `json:"new_source"`
	NewDestination string `json:"new_destination"`
	Output         string
}

// trace is a running "hairpin trace -j".
type trace struct {
	t       *testing.T
	process *lab.Process
}

// startTrace returns when the trace is attached.
func startTrace(t *testing.T, hp *lab.Hairpin, args ...string) *trace {
	t.Helper()
	tr := &trace{t, hp.Spawn(append([]string{"-j", "trace"}, args...)...)}
	awaitStderr(t, tr.process, "tracing")
	return tr
}

// awaitStderr waits until a process has said a text.
func awaitStderr(t *testing.T, p *lab.Process, text string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if said := p.Stderr.String(); !strings.Contains(said, text) {
			return fmt.Errorf("no %q: %s", text, said)
		}
		return nil
	})
}

// stop ends the trace by Ctrl-C. It returns the packets and how many are lost.
func (tr *trace) stop() (packets []tracedPacket, lost int) {
	tr.t.Helper()
	tr.process.Signal(unix.SIGINT)
	return tr.result()
}

// result waits for the end of the trace.
func (tr *trace) result() (packets []tracedPacket, lost int) {
	tr.t.Helper()
	if code := tr.process.Wait(); code != 0 {
		tr.t.Fatalf("trace: exit code %d\n%s", code, tr.process.Stderr)
	}
	for line := range strings.Lines(tr.process.Stdout.String()) {
		var document struct {
			Schema int
			Packet *tracedPacket
			Trace  *struct{ Packets, Lost int }
		}
		if err := json.Unmarshal([]byte(line), &document); err != nil || document.Schema != 1 {
			tr.t.Fatalf("%v: %s", err, line)
		}
		switch {
		case document.Packet != nil:
			packets = append(packets, *document.Packet)
		case document.Trace != nil:
			lost = document.Trace.Lost
			if document.Trace.Packets != len(packets) {
				tr.t.Errorf("%d packets were printed, but the end says %d", len(packets), document.Trace.Packets)
			}
		}
	}
	return packets, lost
}

// awaitPackets waits until the trace has printed a packet that is as want says.
func (tr *trace) await(what string, want func(tracedPacket) bool) {
	tr.t.Helper()
	lab.Eventually(tr.t, lab.Patience, func() error {
		for line := range strings.Lines(tr.process.Stdout.String()) {
			var document struct{ Packet *tracedPacket }
			if json.Unmarshal([]byte(line), &document) == nil && document.Packet != nil && want(*document.Packet) {
				return nil
			}
		}
		return fmt.Errorf("no %s:\n%s", what, tr.process.Stdout)
	})
}

// TestTraceShowsAConnection: both directions of a connection, before and after, by way and mode.
func TestTraceShowsAConnection(t *testing.T) {
	for _, mode := range home.Modes {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		hp := home.Start(t, n, mode, home.Forwards)
		for _, way := range home.Ways(n) {
			t.Run(mode+", "+way.Name, func(t *testing.T) {
				tr := startTrace(t, hp.For(t), "forward", "web")
				c, err := way.From.DialTCP(lab.External+":80", "", lab.Patience)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := c.Echo(100); err != nil {
					t.Fatal(err)
				}
				client := c.LocalAddr().String()
				tr.await("SYN/ACK to the client", func(p tracedPacket) bool { return p.Flags == "SA" && p.NewDestination == client })
				packets, lost := tr.stop()
				t.Logf("%+v", packets)
				if lost != 0 {
					t.Errorf("%d packets lost", lost)
				}
			})
		}
	}
}
