//go:build unix

package crossfade_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
)

// What a predecessor leaves behind lasts until its process ends, so both sides of
// these handoffs are in a process that ends with the test.
func init() {
	processes["close of HandedOver"] = func() { check(closeLosesNothing(handOverInOneProcess())) }
	processes["handed over again"] = func() { check(movesAgainWithTheRest(handOverInOneProcess())) }
}

func TestHandedOverInOneProcess(t *testing.T) {
	for _, name := range []string{"close of HandedOver", "handed over again"} {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, name)
			cmd.Dir = t.TempDir()
			start(t, cmd)
			timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// handOverInOneProcess returns a predecessor that has retired, and what it hands over
// comes out of there.
func handOverInOneProcess() (predecessor *crossfade.Upgrader, there net.Listener) {
	var upgs [2]*crossfade.Upgrader
	for i := range upgs {
		upg, err := crossfade.New(context.Background(), &crossfade.Config{Socket: filepath.Join(".", "s")})
		check(err)
		there = upg.HandedOver("x")
		check(upg.Ready(context.Background()))
		upgs[i] = upg
	}
	<-upgs[0].Exit()
	return upgs[0], there
}

// tcpPair returns both ends of a connection.
func tcpPair() (client, server net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	defer ln.Close()
	client, err = net.Dial("tcp", ln.Addr().String())
	check(err)
	server, err = ln.Accept()
	check(err)
	return client, server
}

// What the predecessor was told to be taken may not be closed under the client.
func closeLosesNothing(predecessor *crossfade.Upgrader, there net.Listener) error {
	client, server := tcpPair()
	check(predecessor.HandOverConn(context.Background(), "x", server, nil))
	check(there.Close())
	_, late := tcpPair()
	if err := predecessor.HandOverConn(context.Background(), "x", late, nil); !errors.Is(err, crossfade.ErrNotTaken) {
		return fmt.Errorf("after Close one was handed over: %w", err)
	}
	taken, err := there.Accept()
	if err != nil {
		return fmt.Errorf("what was taken before Close is lost: %w", err)
	}
	if _, err := io.WriteString(taken, "hello\n"); err != nil {
		return err
	}
	if line, err := bufio.NewReader(client).ReadString('\n'); err != nil || line != "hello\n" {
		return fmt.Errorf("the client reads %q: %w", line, err)
	}
	if _, err := there.Accept(); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("then Accept returns %w", err)
	}
	if err := there.Close(); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("a second Close returns %w", err)
	}
	return nil
}

// What came along with a connection and was not read moves on with it.
func movesAgainWithTheRest(predecessor *crossfade.Upgrader, there net.Listener) error {
	client, c := tcpPair()
	unread := []byte("12345")
	for range 2 {
		check(predecessor.HandOverConn(context.Background(), "x", c, &crossfade.HandOver{Unread: unread}))
		var err error
		c, err = there.Accept()
		check(err)
		read := make([]byte, 2)
		_, err = io.ReadFull(c, read)
		check(err)
		unread = read[1:] // one byte was used
	}
	check(client.Close())
	if rest, err := io.ReadAll(c); err != nil || string(unread)+string(rest) != "345" {
		return fmt.Errorf("what is left to read is %q and %q: %w", unread, rest, err)
	}
	return nil
}
