package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/crossfade-go/crossfade"
)

// This file is the command run: its flags, the rehearsal before anything is started,
// and the report. What happens between is in deployment.go.

var runCommand = &command{
	name:    "run",
	args:    "[--timeout DURATION] [--wait DURATION] [--probation DURATION] [--health CMD|URL] [--log FILE] [--epoch N] [--force] [--instance INSTANCE] -- COMMAND [ARG]...",
	summary: "start the successor, and wait until it serves or has failed",
	long: `Run starts COMMAND as the successor of whoever owns the socket, in a session of its
own, and returns when that very process owns, has failed, or the time is up. With no
owner it starts the first generation. The successor lives on when run has returned;
one that has failed is ended.

COMMAND must stay in the foreground. It gets the caller's environment and working
directory, CROSSFADE_SOCKET, a fresh CROSSFADE_INSTANCE, and the descriptors 0, 1 and
2, none of which is a pipe. Its output goes to a file.

With --health the new owner must pass a check within its probation: a URL has to
answer 2xx, a shell command has to exit with status 0. It is tried twice a second.
When it has passed the new owner is told to settle; if it does not the old one gets
the service back. Should run be killed meanwhile, it gets it back too.

A signal (INT, TERM, HUP) cancels the attempt, or rolls back while the health is
checked.`,
	example: `crossfade run --socket /run/app/control.sock --timeout 60s -- /opt/app/v2/app --flags
crossfade run --socket /run/app/control.sock --health http://127.0.0.1:8080/healthz -- /opt/app/v2/app`,
	codes: []code{
		codeDone, codeBusy, codeFailed, codeDenied, codeRefused, codeUnknown, codeNobody, codeUnhealthy,
	},
	operands: true,
	define:   defineRun,
}

// defaultBake is the probation of a new process whose health is checked.
const defaultBake = 30 * time.Second

// runOptions are the flags.
type runOptions struct {
	timeout   time.Duration
	wait      time.Duration
	probation *time.Duration // nil for what the services are configured to
	health    string
	log       string
	epoch     uint64
	force     bool
	instance  string
}

func defineRun(flags *flag.FlagSet) func(context.Context, *invocation) result {
	var o runOptions
	limit := timeout(flags, time.Minute, "how long it may take until the new process owns")
	flags.DurationVar(&o.wait, "wait", 0, "how long to wait for another deployment to end before anything is started")
	flags.Func("probation", "the `duration` for which the old process stands by to resume; default: as the services are configured, 30s with --health", func(s string) error {
		d, err := time.ParseDuration(s)
		o.probation = &d
		return err
	})
	flags.StringVar(&o.health, "health", "", "what must succeed within the probation, a `CMD|URL`: a shell command, or a URL that answers 2xx")
	flags.StringVar(&o.log, "log", "", "the `file` that the output is appended to, - to inherit run's own; default: a fresh file in TMPDIR")
	flags.Uint64Var(&o.epoch, "epoch", 0, "the epoch of this deployment: an owner refuses a lower one than its own")
	flags.BoolVar(&o.force, "force", false, "take over from an owner of a higher epoch all the same")
	flags.StringVar(&o.instance, "instance", "", "the `instance` of the new process, its name in every status and log; default: random")
	return func(ctx context.Context, in *invocation) result {
		o.timeout = limit.limit
		if err := o.complete(in); err != nil {
			return usage("run: %v: see `crossfade help run`", err)
		}
		ctx, stop := hangup(ctx)
		defer stop()
		return deploy(ctx, in, &o)
	}
}

// complete checks the command line and adds the defaults.
func (o *runOptions) complete(in *invocation) error {
	switch {
	case len(in.args) == 0:
		return errors.New("which command? give it after --")
	case o.timeout == 0:
		return errors.New("--timeout must be above 0: nobody would end a process that hangs")
	case o.wait < 0:
		return errors.New("--wait must not be negative")
	case o.probation != nil && *o.probation < 0:
		return errors.New("--probation must not be negative")
	case o.probation != nil && *o.probation == 0 && o.health != "":
		return errors.New("--health needs a --probation above 0: without one the old process cannot come back")
	}
	if o.health != "" && o.probation == nil {
		bake := defaultBake
		o.probation = &bake
	}
	if o.instance == "" {
		o.instance = rand.Text()
	}
	if len(o.instance) > 200 || !utf8.ValidString(o.instance) || strings.ContainsFunc(o.instance, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errors.New("--instance must be 1 to 200 bytes of printable text")
	}
	if o.log == "-" {
		if err := checkInherited(in); err != nil {
			return err
		}
	} else if err := checkLog(o.log); err != nil {
		return err
	}
	return nil
}

// hangup has the loss of the terminal end ctx too, unless that is to be ignored
// (nohup).
func hangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return ctx, func() {}
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

// environ returns the environment of the new process.
func (o *runOptions) environ(socket string) []string {
	env := append(foreignEnviron(), "CROSSFADE_SOCKET="+socket, "CROSSFADE_INSTANCE="+o.instance)
	if o.epoch > 0 {
		env = append(env, "CROSSFADE_EPOCH="+strconv.FormatUint(o.epoch, 10))
	}
	if o.force {
		env = append(env, "CROSSFADE_FORCE=1")
	}
	if o.probation != nil {
		env = append(env, "CROSSFADE_PROBATION="+o.probation.String())
	}
	if o.health != "" { // so that nobody stays because this process has died
		env = append(env, "CROSSFADE_AT_PROBATION_END="+crossfade.RollbackAtEnd.String())
	}
	return env
}

// successor is the new process as the owner is asked about it.
func (o *runOptions) successor() *crossfade.Successor {
	s := &crossfade.Successor{
		Process: crossfade.Process{Instance: o.instance, Epoch: o.epoch},
		Force:   o.force,
	}
	if o.probation != nil {
		s.Probation = *o.probation
	}
	if o.health != "" {
		s.AtProbationEnd = crossfade.RollbackAtEnd
	}
	return s
}

// deploy is the command.
func deploy(ctx context.Context, in *invocation, o *runOptions) result {
	d := &deployment{in: in, opts: o}
	var err error
	if d.socket, err = filepath.Abs(in.socket); err != nil {
		return d.refused(nil, err)
	}
	program, err := exec.LookPath(in.args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) { // a PATH with . in it is the caller's wish
		return d.failed("the new process cannot be started: " + err.Error())
	}
	defer d.close()
	if r := d.rehearse(ctx); r != nil {
		return *r
	}
	if err := d.start(program); err != nil {
		return d.failed("the new process cannot be started: " + err.Error())
	}
	return d.conclude(ctx)
}

const (
	// answerTimeout is how long an owner may take for an answer that needs nothing
	// but itself.
	answerTimeout = 5 * time.Second
	// changeLimit is how long a change of owner may take that has been decided.
	changeLimit = 10 * time.Second
)

// rehearse asks the owner, if there is one, whether it would hand over to the new
// process, and waits for what passes as long as it may. The result is nil if the new
// process is to be started.
func (d *deployment) rehearse(ctx context.Context) *result {
	patience := time.Now().Add(d.opts.wait)
	changes := time.Now().Add(answerTimeout)
	for said := false; ; {
		refusal, err := d.ask(ctx)
		var until time.Time // how long this may be waited for
		switch {
		case err == nil && refusal == nil, errors.Is(err, crossfade.ErrNoOwner):
			return nil
		case err == nil && errors.Is(refusal, crossfade.ErrNotReady):
			return nil // New waits for that, and becomes the first if that owner dies
		case err == nil && errors.Is(refusal, crossfade.ErrPolicy) && !d.outdated():
			// The policy may have missed the version, which only the new process
			// knows: it is to answer for itself.
			d.refusal = refusal
			return nil
		case ctx.Err() != nil:
			r := d.failed("interrupted before anything was started")
			return &r
		case err == nil && refusal.Passing():
			until = patience
		case err == nil && errors.Is(refusal, crossfade.ErrStopping), err == nil && errors.Is(refusal, crossfade.ErrMoved),
			errors.Is(err, crossfade.ErrLost), errors.Is(err, crossfade.ErrMoved):
			until = changes
			if patience.After(until) {
				until = patience
			}
		}
		if !time.Now().Before(until) {
			r := d.refused(refusal, err)
			return &r
		}
		if refusal != nil && !said {
			said = true
			d.in.say("waiting for at most %s: %s", span(time.Until(until)), sentence(refusal))
		}
		pause(ctx, lookPause)
	}
}

// ask makes one rehearsal, and remembers who has answered.
func (d *deployment) ask(ctx context.Context) (*crossfade.RefusedError, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, &impatienceError{answerTimeout})
	defer cancel()
	d.before = nil
	d.forgetOld()
	c, err := crossfade.Dial(ctx, d.socket)
	if err != nil {
		return nil, err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	d.before = &status.Process
	rehearsal, err := c.Check(ctx, d.opts.successor())
	switch {
	case errors.Is(err, crossfade.ErrUnimplemented): // it is asked by the new process, then
	case err != nil:
		return nil, err
	case rehearsal.Refusal != nil:
		return rehearsal.Refusal, nil
	default:
		d.granted = rehearsal.Probation
	}
	if d.old, err = c.Peer(ctx); err != nil {
		d.old = nil // it only makes one decision safer: see deployment.predecessorGone
	} else {
		d.old.Exited() // which begins to watch
	}
	return nil, nil //nolint:nilnil // no refusal and no error
}

// outdated reports whether the owner is of a later epoch, which no policy changes.
func (d *deployment) outdated() bool {
	return d.before != nil && d.before.Epoch > d.opts.epoch && !d.opts.force
}

// refused is the result of a rehearsal: nothing was started.
func (d *deployment) refused(refusal *crossfade.RefusedError, err error) result {
	if refusal != nil {
		err = refusal
	}
	r := failure(d.in, err)
	r.reason = "nothing was started: " + r.reason
	r.fields = d.fields()
	if refusal != nil && refusal.Who != nil {
		r.fields["who"] = process(refusal.Who)
	}
	return r
}

// fields are what the object of --json has besides.
func (d *deployment) fields() object {
	f := object{
		"replaced": process(d.predecessor), "started": nil, "took_ms": nil, "log": nil,
		"exit_status": nil, "output": []string{}, "probation": nil, "failure": nil, "who": nil,
	}
	if d.child != nil {
		f["started"] = process(d.self())
		f["took_ms"] = d.took.Milliseconds()
		f["exit_status"] = d.child.status()
	}
	if d.log != nil && d.log.path != "" {
		f["log"] = d.log.path
	}
	if d.busy != nil {
		f["who"] = process(d.busy)
	}
	if d.lines != nil {
		f["output"] = d.lines
	}
	f["probation"] = probationObject(d.probation)
	f["failure"] = failureObject(d.failure)
	return f
}

// succeeded is the result of a deployment that was one. more says how it stands.
func (d *deployment) succeeded(more string) result {
	how := fmt.Sprintf("started the first generation: %s, in %d ms", name(*d.owner), d.took.Milliseconds())
	if d.predecessor != nil {
		how = fmt.Sprintf("%s replaced %s in %d ms", name(*d.owner), name(*d.predecessor), d.took.Milliseconds())
	}
	return d.report(codeDone, d.owner, how+more)
}

// report is a result with all that is known of the new process.
func (d *deployment) report(c code, serving *crossfade.Process, text string) result {
	return result{code: c, serving: serving, reason: text, fields: d.fields()}
}
