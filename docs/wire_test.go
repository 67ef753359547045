package docs_test

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// pair returns a connection for the code under test and the plain other end.
func pair(t *testing.T) (*scm.Conn, net.Conn) {
	t.Helper()
	ours, theirs, err := scm.Pair()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("this system has no handoffs: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	plain, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	if err := plain.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return ours, plain
}

// readFrame returns a whole frame, its header included.
func readFrame(t *testing.T, c net.Conn) []byte {
	t.Helper()
	frame := make([]byte, 8)
	if _, err := io.ReadFull(c, frame); err != nil {
		t.Fatal(err)
	}
	frame = append(frame, make([]byte, binary.BigEndian.Uint32(frame))...)
	if _, err := io.ReadFull(c, frame[8:]); err != nil {
		t.Fatal(err)
	}
	return frame
}

func writeFrame(t *testing.T, c net.Conn, m proto.Message) {
	t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	if _, err := c.Write(append(append(frame, 0, 0, 0, 0), payload...)); err != nil {
		t.Fatal(err)
	}
}

// dump returns the document's hex dump of that name, as bytes and as text.
func dump(t *testing.T, name string) ([]byte, string) {
	t.Helper()
	_, rest, found := strings.Cut(section(t, "## 20. A worked example"), "```"+name+"\n")
	text, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatalf("the example has no dump called %q", name)
	}
	var digits strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "|")
		_, line, _ = strings.Cut(line, "  ")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	frame, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return frame, text
}

// TestWorkedExample: the frames of section 20 are what the code sends, and its
// table takes the Hello apart without a gap.
func TestWorkedExample(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	hello, helloText := dump(t, "hello")
	welcome, welcomeText := dump(t, "welcome")

	conn, peer := pair(t)
	done := make(chan error, 1) // has room, so that the goroutine ends with a failed test too
	go func() {
		_, err := handoff.Connect(context.Background(), conn, &handoff.SuccessorConfig{
			Process:  handoff.Process{Instance: "green-2", BuildVersion: "2.0.0", PID: 4242},
			Patience: time.Minute, Log: log,
		})
		done <- err
	}()
	sent := readFrame(t, peer)
	peer.Close()
	if err := <-done; !errors.Is(err, handoff.ErrLost) {
		t.Errorf("the successor ended with %v, want %v", err, handoff.ErrLost)
	}
	show(t, "Hello", helloText, sent)

	conn, peer = pair(t)
	server := handoff.NewServer(&handoff.ServerConfig{
		Process: handoff.Process{Instance: "green-1", BuildVersion: "1.0.0", PID: 4141},
		Service: threeDescriptors{},
		Limits:  handoff.Limits{Hello: time.Minute, Ready: time.Minute, MaxReady: 10 * time.Minute, Commit: 10 * time.Second},
		Log:     log,
	})
	defer server.Close()
	server.Own(1, true, true)
	attempt, err := server.Spawn(conn)
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- attempt.Run(context.Background(), 0, nil) }()
	if _, err := peer.Write(sent); err != nil {
		t.Fatal(err)
	}
	show(t, "Welcome", welcomeText, readFrame(t, peer))
	peer.Close()
	if err := <-done; !errors.Is(err, handoff.ErrLost) {
		t.Errorf("the attempt ended with %v, want %v", err, handoff.ErrLost)
	}

	for name, frame := range map[string][]byte{"Hello": hello, "Welcome": welcome} {
		var explained strings.Builder
		for _, row := range table(t, section(t, "## 20. A worked example"), "bytes of the "+name, "meaning") {
			explained.WriteString(strings.ReplaceAll(row[0], " ", ""))
		}
		if want := hex.EncodeToString(frame); explained.String() != want {
			t.Errorf("the table explains %s, the %s is %s", explained.String(), name, want)
		}
	}
}

func show(t *testing.T, name, documented string, sent []byte) {
	t.Helper()
	if got := hex.Dump(sent); got != documented {
		t.Errorf("%s is documented as\n%s\nand is\n%s", name, documented, got)
	} else {
		t.Logf("%s\n%s", name, got)
	}
}

// threeDescriptors is a service whose offer is announced and never sent.
type threeDescriptors struct{ handoff.Service }

func (threeDescriptors) Offer(context.Context) (*handoff.Offer, error) {
	return &handoff.Offer{Descriptors: make([]handoff.Descriptor, 3)}, nil
}

func (threeDescriptors) Thaw() {}

func (threeDescriptors) CheckControl(context.Context) error { return nil }

func (threeDescriptors) Generations() []handoff.Generation { return nil }

// TestPassingCodes: which refusals are worth waiting for, as a successor sees
// them.
func TestPassingCodes(t *testing.T) {
	for _, row := range table(t, section(t, "## 13. Refusals and aborts"), "code", "kind") {
		t.Run(row[0], func(t *testing.T) {
			conn, peer := pair(t)
			done := make(chan error, 1) // has room, so that the goroutine ends with a failed test too
			go func() {
				_, err := handoff.Connect(context.Background(), conn, &handoff.SuccessorConfig{
					Process: handoff.Process{Instance: "test"}, Patience: time.Minute, Log: slog.New(slog.DiscardHandler),
				})
				done <- err
			}()
			readFrame(t, peer)
			writeFrame(t, peer, &pb.ServerMessage{Message: &pb.ServerMessage_Refuse{Refuse: &pb.Refuse{
				Code: pb.RefuseCode(pb.RefuseCode_value["REFUSE_CODE_"+row[0]]),
			}}})
			peer.Close()
			err := <-done
			var refused *handoff.RefusedError
			if !errors.As(err, &refused) {
				t.Fatalf("the successor ended with %v, want a refusal", err)
			}
			if want := row[1] == "passing"; refused.Passing() != want {
				t.Errorf("the document calls it %s, the code says passing: %t", row[1], refused.Passing())
			}
			if again := errors.Is(err, handoff.ErrAskAgain); again && !regexp.MustCompile(`always`).MatchString(section(t, "## 13. Refusals and aborts")) {
				t.Errorf("%s was waited for though the document does not say so", row[0])
			}
		})
	}
}
