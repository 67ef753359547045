package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strings"
	"syscall"

	"github.com/crossfade-go/crossfade"
)

// This file is how a command ends: its exit code, its sentence and its object.

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

// allCodes are the exit statuses in their order.
var allCodes = []code{
	codeDone, codeUsage, codeNoOwner, codeBusy, codeFailed, codeTimeout,
	codeDenied, codeRefused, codeUnknown, codeNobody, codeUnhealthy,
}

// meanings are what help, the man page and docs/tool.md say of each.
var meanings = map[code]string{
	codeDone:      "done",
	codeUsage:     "the command line is wrong; nothing was tried",
	codeNoOwner:   "nobody owns the socket",
	codeBusy:      "busy: something is in the way that passes; the sentence says who",
	codeFailed:    "failed, timed out or rolled back: the old one serves",
	codeTimeout:   "what was waited for has not happened in time",
	codeDenied:    "not permitted",
	codeRefused:   "refused: by policy, as incompatible, or because it is too late for that",
	codeUnknown:   "the outcome is unknown: look before you do anything else",
	codeNobody:    "failed, and nobody serves",
	codeUnhealthy: "the new one serves, and is not healthy",
}

func (c code) meaning() string { return meanings[c] }

// result is how a command ended.
type result struct {
	code    code
	reason  string             // one sentence, for stderr and JSON
	serving *crossfade.Process // who serves now, nil for nobody or unknown
	who     *crossfade.Process // whom else the reason is about, such as who is in the way; or nil
	output  string             // what was asked for, for stdout; may be empty
	fields  object             // what the object of --json has besides; may be nil
	printed bool               // the result is on stdout already
}

func usage(format string, args ...any) result {
	return result{code: codeUsage, reason: fmt.Sprintf(format, args...)}
}

// finish prints a result.
func (in *invocation) finish(r result) code {
	switch {
	case r.printed:
	case in.json:
		o := object{"ok": r.code == codeDone, "code": int(r.code), "reason": r.reason, "serving": process(r.serving), "who": process(r.who)}
		maps.Copy(o, r.fields)
		in.unprinted(in.printJSON(o))
	default:
		_, err := io.WriteString(in.stdout, r.output)
		in.unprinted(err)
	}
	if r.reason != "" {
		in.say("%s", r.reason)
	}
	return r.code
}

// unprinted says that a result could not be printed. The exit code stays: it is about
// the service.
func (in *invocation) unprinted(err error) {
	if err != nil && !readerGone(err) {
		in.say("the result cannot be printed: %v", err)
	}
}

// readerGone reports whether what could not be written would have been read by nobody.
func readerGone(err error) bool { return errors.Is(err, syscall.EPIPE) }

// printJSON prints one object, on one line of stdout.
func (in *invocation) printJSON(o object) error {
	line, err := json.Marshal(o)
	if err != nil {
		panic(err) // the values are this program's
	}
	_, err = fmt.Fprintf(in.stdout, "%s\n", line)
	return err
}

// failure is the result of an error, and looks who serves if the error does not say.
func failure(in *invocation, err error) result {
	r := result{code: codeOf(err), reason: sentence(err)}
	if out := new(crossfade.OutcomeError); errors.As(err, &out) {
		r.serving, r.who = out.Serving, out.Who
	}
	if refused := new(crossfade.RefusedError); errors.As(err, &refused) {
		r.who = refused.Who
	}
	if r.serving != nil || r.code == codeNoOwner || r.code == codeUsage || r.code == codeDenied && !errors.Is(err, crossfade.ErrNotAllowed) {
		return r // there is nobody to ask, or no permission to
	}
	serving, lookErr := whoServes(in.socket)
	switch {
	case lookErr == nil:
		r.serving = serving
		if r.code == codeUnknown {
			r.reason += fmt.Sprintf("; %s serves now", name(*serving))
		}
	case errors.Is(lookErr, crossfade.ErrNoOwner) && (r.code == codeFailed || r.code == codeUnknown):
		r.code = codeNobody
		r.reason += "; nobody owns the socket now"
	case silent(err) && impatient(lookErr):
		r.code, r.reason = codeUnknown, silence(in, err)
	case r.code == codeFailed: // which would say that somebody serves
		r.code = codeUnknown
		if why := sentence(lookErr); why != r.reason {
			r.reason += "; who serves is not known: " + why
		}
	}
	return r
}

// sentence is an error as the tool says it: without the name of a request that only
// asks, for the user has called another command perhaps, and with the word of the exit
// code for a refusal that passes.
func sentence(err error) string {
	text := strings.TrimPrefix(err.Error(), "crossfade: ")
	for _, asked := range []string{"status: ", "watch: ", "check: ", "peer: "} {
		text = strings.TrimPrefix(text, asked)
	}
	if codeOf(err) == codeBusy {
		text = strings.Replace(text, "refused: ", "busy: ", 1)
	}
	return text
}

// impatient reports whether err says that nobody has answered in time.
func impatient(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

// silent reports whether err says nothing but that nobody has answered in time.
func silent(err error) bool {
	return impatient(err) && !errors.Is(err, crossfade.ErrOwnerUnknown) // which says what stands in the way
}

// silence says that the owner does not answer, and what can be done about it.
func silence(in *invocation, err error) string {
	who := "the process that listens on " + in.socket
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	if c, err := crossfade.Dial(ctx, in.socket); err == nil {
		if peer, err := c.Peer(ctx); err == nil {
			who += " (" + peer.String() + ")"
			_ = peer.Close()
		}
	}
	return fmt.Sprintf("%s from %s: it is stopped, frozen or overloaded; wake it up or end it", sentence(err), who)
}

// passes reports whether what stands in the way of asking the owner can be another
// thing a moment later.
func passes(err error) bool {
	if codeOf(err) == codeDenied {
		return false
	}
	for _, sentinel := range []error{
		crossfade.ErrNoOwner, crossfade.ErrOwnerUnknown, crossfade.ErrLost, crossfade.ErrMoved, context.DeadlineExceeded,
	} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	return false
}

// codeOf finds the exit status of an error. The order decides where several match.
func codeOf(err error) code {
	for _, c := range []struct {
		sentinel error
		code     code
	}{
		{crossfade.ErrPath, codeUsage},
		{crossfade.ErrNoOwner, codeNoOwner},
		{crossfade.ErrDenied, codeDenied},
		{fs.ErrPermission, codeDenied},
		{crossfade.ErrNotAllowed, codeDenied},
		{crossfade.ErrBusy, codeBusy},
		{crossfade.ErrNotReady, codeBusy},
		{crossfade.ErrProbation, codeBusy},
		{crossfade.ErrDraining, codeBusy},
		{crossfade.ErrStopping, codeBusy},
		{crossfade.ErrOutcomeUnknown, codeUnknown},
		{crossfade.ErrOwnerUnknown, codeUnknown},
		{crossfade.ErrWrongState, codeRefused},
		{crossfade.ErrPolicy, codeRefused},
		{crossfade.ErrIncompatible, codeRefused},
		{crossfade.ErrUnimplemented, codeRefused},
		{crossfade.ErrControlLost, codeRefused},
		{crossfade.ErrLimit, codeRefused},
		{crossfade.ErrSettled, codeRefused},
		{crossfade.ErrCommitted, codeRefused},
		{crossfade.ErrLost, codeUnknown},
		{crossfade.ErrMoved, codeUnknown},
		{context.DeadlineExceeded, codeUnknown},
		{context.Canceled, codeUnknown},
	} {
		if errors.Is(err, c.sentinel) {
			return c.code
		}
	}
	return codeFailed
}
