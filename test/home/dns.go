// SPDX-License-Identifier: Apache-2.0

package home

import (
	"fmt"
	"strings"
	"testing"

	"hairpin/test/lab"
)

// DnsmasqArgs returns a command line of dnsmasq that uses none of the machine's files.
func DnsmasqArgs(args ...string) []string {
	return append([]string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--bind-interfaces", "--user=root", "--pid-file=", "--log-facility=-"}, args...)
}

// WantAnswer asks the name server until the answer is want; "" means no record of this type. It ends the test after lab.Patience.
func WantAnswer(t *testing.T, h *lab.Host, server, name, kind, want string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		r, err := h.Try("dig", "+noall", "+answer", "+comments", "+time=1", "+tries=1", "@"+server, "-q", name, "-t", kind)
		if err != nil {
			return err
		}
		got := ""
		for line := range strings.Lines(r.Stdout) {
			if fields := strings.Fields(line); len(fields) > 4 && fields[2] == "IN" {
				got += strings.Join(fields[4:], " ")
			}
		}
		if r.Code != 0 || got != want || !strings.Contains(r.Stdout, "status: NOERROR") {
			return fmt.Errorf("%s asks %s for %s %s: %q, want %q\n%s", h.Name, server, name, kind, got, want, r.Stdout)
		}
		return nil
	})
}
