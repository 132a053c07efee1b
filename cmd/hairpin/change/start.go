// SPDX-License-Identifier: Apache-2.0

package change

import (
	"errors"
	"fmt"

	"hairpin/cmd/hairpin/history"
	"hairpin/maps"
	"hairpin/maps/config"
)

// Started is what runs after a start.
type Started struct {
	Outcome
	// Apart is why the files do not run; nil if they run.
	Apart error
}

// Fallback returns the configuration that a start runs if nothing runs yet and the files are broken. It fails with broken if no
// configuration is kept.
func Fallback(store *history.Store, broken error) (config.Config, error) {
	p, err := store.Pending()
	if err == nil && p != nil {
		return p.Before, nil
	}
	cfg, _, there, err := store.Newest()
	if err != nil {
		return config.Config{}, errors.Join(broken, err)
	}
	if !there {
		return config.Config{}, broken
	}
	return cfg, nil
}

// Start brings a datapath into service with the files; broken is why they could not be read, nil if they could. It does not run the files
// if they are broken, or if they are those of a change that nobody confirmed: then what runs already stays, or else the configuration
// that was kept last runs.
func (k *Keeper) Start(files config.Config, broken error) (Started, error) {
	_, err := k.Router.Settings()
	fresh := errors.Is(err, maps.ErrEmpty)
	if err != nil && !fresh {
		return Started{}, fmt.Errorf("read the running configuration: %w", err)
	}
	p, err := k.pendingAtStart(fresh)
	if err != nil {
		return Started{}, err
	}
	switch {
	case p != nil && (fresh || Left(p) == 0):
		reverted, err := k.revert(p)
		if reverted == nil {
			return Started{}, err
		}
		return Started{reverted.Outcome, fmt.Errorf("%q was not confirmed", p.Command)}, err
	case p != nil:
		return k.resume(fmt.Errorf("%w: %s", ErrPending, Describe(p)))
	}
	if broken == nil {
		if broken, err = k.Refuses(files.Digest); err != nil {
			return Started{}, err
		}
		if broken == nil {
			return k.startFiles(files)
		}
	}
	if !fresh {
		return k.resume(broken)
	}
	cfg, err := Fallback(k.Store, broken)
	if err != nil {
		return Started{}, err
	}
	result, err := k.Router.Apply(cfg)
	return Started{Outcome{Result: result}, broken}, err
}

// pendingAtStart returns the pending change, nil if there is none. A command that was killed before its swap has left the file of a
// change, but nothing to take back: the wait of this change is ended.
func (k *Keeper) pendingAtStart(fresh bool) (*history.Pending, error) {
	p, err := k.Store.Pending()
	if p == nil || err != nil || fresh {
		return p, err
	}
	made, err := k.made(p)
	if err == nil && !made {
		return nil, k.forget(p)
	}
	return p, err
}

// Refuses returns why a start does not run files with this digest: nobody has confirmed them. It returns nil if a start runs them.
func (k *Keeper) Refuses(digest string) (why, err error) {
	refused, err := k.Store.Refused()
	if err != nil || refused == nil || refused.Digest != digest {
		return nil, err
	}
	return fmt.Errorf("the files are those of a change that was not confirmed, %q; \"hairpin apply\" or \"hairpin reload\" runs them nevertheless", refused.Command), nil
}

// resume keeps what runs.
func (k *Keeper) resume(apart error) (Started, error) {
	result, err := k.Router.Resume()
	return Started{Outcome{Result: result}, apart}, err
}

func (k *Keeper) startFiles(files config.Config) (Started, error) {
	files, err := k.withTransient(files)
	if err != nil {
		return Started{}, err
	}
	result, err := k.Router.Start(files)
	started := Started{Outcome: Outcome{Result: result}}
	switch {
	case !result.Done:
	case result.Kept:
		// What runs was kept when it was applied, but for a store that is new.
		started.Unkept = k.keepFirst("start")
	default:
		started.Unkept = errors.Join(k.Store.Keep(files, "start"), k.Store.Allow())
	}
	return started, err
}
