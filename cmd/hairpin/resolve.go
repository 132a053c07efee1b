// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

const (
	// resolveTime is how long names are looked up, for all addresses of a command together.
	resolveTime = 2 * time.Second
	// resolveAtOnce is the number of look-ups at the same time.
	resolveAtOnce = 64
)

// resolver finds the names of addresses, each address once. Only one goroutine at a time may use it.
type resolver struct {
	lookup func(ctx context.Context, addr string) (names []string, err error)
	ctx    context.Context // ends resolveTime after the first look-up; nil before
	cancel context.CancelFunc
	names  map[netip.Addr]string // "": the address has no name, or none came in time
}

// newResolver returns a resolver that asks the name server of this machine. The caller calls close.
func newResolver() *resolver {
	return &resolver{lookup: net.DefaultResolver.LookupAddr, names: map[netip.Addr]string{}}
}

// close ends look-ups that still run. A nil resolver has none.
func (r *resolver) close() {
	if r != nil && r.cancel != nil {
		r.cancel()
	}
}

// resolve looks up the addresses that are not known yet. It returns when all have an answer, or when the time is over.
func (r *resolver) resolve(addrs []netip.Addr) {
	if r.ctx == nil {
		r.ctx, r.cancel = context.WithTimeout(context.Background(), resolveTime)
	}
	var wanted []netip.Addr
	for _, addr := range addrs {
		if _, known := r.names[addr]; !known && addr.IsValid() {
			r.names[addr] = ""
			wanted = append(wanted, addr)
		}
	}
	found := make([]string, len(wanted))
	var next sync.Mutex
	var workers sync.WaitGroup
	at := 0
	for range min(resolveAtOnce, len(wanted)) {
		workers.Go(func() {
			for r.ctx.Err() == nil {
				next.Lock()
				mine := at
				at++
				next.Unlock()
				if mine >= len(wanted) {
					return
				}
				if names, err := r.lookup(r.ctx, wanted[mine].String()); err == nil && len(names) > 0 {
					found[mine] = strings.TrimSuffix(names[0], ".")
				}
			}
		})
	}
	workers.Wait()
	for i, addr := range wanted {
		r.names[addr] = found[i]
	}
}

// host returns the name of an address, or the address if it has none. A nil resolver knows no name.
func (r *resolver) host(addr netip.Addr) string {
	if r != nil && r.names[addr] != "" {
		return r.names[addr]
	}
	return addr.String()
}

// endpoint formats an address with its port, with the name of the address if it has one. It leaves out port 0, which stands for a
// protocol without ports.
func (r *resolver) endpoint(at netip.AddrPort) string {
	if r != nil && r.names[at.Addr()] != "" {
		return strings.TrimSuffix(net.JoinHostPort(r.names[at.Addr()], portText(at.Port())), ":")
	}
	return endpoint(at)
}

// addResolveFlag adds -r.
func addResolveFlag(command *cobra.Command, value *bool) {
	command.Flags().BoolVarP(value, "resolve", "r", false, "names instead of addresses; what has no answer within 2 s stays an address")
}

// newTableResolver returns the resolver of a table with -r, nil without. JSON has only addresses.
func (a *app) newTableResolver(wanted bool) (*resolver, error) {
	if wanted && a.json {
		return nil, usageError{errors.New("-r is for tables: JSON has addresses only; leave out -r or -j")}
	}
	if !wanted {
		return nil, nil
	}
	return newResolver(), nil
}
