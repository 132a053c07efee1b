// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"maps"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/mapstest"
)

// TestAnswers: a half-open connection waits if the target has sent nothing. A forward without traffic is left out.
func TestAnswers(t *testing.T) {
	t.Parallel()
	tables, flows := connected(t)
	var sum bpf.HairpinForwardStats
	sum.Traffic[0][0].Packets, sum.Traffic[1][0].Packets, sum.Traffic[0][1].Packets = 40, 2, 30
	mapstest.PutForwardStats(t, tables.objs, flows[0].Forward.Id, sum)
	silent := flows[2]
	for _, client := range []string{"198.51.100.9:5100", "198.51.100.9:5101"} {
		silent.Client, silent.Source = client, client
		pair := silent.Pair()
		pair[1].Packets = 0
		for i := range pair {
			if err := mapstest.Entries(tables.objs).Update(&pair[i], ebpf.UpdateNoExist); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, established, err := tables.Answers()
	want := map[string]Answers{"web": {ToTarget: 42, FromTarget: 30, Waiting: 2, Answered: 8}}
	if err != nil || !maps.Equal(got, want) || established != 6 {
		t.Errorf("answers %v, %d established, %v, want %v and 6", got, established, err, want)
	}
}
