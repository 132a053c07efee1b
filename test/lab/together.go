// SPDX-License-Identifier: Apache-2.0

package lab

import "sync"

// Together runs n calls at once and returns when all have.
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

// Must panics on an error that no test provokes.
func Must(err error) {
	if err != nil {
		panic(err)
	}
}
