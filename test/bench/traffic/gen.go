// SPDX-License-Identifier: Apache-2.0

// Package traffic generates frames and counts them in BPF, faster than the programs under test.
package traffic

//go:generate go tool bpf2go -target bpfel -output-stem traffic traffic traffic.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror
