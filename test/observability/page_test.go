// SPDX-License-Identifier: Apache-2.0

package observability

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"hairpin/test/home"
	"hairpin/test/lab"
	"hairpin/test/record"
)

const picture = "../../cmd/hairpin/doc/page.png"

// hostile is a comment that would run as JavaScript if the page took it for HTML.
const hostile = `<img src=x onerror="document.title='taken'"><script>document.title='taken'</script>`

// household are forwards as a home has them.
const household = home.Forwards + `
[[forward]]
name = "mail"
protocol = ["tcp"]
port = "25"
to = "192.168.1.21:25"
from = ["192.0.2.0/24"]
comment = "only the provider's relay"

[[forward]]
name = "console"
protocol = ["udp"]
port = "3074"
to = "192.168.2.50:3074"

[[forward]]
name = "old-camera"
protocol = ["tcp"]
port = "8554"
to = "192.168.1.22:554"
enabled = false
`

// contrasts returns the lowest contrast of a text with its background on the page (WCAG 2.1, 1.4.3), and the text.
const contrasts = `(() => {
  const parts = (color) => color.match(/[\d.]+/g).map(Number);
  const light = (color) => { const [r, g, b] = parts(color).map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const opaque = (color) => { const p = parts(color); return p.length < 4 || p[3] === 1; };
  let worst = [99, ""];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = texts.nextNode());) {
    const element = node.parentElement;
    if (node.data.trim() === "" || !element.checkVisibility() || element.closest("noscript, title, desc")) continue;
    const svg = element.closest("svg");
    let front = getComputedStyle(element).color, back = "";
    if (svg) {
      front = getComputedStyle(element).fill;
      const rect = element.parentElement.querySelector("rect");
      back = rect ? getComputedStyle(rect).fill : "";
    }
    for (let behind = element; back === "" || !opaque(back); behind = behind.parentElement) back = getComputedStyle(behind).backgroundColor;
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.data];
  }
  return worst;
})()`

// TestPage looks at the status page of a router with traffic, in a browser.
func TestPage(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5353")
	hp := lab.NewHairpin(n.Router, home.Config("tc", strings.Replace(household, "only the provider's relay", strings.ReplaceAll(hostile, `"`, `\"`), 1)))
	hp.Run("prepare")
	// The doctor looks with the capabilities of the unit.
	hp = hp.Under("setpriv", "--bounding-set=-all,+bpf,+net_admin,+perfmon", "--inh-caps=-all")
	hp.Start()
	n.Internet.StartLoad(lab.External+":80", lab.External+":53")
	if c, err := n.Internet.DialTCP(lab.External+":25", "", lab.Patience/20); err == nil {
		c.Close()
		t.Fatal("a forward took a client that is not in its list")
	}
	b := startBrowser(t, n.Router)
	b.size(1180, 900)
	b.colors("light")
	b.run(chromedp.Navigate(b.origin + "/"))
	b.await(`/bit\/s/.test(document.querySelector("#list .busy-rate")?.textContent ?? "")`)
	b.await(`document.querySelectorAll("#doctor li").length > 0`)

	t.Run("shows what runs", func(t *testing.T) {
		b := b.in(t)
		for place, texts := range map[string][]string{
			"#list":       {"web", "port 80", "192.168.1.20:8080", "mail", hostile, "old-camera", "disabled", "every uplink"},
			"#network":    {"Internet", "wan0", lab.External, "lan0", "lan1", "192.168.1.20", "web, dns", "5 forwards"},
			"#interfaces": {"wan0", "attached", "tcx"},
			"#dropped":    {"not allowed", "refused", "not in the list"},
			"#doctor":     {"Nothing is wrong", "checks are fine"},
		} {
			shown := ask[string](b, `document.querySelector("`+place+`").textContent`)
			for _, text := range texts {
				if !strings.Contains(shown, text) {
					t.Errorf("%s does not show %q: %s", place, text, shown)
				}
			}
		}
		if got := ask[int](b, `document.querySelectorAll("main img, main script").length`); got != 0 {
			t.Errorf("%d elements come from the configuration", got)
		}
		if got := ask[string](b, "document.title"); got != "hairpin" {
			t.Errorf("title %q: a text of the configuration ran", got)
		}
	})
	t.Run("can be read by everybody", func(t *testing.T) {
		b := b.in(t)
		backs := map[string]bool{}
		for _, scheme := range []string{"light", "dark"} {
			b.colors(scheme)
			worst := ask[[]any](b, contrasts)
			if ratio, _ := worst[0].(float64); ratio < 4.5 || ratio > 21 {
				t.Errorf("%s: the contrast of %q is %.1f, want at least 4.5", scheme, worst[1], ratio)
			}
			backs[ask[string](b, "getComputedStyle(document.body).backgroundColor")] = true
		}
		if len(backs) != 2 {
			t.Errorf("backgrounds %v, want one for light and one for dark", backs)
		}
		for what, expression := range map[string]string{
			"one first heading":                   `document.querySelectorAll("h1").length === 1`,
			"a name for each section":             `[...document.querySelectorAll("section")].every((s) => document.getElementById(s.getAttribute("aria-labelledby"))?.textContent)`,
			"a caption for each table":            `[...document.querySelectorAll("table")].every((table) => table.caption)`,
			"a label for each field":              `[...document.querySelectorAll("input")].every((input) => input.labels.length === 1)`,
			"words for the picture":               `/wan0, 203\.0\.113\.2/.test(document.querySelector("svg[role=img] desc").textContent)`,
			"a head of column for each cell":      `[...document.querySelectorAll("#list tr")].every((row) => row.cells.length === 7)`,
			"a language":                          `document.documentElement.lang === "en"`,
			"a way for the keyboard to the table": `document.querySelector(".skip").hash === "#forwards" && document.activeElement === document.body`,
		} {
			if !ask[bool](b, expression) {
				t.Errorf("the page lacks %s", what)
			}
		}
	})
	t.Run("fits a phone", func(t *testing.T) {
		b := b.in(t)
		for _, width := range []int64{320, 390, 768} {
			b.size(width, 800)
			b.await(`Math.abs(document.querySelector("svg[role=img]").viewBox.baseVal.width - document.querySelector("#network").clientWidth) < 60`)
			if got := ask[int64](b, "document.documentElement.scrollWidth"); got > width {
				t.Errorf("the page is %d pixels wide, on a screen of %d", got, width)
			}
			if got := ask[string](b, `[...document.querySelectorAll("main section, main td, main dd, main li, main p, main input")].filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.tagName + " " + e.textContent).join("; ")`); got != "" {
				t.Errorf("cut off on a screen of %d: %s", width, got)
			}
			if got := ask[bool](b, `[...document.querySelectorAll("svg[role=img] g")].every((g) => { const box = g.getBBox(), all = g.ownerSVGElement.viewBox.baseVal; return box.x >= 0 && box.x + box.width <= all.width && box.y + box.height <= all.height; })`); !got {
				t.Errorf("a part of the picture is outside of it, on a screen of %d", width)
			}
		}
	})
	b.size(1180, 900)
	t.Run("filters", func(t *testing.T) {
		b := b.in(t)
		b.run(chromedp.SendKeys(chromedp.CSS("#filter"), "CONSOLE"))
		b.await(`document.querySelectorAll("#list tr").length === 1 && /1 forward, filtered from 5/.test(document.querySelector("#matching").textContent)`)
		ask[string](b, `document.querySelector("#filter").value = ""`)
		b.run(chromedp.SendKeys(chromedp.CSS("#filter"), "no such"))
		b.await(`/No forward matches/.test(document.querySelector("#matching").textContent)`)
	})
	b.wantQuiet()
	t.Run("shows a detached interface, and a daemon that is gone", func(t *testing.T) {
		b := b.in(t)
		n.Router.Run("ip", "link", "del", "lan1")
		b.await(`/1 interface is not attached/.test(document.querySelector("#health").textContent) && document.querySelector("svg .absent") !== null`)
		hp.For(t).Stop()
		b.await(`document.querySelector("#health").textContent === "No answer"`)
	})
}

// TestPicture makes the picture of the page in the documentation, with -args -rewrite.
func TestPicture(t *testing.T) {
	if info, err := os.Stat(picture); err != nil || info.Size() > 400_000 {
		if !*record.Rewrite {
			t.Errorf("the picture of the documentation: %v, %v", info, err)
		}
	}
	if !*record.Rewrite {
		return
	}
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5353")
	n.Guest.ServeUDP(":3074")
	home.Start(t, n, "tc", household)
	for range 6 {
		for _, from := range []*lab.Host{n.Internet, n.Client} {
			c := home.Waiting(t, from)
			go func() {
				for tick := time.NewTicker(20 * time.Millisecond); c.Echo(10_000) == nil; {
					<-tick.C
				}
			}()
		}
	}
	datagrams, err := n.Internet.DialUDP(lab.External+":53", "")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	go func() {
		for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
			if _, err := datagrams.Write(make([]byte, 200)); err != nil {
				return
			}
		}
	}()
	if c, err := n.Internet.DialTCP(lab.External+":25", "", lab.Patience/20); err == nil {
		c.Close()
	}
	b := startBrowser(t, n.Router)
	for name, view := range map[string]struct {
		width, height int64
		scheme        string
	}{"page": {1180, 1240, "light"}, "dark": {1180, 1240, "dark"}, "phone": {390, 1800, "light"}} {
		b.size(view.width, view.height)
		b.colors(view.scheme)
		b.run(chromedp.Navigate(b.origin + "/"))
		b.await(`document.querySelector("#list .busy-rate") !== null && document.querySelectorAll("#doctor li").length > 0`)
		png := result(b, chromedp.CaptureScreenshot())
		path := picture
		if name != "page" {
			path = filepath.Join(os.TempDir(), "hairpin-"+name+".png")
		}
		if err := os.WriteFile(path, png, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
