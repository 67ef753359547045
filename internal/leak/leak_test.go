package leak_test

import (
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/leak"
)

// plant names what TestPlanted leaves behind in a re-executed test binary.
const plant = "CROSSFADE_LEAK_PLANT"

func TestMain(m *testing.M) {
	if os.Getenv(plant) != "" {
		leak.SetGrace(50 * time.Millisecond)
	}
	leak.Main(m)
}

// kept holds what is leaked on purpose, so that no finalizer closes it.
var kept []any

var plants = map[string]func(t *testing.T){
	"nothing": func(*testing.T) {},
	"descriptor": func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, ln)
	},
	"goroutine": func(*testing.T) { go stuck(make(chan struct{})) },
	"another's descriptor": func(t *testing.T) {
		if err := os.Stdin.Close(); err != nil {
			t.Fatal(err)
		}
	},
	"descriptor, checked": func(t *testing.T) {
		leak.Check(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, r, w)
	},
	"goroutine, checked": func(t *testing.T) {
		leak.Check(t)
		go stuck(make(chan struct{}))
	},
}

func stuck(never chan struct{}) { <-never }

// TestPlanted does nothing unless a leak is asked for.
func TestPlanted(t *testing.T) {
	if f := plants[os.Getenv(plant)]; f != nil {
		f(t)
	}
}

func TestLeaksAreReported(t *testing.T) {
	tests := []struct {
		plant string
		want  string // "" for a pass
		unix  bool
	}{
		{plant: "nothing"},
		{plant: "descriptor", want: "is still open: ", unix: true},
		{plant: "goroutine", want: "leak_test.stuck"},
		{plant: "another's descriptor", want: "descriptor    0 was closed by somebody", unix: true},
		{plant: "descriptor, checked", want: "is still open: ", unix: true},
		{plant: "goroutine, checked", want: "leak_test.stuck"},
	}
	for _, tt := range tests {
		t.Run(tt.plant, func(t *testing.T) {
			if tt.unix && runtime.GOOS == "windows" {
				t.Skip("descriptors are not looked at on Windows")
			}
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe, "-test.run=^TestPlanted$", "-test.count=1")
			cmd.Env = append(os.Environ(), plant+"="+tt.plant)
			out, err := cmd.CombinedOutput()
			if passed := err == nil; passed != (tt.want == "") {
				t.Errorf("ended with %v, output:\n%s", err, out)
			}
			if !strings.Contains(string(out), tt.want) {
				t.Errorf("output does not say %q:\n%s", tt.want, out)
			}
		})
	}
}

func TestCheckAcceptsWhatIsCleanedUp(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	go stuck(stop)
	t.Cleanup(func() {
		close(stop)
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
	})
}
