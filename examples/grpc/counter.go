package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// counter is the service. Its description is written by hand, so that there is no
// generated code in an example of something else.
type counter struct{ pid int64 }

// The methods of the service.
const (
	serviceName = "crossfade.example.Counter"
	pidMethod   = "/" + serviceName + "/Pid"
	echoMethod  = "/" + serviceName + "/Echo"
)

// Pid says which process answers.
func (c counter) Pid(context.Context, *emptypb.Empty) (*wrapperspb.Int64Value, error) {
	return wrapperspb.Int64(c.pid), nil
}

// Echo sends each number back until the client has no more.
func (c counter) Echo(stream grpc.BidiStreamingServer[wrapperspb.Int64Value, wrapperspb.Int64Value]) error {
	for {
		n, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client has said its last, or has left
		}
		if err := stream.Send(n); err != nil {
			return err
		}
	}
}

// counterServer is what the description asks of a service.
type counterServer interface {
	Pid(context.Context, *emptypb.Empty) (*wrapperspb.Int64Value, error)
	Echo(grpc.BidiStreamingServer[wrapperspb.Int64Value, wrapperspb.Int64Value]) error
}

var echoStream = grpc.StreamDesc{
	StreamName: "Echo", ServerStreams: true, ClientStreams: true,
	Handler: func(srv any, stream grpc.ServerStream) error {
		return srv.(counterServer).Echo(&grpc.GenericServerStream[wrapperspb.Int64Value, wrapperspb.Int64Value]{ServerStream: stream})
	},
}

func registerCounter(srv *grpc.Server, c counterServer) {
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*counterServer)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Pid", Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(emptypb.Empty)
			if err := decode(in); err != nil {
				return nil, err
			}
			return srv.(counterServer).Pid(ctx, in)
		}}},
		Streams: []grpc.StreamDesc{echoStream},
	}, c)
}
