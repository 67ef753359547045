package crossfade_test

import (
	"context"
	"io"
	"log" //nolint:depguard // The shortest end of a program in an example.
	"net/http"

	"github.com/crossfade-go/crossfade"
)

// A whole service. The same program is the first process and every successor:
// start it again, from whatever path, and it takes over.
func Example() {
	ctx := context.Background()
	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: "/tmp/app.sock"})
	if err != nil {
		log.Fatal(err)
	}
	defer upg.Stop()
	ln, err := upg.Listen(ctx, "http", "tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(hello)}
	go srv.Serve(ln)
	if err := upg.Ready(ctx); err != nil {
		log.Fatal(err)
	}
	<-upg.Exit()
	drain, cancel := upg.DrainContext(context.Background())
	defer cancel()
	srv.Shutdown(drain)
}

func hello(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") }
