//go:build !unix

package scm_test

import (
	"context"
	"errors"
	"testing"

	"github.com/crossfade-go/crossfade/scm"
)

func TestUnsupported(t *testing.T) {
	for name, use := range map[string]func() error{
		"Bind":    func() error { _, err := scm.Bind("unix", "s"); return err },
		"Dial":    func() error { _, err := scm.Dial(context.Background(), "s"); return err },
		"Pair":    func() error { _, _, err := scm.Pair(); return err },
		"Reserve": func() error { return scm.Reserve(1) },
		"Dup":     func() error { _, err := scm.NewFD(3).Dup(); return err },
	} {
		if err := use(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s gave %v", name, err)
		}
	}
}
