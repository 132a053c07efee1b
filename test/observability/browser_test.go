// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"hairpin/test/lab"
)

// browser is Debian's Chromium without a screen.
type browser struct {
	t      *testing.T
	ctx    context.Context
	origin string // of the page, as the browser sees it

	heard *heard
}

// heard has what the browser complained of: messages of the console, exceptions, and requests to other hosts.
type heard struct {
	sync.Mutex
	list []string
}

// in returns the browser for use in a subtest: its failures are then the subtest's.
func (b *browser) in(t *testing.T) *browser {
	other := *b
	other.t = t
	return &other
}

// startBrowser starts a browser outside the lab, which reaches the listener of the router by a relay.
func startBrowser(t *testing.T, router *lab.Host) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium-headless-shell"), chromedp.NoSandbox,
		chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(lab.Patience))
	allocated, end := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(end)
	ctx, end := chromedp.NewContext(allocated)
	t.Cleanup(end)
	b := &browser{t: t, ctx: ctx, origin: "http://" + relay(t, router, "127.0.0.1:9845"), heard: new(heard)}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	call(b, network.Enable, network.EnableParams{})
	call(b, log.Enable, cdp.Empty{})
	call(b, runtime.Enable, cdp.Empty{})
	return b
}

// relay listens outside the lab, and carries each connection to an address on a host.
func relay(t *testing.T, h *lab.Host, to string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			outer, err := listener.Accept()
			if err != nil {
				return
			}
			var inner net.Conn
			err = h.Do(func() (err error) {
				inner, err = net.Dial("tcp", to)
				return err
			})
			if err != nil {
				outer.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{outer, inner}, {inner, outer}} {
				go func() {
					_, _ = io.Copy(way[0], way[1])
					outer.Close()
					inner.Close()
				}()
			}
		}
	}()
	return listener.Addr().String()
}

func (b *browser) hear(event any) {
	b.heard.Lock()
	defer b.heard.Unlock()
	complain := func(format string, args ...any) { b.heard.list = append(b.heard.list, fmt.Sprintf(format, args...)) }
	switch e := event.(type) {
	case *log.EventEntryAdded:
		complain("log: %s %s", e.Entry.Level, e.Entry.Text)
	case *runtime.EventConsoleAPICalled:
		complain("console: %s", e.Type)
	case *runtime.EventExceptionThrown:
		complain("exception: %s", e.ExceptionDetails.Text)
	case *network.EventRequestWillBeSent:
		if !strings.HasPrefix(e.Request.URL, b.origin+"/") {
			complain("request to %s", e.Request.URL)
		}
	}
}

// wantQuiet fails if the browser complained of the page.
func (b *browser) wantQuiet() {
	b.t.Helper()
	b.heard.Lock()
	defer b.heard.Unlock()
	for _, what := range b.heard.list {
		b.t.Error(what)
	}
}

// within returns a context of the browser with a time limit.
func (b *browser) within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.ctx, 2*lab.Patience)
}

func (b *browser) run(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, end := b.within()
	defer end()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// result runs an action and returns its result.
func result[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, end := b.within()
	defer end()
	value, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

// call runs a command of the protocol.
func call[P any](b *browser, command cdp.Command[P, cdp.Empty], parameters P) {
	b.t.Helper()
	ctx, end := b.within()
	defer end()
	if _, err := chromedp.Call(ctx, command, parameters); err != nil {
		b.t.Fatalf("%s: %v", command.Method, err)
	}
}

// ask returns the value of an expression of JavaScript.
func ask[T any](b *browser, expression string) T {
	b.t.Helper()
	return result(b, chromedp.Evaluate[T](expression))
}

// await waits until an expression of JavaScript is true.
func (b *browser) await(expression string) {
	b.t.Helper()
	lab.Eventually(b.t, lab.Patience, func() error {
		if !ask[bool](b, expression) {
			return fmt.Errorf("%s is false; the page: %s", expression, ask[string](b, "document.body.innerText"))
		}
		return nil
	})
}

// size sets the size of the window.
func (b *browser) size(width, height int64) {
	b.t.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1.5, Mobile: width < 600})
}

func (b *browser) colors(scheme string) {
	b.t.Helper()
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}
