// SPDX-License-Identifier: Apache-2.0

package lab

import "sync"

// Together runs n calls at the same time and returns when all have returned.
func Together(n int, call func(int)) {
	var all sync.WaitGroup
	gate := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-gate
			call(i)
		})
	}
	close(gate)
	all.Wait()
}

// Must panics if err is not nil. Use it for errors that no test expects.
func Must(err error) {
	if err != nil {
		panic(err)
	}
}
