//go:build unix

package crossfade_test

import (
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// FuzzEnvironment: whatever the variables say, they are taken or refused with a reason,
// and nothing of them is left to the program's children.
func FuzzEnvironment(f *testing.F) {
	for name, value := range map[string]string{
		"SOCKET": "/run/s", "FD": "3", "INSTANCE": "\x1b[2J", "EPOCH": "18446744073709551616", "FORCE": "yes",
		"PROBATION": "-1s", "AT_PROBATION_END": "settle", "": "x", "LATER": "1",
	} {
		f.Add(name, value)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		if strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return // no such variable can be
		}
		name = "CROSSFADE_" + name
		if err := os.Setenv(name, value); err != nil { //nolint:usetesting // Setenv of a test has no use for one that is to be gone
			t.Fatal(err)
		}
		if err := crossfade.TakeEnvironment(); err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("%q=%q: %v", name, value, err)
		}
		if _, left := os.LookupEnv(name); left {
			t.Errorf("%q is left", name)
		}
	})
}

// FuzzRegistry: a predecessor describes what it hands over in any way. What is not what
// it is said to be, or has no proper name, ends the attempt; everything that came is
// closed. TestMain sees what is left open.
func FuzzRegistry(f *testing.F) {
	f.Add("web", byte(1), byte(0), "tcp", "127.0.0.1:80", uint64(1), false)
	f.Add("web", byte(4), byte(1), "", "", uint64(0), true)
	f.Add("crossfade.x", byte(2), byte(2), "udp", "", uint64(2), false)
	f.Add("state", byte(5), byte(3), "", "", uint64(0), false)
	f.Add("\x1b", byte(9), byte(0), "\x00", "\n", uint64(1<<63), true)
	null, err := os.Open(os.DevNull)
	if err != nil {
		f.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	file, err := os.CreateTemp(f.TempDir(), "state")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { null.Close(); ln.Close(); packets.Close(); file.Close() })
	sources := []any{null, ln, packets, file}
	cfg := &crossfade.Config{Logger: slog.New(slog.DiscardHandler)}
	f.Fuzz(func(t *testing.T, name string, kind, which byte, network, address string, lie uint64, late bool) {
		var ds []handoff.Descriptor
		for i := range 2 { // the second is no lie
			fd, err := scm.DupFD(sources[int(which)%len(sources)].(syscall.Conn))
			if err != nil {
				t.Fatal(err)
			}
			id, err := fd.Identify()
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				switch lie % 5 {
				case 1:
					id.Cookie = lie
				case 2:
					id.Dev, id.Ino = lie, lie
				case 3:
					id.Network, id.Address = network, address
				case 4:
					id.SockType = int(int32(lie))
				}
			}
			ds = append(ds, handoff.Descriptor{
				ID: lie + uint64(i), Name: name, Kind: handoff.Kind(kind), Network: network, Address: address, Identity: id, FD: fd,
			})
			name += "2"
		}
		first := ds[0].Name
		if err := crossfade.ReceivePage(cfg, ds, late); err == nil && crossfade.CheckFDName(first) != nil {
			t.Errorf("%q was taken for a name", first)
		}
		for _, d := range ds {
			if d.FD.Control(func(uintptr) {}) == nil {
				t.Errorf("%q is still open", d.Name)
			}
		}
	})
}
