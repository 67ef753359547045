//go:build unix

package tableflip_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/tableflip"
)

// first returns the Upgrader of a process without a predecessor.
func first(t *testing.T, opts tableflip.Options) *tableflip.Upgrader {
	t.Helper()
	u, err := tableflip.NewUpgrader(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Stop)
	return u
}

// shortDir is a directory whose path is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestAFirstProcessInheritsNothing(t *testing.T) {
	u := first(t, tableflip.Options{})
	if ln, err := u.Listener("tcp", "127.0.0.1:80"); ln != nil || err != nil {
		t.Errorf("Listener is %v, %v", ln, err)
	}
	if pc, err := u.PacketConn("udp", "127.0.0.1:80"); pc != nil || err != nil {
		t.Errorf("PacketConn is %v, %v", pc, err)
	}
	if c, err := u.Conn("tcp", "127.0.0.1:80"); c != nil || err != nil {
		t.Errorf("Conn is %v, %v", c, err)
	}
	if f, err := u.File("lock"); f != nil || err != nil {
		t.Errorf("File is %v, %v", f, err)
	}
	if files, err := u.Files(); files != nil || err != nil {
		t.Errorf("Files is %v, %v", files, err)
	}
	if u.HasParent() {
		t.Error("it has a parent")
	}
	if err := u.WaitForParent(t.Context()); err != nil {
		t.Errorf("WaitForParent: %v", err)
	}
}

func TestAFirstProcessAcceptsBeforeReady(t *testing.T) {
	u := first(t, tableflip.Options{})
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	served, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	if _, ok := served.(*net.TCPConn); !ok {
		t.Errorf("Accept returned a %T", served)
	}
}

func TestWhatIsReturnedCanBeShared(t *testing.T) {
	u := first(t, tableflip.Options{})
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, ok := ln.(tableflip.Listener); !ok {
		t.Errorf("a %T is no tableflip.Listener", ln)
	}
	if _, ok := crossfade.Raw(ln).(*net.TCPListener); !ok {
		t.Errorf("below it is a %T", crossfade.Raw(ln))
	}
	pc, err := u.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, ok := pc.(tableflip.PacketConn); !ok {
		t.Errorf("a %T is no tableflip.PacketConn", pc)
	}
}

func TestCloseKeepsTheSocketAndStopLetsItGo(t *testing.T) {
	u := first(t, tableflip.Options{})
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("the next process's clients cannot queue up: %v", err)
	}
	defer c.Close()
	if _, err := u.Listen("tcp", address); err == nil {
		t.Error("the address can be listened on twice")
	}
	u.Stop()
	if c, err := net.Dial("tcp", address); err == nil {
		_ = c.Close()
		t.Error("the socket is still open after Stop")
	}
}

func TestPathsOfUnixSocketsLastUntilStop(t *testing.T) {
	u := first(t, tableflip.Options{})
	dir := shortDir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	sockets := map[string]func() (interface{ Close() error }, error){
		"unix":     func() (interface{ Close() error }, error) { return u.Listen("unix", path("unix")) },
		"unixgram": func() (interface{ Close() error }, error) { return u.ListenPacket("unixgram", path("unixgram")) },
		"callback": func() (interface{ Close() error }, error) {
			return u.ListenWithCallback("unix", path("callback"), func(network, addr string) (net.Listener, error) {
				ln, err := net.Listen(network, addr)
				if err != nil {
					return nil, err
				}
				return wrapped{ln.(*net.UnixListener)}, nil
			})
		},
		"added": func() (interface{ Close() error }, error) {
			ln, err := net.Listen("unix", path("added"))
			if err != nil {
				return nil, err
			}
			return ln, u.AddListener("unix", path("added"), ln.(*net.UnixListener))
		},
		"added packets": func() (interface{ Close() error }, error) {
			pc, err := net.ListenPacket("unixgram", path("added packets"))
			if err != nil {
				return nil, err
			}
			return pc, u.AddPacketConn("unixgram", path("added packets"), pc.(*net.UnixConn))
		},
	}
	for name, open := range sockets {
		s, err := open()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(path(name)); err != nil {
			t.Errorf("%s: after Close: %v", name, err)
		}
	}
	u.Stop()
	for name := range sockets {
		if _, err := os.Stat(path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: after Stop: %v", name, err)
		}
	}
}

// wrapped is a program's own type of listener.
type wrapped struct{ *net.UnixListener }

func TestAStalePathIsNoObstacle(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = ln.Close()
	if ln, err = first(t, tableflip.Options{}).Listen("unix", path); err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
}

func TestALivePathIsAnError(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if ln, err := first(t, tableflip.Options{}).Listen("unix", path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("Listen is %v, %v", ln, err)
	}
}

func TestTheListenConfigOpens(t *testing.T) {
	var opened []string
	u := first(t, tableflip.Options{ListenConfig: &net.ListenConfig{
		Control: func(network, _ string, _ syscall.RawConn) error {
			opened = append(opened, network)
			return nil
		},
	}})
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	pc, err := u.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = pc.Close()
	if got := strings.Join(opened, " "); got != "tcp4 udp4" {
		t.Errorf("it was used for %q", got)
	}
}

func TestErrorsOfOpening(t *testing.T) {
	u := first(t, tableflip.Options{})
	refused := errors.New("not today")
	for name, test := range map[string]struct {
		open func() error
		want func(error) bool
	}{
		"a listener's callback fails": {
			func() error {
				_, err := u.ListenWithCallback("tcp", "a:1", func(string, string) (net.Listener, error) { return nil, refused })
				return err
			},
			func(err error) bool { return errors.Is(err, refused) },
		},
		"a packet conn's callback fails": {
			func() error {
				_, err := u.ListenPacketWithCallback("udp", "a:1", func(string, string) (net.PacketConn, error) { return nil, refused })
				return err
			},
			func(err error) bool { return errors.Is(err, refused) },
		},
		"the address is in use": {
			func() error {
				other, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				defer other.Close()
				_, err = u.Listen("tcp", other.Addr().String())
				return err
			},
			func(err error) bool { return errors.Is(err, syscall.EADDRINUSE) },
		},
		"a listener without a descriptor": {
			func() error {
				_, err := u.ListenWithCallback("tcp", "a:1", func(string, string) (net.Listener, error) {
					ln, err := net.Listen("tcp", "127.0.0.1:0")
					return struct{ net.Listener }{ln}, err
				})
				return err
			},
			func(err error) bool { return err != nil && strings.Contains(err.Error(), "syscall.Conn") },
		},
		"a packet conn without a descriptor": {
			func() error {
				_, err := u.ListenPacketWithCallback("udp", "a:1", func(string, string) (net.PacketConn, error) {
					pc, err := net.ListenPacket("udp", "127.0.0.1:0")
					return struct{ net.PacketConn }{pc}, err
				})
				return err
			},
			func(err error) bool { return err != nil && strings.Contains(err.Error(), "syscall.Conn") },
		},
		"a listening socket as a file": {
			func() error {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				defer ln.Close()
				file, err := ln.(*net.TCPListener).File()
				if err != nil {
					return err
				}
				defer file.Close()
				return u.AddFile("listener", file)
			},
			func(err error) bool { return err != nil && strings.Contains(err.Error(), "listen") },
		},
		"a closed file": {
			func() error {
				r, w, err := os.Pipe()
				if err != nil {
					return err
				}
				_, _ = r.Close(), w.Close()
				return u.AddFile("closed", r)
			},
			func(err error) bool { return errors.Is(err, os.ErrClosed) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := test.open(); !test.want(err) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// The callback may use the Fds, which it could not in the original.
func TestACallbackMayListen(t *testing.T) {
	u := first(t, tableflip.Options{})
	ln, err := u.ListenWithCallback("tcp", "outer", func(string, string) (net.Listener, error) {
		inner, err := u.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		_ = inner.Close()
		return net.Listen("tcp", "127.0.0.1:0")
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
}
