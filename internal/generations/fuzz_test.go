//go:build unix

package generations_test

import (
	"errors"
	"log/slog"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/generations"
	"github.com/crossfade-go/crossfade/scm"
)

// FuzzManifest: a predecessor lists anything as what tells the ends of generations. Each
// descriptor is kept, given back or closed, and there are never more generations than
// [generations.Max]. TestMain sees what is left open.
func FuzzManifest(f *testing.F) {
	f.Add([]byte{0, 1, 1, 0, 2, 2, 1, 2, 3})
	f.Add([]byte{0, 1, 1, 0, 1, 1})
	f.Add([]byte{1, 1, 1})
	f.Add([]byte{7, 0, 0, 2, 1, 0, 3, 9, 9})
	f.Fuzz(func(t *testing.T, script []byte) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		list := generations.New(generations.Config{
			Log: slog.New(slog.DiscardHandler), Owns: func() bool { return true }, Gone: func(handoff.Process) {},
			Check: func(handoff.Descriptor) error { return nil },
		})
		defer list.Close()
		var ds []handoff.Descriptor
		// Three bytes are an entry: its sort, its number, that of its generation.
		for ; len(script) >= 3 && len(ds) < 600; script = script[3:] {
			file := r
			if script[0]&8 != 0 {
				file = w
			}
			fd, err := scm.DupFD(file)
			if err != nil {
				t.Fatal(err)
			}
			id, err := fd.Identify()
			if err != nil {
				t.Fatal(err)
			}
			d := handoff.Descriptor{
				ID: uint64(len(ds)), Kind: handoff.KindAlive, FD: fd, Identity: id,
				Name: []string{"crossfade.alive.", "crossfade.pidfd.", "crossfade.alive", ""}[script[0]&3] + strconv.Itoa(int(script[1])),
			}
			if script[0]&4 == 0 {
				d.Alive = &handoff.Generation{Process: handoff.Process{Generation: uint64(script[2])}, Limit: time.Duration(script[1])}
			}
			if script[0]&16 != 0 {
				d.Kind = handoff.KindFile
			}
			ds = append(ds, d)
		}
		rest, err := list.Receive(ds)
		for _, d := range rest {
			if d.Kind == handoff.KindAlive {
				t.Errorf("%q is given back", d.Name)
			}
			_ = d.FD.Close()
		}
		if err != nil {
			list.Forget()
		}
		list.Follow(handoff.Process{Generation: 7})
		if n := len(list.All()); n > generations.Max+1 {
			t.Errorf("%d generations are listed", n)
		}
		list.Left()
		list.LetGo()
		list.Close()
		for _, d := range ds {
			if err := d.FD.Control(func(uintptr) {}); err == nil || errors.Is(err, os.ErrInvalid) {
				t.Errorf("%q is still open: %v", d.Name, err)
			}
		}
	})
}
