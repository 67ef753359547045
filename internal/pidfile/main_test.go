package pidfile_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/pidfile"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

func TestMain(m *testing.M) {
	reexec.Main(map[string]func(){
		"check and write": func() {
			fmt.Println("check:", pidfile.Check(os.Args[1]))
			fmt.Println("write:", pidfile.Write(os.Args[1]))
		},
	})
	leak.Main(m)
}
