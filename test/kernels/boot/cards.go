// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"testing"

	"hairpin/test/kernels/cards"
	"hairpin/test/lab"
)

// bridgedMTU is the MTU of the bridges: the tests may choose any MTU up to this one for their devices.
const bridgedMTU = 9000

// followWithCards is follow for a guest with virtio-net devices. qemu runs in a network namespace of its own, with the bridges.
func followWithCards(ctx context.Context, a *arch, cmd *exec.Cmd) (outcomes map[string]*outcome, err error) {
	failed := lab.Play(ctx, func(tb testing.TB) {
		host := lab.NewHost(tb, "qemu")
		for wire := byte(1); wire <= cards.Wires; wire++ {
			cmd.Args = append(cmd.Args, plug(host, wire)...)
		}
		err = host.Do(func() (err error) {
			outcomes, err = follow(a, cmd)
			return err
		})
	})
	if err == nil {
		err = failed
	}
	return outcomes, err
}

// plug makes a wire, and returns qemu's arguments for the devices on it.
func plug(host *lab.Host, wire byte) (args []string) {
	var taps []string
	for i, sort := range cards.Sorts {
		tap := fmt.Sprintf("tap%d-%d", wire, i)
		host.MachineTap(tap, sort.Queues > 1)
		host.MTU(tap, bridgedMTU)
		host.Up(tap)
		taps = append(taps, tap)
		// Without vhost, qemu itself moves the frames. A machine may lack the module for vhost.
		device := fmt.Sprintf("virtio-net-pci,netdev=%s,mac=%s,romfile=,rx_queue_size=%d", tap, cards.MAC(sort.Name, wire), cards.Ring)
		if sort.Properties != "" {
			device += "," + sort.Properties
		}
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=%s,ifname=%[1]s,queues=%d,script=no,downscript=no,vhost=off", tap, sort.Queues),
			"-device", device)
	}
	host.Bridge(fmt.Sprintf("wire%d", wire), taps...)
	return args
}
