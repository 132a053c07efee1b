// SPDX-License-Identifier: Apache-2.0

package program

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hairpin/bpf"
	tables "hairpin/maps"
	"hairpin/test/coverage"
	"hairpin/test/rig"
)

var coverageFile = flag.String("coverage", "", "write to this file which lines of C and which reasons the tests have reached; fail if a line is missing that no other test reaches")

// covered is the tests of this package. With -coverage they also show what they have reached.
type covered struct{ *testing.M }

// Run runs the tests, and returns the exit code.
func (c covered) Run() int {
	flag.Parse()
	if *coverageFile == "" {
		return c.M.Run()
	}
	seen, err := rig.Cover()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer seen.Close()
	if code := c.M.Run(); code != 0 {
		return code
	}
	report, missed, err := coverageReport(seen)
	if err == nil {
		err = os.WriteFile(*coverageFile, []byte(report), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "write the coverage:", err)
		return 1
	}
	for _, what := range missed {
		fmt.Fprintln(os.Stderr, "not reached:", what)
	}
	return min(len(missed), 1)
}

const coveragePreface = `# Coverage

Which lines of the C code the tests of this package have run. ` + "`make coverage`" + ` puts a probe into each basic block of the programs, runs
the tests, and writes this file. A line without code of its own is not counted. The command fails if a line was not run that is not in the list below.

| file | lines | run here | run by other tests |
|---|---|---|---|
`

// coverageReport returns the text of COVERAGE.md, and what no test reaches.
func coverageReport(seen *rig.Coverage) (report string, missed []string, err error) {
	run, not, blind, err := seen.Lines()
	if err != nil {
		return "", nil, err
	}
	var table, list strings.Builder
	here, others := perFile(run), perFile(not)
	for _, file := range slices.Sorted(maps.Keys(here)) {
		fmt.Fprintf(&table, "| %s | %d | %d | %d |\n", file, here[file]+others[file], here[file], others[file])
	}
	fmt.Fprintf(&table, "| all | %d | %d | %d |\n", len(run)+len(not), len(run), len(not))
	by := make(map[string]string)
	for _, e := range linesElsewhere {
		for _, line := range e.lines {
			by[line] = e.by
		}
	}
	lines := make(map[string][]string)
	for _, line := range not {
		text, err := placeOf(line, seen.Text(line))
		if err != nil {
			return "", nil, err
		}
		if by[text] == "" {
			missed = append(missed, fmt.Sprintf("%s: %s", line, seen.Text(line)))
		}
		lines[by[text]] = append(lines[by[text]], text)
	}
	for _, e := range linesElsewhere {
		if len(lines[e.by]) != 0 {
			fmt.Fprintf(&list, "\n%s:\n\n```\n%s\n```\n", e.by, strings.Join(lines[e.by], "\n"))
		}
	}
	fmt.Fprintf(&list, "\nNo probe fits into the blocks of %d other lines.\n\n## Reasons\n\n", len(blind))
	for reason := bpf.HairpinReasonREASON_MALFORMED; reason <= bpf.HairpinReasonREASON_SOURCE_RATE; reason++ {
		if seen.Counted(reason) {
			continue
		}
		where, known := reasonsElsewhere[reason]
		if !known {
			missed = append(missed, "reason "+tables.ReasonName(uint32(reason)))
		}
		fmt.Fprintf(&list, "- %s is not counted here: %s.\n", tables.ReasonName(uint32(reason)), where)
	}
	list.WriteString("- All other reasons are counted here.\n")
	return coveragePreface + table.String() + "\n## Lines that single packets do not reach\n" + list.String(), missed, nil
}

// functionHead is the first line of a function in C: its name is the group.
var functionHead = regexp.MustCompile(`^[A-Za-z_][^(]*?\b(\w+)\(`)

// placeOf returns a line with the function that has it: "file function: text". Code of another function with the same text is another
// place.
func placeOf(line coverage.Line, text string) (string, error) {
	source, err := os.ReadFile(filepath.Join("../../bpf", line.File))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s: %s", line.File, functionAt(string(source), line.Number), text), nil
}

// functionAt returns the name of the function that has a line of a C file; "": none has it.
func functionAt(source string, number uint32) (function string) {
	at := uint32(0)
	for line := range strings.Lines(source) {
		line = strings.TrimRight(line, "\n")
		head := functionHead.FindStringSubmatch(line)
		if head != nil && !strings.HasSuffix(line, ";") && !strings.HasPrefix(line, "SEC(") {
			function = head[1]
		}
		if at++; at == number {
			return function
		}
		if line == "}" || line == "};" {
			function = ""
		}
	}
	return ""
}

// An excuse for a line that does not exist any more would excuse the next line that gets its text.
func TestLinesElsewhereExist(t *testing.T) {
	for _, e := range linesElsewhere {
		for _, place := range e.lines {
			file, _, _ := strings.Cut(place, " ")
			_, text, _ := strings.Cut(place, ": ")
			source, err := os.ReadFile(filepath.Join("../../bpf", file))
			if err != nil {
				t.Fatal(err)
			}
			found, number := false, uint32(0)
			for line := range strings.Lines(string(source)) {
				number++
				found = found || strings.TrimSpace(line) == text && fmt.Sprintf("%s %s: %s", file, functionAt(string(source), number), text) == place
			}
			if !found {
				t.Errorf("no line is %q", place)
			}
		}
	}
}

func perFile(lines []coverage.Line) map[string]int {
	count := make(map[string]int)
	for _, line := range lines {
		count[line.File]++
	}
	return count
}

// reasonsElsewhere has the reasons that single packets do not get, with the tests that show them, or why nothing counts them.
var reasonsElsewhere = map[bpf.HairpinReason]string{
	bpf.HairpinReasonREASON_NO_ADDRESS:     "test/control (reasons)",
	bpf.HairpinReasonREASON_FORWARDING_OFF: "test/doctor",
	bpf.HairpinReasonREASON_IPSEC:          "test/network (ipsec)",
	bpf.HairpinReasonREASON_WRITE_FAILED:   "only a kernel without memory fails to change a packet",
	bpf.HairpinReasonREASON_BEGUN:          "internal",
	bpf.HairpinReasonREASON_OBSTACLE:       "internal",
	bpf.HairpinReasonREASON_NOT_OURS:       "internal",
}

// linesElsewhere has the lines that single packets do not reach, and the tests that reach them.
var linesElsewhere = []struct {
	by    string
	lines []string // file, function and text
}{
	{"devices without an Ethernet header: test/devices", []string{
		`packet.h packet_shift: pkt->l3_off += by;`,
		`packet.h packet_shift: pkt->frame_length += by;`,
		`packet.h packet_shift: pkt->quote.l3_off += by;`,
		`packet.h packet_shift: l4[i]->off += by;`,
		`packet.h packet_shift: l4[i]->ports_off += by;`,
		`packet.h packet_shift: l4[i]->check_off += l4[i]->check_off ? by : 0;`,
		`packet.h packet_parse: void *ip = data + (pkt->l3_off & ETHERNET_MASK);`,
		`packet.h packet_parse: __builtin_memset(pkt->local_mac, 0, ETH_ALEN);`,
		`tc.h tc_keeps_ethernet: struct ethhdr *eth = (void *)(long)skb->data, mac, net;`,
		`tc.h tc_keeps_ethernet: if ((void *)(eth + 1) > (void *)(long)skb->data_end || eth->h_proto != skb->protocol)`,
		`tc.h tc_keeps_ethernet: return bpf_skb_load_bytes_relative(skb, 0, &mac, sizeof(mac), BPF_HDR_START_MAC) == 0 &&`,
		`tc.h tc_keeps_ethernet: bpf_skb_load_bytes_relative(skb, 0, &net, sizeof(net), BPF_HDR_START_NET) == 0 &&`,
		`tc.h tc_keeps_ethernet: __builtin_memcmp(&mac, &net, sizeof(mac)) != 0;`,
		`tc.h tc_find_ip_slow: return tc_keeps_ethernet(skb) ? sizeof(*eth) : 0;`,
		`tc.h tc_write_all: if (!tc_ensure_ethernet(skb, &work->pkt))`,
	}},
	{"packets with several segments, unfinished checksums, or data in pages: test/network (bigtcp, mtu, transfer)", []string{
		`packet.h packet_parse_tcp: pkt->segment = pkt->length - available + header + pkt->gso_size;`,
		`tc.h tc_pull: return bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted) == 0;`,
		`tc.h tc_resegment_step: static long tc_resegment_step(__u32 index, struct tc_resegment *work)`,
		`tc.h tc_resegment_step: __u32 step = work->excess < RESEGMENT_STEP ? work->excess : RESEGMENT_STEP;`,
		`tc.h tc_resegment_step: if (bpf_skb_adjust_room(work->skb, (__s32)step, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_NO_CSUM_RESET) != 0 ||`,
		`tc.h tc_resegment_step: bpf_skb_adjust_room(work->skb, -(__s32)step, BPF_ADJ_ROOM_NET,`,
		`tc.h tc_resegment_step: work->excess -= step;`,
		`tc.h tc_resegment_step: return !work->excess;`,
		`tc.h tc_resegment_step: }`,
		`tc.h tc_shorten: bpf_loop(RESEGMENT_STEPS, tc_resegment_step, &resegment, 0);`,
		`tc.h tc_shorten: check = (__u16 *)&buffer->packet[(pkt->l4.check_off - pkt->l3_off) & (SCRATCH_PACKET_PIECE - 1)];`,
		`tc.h tc_shorten: *check = ~scratch_packet_sum(packet_header(pkt), pkt->length);`,
		`tc.h tc_shorten: if (pkt->tuple.protocol == IPPROTO_UDP && !*check)`,
	}},
	{"what the tables send and correct by running a program: maps, test/network (ended, ended_sides)", []string{
		`hairpin.c hairpin_correct: int hairpin_correct(struct correct_request *request)`,
		`hairpin.c hairpin_correct: __u32 index = request->ring;`,
		`hairpin.c hairpin_correct: struct ring *ring = bpf_map_lookup_elem(&rings, &index);`,
		`hairpin.c hairpin_correct: if (ring)`,
		`hairpin.c hairpin_correct: __sync_fetch_and_add(&ring->count, request->change);`,
		`hairpin.c hairpin_correct: return 0;`,
		`reply.h reply_reaches: return own_address_has(ifindex, from);`,
		`reply.h reply_other_side: (nat_find_way(skb, work, entry) != REASON_NONE || !(work->rw.resolved || work->rw.local)))`,
		`reply.h reply_other_side: __builtin_memset(work->rw.macs, 0, sizeof(work->rw.macs));`,
		`reply.h reply_station: if (hop_recall(work->reply.sender_hop, &work->rw))`,
		`reply.h reply_station: if (fib_route_back(skb, &work->route, pkt->ifindex, &pkt->tuple) != BPF_FIB_LKUP_RET_SUCCESS)`,
		`reply.h reply_station: __builtin_memcpy(work->rw.macs, work->route.fib.dmac, ETH_ALEN);`,
		`reply.h reply_station: __builtin_memcpy(work->rw.macs + ETH_ALEN, work->route.fib.smac, ETH_ALEN);`,
		`reply.h reply_write_reset: reset = (struct reply_segment){ .ack = pkt->seq + pkt->seq_length, .flags = TCP_RST | TCP_ACK };`,
	}},
	{"the router's own connections: test/network (local)", []string{
		`packet.h packet_reinjected: return pkt->remote_mac[0];`,
		`tc.h tc_reinject: __u8 again = 2;	/* first byte of the source MAC address: locally administered */`,
		`tc.h tc_reinject: if (bpf_skb_store_bytes(skb, ETH_ALEN, &again, sizeof(again), 0) != 0)`,
	}},
	{"real TCP, whose SYNs have a window scale: test/network", []string{
		`option.h option_scale: scale = work->options[at];`,
		`option.h option_scale: return scale > TCP_SCALE_MAX ? TCP_SCALE_MAX : scale;`,
	}},
	{"a kernel whose conntrack can be asked: test/kernels", []string{
		`conntrack.h conntrack_way: bpf_ct_release(conn);`,
	}},
	{"two CPUs at once, or one value of 65,536: test/program (races), by chance", []string{
		`fragment.h frag_drop: work->rw.reason = reason;`,
		`hairpin.c tc_leave_fragment: return frag_drop(work, REASON_NO_CONNECTION);`,
		`icmp.h icmp_requote: rw->quoted_check = 0xffff;`,
		`lifecycle.h life_count_client: source_add(client, changes);`,
		`lifecycle.h life_promote: if (!place_take(key, scratch, false)) {`,
		`lifecycle.h proven_note: if (value)`,
		`nat.h nat_slow_path: work->open.inserted = false;`,
		`nat.h nat_slow_path: return VERDICT_BEGUN;`,
		`open.h open_place: if (life_over_share(source.half_open, PLACE_HALF_PROVEN, v6))`,
		`open.h open_permitted: proven_note(source_hash(client, in->role == ROLE_WAN), pkt->second);`,
		`rate.h rate_admit: if (!of_client || rate_take(of_client, each, now))`,
		`rate.h rate_admit: __sync_fetch_and_sub(&of_all->full, rate_interval(all));`,
	}},
}
