package flood

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// attack is what one client does with a connection, again and again. It returns when
// the connection is of no more use, or with ctx.
type attack struct {
	clients int // at a time
	run     func(ctx context.Context, c *net.UnixConn) error
}

// Names are those of the attacks.
var Names = []string{"silent", "slow", "bombs", "unread", "half", "knock", "lengths", "large", "texts"}

var attacks = map[string]attack{
	// Say nothing.
	"silent": {1000, linger},
	// Say a Hello a byte at a time, and never its end.
	"slow": {300, func(ctx context.Context, c *net.UnixConn) error {
		whole := frame(0, helloOf(&pb.Hello{Versions: []uint32{1}, Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: strings.Repeat("x", 199)}}))
		for i := range len(whole) - 1 {
			if _, err := c.Write(whole[i : i+1]); err != nil {
				return err
			}
			if !pause(ctx, 20*time.Millisecond) {
				return nil
			}
		}
		return linger(ctx, c)
	}},
	// Send descriptors that nobody has asked for: before Hello, in its place, in place
	// of an acknowledgement, as a controller, more than are announced.
	"bombs": {50, func(_ context.Context, c *net.UnixConn) error { return bomb(c) }},
	// Ask for everything and read nothing.
	"unread": {200, func(ctx context.Context, c *net.UnixConn) error {
		request := &pb.ControlRequest{Request: &pb.ControlRequest_Status{Status: &pb.StatusRequest{}}}
		if number.Add(1)%4 == 0 {
			request = &pb.ControlRequest{Request: &pb.ControlRequest_Watch{Watch: &pb.WatchRequest{}}}
		}
		asked := append(frame(0, helloOf(controller)), frame(0, wrap(&pb.ClientMessage{Message: &pb.ClientMessage_Control{Control: request}}))...)
		if _, err := c.Write(asked); err != nil {
			return err
		}
		return hungUp(ctx, c)
	}},
	// Close one direction only.
	"half": {300, func(ctx context.Context, c *net.UnixConn) error {
		if err := c.CloseWrite(); err != nil {
			return err
		}
		return linger(ctx, c)
	}},
	// Come and go.
	"knock": {4, func(context.Context, *net.UnixConn) error { return nil }},
	// Announce what never comes.
	"lengths": {20, func(_ context.Context, c *net.UnixConn) error {
		for _, h := range [][]byte{
			header(1<<32-1, 0, 0), header(1<<31, 250, 0), header(1<<20, 0, 0), header(10, 65535, 0), header(0, 0, 65535), []byte("GET / HTTP/1.1\r\n\r\n"),
		} {
			if _, err := c.Write(h); err != nil {
				return err
			}
		}
		return nil
	}},
	// Say what takes a multiple of its size to hold, is nested, or means nothing.
	"large": {50, func(_ context.Context, c *net.UnixConn) error {
		_, err := c.Write(frame(0, large()))
		return err
	}},
	// Have harmful texts shown.
	"texts": {10, func(_ context.Context, c *net.UnixConn) error {
		const text = "\x1b[2J\x1b]0;owned\x07\nlevel=INFO msg=\"all is well\"\r\u202e"
		process := &pb.Process{Instance: text, BuildVersion: text}
		cancel := &pb.ControlRequest{Instance: text, Request: &pb.ControlRequest_Cancel{Cancel: &pb.CancelRequest{Instance: text, Reason: text}}}
		for _, m := range [][]byte{
			helloOf(&pb.Hello{Versions: []uint32{1}, Role: pb.Role_ROLE_SUCCESSOR, Process: process, Features: []string{text}}),
			append(helloOf(controller), frame(0, wrap(&pb.ClientMessage{Message: &pb.ClientMessage_Control{Control: cancel}}))...),
		} {
			if _, err := c.Write(frame(0, m)); err != nil {
				return err
			}
		}
		return nil
	}},
}

var controller = &pb.Hello{Versions: []uint32{1}, Role: pb.Role_ROLE_CONTROLLER}

func helloOf(h *pb.Hello) []byte {
	return wrap(&pb.ClientMessage{Message: &pb.ClientMessage_Hello{Hello: h}})
}

func wrap(m *pb.ClientMessage) []byte {
	payload, err := proto.Marshal(m)
	if err != nil {
		panic(err) // a constant
	}
	return payload
}

func header(length uint32, nfds, reserved uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, length)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, nfds), reserved)
}

func frame(nfds uint16, payload []byte) []byte {
	return append(header(uint32(len(payload)), nfds, 0), payload...)
}

// large is a different payload each time, of nearly the largest size of a frame.
func large() []byte {
	const size = 1<<20 - 64
	var hello []byte
	switch number.Add(1) % 4 {
	case 0: // many empty features
		hello = bytes.Repeat(protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), nil), size/2)
	case 1: // many versions
		hello = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), bytes.Repeat([]byte{2}, size-16))
	case 2: // an unknown field
		hello = protowire.AppendBytes(protowire.AppendTag(nil, 999, protowire.BytesType), make([]byte, size-16))
	case 3: // groups in groups
		hello = bytes.Repeat(protowire.AppendTag(nil, 999, protowire.StartGroupType), size/2)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), hello)
}

var number atomic.Int64

// refused counts the sets of descriptors that the kernel did not let through.
var refused atomic.Int64

// bomb sends sets of descriptors: of a file, of sockets that have sockets in flight,
// and of the connection's own end, which only the kernel's collector can free.
func bomb(c *net.UnixConn) error {
	null, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(null)
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(pair[0])
	defer syscall.Close(pair[1])
	// Each is in flight in the other, and the connection in both.
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Control(func(own uintptr) {
		for i, sent := range pair {
			_ = syscall.Sendmsg(pair[i], []byte{0}, syscall.UnixRights(sent, int(own)), nil, 0) // too many may be
		}
	})
	if err != nil {
		return err
	}
	many := make([]int, 250)
	for i := range many {
		many[i] = []int{null, pair[0], pair[1]}[i%3]
	}
	ack := wrap(&pb.ClientMessage{Message: &pb.ClientMessage_PageAck{PageAck: &pb.PageAck{Next: 1}}})
	for _, f := range []struct {
		bytes []byte
		fds   []int
	}{
		{[]byte{0}, many},
		{frame(250, helloOf(controller)), many},
		{frame(1, ack), many},
		{append(frame(0, helloOf(controller)), frame(250, nil)...), many},
	} {
		_, _, err := c.WriteMsgUnix(f.bytes, syscall.UnixRights(f.fds...), nil)
		if errors.Is(err, syscall.EPERM) {
			refused.Add(1)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// linger returns when the other side has closed.
func linger(ctx context.Context, c *net.UnixConn) error {
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	for buf := make([]byte, 512); ; {
		if _, err := c.Read(buf); err != nil {
			return err
		}
	}
}

// hungUp is linger for one that reads nothing: it writes.
func hungUp(ctx context.Context, c *net.UnixConn) error {
	for pause(ctx, 50*time.Millisecond) {
		if _, err := c.Write([]byte{0}); err != nil {
			return err
		}
	}
	return nil
}

// pause reports false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
