//go:build !(linux || darwin || freebsd || openbsd || netbsd || dragonfly)

package rendezvous_test

import (
	"errors"
	"testing"

	"github.com/crossfade-go/crossfade/internal/rendezvous"
)

func TestUnsupported(t *testing.T) {
	p := rendezvous.Place{Path: "control.sock"}
	if _, _, err := rendezvous.Find(t.Context(), p); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("find: %v", err)
	}
	if _, _, err := rendezvous.Open(t.Context(), p); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("open: %v", err)
	}
}
