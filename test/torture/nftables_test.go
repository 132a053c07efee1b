// SPDX-License-Identifier: Apache-2.0

package torture

import "hairpin/test/lab"

// nftForwards are the forwards of home.Forwards in nftables, with a masquerade for clients in the server's LAN.
const nftForwards = `
table ip nat {
	chain prerouting {
		type nat hook prerouting priority dstnat
		ip daddr 203.0.113.2 tcp dport 80 dnat to 192.168.1.20:8080
		ip daddr 203.0.113.2 udp dport 53 dnat to 192.168.1.20:5353
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname lan0 ip saddr 192.168.1.0/24 ip daddr 192.168.1.20 masquerade
	}
}`

// useNFT makes nftables translate on a router.
func useNFT(router *lab.Host) { router.RunInput(nftForwards, "nft", "-f", "-") }
