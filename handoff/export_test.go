package handoff

import (
	"context"

	"github.com/crossfade-go/crossfade/scm"
)

// What the tests put between the machines instead of sockets.

type Frames = frames

const (
	MaxPageSize  = maxPageSize
	PageWindow   = pageWindow
	WriteTimeout = writeTimeout
	MaxReason    = maxReason
	MaxDuration  = maxDuration
)

func (s *Server) Serve(conn Frames, peer *scm.Peer) { s.serve(conn, peer) }

func (s *Server) SpawnOn(conn Frames) (*Spawned, error) { return s.spawn(conn) }

func ConnectOn(ctx context.Context, conn Frames, cfg *SuccessorConfig) (*Taking, error) {
	return connect(ctx, conn, cfg)
}

func QueryStatusOn(ctx context.Context, conn Frames) (*Status, error) {
	return queryStatus(ctx, conn)
}
