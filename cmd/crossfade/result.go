package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"time"

	"github.com/crossfade-go/crossfade"
)

// code is an exit status. Each answers "who serves now?", and none ever changes its
// meaning. 1 is not among them: it is what others use for everything.
type code int

// The exit statuses.
const (
	codeDone      code = 0  // what was asked for has been done
	codeUsage     code = 2  // the command line is wrong: nothing was tried
	codeNoOwner   code = 3  // nobody owns the socket
	codeBusy      code = 4  // somebody is in the way, and will not be for ever
	codeFailed    code = 5  // failed, timed out or rolled back: the old one serves
	codeTimeout   code = 6  // what was waited for has not happened in time
	codeDenied    code = 7  // not permitted
	codeRefused   code = 8  // incompatible, or refused by policy
	codeUnknown   code = 9  // it is not known what has become of it
	codeNobody    code = 10 // failed, and nobody serves
	codeUnhealthy code = 11 // the new one serves and is not healthy
)

// result is how a command ended.
type result struct {
	code    code
	reason  string             // one sentence, for stderr and JSON
	serving *crossfade.Process // who serves now, nil for nobody or unknown
	output  string             // what was asked for, for stdout; may be empty
	fields  map[string]any     // what the object of -json has besides; may be nil
}

func usage(format string, args ...any) result {
	return result{code: codeUsage, reason: fmt.Sprintf(format, args...)}
}

// finish prints a result.
func (in *invocation) finish(r result) code {
	if in.json {
		object := map[string]any{"ok": r.code == codeDone, "code": int(r.code), "reason": r.reason, "serving": process(r.serving)}
		maps.Copy(object, r.fields)
		line, err := json.Marshal(object)
		if err != nil {
			panic(err) // the values are this program's
		}
		fmt.Fprintf(in.stdout, "%s\n", line)
	} else {
		fmt.Fprint(in.stdout, r.output)
	}
	if r.reason != "" {
		in.say("%s", r.reason)
	}
	return r.code
}

// process is a process as JSON has it: null for nobody.
func process(p *crossfade.Process) any {
	if p == nil {
		return nil
	}
	return map[string]any{"generation": p.Generation, "instance": p.Instance, "version": p.BuildVersion, "pid": p.PID}
}

// done is the result of a request that was fulfilled.
func done(out *crossfade.Outcome) result {
	return result{code: codeDone, reason: out.Text, serving: out.Serving}
}

// failure is the result of an error, and looks who serves if the error does not say.
func failure(in *invocation, err error) result {
	r := result{code: codeOf(err), reason: strings.TrimPrefix(err.Error(), "crossfade: ")}
	if out := new(crossfade.OutcomeError); errors.As(err, &out) && out.Serving != nil {
		r.serving = out.Serving
	}
	if r.serving == nil && r.code != codeNoOwner {
		r.serving, _ = whoServes(in.socket)
	}
	return r
}

// lookTimeout is how long an owner may take to say that it serves, after something
// else has failed.
const lookTimeout = 2 * time.Second

// whoServes asks for the owner. Without one the error matches ErrNoOwner.
func whoServes(socket string) (*crossfade.Process, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	c, err := crossfade.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	s, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	if !s.State.Owns() {
		return nil, fmt.Errorf("%v answers and is %v", s.Process, s.State)
	}
	return &s.Process, nil
}

// codeOf finds the exit status of an error. The order decides where several match.
func codeOf(err error) code {
	for _, c := range []struct {
		sentinel error
		code     code
	}{
		{crossfade.ErrNoOwner, codeNoOwner},
		{crossfade.ErrDenied, codeDenied},
		{fs.ErrPermission, codeDenied},
		{crossfade.ErrNotAllowed, codeDenied},
		{crossfade.ErrBusy, codeBusy},
		{crossfade.ErrNotReady, codeBusy},
		{crossfade.ErrProbation, codeBusy},
		{crossfade.ErrDraining, codeBusy},
		{crossfade.ErrOutcomeUnknown, codeUnknown},
		{crossfade.ErrOwnerUnknown, codeUnknown},
		{crossfade.ErrPolicy, codeRefused},
		{crossfade.ErrIncompatible, codeRefused},
		{crossfade.ErrUnimplemented, codeRefused},
		{crossfade.ErrControlLost, codeRefused},
		{crossfade.ErrLimit, codeRefused},
		{crossfade.ErrLost, codeUnknown},
		{crossfade.ErrMoved, codeUnknown},
	} {
		if errors.Is(err, c.sentinel) {
			return c.code
		}
	}
	return codeFailed
}
