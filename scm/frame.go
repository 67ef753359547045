package scm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

const (
	// MaxPayload is the largest payload of a frame, in bytes.
	MaxPayload = 1 << 20

	// MaxDescriptors is the largest number of descriptors on a frame. The Linux
	// kernel takes 253 in one message and musl's sendmsg 252. Other systems take
	// fewer, OpenBSD 127: 64 are safe everywhere.
	MaxDescriptors = 250
)

// Errors of framing. Each is a violation by the sender or a loss on the way,
// and leaves the receiving [Conn] out of step. They come wrapped in a
// [*FrameError], which has the numbers.
var (
	// ErrTruncated: descriptors were lost on arrival, because this process had no
	// room for them or a security module kept them back. recvmsg(2), MSG_CTRUNC.
	ErrTruncated = errors.New("descriptors were lost on arrival")

	// ErrDescriptorCount: a frame announced another number of descriptors than
	// came with it, or descriptors came that no frame announced.
	ErrDescriptorCount = errors.New("descriptors do not match the frame")

	// ErrPayloadTooLarge: a payload is longer than [MaxPayload].
	ErrPayloadTooLarge = errors.New("payload is too large")

	// ErrTooManyDescriptors: a frame has more than [MaxDescriptors].
	ErrTooManyDescriptors = errors.New("too many descriptors on a frame")

	// ErrReserved: the two reserved bytes of the header are not zero. The peer
	// speaks something else.
	ErrReserved = errors.New("reserved bytes of the frame header are not zero")

	// ErrUnexpectedDescriptors: the peer sent more descriptors than the caller of
	// Receive was ready to take.
	ErrUnexpectedDescriptors = errors.New("unexpected descriptors")
)

// FrameError is a framing error with its numbers. It unwraps to the sentinel.
type FrameError struct {
	// Err is the sentinel, such as [ErrDescriptorCount].
	Err error
	// Got is what came: bytes for [ErrPayloadTooLarge], the reserved value for
	// [ErrReserved], descriptors otherwise.
	Got int
	// Want is what was announced, for [ErrDescriptorCount], or the most that is
	// allowed. For [ErrTruncated] it is the limit RLIMIT_NOFILE of this process,
	// 0 if unknown.
	Want int
}

// Error says what is wrong with the frame, and for lost descriptors what the
// causes may be.
func (e *FrameError) Error() string {
	switch {
	case errors.Is(e.Err, ErrTruncated):
		return fmt.Sprintf("%v: only %d of a message came through; RLIMIT_NOFILE is %d, raise it if this process has that many open, else ask the security module's log",
			e.Err, e.Got, e.Want)
	case errors.Is(e.Err, ErrDescriptorCount):
		return fmt.Sprintf("%v: %d announced, %d arrived", e.Err, e.Want, e.Got)
	case errors.Is(e.Err, ErrPayloadTooLarge):
		return fmt.Sprintf("%v: %d bytes, at most %d are allowed", e.Err, e.Got, e.Want)
	case errors.Is(e.Err, ErrReserved):
		return fmt.Sprintf("%v but %#04x: the peer speaks another protocol", e.Err, e.Got)
	default:
		return fmt.Sprintf("%v: %d, at most %d are allowed", e.Err, e.Got, e.Want)
	}
}

// Unwrap returns the sentinel.
func (e *FrameError) Unwrap() error { return e.Err }

// headerSize is the length of a frame's header in bytes.
const headerSize = 8

// header is the decoded header of a frame. Length may exceed an int of 32 bits.
type header struct {
	length   uint32
	nfds     int
	reserved int
}

func parseHeader(b []byte) header {
	return header{
		length:   binary.BigEndian.Uint32(b),
		nfds:     int(binary.BigEndian.Uint16(b[4:])),
		reserved: int(binary.BigEndian.Uint16(b[6:])),
	}
}

// check applies the limits that hold for every frame, and the caller's own.
func (h header) check(maxPayload, maxFDs int) error {
	switch {
	case h.reserved != 0:
		return &FrameError{Err: ErrReserved, Got: h.reserved}
	case uint64(h.length) > uint64(maxPayload):
		return &FrameError{Err: ErrPayloadTooLarge, Got: int(min(uint64(h.length), math.MaxInt)), Want: maxPayload}
	case h.nfds > MaxDescriptors:
		return &FrameError{Err: ErrTooManyDescriptors, Got: h.nfds, Want: MaxDescriptors}
	case h.nfds > maxFDs:
		return &FrameError{Err: ErrUnexpectedDescriptors, Got: h.nfds, Want: maxFDs}
	}
	return nil
}

// encodeFrame puts a header in front of a copy of payload.
func encodeFrame(payload []byte, nfds int) ([]byte, error) {
	if len(payload) > MaxPayload {
		return nil, &FrameError{Err: ErrPayloadTooLarge, Got: len(payload), Want: MaxPayload}
	}
	if nfds > MaxDescriptors {
		return nil, &FrameError{Err: ErrTooManyDescriptors, Got: nfds, Want: MaxDescriptors}
	}
	frame := make([]byte, headerSize, headerSize+len(payload))
	binary.BigEndian.PutUint32(frame, uint32(len(payload)))
	binary.BigEndian.PutUint16(frame[4:], uint16(nfds))
	return append(frame, payload...), nil
}

// inbox turns what reads return, bytes and sets of descriptors, back into
// frames.
//
// A read returns at most one set, no later than the byte it was sent on. But
// that byte may stand anywhere in the read: Linux merges plain bytes that were
// sent earlier in front of it, macOS plain bytes that were sent later behind
// it. So a set is remembered with the span of the stream that its read covered.
// It belongs to the frame that begins inside that span and announces it. Once
// every frame that begins there has been looked at, a set that is left belongs
// to none.
type inbox struct {
	buf  []byte // begins with the first byte of a frame
	pos  uint64 // position of buf[0] in the stream
	sets []set  // ascending; at most two, see strays
	eof  bool   // the peer has closed fully
	err  error  // sticky: the stream is out of step

	limit  int  // of a payload, in bytes
	refuse bool // no descriptors at all
}

// set is the descriptors of one read, which covered the stream from start up to
// but not including end.
type set struct {
	start, end uint64
	fds        []*FD
}

// readChunk is the least room that a read is given.
const readChunk = 4096

// room returns free space for a read. The buffer at most doubles with what has
// arrived: a length that was only announced allocates nothing.
func (in *inbox) room() []byte {
	if cap(in.buf)-len(in.buf) < readChunk {
		in.buf = slices.Grow(in.buf, max(readChunk, len(in.buf)))
	}
	return in.buf[len(in.buf):cap(in.buf)]
}

// arrived takes over n bytes that a read has put into room, and its
// descriptors.
func (in *inbox) arrived(n int, fds []*FD) {
	start := in.pos + uint64(len(in.buf))
	in.buf = in.buf[:len(in.buf)+n]
	switch {
	case len(fds) == 0:
	case in.refuse:
		closeAll(fds)
		if in.err == nil {
			in.fail(&FrameError{Err: ErrUnexpectedDescriptors, Got: len(fds)})
		}
	default:
		in.sets = append(in.sets, set{start: start, end: start + uint64(n), fds: fds})
	}
}

// next takes the next frame out. It reports false if none is complete yet. An
// error stays; everything that had arrived is then closed.
func (in *inbox) next(maxFDs int) (payload []byte, fds []*FD, ok bool, err error) {
	if in.err == nil {
		payload, fds, ok, err = in.parse(max(maxFDs, 0))
		if err == nil && !ok && in.eof {
			err = io.EOF
		}
		if err != nil {
			in.fail(err)
		}
	}
	return payload, fds, ok, in.err
}

func (in *inbox) parse(maxFDs int) (payload []byte, fds []*FD, ok bool, err error) {
	if len(in.buf) < headerSize {
		// No frame is shorter than its header.
		return nil, nil, false, in.early(in.pos+headerSize, maxFDs)
	}
	h := parseHeader(in.buf)
	if err := h.check(in.limit, maxFDs); err != nil {
		return nil, nil, false, err
	}
	size := headerSize + int(h.length)
	end := in.pos + uint64(size)
	if err := in.match(h.nfds, end, maxFDs); err != nil {
		return nil, nil, false, err
	}
	if len(in.buf) < size {
		return nil, nil, false, nil
	}
	if h.nfds > 0 {
		fds = in.sets[0].fds
		in.sets = slices.Delete(in.sets, 0, 1)
	}
	payload = slices.Clone(in.buf[headerSize:size])
	in.advance(size)
	return payload, fds, true, nil
}

// early looks at the sets before the header is complete. Two cannot belong to
// one frame, and one that is larger than allowed need not be kept until the
// rest of the header has been waited for.
func (in *inbox) early(end uint64, maxFDs int) error {
	for i, s := range in.sets {
		if s.end > end {
			continue
		}
		if len(s.fds) > maxFDs {
			return &FrameError{Err: ErrUnexpectedDescriptors, Got: len(s.fds), Want: maxFDs}
		}
		if i > 0 {
			return &FrameError{Err: ErrDescriptorCount, Got: len(s.fds)}
		}
	}
	return nil
}

// match checks the sets against a frame that announces nfds descriptors and
// ends at end. Its descriptors came no later than its first byte, so they are
// here by now; a second set that ends with the frame is a stray. What remains
// is at most one set that a later frame may own, in the same read as this one's
// last byte: the queue cannot grow.
func (in *inbox) match(nfds int, end uint64, maxFDs int) error {
	rest := in.sets
	if nfds > 0 {
		got := 0
		if len(rest) > 0 && rest[0].start <= in.pos {
			got = len(rest[0].fds)
		}
		if got != nfds {
			return &FrameError{Err: ErrDescriptorCount, Got: got, Want: nfds}
		}
		rest = rest[1:]
	}
	for _, s := range rest {
		if s.end > end {
			continue
		}
		if maxFDs == 0 {
			return &FrameError{Err: ErrUnexpectedDescriptors, Got: len(s.fds)}
		}
		return &FrameError{Err: ErrDescriptorCount, Got: nfds + len(s.fds), Want: nfds}
	}
	return nil
}

// advance drops the first n bytes. A buffer that a large frame has left behind
// is not kept.
func (in *inbox) advance(n int) {
	in.pos += uint64(n)
	if rest := len(in.buf) - n; rest == 0 && cap(in.buf) > 16*readChunk {
		in.buf = nil
	} else {
		in.buf = in.buf[:copy(in.buf, in.buf[n:])]
	}
}

// fail makes err the answer from now on and lets go of everything.
func (in *inbox) fail(err error) {
	in.clear()
	in.err = err
}

// clear closes the queued descriptors and forgets the buffered bytes.
func (in *inbox) clear() {
	for _, s := range in.sets {
		closeAll(s.fds)
	}
	in.sets = nil
	in.pos += uint64(len(in.buf))
	in.buf = nil
}
