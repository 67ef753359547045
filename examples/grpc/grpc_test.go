//go:build unix

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-go/crossfade/examples/internal/trial"
)

// limit bounds what must not hang.
const limit = time.Minute

func TestMain(m *testing.M) {
	if trial.IsExample() {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// dial returns a client that retries nothing.
func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func pid(ctx context.Context, conn *grpc.ClientConn) (int, error) {
	answer := new(wrapperspb.Int64Value)
	err := conn.Invoke(ctx, pidMethod, new(emptypb.Empty), answer)
	return int(answer.GetValue()), err
}

// Calls on connections that stay and on new ones, over ten upgrades: none fails.
func TestNoCallFails(t *testing.T) {
	const upgrades, clients = 10, 4
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	serving, socket, address := trial.FirstExample(t)
	var calls, failed atomic.Int64
	call := func(conn *grpc.ClientConn) {
		if _, err := pid(ctx, conn); err != nil {
			t.Errorf("a call fails: %v", err)
			failed.Add(1)
		}
		calls.Add(1)
	}
	stop := make(chan struct{})
	var calling sync.WaitGroup
	for range clients {
		stays := dial(t, address)
		calling.Go(func() {
			for !isClosed(stop) && failed.Load() < 10 {
				call(stays)
			}
		})
		calling.Go(func() {
			for !isClosed(stop) && failed.Load() < 10 {
				conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
				if err != nil {
					t.Error(err)
					return
				}
				call(conn)
				_ = conn.Close()
			}
		})
	}
	for range upgrades {
		next := trial.StartExample(t, socket, address)
		next.Logs("INFO serving")
		serving.Exits()
		serving = next
	}
	close(stop)
	calling.Wait()
	t.Logf("%d calls, %d failed", calls.Load(), failed.Load())
	if calls.Load() == 0 {
		t.Error("nobody has called")
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// A stream that is open at the upgrade goes on with the process that it began with,
// which says meanwhile that it does not serve.
func TestStreamsFinish(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	old, socket, address := trial.FirstExample(t)
	conn := dial(t, address)
	raw, err := conn.NewStream(ctx, &echoStream, echoMethod)
	if err != nil {
		t.Fatal(err)
	}
	stream := &grpc.GenericClientStream[wrapperspb.Int64Value, wrapperspb.Int64Value]{ClientStream: raw}
	echo := func(n int64) {
		t.Helper()
		if err := stream.Send(wrapperspb.Int64(n)); err != nil {
			t.Fatal(err)
		}
		if got, err := stream.Recv(); err != nil || got.GetValue() != n {
			t.Fatalf("the stream gives back %v, %v, want %d", got, err, n)
		}
	}
	echo(1)
	health, err := grpc_health_v1.NewHealthClient(conn).Watch(ctx, new(grpc_health_v1.HealthCheckRequest))
	if err != nil {
		t.Fatal(err)
	}
	wantHealth(t, health, grpc_health_v1.HealthCheckResponse_SERVING)

	next := trial.StartExample(t, socket, address)
	next.Logs("INFO serving")
	wantHealth(t, health, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	echo(2)
	if got, err := pid(ctx, dial(t, address)); err != nil || got != next.Process.Pid {
		t.Errorf("a new client is served by %d, %v, want %d", got, err, next.Process.Pid)
	}
	echo(3)
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
	_ = conn.Close() // the watch of its health has no other end
	old.Exits()
	if err := next.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	next.Exits()
}

func wantHealth(t *testing.T, health grpc_health_v1.Health_WatchClient, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	got, err := health.Recv()
	if err != nil || got.GetStatus() != want {
		t.Fatalf("the health is %v, %v, want %v", got.GetStatus(), err, want)
	}
}
