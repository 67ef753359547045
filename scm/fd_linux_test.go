package scm_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/scm"
)

func TestIdentifyMPTCP(t *testing.T) {
	leak.Check(t)
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	id, err := dup(t, ln.(syscall.Conn)).Identify()
	if err != nil {
		t.Fatal(err)
	}
	if id.Network != "tcp" || !id.Listening || id.Cookie == 0 {
		t.Errorf("identity is %+v", id)
	}
	if id.Protocol == unix.IPPROTO_TCP {
		t.Skip("this kernel gives plain TCP when asked for MPTCP")
	}
	if id.Protocol != unix.IPPROTO_MPTCP {
		t.Errorf("the protocol is %d", id.Protocol)
	}
}

func TestIdentifySeqpacket(t *testing.T) {
	leak.Check(t)
	fd, err := scm.Bind("unixpacket", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := fd.Listen(1); err != nil {
		t.Fatal(err)
	}
	id, err := fd.Identify()
	if err != nil || id.Network != "unixpacket" || !id.Listening {
		t.Errorf("identity is %+v, %v", id, err)
	}
	ln, err := fd.Listener()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if _, err := os.Lstat(id.Address); err != nil {
		t.Errorf("closing the listener has removed its path: %v", err)
	}
}

// The options belong to whoever set them, in whichever process.
func TestConnKeepsSocketOptions(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, noDelay := range []bool{false, true} {
		for _, keepAlive := range []net.KeepAliveConfig{
			{Enable: false},
			{Enable: true, Idle: 77 * time.Second, Interval: 7 * time.Second, Count: 3},
		} {
			t.Run(fmt.Sprintf("no delay %v, keep-alive %v", noDelay, keepAlive.Enable), func(t *testing.T) {
				// net.Dialer would set both itself: -1 leaves keep-alive alone.
				client, err := (&net.Dialer{KeepAlive: -1}).Dial("tcp", ln.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				tcp := client.(*net.TCPConn)
				if err := tcp.SetNoDelay(noDelay); err != nil {
					t.Fatal(err)
				}
				if err := tcp.SetKeepAliveConfig(keepAlive); err != nil {
					t.Fatal(err)
				}
				options := func() string {
					return ask(t, tcp, func(fd int) (string, error) {
						var b strings.Builder
						for _, o := range [][2]int{
							{unix.IPPROTO_TCP, unix.TCP_NODELAY},
							{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
							{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
							{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
							{unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
						} {
							v, err := unix.GetsockoptInt(fd, o[0], o[1])
							if err != nil {
								return "", err
							}
							fmt.Fprintf(&b, "%d ", v)
						}
						return b.String(), nil
					})
				}
				before := options()
				c, err := dup(t, tcp).Conn()
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if after := options(); after != before {
					t.Errorf("options were %s, are %s", before, after)
				}
			})
		}
	}
}
