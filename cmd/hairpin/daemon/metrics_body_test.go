// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bufio"
	"fmt"
	"net/http"
	"testing"
)

// TestMetricsBody: no request needs a body. A body that is too long, or of unknown length, is refused
// before it is sent, and the connection is closed.
func TestMetricsBody(t *testing.T) {
	s := serveTest(t, &healthFake{})
	for name, c := range map[string]struct {
		header, body string
		code         int
	}{
		"none":     {"", "", http.StatusOK},
		"short":    {"Content-Length: 5\r\n", "hello", http.StatusOK},
		"too long": {fmt.Sprintf("Content-Length: %d\r\n", tightLimits.bodyBytes+1), "", http.StatusRequestEntityTooLarge},
		"endless":  {"Transfer-Encoding: chunked\r\n", "", http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, s)
			fmt.Fprintf(conn, "GET /-/healthy HTTP/1.1\r\nHost: router\r\n%s\r\n%s", c.header, c.body)
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if response.StatusCode != c.code {
				t.Errorf("%s, want %d", response.Status, c.code)
			}
			if refused := c.code != http.StatusOK; response.Close != refused {
				t.Errorf("connection ends is %v after %s", response.Close, response.Status)
			}
		})
	}
}
