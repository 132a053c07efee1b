// SPDX-License-Identifier: Apache-2.0

package home

// Forwards are the forwards of most tests. External port and target port differ, so that a test notices an untranslated port.
const Forwards = `
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20:8080"

[[forward]]
name = "dns"
protocol = ["udp"]
port = "53"
to = "192.168.1.20:5353"
`

// Forwards6 are the IPv6 twins of Forwards.
const Forwards6 = `
[[forward]]
name = "web6"
protocol = ["tcp"]
port = "80"
to = "[fd00:1::20]:8080"

[[forward]]
name = "dns6"
protocol = ["udp"]
port = "53"
to = "[fd00:1::20]:5353"
`
