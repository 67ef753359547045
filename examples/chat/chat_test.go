//go:build unix

package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/examples/internal/trial"
	"github.com/crossfade-go/crossfade/internal/leak"
)

// limit bounds what must not hang.
const limit = time.Minute

func TestMain(m *testing.M) {
	if trial.IsExample() {
		main()
		os.Exit(0)
	}
	leak.Main(m)
}

// guest talks to itself, and checks what it hears.
type guest struct {
	conn  net.Conn
	name  string
	heard atomic.Int64 // of what it has said
}

func join(t *testing.T, address, name, room string) *guest {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "%s\n/join %s\n", name, room)
	return &guest{conn: c, name: name}
}

// talk says numbers, in pieces, until stop is closed, and waits until it has heard
// the last. The error says what was lost, doubled or out of order.
func (g *guest) talk(stop <-chan struct{}) error {
	said := make(chan int64, 1)
	go func() {
		pause := time.NewTicker(time.Millisecond) // else nobody else would get to do anything
		defer pause.Stop()
		for n, stopped := int64(1), false; !stopped; n++ {
			select {
			case <-stop:
				stopped = true
				said <- n // before it is said: who has heard it must know that it was the last
			case <-pause.C:
			}
			line := strconv.FormatInt(n, 10) + "\n"
			if _, err := g.conn.Write([]byte(line[:1])); err != nil {
				return // which is the end for who listens, too
			}
			if _, err := g.conn.Write([]byte(line[1:])); err != nil {
				return
			}
		}
	}()
	_ = g.conn.SetReadDeadline(time.Now().Add(limit))
	lines := bufio.NewScanner(g.conn)
	last := int64(-1)
	for last < 0 || g.heard.Load() < last {
		if !lines.Scan() {
			return fmt.Errorf("%s has heard %d and the connection ends: %w", g.name, g.heard.Load(), lines.Err())
		}
		text, own := strings.CutPrefix(lines.Text(), g.name+": ")
		if own {
			if want := strconv.FormatInt(g.heard.Load()+1, 10); text != want {
				return fmt.Errorf("%s hears %q, want %s", g.name, text, want)
			}
			g.heard.Add(1)
		}
		select {
		case last = <-said:
		default:
		}
	}
	return nil
}

func TestClientsStayOverTenUpgrades(t *testing.T) {
	const guests, upgrades = 6, 10
	serving, socket, address := trial.FirstExample(t)

	stop := make(chan struct{})
	var talking sync.WaitGroup
	var all []*guest
	for i := range guests {
		g := join(t, address, fmt.Sprintf("guest%d", i), fmt.Sprintf("room%d", i%2))
		all = append(all, g)
		talking.Go(func() {
			if err := g.talk(stop); err != nil {
				t.Error(err)
			}
		})
	}
	for range upgrades {
		next := trial.StartExample(t, socket, address)
		next.Logs("INFO serving")
		line := serving.Logs("the clients have moved")
		if trial.Field(line, "moved") != strconv.Itoa(guests) || trial.Field(line, "left") != "0" {
			t.Errorf("the predecessor says: %s", line)
		}
		serving.Exits()
		serving = next
	}
	close(stop)
	talking.Wait()
	for _, g := range all {
		if g.heard.Load() == 0 {
			t.Errorf("%s has heard nothing", g.name)
		}
	}
}
