package handoff_test

import (
	"os"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	leak.Main(m)
}
