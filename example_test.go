package crossfade_test

import (
	"context"
	"fmt"
	"io"
	"log" //nolint:depguard // The shortest end of a program in an example.
	"net/http"
	"time"

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

// What `myapp reload` does: the running process starts its own successor, and this one
// says what became of it.
func ExampleController_Upgrade() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	service, err := crossfade.Dial(ctx, "/tmp/app.sock")
	if err != nil {
		log.Fatal(err)
	}
	outcome, err := service.Upgrade(ctx, &crossfade.UpgradeOptions{Timeout: time.Minute})
	if err != nil {
		log.Fatal(err) // the old process serves, and the error says why
	}
	fmt.Println("now serving:", outcome.Serving)
}

// A deployer that lets the new process go on only if it proves healthy within its
// probation. It rolls back by itself if the deployer dies: the new process was
// started with CROSSFADE_PROBATION=30s and CROSSFADE_AT_PROBATION_END=rollback.
func ExampleController_Settle() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	service, err := crossfade.Dial(ctx, "/tmp/app.sock")
	if err != nil {
		log.Fatal(err)
	}
	if healthy() {
		_, err = service.Settle(ctx)
	} else {
		_, err = service.Rollback(ctx, "the health check failed")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func healthy() bool {
	answer, err := http.Get("http://localhost:8080/health")
	return err == nil && answer.Body.Close() == nil && answer.StatusCode == http.StatusOK
}

func hello(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") }
