package unit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

// This file keeps the manager's store of descriptors like the registry.

// Stored is a descriptor that belongs in the manager's store. FD remains its
// owner's, who may close it at any time.
type Stored struct {
	Name      string
	ID        uint64 // not 0; names this descriptor among all that ever had the name
	FD        *scm.FD
	Inherited bool // it came under this name
}

// storedBefore is the ID of what the store may have from before this process's time:
// what was inherited under the name, if that is still what has it.
const storedBefore = 0

// keepStore has the manager keep what the registry has.
func (m *Member) keepStore() error {
	// Before it is looked whether this process is out: then it lets go of all it has,
	// which the successor goes on with.
	entries, inherited := m.cfg.Stored()
	m.mu.Lock()
	keeps := m.role == speaking && m.part.Store && m.ready && !m.out
	notifier, most := m.part.Notifier, m.part.StoreMax
	m.mu.Unlock()
	if !keeps {
		return nil
	}
	wanted := make(map[string]Stored, len(entries))
	for _, e := range entries {
		wanted[e.Name] = e
	}
	m.meet(inherited)
	for name, id := range m.stored {
		e, ok := wanted[name]
		if ok && (id == e.ID || id == storedBefore && e.Inherited) {
			continue
		}
		if err := m.unstore(notifier, name); err != nil {
			return err
		}
	}
	var failed error
	for _, e := range entries {
		if m.stored[e.Name] == e.ID {
			continue
		}
		switch err := m.store(notifier, e); {
		case errors.Is(err, systemd.ErrName):
			failed = errors.Join(failed, err)
		case errors.Is(err, net.ErrClosed): // meanwhile: the next look drops it
		case err != nil:
			return err
		}
	}
	if most > 0 && len(entries) > most {
		failed = errors.Join(failed, fmt.Errorf("the service has %d descriptors, and the manager keeps %d: raise FileDescriptorStoreMax=", len(entries), most))
	}
	if failed != nil {
		failed = fmt.Errorf("not everything is in the service manager's store: %w", failed)
	}
	m.note("store", failed)
	return nil
}

// meet notes under which names somebody else may have stored something.
func (m *Member) meet(inherited []string) {
	for _, name := range inherited {
		if !m.met[name] {
			m.met[name] = true
			m.stored[name] = storedBefore
		}
	}
}

func (m *Member) store(notifier *systemd.Notifier, e Stored) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), sayLimit, errSlow)
	defer cancel()
	// Whether a descriptor belongs there is for the registry to say, and not for
	// what poll(2) happens to find.
	err := notifier.Store(ctx, e.Name, e.FD, systemd.NoPoll())
	if err == nil {
		m.stored[e.Name] = e.ID
	}
	return err
}

func (m *Member) unstore(notifier *systemd.Notifier, name string) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), sayLimit, errSlow)
	defer cancel()
	err := notifier.Remove(ctx, name)
	if errors.Is(err, systemd.ErrName) {
		err = nil // it never was there
	}
	if err == nil {
		delete(m.stored, name)
	}
	return err
}

// clearStore has the manager close its copies: a socket that nobody accepts from
// keeps its port.
func (m *Member) clearStore(notifier *systemd.Notifier) error {
	m.mu.Lock()
	keeps := m.part.Store
	m.mu.Unlock()
	if keeps {
		_, inherited := m.cfg.Stored()
		m.meet(inherited) // it may never have come to look
	}
	for _, name := range slices.Sorted(maps.Keys(m.stored)) {
		if err := m.unstore(notifier, name); err != nil {
			return fmt.Errorf("descriptors stay in the service manager's store: %w", err)
		}
	}
	return nil
}
