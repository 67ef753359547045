//go:build linux

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// commands are what scripts can say besides what package testscript knows.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	// release DIR ARGUMENT...
	//	makes a release directory with the service in it, DIR/app, that is started
	//	with these arguments, whatever else it is given
	"release": cmdRelease,
	// service NAME COMMAND...
	//	starts a service and waits until it owns, as owns does
	"service": cmdService,
	// owns NAME|FILE
	//	waits until a process owns, by its log; HTTP is its address and PID its pid
	//	from then on
	"owns": cmdOwns,
	// start NAME COMMAND...
	//	starts a process, and goes on
	"start": cmdStart,
	// await NAME|FILE PATTERN
	//	waits until a process has printed something, or a file has it; PID is the pid
	//	in that line from then on
	"await": cmdAwait,
	// exited NAME STATUS
	//	waits until a process has ended: STATUS is a number or the name of a signal, or
	//	several of them with | between. Its output is stdout and stderr from then on
	"exited": cmdExited,
	// exits STATUS COMMAND...
	//	runs a command to its end
	"exits": cmdExits,
	// crossfade ARGUMENT...
	//	runs the deploy tool, which succeeds
	"crossfade": cmdCrossfade,
	// signal NAME TARGET
	//	sends a signal to a process of this script: one that start or service has
	//	given a name, or a pid
	"signal": cmdSignal,
	// gone TARGET
	//	waits until a process of this script has ended
	"gone": cmdGone,
	// json FILE PATH VALUE
	//	checks a value of an object, such as .draining[0].version; one in slashes is
	//	a regular expression
	"json": cmdJSON,
	// jsonenv NAME FILE PATH
	//	puts a value of an object into a variable
	"jsonenv": cmdJSONEnv,
	// serves VERSION
	//	asks the service who it is, on a new connection
	"serves": cmdServes,
	// get URL
	//	prints what the service answers
	"get": cmdGet,
	// load start | load sees VERSION | load stop [-lossy]
	//	has clients ask all the time, none of which may be turned away. With -lossy
	//	the script has killed a process that had accepted connections: what is lost
	//	with it counts for nothing
	"load": cmdLoad,
	// descriptors TARGET
	//	prints what a process has open, one sorted line each
	"descriptors": cmdDescriptors,
}

func cmdRelease(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, "release DIR ARGUMENT...")
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(os.WriteFile(filepath.Join(dir, "app.conf"), []byte(strings.Join(args[1:], "\n")+"\n"), 0o644))
	// A copy that is being written cannot be executed while another script forks.
	ts.Check(os.Link(filepath.Join(root, "bin", "app"), filepath.Join(dir, "app")))
}

func cmdService(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "service NAME COMMAND...")
	scriptOf(ts).start(ts, args[0], args[1:])
	cmdOwns(ts, false, args[:1])
}

func cmdOwns(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "owns NAME|FILE")
	line := await(ts, args[0], `msg=owns `)
	setPID(ts, line)
	if m := regexp.MustCompile(` http=(\S+)`).FindStringSubmatch(line); m != nil {
		ts.Setenv("HTTP", m[1])
	}
}

func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "start NAME COMMAND...")
	scriptOf(ts).start(ts, args[0], args[1:])
}

func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "await NAME|FILE PATTERN")
	setPID(ts, await(ts, args[0], args[1]))
}

func setPID(ts *testscript.TestScript, line string) {
	if m := regexp.MustCompile(` pid=(\d+)`).FindStringSubmatch(line); m != nil {
		ts.Setenv("PID", m[1])
	}
}

// await waits until a process has printed what matches, or a file has it, and
// returns the rest of its line, too.
func await(ts *testscript.TestScript, name, expr string) (match string) {
	pattern, err := regexp.Compile("(?m)(" + expr + ").*$")
	ts.Check(err)
	read := func() string {
		text, _ := os.ReadFile(ts.MkAbs(name)) // it may be there in a moment
		return string(text)
	}
	if p := scriptOf(ts).processes[name]; p != nil {
		read = p.printed
	}
	if !eventually(func() bool {
		text := read()
		where := pattern.FindStringIndex(text)
		if where != nil {
			match = text[where[0]:where[1]]
		}
		return where != nil
	}) {
		ts.Fatalf("%s has nothing that matches %s after %v:\n%s", name, pattern, limit, read())
	}
	return match
}

// eventually reports whether a condition comes true. It is for conditions that
// nothing tells: files that grow, and processes of others.
func eventually(condition func() bool) bool {
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			return false
		}
		<-time.After(10 * time.Millisecond)
	}
	return true
}

func cmdExited(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "exited NAME STATUS")
	p := scriptOf(ts).processes[args[0]]
	if p == nil {
		ts.Fatalf("there is no process %q", args[0])
	}
	p.expect(ts, args[1])
}

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "exits STATUS COMMAND...")
	scriptOf(ts).start(ts, "", args[1:]).expect(ts, args[0])
}

func cmdCrossfade(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, "crossfade ARGUMENT...")
	scriptOf(ts).start(ts, "", append([]string{"crossfade"}, args...)).expect(ts, "0")
}

func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "signal NAME TARGET")
	sig, ok := signals[args[0]]
	if !ok {
		ts.Fatalf("there is no signal %q", args[0])
	}
	s := scriptOf(ts)
	ts.Check(s.signal(s.pid(ts, args[1]), sig))
}

func cmdGone(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "gone TARGET")
	s := scriptOf(ts)
	pid := s.pid(ts, args[0])
	if !eventually(func() bool { return !s.owns(pid) }) {
		ts.Fatalf("process %d has not ended in %v", pid, limit)
	}
}

func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 3, "json FILE PATH VALUE")
	got, want := lookUp(ts, args[0], args[1]), args[2]
	same := got == want
	if text, ok := strings.CutPrefix(want, "/"); ok && len(want) > 1 && strings.HasSuffix(text, "/") {
		pattern, err := regexp.Compile(strings.TrimSuffix(text, "/"))
		ts.Check(err)
		same = pattern.MatchString(got)
	}
	if same == neg {
		ts.Fatalf("%s is %s", args[1], got)
	}
}

func cmdJSONEnv(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 3, "jsonenv NAME FILE PATH")
	ts.Setenv(args[0], lookUp(ts, args[1], args[2]))
}

// lookUp returns a value of the object in a file, strings without quotes and
// everything else as JSON has it.
func lookUp(ts *testscript.TestScript, file, path string) string {
	decoder := json.NewDecoder(strings.NewReader(ts.ReadFile(file)))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		ts.Fatalf("%s is no object: %v", file, err)
	}
	value, err := follow(value, path)
	ts.Check(err)
	if s, ok := value.(string); ok {
		return s
	}
	text, err := json.Marshal(value)
	ts.Check(err)
	return string(text)
}

// follow goes down a path like .draining[0].version.
func follow(value any, path string) (any, error) {
	for step := range strings.SplitSeq(strings.ReplaceAll(path, "[", "."), ".") {
		if step == "" {
			continue
		}
		index, isIndex := strings.CutSuffix(step, "]")
		switch container := value.(type) {
		case map[string]any:
			next, ok := container[step]
			if !ok {
				return nil, fmt.Errorf("there is no %s: %v has no field %q", path, container, step)
			}
			value = next
		case []any:
			i, err := strconv.Atoi(index)
			if !isIndex || err != nil || i < 0 || i >= len(container) {
				return nil, fmt.Errorf("there is no %s: no [%s] in an array of %d", path, index, len(container))
			}
			value = container[i]
		default:
			return nil, fmt.Errorf("there is no %s: %q is neither an object nor an array", path, step)
		}
	}
	return value, nil
}

func cmdServes(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "serves VERSION")
	c := client{dial: scriptOf(ts).dial, address: ts.Getenv("HTTP"), fresh: true}
	defer c.hangUp()
	version, err := c.ask()
	ts.Check(err)
	if version != args[0] {
		ts.Fatalf("version %s serves", version)
	}
}

func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "get URL")
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: limit}).Get(args[0])
	ts.Check(err)
	defer resp.Body.Close()
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("%s", resp.Status)
	}
}

func cmdLoad(ts *testscript.TestScript, neg bool, args []string) {
	const synopsis = "load start | load sees VERSION | load stop [-lossy]"
	usage(ts, !neg && len(args) > 0, synopsis)
	s := scriptOf(ts)
	switch verb, rest := args[0], args[1:]; {
	case verb == "start" && len(rest) == 0:
		if s.load != nil {
			ts.Fatalf("there is load already")
		}
		s.load = startLoad(s.dial, ts.Getenv("HTTP"))
	case s.load == nil:
		ts.Fatalf("there is no load")
	case verb == "sees" && len(rest) == 1:
		ts.Check(s.load.sees(rest[0]))
	case verb == "stop" && (len(rest) == 0 || len(rest) == 1 && rest[0] == "-lossy"):
		l := s.load
		s.load = nil
		summary, err := l.stop(len(rest) == 1)
		ts.Logf("%s", summary)
		ts.Check(err)
	default:
		usage(ts, false, synopsis)
	}
}

func cmdDescriptors(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "descriptors TARGET")
	s := scriptOf(ts)
	pid := s.pid(ts, args[0])
	if !s.owns(pid) {
		ts.Fatalf("process %d is none of this script's", pid)
	}
	lines, err := describe(pid)
	ts.Check(err)
	_, err = fmt.Fprintln(ts.Stdout(), strings.Join(lines, "\n"))
	ts.Check(err)
}

// errGone says that there is no such process any more.
var errGone = errors.New("there is no such process in this script")
