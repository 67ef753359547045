package mailbox_test

import (
	"testing"

	"github.com/crossfade-go/crossfade/internal/mailbox"
)

func TestOrder(t *testing.T) {
	const n = 1000
	got := make(chan int, n)
	begun, release := make(chan struct{}), make(chan struct{})
	box := mailbox.New(func(v int) {
		if v == 0 {
			close(begun)
			<-release // Post does not wait for it
		}
		got <- v
	})
	box.Post(0)
	<-begun
	for v := 1; v < n; v++ {
		box.Post(v)
	}
	close(release)
	for want := range n {
		if v := <-got; v != want {
			t.Fatalf("got %d, want %d", v, want)
		}
	}
	box.Post(n) // to one that had nothing left to do
	if v := <-got; v != n {
		t.Errorf("got %d, want %d", v, n)
	}
}

func TestNobodyWantsThem(t *testing.T) {
	mailbox.New[int](nil).Post(1)
}
