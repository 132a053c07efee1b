// SPDX-License-Identifier: Apache-2.0

// Package gather reads the facts about this machine that package diagnose judges and that the datapath does not need: rules of
// netfilter, sockets, neighbours, and whether targets answer. It changes nothing.
package gather

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/diagnose"
	"hairpin/loader"
)

// families are the families whose rules see routed packets, by their names for nft(8).
var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// hooks are the hooks of the families, by the kernel's numbers (enum nf_inet_hooks).
var hooks = []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}

// Ruleset reads the rules of nftables in this network namespace. Those of iptables-nft are among them. A kernel without nftables has
// none. The error wraps loader.ErrPermission without CAP_NET_ADMIN.
func Ruleset() (*diagnose.Ruleset, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, explain(err)
	}
	defer conn.CloseLasting()
	r := &reader{conn: conn, found: &diagnose.Ruleset{}}
	if err := r.read(); err != nil {
		return nil, explain(err)
	}
	return r.found, nil
}

// explain marks a missing privilege. A kernel without nftables is no error.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w", loader.ErrPermission, err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return nil
	}
	return err
}

type reader struct {
	conn  *nftables.Conn
	found *diagnose.Ruleset
	sets  map[string]*nftables.Set // of the present table, by name
	items map[string][]nftables.SetElement
}

func (r *reader) read() error {
	chains, err := r.conn.ListChains()
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	byTable := map[string][]*nftables.Chain{}
	var tables []*nftables.Table
	for _, c := range chains {
		name, known := families[c.Table.Family]
		if !known {
			continue
		}
		key := name + " " + c.Table.Name
		if byTable[key] == nil {
			tables = append(tables, c.Table)
		}
		byTable[key] = append(byTable[key], c)
	}
	for _, table := range tables {
		if err := r.readTable(table, byTable[families[table.Family]+" "+table.Name]); err != nil {
			return fmt.Errorf("table %s %s: %w", families[table.Family], table.Name, err)
		}
	}
	return r.readFlowtables()
}

func (r *reader) readTable(table *nftables.Table, chains []*nftables.Chain) error {
	sets, err := r.conn.GetSets(table)
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	r.sets, r.items = map[string]*nftables.Set{}, map[string][]nftables.SetElement{}
	for _, set := range sets {
		r.sets[set.Name] = set
	}
	for _, c := range chains {
		chain := diagnose.Chain{Family: families[table.Family], Table: table.Name, Name: c.Name, Type: string(c.Type)}
		if c.Hooknum != nil && int(*c.Hooknum) < len(hooks) {
			chain.Hook = hooks[*c.Hooknum]
		}
		if c.Priority != nil {
			chain.Priority = int(*c.Priority)
		}
		chain.Drops = c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		rules, err := r.conn.GetRules(table, c)
		if err != nil {
			return fmt.Errorf("list the rules of chain %s: %w", c.Name, err)
		}
		for _, rule := range rules {
			chain.Rules = append(chain.Rules, r.decode(rule, table)...)
		}
		r.found.Chains = append(r.found.Chains, chain)
	}
	return nil
}

// readFlowtables reads the flowtables of all tables: a table may have no chain.
func (r *reader) readFlowtables() error {
	tables, err := r.conn.ListTables()
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for _, table := range tables {
		family, known := families[table.Family]
		if !known {
			continue
		}
		list, err := r.conn.ListFlowtables(table)
		if err != nil {
			return fmt.Errorf("list flowtables: %w", err)
		}
		for _, f := range list {
			// The kernel may ignore the table in the request.
			if f.Table == nil || f.Table.Name == table.Name && f.Table.Family == table.Family {
				r.found.Flowtables = append(r.found.Flowtables, diagnose.Flowtable{Family: family, Table: table.Name, Name: f.Name, Devices: f.Devices})
			}
		}
	}
	return nil
}
