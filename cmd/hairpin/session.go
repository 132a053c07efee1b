// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"hairpin/cmd/hairpin/presence"
	"hairpin/cmd/hairpin/router"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// open opens the datapath for reading, without a lock.
func (a *app) open() (*router.Session, error) { return router.Open(a.dir) }

// openLocked takes the writer lock and opens the datapath.
func (a *app) openLocked(ctx context.Context) (*router.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, a.lockWait)
	defer cancel()
	return router.OpenLocked(ctx, a.dir)
}

// load takes the writer lock and opens the datapath. It creates the datapath if there is none.
func (a *app) load(ctx context.Context, maxConnections uint32) (*router.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, a.lockWait)
	defer cancel()
	return router.Load(ctx, a.dir, maxConnections)
}

// afterChange warns of everything in the configuration just applied that has no effect, or no effect yet.
func (a *app) afterChange(s *router.Session, cfg config.Config, file string, result router.Result) {
	daemon, err := presence.Running(a.dir)
	if err != nil {
		a.warn("cannot look for the daemon: %s", err)
	}
	for _, key := range []string{"metrics.listen", "log.connections"} {
		if daemon && !result.Kept && slices.Contains(result.Change.Settings, key) {
			a.say("%s takes effect when the daemon reloads; run \"systemctl reload hairpin\"", key)
		}
	}
	a.notices(s.ResizeWarning(cfg), router.Unconfigured(cfg, file), pendingNotice(result.Ports, daemon))
	// Use cfg instead of the tables: reading tens of thousands of forwards from the tables takes longer.
	ipv6 := slices.ContainsFunc(cfg.Forwards, func(f rule.Forward) bool { return f.Target.Is6() })
	a.notices(s.NotForwarding(ipv6, result.Ports)...)
	a.noticeFindings(s.Findings(cfg))
}

// pendingNotice returns a warning about configured interfaces that do not exist, "" if all exist. daemon
// says whether a daemon runs, which attaches these interfaces later.
func pendingNotice(ports []router.Port, daemon bool) string {
	names := router.Pending(ports)
	if len(names) == 0 {
		return ""
	}
	text := "no such interface yet: " + strings.Join(names, ", ")
	if daemon {
		return text + "; the daemon attaches when an interface appears"
	}
	return text + "; run \"hairpin attach\" when they exist, or start the daemon (systemctl start hairpin), which attaches by itself"
}

// notices prints each text that is not empty as a warning.
func (a *app) notices(texts ...string) {
	for _, text := range texts {
		if text != "" {
			a.warn("%s", text)
		}
	}
}

func (a *app) refuseIfDaemon(why string) error {
	runs, err := presence.Running(a.dir)
	if err == nil && runs {
		err = fmt.Errorf("%w and %s; stop the daemon first (systemctl stop hairpin)", presence.ErrRunning, why)
	}
	return err
}
