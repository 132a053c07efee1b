// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
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

// connEvent has the JSON fields of an event of a connection.
type connEvent struct {
	Event, Protocol, Path, Forward, Client, External, Source, Target, Reason string
	Packets, Bytes                                                           int64
}

// document is a line of a trace, a watch or a log.
type document struct {
	Schema int
	Packet *tracedPacket
	Event  *connEvent
	Trace  *struct{ Packets, Lost int }
}

// tracing is a running "hairpin -j trace" or "hairpin -j watch conn".
type tracing struct {
	t       *testing.T
	process *lab.Process
}

// startTracing returns when the trace is attached. Without a kernel that can trace programs it ends the test.
func startTracing(t *testing.T, hp *lab.Hairpin, args ...string) *tracing {
	t.Helper()
	tr := &tracing{t, hp.Spawn(args...)}
	lab.Eventually(t, lab.Patience, func() error {
		said := tr.process.Stderr.String()
		if strings.Contains(said, "Ctrl-C ends") {
			return nil
		}
		select {
		case <-tr.process.Done():
			if code := tr.process.Wait(); code != 2 {
				t.Fatalf("%v: exit code %d, want 2 where the kernel refuses\n%s", args, code, said)
			}
			lacking(t, "the kernel refuses to trace programs: %s", said)
		default:
		}
		return fmt.Errorf("%v does not begin: %s", args, said)
	})
	return tr
}

func (tr *tracing) documents() (all []document) {
	for line := range strings.Lines(tr.process.Stdout.String()) {
		var d document
		if strings.HasSuffix(line, "\n") && (json.Unmarshal([]byte(line), &d) != nil || d.Schema != 1) {
			tr.t.Fatalf("no document of schema 1: %s", line)
		}
		all = append(all, d)
	}
	return all
}

// awaitPacket waits until a packet is shown that is as want says.
func (tr *tracing) awaitPacket(what string, want func(*tracedPacket) bool) *tracedPacket {
	tr.t.Helper()
	var found *tracedPacket
	lab.Eventually(tr.t, lab.Patience, func() error {
		for _, d := range tr.documents() {
			if d.Packet != nil && want(d.Packet) {
				found = d.Packet
				return nil
			}
		}
		return fmt.Errorf("no %s:\n%s", what, tr.process.Stdout)
	})
	return found
}

// awaitEvent waits until an event is shown that is as want says.
func (tr *tracing) awaitEvent(what string, want func(*connEvent) bool) *connEvent {
	tr.t.Helper()
	var found *connEvent
	lab.Eventually(tr.t, lab.Patience, func() error {
		for _, d := range tr.documents() {
			if d.Event != nil && want(d.Event) {
				found = d.Event
				return nil
			}
		}
		return fmt.Errorf("no event %s:\n%s", what, tr.process.Stdout)
	})
	return found
}

// stop ends the trace by Ctrl-C. It returns the packets, and how many are lost.
func (tr *tracing) stop() (packets []tracedPacket, lost int) {
	tr.t.Helper()
	tr.process.Signal(unix.SIGINT)
	return tr.result()
}

func (tr *tracing) result() (packets []tracedPacket, lost int) {
	tr.t.Helper()
	if code := tr.process.Wait(); code != 0 {
		tr.t.Fatalf("exit code %d\n%s", code, tr.process.Stderr)
	}
	for _, d := range tr.documents() {
		if d.Packet != nil {
			packets = append(packets, *d.Packet)
		}
		if d.Trace != nil {
			lost = d.Trace.Lost
			if d.Trace.Packets != len(packets) {
				tr.t.Errorf("%d packets were printed, but the end says %d", len(packets), d.Trace.Packets)
			}
		}
	}
	return packets, lost
}

// tracingPrograms counts the programs that a trace has loaded.
func tracingPrograms(t *testing.T) (count int) {
	t.Helper()
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it has gone a moment ago
		}
		info, err := program.Info()
		program.Close()
		if err == nil && strings.HasPrefix(info.Name, "trace_") {
			count++
		}
	}
	return count
}

// nothingAttached waits until the kernel has removed the tracing programs.
func nothingAttached(t *testing.T, after string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if n := tracingPrograms(t); n > 0 {
			return fmt.Errorf("%s: %d tracing programs are left", after, n)
		}
		return nil
	})
}

// startHome starts the usual network with hairpin on its router.
func startHome(t *testing.T, mode, config string) (*lab.Network, *lab.Hairpin) {
	t.Helper()
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5353")
	return n, home.Start(t, n, mode, home.Forwards+config)
}

// connect opens a connection to the web server, and sends some bytes to and fro.
func connect(t *testing.T, from *lab.Host) *lab.Conn {
	t.Helper()
	c, err := from.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Echo(100); err != nil {
		t.Fatal(err)
	}
	return c
}

// sendsByXDP reports whether XDP sends frames in the lab. Before Linux 6.3 a device does not say whether it transmits frames of XDP, so
// TC sends to its veths.
func sendsByXDP(t *testing.T) bool {
	t.Helper()
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	return version >= 6<<16|3<<8
}

// TestTracePackets: both directions of a connection, before and after, on each way and in each mode; what is refused and what passes.
func TestTracePackets(t *testing.T) {
	for _, mode := range home.Modes {
		n, hp := startHome(t, mode, "")
		for _, way := range home.Ways(n) {
			t.Run(mode+", "+way.Name, func(t *testing.T) {
				tr := startTracing(t, hp.For(t), "-j", "trace", "forward", "web")
				client := connect(t, way.From).LocalAddr().String()
				in, out := "lan0", "lan0"
				switch way.From {
				case n.Internet:
					in = "wan0"
				case n.Guest:
					in = "lan1"
				}
				request := tr.awaitPacket("SYN", func(p *tracedPacket) bool { return p.Flags == "S" && p.Source == client && p.Verdict == "send" })
				if request.Interface != in || request.Output != out || request.Destination != lab.External+":80" || request.NewDestination != lab.Server+":8080" ||
					!strings.HasPrefix(request.NewSource, way.Sees.String()+":") || request.Forward != "web" || request.Sender != "client" || request.Protocol != "tcp" || request.Length < 40 {
					t.Errorf("the SYN: %+v", request)
				}
				answer := tr.awaitPacket("SYN/ACK", func(p *tracedPacket) bool { return p.Flags == "SA" && p.NewDestination == client })
				if answer.Source != lab.Server+":8080" || answer.Destination != request.NewSource || answer.NewSource != lab.External+":80" ||
					answer.Interface != out || answer.Output != in || answer.Forward != "web" || answer.Sender != "server" {
					t.Errorf("the SYN/ACK: %+v", answer)
				}
				packets, lost := tr.stop()
				hooks := map[string]bool{}
				for _, p := range packets {
					if p.Verdict == "send" || !sendsByXDP(t) {
						hooks[p.Hook] = true
					}
					if p.Forward != "web" {
						t.Errorf("a packet of another forward: %+v", p)
					}
				}
				if want := mode; !hooks[want] || lost != 0 {
					t.Errorf("hooks %v, want %s among them; %d lost", hooks, want, lost)
				}
			})
		}
		t.Run(mode+", refused", func(t *testing.T) {
			hp := hp.For(t)
			hp.Run("deny", "add", lab.Guest)
			tr := startTracing(t, hp, "-j", "trace", "forward", "web")
			if c, err := n.Guest.DialTCP(lab.External+":80", "", lab.Patience); err == nil {
				c.Close()
				t.Error("a denied client was served")
			}
			p := tr.awaitPacket("refused SYN", func(p *tracedPacket) bool { return p.Verdict == "refuse" })
			if p.Reason != "denied" || p.Forward != "web" || !strings.HasPrefix(p.Source, lab.Guest+":") || p.NewSource != "" || p.Output != "" || !p.Told {
				t.Errorf("%+v", p)
			}
			if mode == "xdp" {
				tr.awaitPacket("SYN that XDP leaves to TC", func(p *tracedPacket) bool { return p.Verdict == "defer" && p.Hook == "xdp" && p.Reason == "denied" })
			}
			tr.stop()
			hp.Run("deny", "del", lab.Guest)
		})
		t.Run(mode+", passed", func(t *testing.T) {
			tr := startTracing(t, hp.For(t), "-j", "trace", "client", lab.Client, "proto", "udp")
			d, err := n.Client.DialUDP(lab.InternetSource+":7000", "")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := d.Write([]byte("nobody masquerades, so nobody answers")); err != nil {
				t.Fatal(err)
			}
			p := tr.awaitPacket("passed datagram", func(p *tracedPacket) bool { return p.Verdict == "pass" && p.Hook == "tc" })
			if p.Forward != "" || p.Reason != "" || p.Destination != lab.InternetSource+":7000" || p.NewSource != "" {
				t.Errorf("%+v", p)
			}
			tr.stop()
		})
	}
}

// TestTraceFilters: each condition alone lets the packets of one connection through, or none. Conditions of a trace are all in force.
func TestTraceFilters(t *testing.T) {
	n, hp := startHome(t, "tc", "")
	filters := map[string]bool{
		"": true, "forward web": true, "forward dns": false,
		"client " + lab.Client: true, "client " + lab.Guest: false, "client 192.168.1.0/24": true,
		"port 80": true, "port 8080": true, "port 81-8000": false, "port 443": false,
		"interface lan0": true, "interface lan1": false,
		"proto tcp": true, "proto udp": false, "proto icmp": false,
		"forward web client 192.168.1.0/24 port 80 interface lan0 proto tcp": true,
		"forward web client " + lab.Guest:                                    false,
	}
	running := map[string]*tracing{}
	for filter := range filters {
		running[filter] = startTracing(t, hp, append([]string{"-j", "trace"}, strings.Fields(filter)...)...)
	}
	client := connect(t, n.Client).LocalAddr().String()
	running[""].awaitPacket("end of the echo", func(p *tracedPacket) bool { return p.NewDestination == client && p.Flags == "A" })
	for filter, want := range filters {
		packets, _ := running[filter].stop()
		requests := slices.ContainsFunc(packets, func(p tracedPacket) bool { return p.Source == client })
		answers := slices.ContainsFunc(packets, func(p tracedPacket) bool { return p.NewDestination == client })
		if requests != want || answers != want {
			t.Errorf("%q: requests %v, answers %v, want %v: %+v", filter, requests, answers, want, packets)
		}
	}
	for args, said := range map[string]string{"forward wbe": `"wbe"`, "interface lan7": `no interface "lan7"`} {
		if got := hp.Fail(3, append([]string{"trace"}, strings.Fields(args)...)...); !strings.Contains(got, said) {
			t.Errorf("%s: %s", args, got)
		}
	}
}

// TestTraceLimits: --count and --for end a trace, --sample thins it out, and packets that come while nobody reads are counted.
// Nothing of it disturbs the traffic. Nothing is left, even if the trace is killed.
func TestTraceLimits(t *testing.T) {
	n, hp := startHome(t, "tc", "")
	d, err := n.Client.DialUDP(lab.External+":53", "")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	exchange := func(count int) {
		t.Helper()
		if _, err := lab.Exchange(d, count, 100); err != nil {
			t.Fatal(err)
		}
	}
	counted := startTracing(t, hp, "-j", "trace", "forward", "dns", "--count", "3")
	all, sampled := startTracing(t, hp, "-j", "trace", "forward", "dns"), startTracing(t, hp, "-j", "trace", "forward", "dns", "--sample", "10")
	exchange(100)
	if packets, _ := counted.result(); len(packets) != 3 {
		t.Errorf("--count 3: %d packets", len(packets))
	}
	lab.Eventually(t, lab.Patience, func() error {
		if n := len(all.documents()); n < 200 {
			return fmt.Errorf("%d of 200 packets", n)
		}
		return nil
	})
	every, _ := all.stop()
	some, _ := sampled.stop()
	if want := (len(every) + 9) / 10; len(some) != want {
		t.Errorf("--sample 10: %d of %d packets, want %d", len(some), len(every), want)
	}
	if packets, _ := startTracing(t, hp, "-j", "trace", "forward", "web", "--for", "100ms").result(); len(packets) != 0 {
		t.Errorf("--for: %+v", packets)
	}
	nothingAttached(t, "after the traces")

	stopped := startTracing(t, hp, "-j", "trace", "forward", "dns")
	stopped.process.Signal(unix.SIGSTOP)
	exchange(5000) // 10,000 packets; the ring buffer has room for 7,000
	stopped.process.Signal(unix.SIGCONT)
	packets, lost := stopped.stop()
	if lost == 0 || lost+len(packets) < 7000 {
		t.Errorf("nobody read: %d packets, %d lost", len(packets), lost)
	}
	if said := stopped.process.Stderr.String(); !strings.Contains(said, fmt.Sprintf("lost %d packets", lost)) {
		t.Errorf("the end does not tell of %d lost packets: %s", lost, said)
	}

	killed := startTracing(t, hp, "-j", "trace")
	if tracingPrograms(t) == 0 {
		t.Error("no tracing programs are found while a trace runs")
	}
	killed.process.Signal(unix.SIGKILL)
	killed.process.Wait()
	nothingAttached(t, "killed")
	exchange(10)
}

// TestTraceFollowsAnUpgrade: a trace, a watch and the log go on with the new programs. When hairpin is removed, the trace ends and
// says so.
func TestTraceFollowsAnUpgrade(t *testing.T) {
	n, hp := startHome(t, "tc", "\n[log]\nconnections = \"text\"\n")
	tr, watch := startTracing(t, hp, "-j", "trace", "forward", "web"), startTracing(t, hp, "-j", "watch", "conn")
	for range 2 {
		hp.Run("upgrade")
		// The programs are followed within a tenth of a second: connections go on until one is seen.
		lab.Eventually(t, lab.Patience, func() error {
			client := connect(t, n.Client).LocalAddr().String()
			seen := func(p *lab.Process, text string) bool { return strings.Contains(p.Stdout.String(), text) }
			if !seen(tr.process, `"source":"`+client+`"`) || !seen(watch.process, `"client":"`+client+`"`) || !strings.Contains(hp.Log(), "client="+client) {
				return errors.New("the new programs are not traced")
			}
			return nil
		})
	}
	hp.Stop()
	hp.Run("detach", "--all")
	if code := tr.process.Wait(); code != 4 || !strings.Contains(tr.process.Stderr.String(), "not loaded") {
		t.Errorf("hairpin was removed: exit code %d, %s", code, tr.process.Stderr)
	}
	if code := watch.process.Wait(); code != 4 {
		t.Errorf("hairpin was removed: exit code %d of the watch", code)
	}
	nothingAttached(t, "hairpin was removed")
}

// TestTraceWritesPcapng: a file has both sides of a connection, each at its interface, with the decision as a comment.
func TestTraceWritesPcapng(t *testing.T) {
	for _, mode := range home.Modes {
		n, hp := startHome(t, mode, "")
		t.Run(mode, func(t *testing.T) {
			hp := hp.For(t)
			file := filepath.Join(t.TempDir(), "web.pcapng")
			tr := startTracing(t, hp, "trace", "forward", "web", "-w", file)
			c := connect(t, n.Client)
			if err := c.Echo(1000); err != nil { // more than is kept of a frame
				t.Fatal(err)
			}
			client := c.LocalAddr().String()
			var got []string
			lab.Eventually(t, lab.Patience, func() (err error) {
				if got, err = readPcapng(file); err != nil {
					return err
				}
				for _, want := range []string{
					`^lan0 ` + client + ` > 203.0.113.2:80 S arrived: send, forward web, `,
					`^lan0 192.168.1.1:\d+ > 192.168.1.20:8080 S left: send, forward web, `,
					`^lan0 192.168.1.20:8080 > 192.168.1.1:\d+ SA arrived: send, forward web, `,
					`^lan0 203.0.113.2:80 > ` + client + ` SA left: send, forward web, `,
					`^lan0 203.0.113.2:80 > ` + client + ` A left: send, forward web, \w+, \d+ of 10\d\d bytes$`,
				} {
					if !slices.ContainsFunc(got, regexp.MustCompile(want).MatchString) {
						return fmt.Errorf("no %s:\n%s", want, strings.Join(got, "\n"))
					}
				}
				return nil
			})
			tr.process.Signal(unix.SIGTERM)
			if code := tr.process.Wait(); code != 0 || tr.process.Stdout.String() != "" || !strings.Contains(tr.process.Stderr.String(), "wrote ") {
				t.Errorf("exit code %d, %s%s", code, tr.process.Stdout, tr.process.Stderr)
			}
			info, err := os.Stat(file)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the file: %v, %v", info, err)
			}
			wantTshark(t, n.Router.For(t), file, client)
			if said := hp.Fail(1, "trace", "-w", file); !strings.Contains(said, "exists already") {
				t.Errorf("the file is there already: %s", said)
			}
		})
	}
}

// wantTshark wants tshark to find both sides of the connection of client, and the length of frames of which not all is kept.
func wantTshark(t *testing.T, router *lab.Host, file, client string) {
	t.Helper()
	source := strings.Split(client, ":")
	got := router.Run("tshark", "-n", "-r", file, "-T", "fields", "-E", "separator=|", "-e", "frame.interface_name", "-e", "ip.src", "-e", "tcp.srcport",
		"-e", "ip.dst", "-e", "tcp.dstport", "-e", "tcp.flags.syn", "-e", "frame.cap_len", "-e", "frame.len", "-e", "frame.comment")
	for _, want := range []string{
		`(?m)^lan0\|` + source[0] + `\|` + source[1] + `\|203.0.113.2\|80\|(1|True)\|\d+\|\d+\|arrived: send, forward web, `,
		`(?m)^lan0\|192.168.1.1\|\d+\|192.168.1.20\|8080\|(1|True)\|\d+\|\d+\|left: send, forward web, `,
		`(?m)^lan0\|192.168.1.20\|8080\|192.168.1.1\|\d+\|(1|True)\|\d+\|\d+\|arrived: send, forward web, `,
		`(?m)^lan0\|203.0.113.2\|80\|` + source[0] + `\|` + source[1] + `\|(1|True)\|\d+\|\d+\|left: send, forward web, `,
		`(?m)\|(\d\d|1\d\d|2[0-4]\d|25[0-6])\|10\d\d\|`, // kept, and the whole length
	} {
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("tshark does not show %s:\n%s", want, got)
		}
	}
}

// readPcapng returns a line for each TCP segment in a file: interface, ends, flags, comment, and how many bytes are kept if not all are.
func readPcapng(file string) (lines []string, err error) {
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	r, err := pcapgo.NewNgReader(in, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		return nil, err
	}
	for {
		data, info, options, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return nil, err
		}
		at, err := r.Interface(info.InterfaceIndex)
		if err != nil {
			return nil, err
		}
		packet := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)
		ip, _ := packet.NetworkLayer().(*layers.IPv4)
		tcp, _ := packet.TransportLayer().(*layers.TCP)
		if ip == nil || tcp == nil {
			return nil, fmt.Errorf("no TCP: %v", packet)
		}
		flags := ""
		for _, f := range []struct {
			set  bool
			name string
		}{{tcp.SYN, "S"}, {tcp.ACK, "A"}} {
			if f.set {
				flags += f.name
			}
		}
		lines = append(lines, fmt.Sprintf("%s %s:%d > %s:%d %s %s", at.Name, ip.SrcIP, tcp.SrcPort, ip.DstIP, tcp.DstPort, flags, strings.Join(options.Comments, " ")))
		if info.CaptureLength < info.Length {
			lines[len(lines)-1] += fmt.Sprintf(", %d of %d bytes", info.CaptureLength, info.Length)
		}
	}
}

// quickTimeouts let connections end by themselves soon.
const quickTimeouts = `
[timeouts]
tcp_transitory = "2s"
udp = "2s"
port_hold = "2s"
`

// TestTraceConnections: connections open, are established, close and are refused, in each mode, each for its reason.
func TestTraceConnections(t *testing.T) {
	for _, mode := range home.Modes {
		n, hp := startHome(t, mode, quickTimeouts)
		t.Run(mode, func(t *testing.T) {
			hp := hp.For(t)
			tr := startTracing(t, hp, "-j", "watch", "conn")
			of := func(client, event string) func(*connEvent) bool {
				return func(e *connEvent) bool { return e.Client == client && e.Event == event }
			}

			// By both FINs, with every packet counted.
			c := connect(t, n.Client)
			client := c.LocalAddr().String()
			opened := tr.awaitEvent("open", of(client, "open"))
			if opened.Protocol != "tcp" || opened.Path != "hairpin" || opened.Forward != "web" || opened.External != lab.External+":80" ||
				!strings.HasPrefix(opened.Source, lab.RouterLAN+":") || opened.Target != lab.Server+":8080" {
				t.Errorf("open: %+v", opened)
			}
			established := tr.awaitEvent("established", of(client, "established"))
			if same := *established; same.Event != "established" || same.Source != opened.Source || same.Forward != "web" {
				t.Errorf("established: %+v", established)
			}
			c.Close()
			closed := tr.awaitEvent("closed", of(client, "closed"))
			forward := home.ForwardNamed(t, hp, "web")
			if closed.Reason != "fin" || closed.Packets != forward.Packets || closed.Bytes != forward.Bytes || closed.Packets < 8 {
				t.Errorf("closed: %+v, the forward counts %d packets, %d bytes", closed, forward.Packets, forward.Bytes)
			}

			// By a RST, and by a command.
			reset := connect(t, n.Internet)
			client = reset.LocalAddr().String()
			reset.SetLinger(0)
			reset.Close()
			if e := tr.awaitEvent("closed by a RST", of(client, "closed")); e.Reason != "reset" || e.Path != "wan" {
				t.Errorf("reset: %+v", e)
			}
			client = connect(t, n.Client).LocalAddr().String()
			hp.Run("conn", "flush", "src", lab.Client)
			if e := tr.awaitEvent("closed by a command", of(client, "closed")); e.Reason != "ended" {
				t.Errorf("flushed: %+v", e)
			}

			// By the sweeper: UDP without packets, TCP without an answer.
			d, err := n.Guest.DialUDP(lab.External+":53", "")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := lab.Exchange(d, 3, 100); err != nil {
				t.Fatal(err)
			}
			client = d.LocalAddr().String()
			tr.awaitEvent("established", of(client, "established"))
			if e := tr.awaitEvent("closed for idleness", of(client, "closed")); e.Reason != "idle" || e.Packets != 6 || e.Protocol != "udp" {
				t.Errorf("idle: %+v", e)
			}
			n.Server.Down("eth0")
			if c, err := n.Guest.DialTCP(lab.External+":80", "", lab.Patience/10); err == nil {
				c.Close()
				t.Error("a dead server has answered")
			}
			e := tr.awaitEvent("closed without an answer", func(e *connEvent) bool { return e.Reason == "unanswered" })
			if e.Event != "closed" || !strings.HasPrefix(e.Client, lab.Guest) {
				t.Errorf("unanswered: %+v", e)
			}
			n.Server.Up("eth0")

			hp.Run("deny", "add", lab.Guest)
			if c, err := n.Guest.DialTCP(lab.External+":80", "", lab.Patience); err == nil {
				c.Close()
				t.Error("a denied client was served")
			}
			refused := tr.awaitEvent("refused", func(e *connEvent) bool { return e.Event == "refused" })
			if refused.Reason != "denied" || refused.Forward != "web" || refused.Path != "hairpin" || !strings.HasPrefix(refused.Client, lab.Guest) || refused.Source != "" {
				t.Errorf("refused: %+v", refused)
			}
			hp.Run("deny", "del", lab.Guest)

			// Each connection has one event of each kind. While the server was dead, each SYN of the guest may have opened another one.
			tr.process.Signal(unix.SIGINT)
			if code := tr.process.Wait(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			seen := map[[3]string]bool{}
			for _, d := range tr.documents() {
				if d.Event == nil || d.Event.Event == "refused" || strings.HasPrefix(d.Event.Client, lab.Guest) {
					continue
				}
				key := [3]string{d.Event.Client, d.Event.External, d.Event.Event}
				if seen[key] {
					t.Errorf("there is a second event %v", key)
				}
				seen[key] = true
			}
		})
		t.Run(mode+", selected", func(t *testing.T) {
			tr := startTracing(t, hp.For(t), "-j", "watch", "conn", "proto", "udp", "--count", "2")
			connect(t, n.Client)
			d, err := n.Client.DialUDP(lab.External+":53", "")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := lab.Exchange(d, 3, 100); err != nil {
				t.Fatal(err)
			}
			if code := tr.process.Wait(); code != 0 {
				t.Errorf("exit code %d", code)
			}
			var events []string
			for _, d := range tr.documents() {
				if d.Event != nil {
					events = append(events, d.Event.Protocol+" "+d.Event.Event)
				}
			}
			if !slices.Equal(events, []string{"udp open", "udp established"}) {
				t.Errorf("events %v", events)
			}
		})
	}
}

// TestTraceLog: the daemon logs connections as lines or documents, as its configuration says, and changes with a reload.
func TestTraceLog(t *testing.T) {
	n, hp := startHome(t, "tc", "")
	supported := startTracing(t, hp, "trace")
	supported.stop()
	log := func(mode string) {
		hp.Write(home.Config("tc", home.Forwards+"\n[log]\nconnections = \""+mode+"\"\n"))
		hp.Reload()
	}
	logged := func(want string) {
		t.Helper()
		lab.Eventually(t, lab.Patience, func() error {
			if !regexp.MustCompile(want).MatchString(hp.Log()) {
				return fmt.Errorf("the log has no %s:\n%s", want, hp.Log())
			}
			return nil
		})
	}
	log("text")
	c := connect(t, n.Client)
	client := regexp.QuoteMeta(c.LocalAddr().String())
	c.Close()
	const stamp = `(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\S+ `
	logged(stamp + `open tcp path=hairpin forward=web client=` + client + ` external=203\.0\.113\.2:80 source=192\.168\.1\.1:\d+ target=192\.168\.1\.20:8080$`)
	logged(stamp + `established tcp path=hairpin forward=web client=` + client + ` `)
	logged(stamp + `closed tcp .* client=` + client + ` .* reason=fin packets=\d+ bytes=\d+$`)

	held := connect(t, n.Client) // goes on over the reload
	log("json")
	client = regexp.QuoteMeta(held.LocalAddr().String())
	held.Close()
	logged(`(?m)^\{"schema":1,"event":\{"time":"[^"]+","event":"closed","protocol":"tcp","path":"hairpin","forward":"web","client":"` + client + `"`)
	if lost := home.Scrape(t, n, "hairpin_connection_events_lost_total"); lost != 0 {
		t.Errorf("%v events are lost", lost)
	}

	log("off")
	nothingAttached(t, "log.connections is off")
	client = connect(t, n.Client).LocalAddr().String()
	hp.Run("conn", "flush", "src", lab.Client)
	if strings.Contains(hp.Log(), client) {
		t.Errorf("a connection is logged, but the log is off:\n%s", hp.Log())
	}
}

// traceSession is the session that the page about traces shows.
//
//go:embed testdata/trace.txt
var traceSession string

// withoutFigures takes out of a session what differs from run to run: times, the drawn port, counts.
func withoutFigures(session string) string {
	for figures, name := range map[string]string{
		`\d{4}-\d\d-\d\dT\S+`: "DATE", `\d\d:\d\d:\d\d\.\d{6}`: "TIME", `192\.168\.1\.1:\d+`: "ROUTER", `packets=\d+ bytes=\d+`: "COUNTS",
	} {
		session = regexp.MustCompile(figures).ReplaceAllString(session, name)
	}
	return session
}

// TestTraceSession: the session in the documentation is what happens.
func TestTraceSession(t *testing.T) {
	n, hp := startHome(t, "tc", "")
	hp.Run("deny", "add", lab.InternetSource)
	packets, conns := startTracing(t, hp, "trace", "forward", "web"), startTracing(t, hp, "watch", "conn", "forward", "web")
	said := func(tr *tracing, text string) {
		t.Helper()
		lab.Eventually(t, lab.Patience, func() error {
			if got := tr.process.Stdout.String(); !strings.Contains(got, text) {
				return fmt.Errorf("no %q: %s", text, got)
			}
			return nil
		})
	}
	c, err := n.Client.DialTCP(lab.External+":80", lab.Client+":40000", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	said(conns, " established tcp ")
	if c, err := n.Internet.DialTCP(lab.External+":80", lab.InternetSource+":40001", lab.Patience/50); err == nil {
		c.Close()
		t.Error("a denied client was served")
	}
	said(packets, "refuse (denied)")
	said(conns, " refused tcp ")
	c.Close()
	said(conns, " closed tcp ")
	// The denied client may have sent its SYN several times.
	session := "router# hairpin trace forward web\n" + indented(packets, 4) + "router# hairpin watch conn forward web\n"
	for line := range strings.Lines(indented(conns, 10)) {
		if !strings.Contains(session, " refused tcp ") || !strings.Contains(line, " refused tcp ") {
			session += line
		}
	}
	if got, want := withoutFigures(session), withoutFigures(traceSession); got != want {
		t.Errorf("the session is\n%s\nbut the page shows\n%s", got, want)
	}
}

// indented returns the first lines of a trace as a session shows them.
func indented(tr *tracing, most int) (text string) {
	for line := range strings.Lines(tr.process.Stdout.String()) {
		if most--; most >= 0 {
			text += "   " + line
		}
	}
	return text
}
