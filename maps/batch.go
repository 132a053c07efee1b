// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const batchSize = 4096

// memoryPatience is how long putAll retries after ENOMEM.
const memoryPatience = 5 * time.Second

// putAll writes entries with as few system calls as the kernel allows.
// perKey is the number of values for each key: 1, or the number of CPUs.
//
// Maps with BPF_F_NO_PREALLOC take entries from a small cache (bpf_mem_alloc) that the kernel refills in the background.
// If many entries are written without a pause, the cache becomes empty and the kernel returns ENOMEM. Some milliseconds
// later it has memory again, so putAll waits and retries.
func putAll[K, V any](m *ebpf.Map, keys []K, values []V, perKey int) error {
	pause, patience := time.Millisecond, time.Now().Add(memoryPatience)
	for len(keys) > 0 {
		n := min(len(keys), batchSize)
		done, err := m.BatchUpdate(keys[:n], values[:n*perKey], nil)
		switch {
		case errors.Is(err, ebpf.ErrNotSupported):
			return putEach(m, keys, values, perKey)
		case errors.Is(err, unix.ENOMEM) && time.Now().Before(patience):
			time.Sleep(pause)
			pause = min(2*pause, 100*time.Millisecond)
		case err != nil:
			return fmt.Errorf("fill map: %w", err)
		}
		if done > 0 && err != nil {
			pause, patience = time.Millisecond, time.Now().Add(memoryPatience)
		}
		keys, values = keys[done:], values[done*perKey:]
	}
	return nil
}

func putEach[K, V any](m *ebpf.Map, keys []K, values []V, perKey int) error {
	for i := range keys {
		var value any = values[i]
		if perKey > 1 || m.Type() == ebpf.PerCPUHash {
			value = values[i*perKey : (i+1)*perKey]
		}
		if err := m.Put(keys[i], value); err != nil {
			return fmt.Errorf("fill map: %w", err)
		}
	}
	return nil
}

// scan calls visit for each entry of a hash map; an entry has perKey values. The map may change during the scan. An entry
// that exists all the time is visited at least once. An entry that is added or deleted during the scan may be missing.
func scan[K, V any](m *ebpf.Map, perKey int, visit func(K, []V)) error {
	keys, values := make([]K, batchSize), make([]V, batchSize*perKey)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		switch {
		case errors.Is(err, ebpf.ErrNotSupported):
			return scanEach(m, perKey, visit)
		case errors.Is(err, unix.ENOSPC):
			// The kernel reads whole buckets, and a bucket has more entries than the batch.
			keys, values = make([]K, 2*len(keys)), make([]V, 2*len(values))
			continue
		case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
			return fmt.Errorf("read map: %w", err)
		}
		for i := range n {
			visit(keys[i], values[i*perKey:(i+1)*perKey])
		}
		if err != nil {
			return nil
		}
	}
}

// scanEach is scan without batches. The kernel continues at the first entry if the current key was deleted. If this
// happens too often, the iteration aborts, and scanEach starts again.
func scanEach[K, V any](m *ebpf.Map, perKey int, visit func(K, []V)) error {
	const attempts = 5
	var err error
	for range attempts {
		var key K
		var value V
		values := make([]V, perKey)
		var out any = &value
		if perKey > 1 || m.Type() == ebpf.PerCPUHash {
			out = &values
		}
		entries := m.Iterate()
		for entries.Next(&key, out) {
			if out == any(&value) {
				values[0] = value
			}
			visit(key, values)
		}
		if err = entries.Err(); !errors.Is(err, ebpf.ErrIterationAborted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("read map: %w", err)
	}
	return nil
}

// readAll returns a copy of a small hash map.
func readAll[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	all := map[K]V{}
	err := scan(m, 1, func(key K, values []V) { all[key] = values[0] })
	return all, err
}
