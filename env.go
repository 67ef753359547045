package crossfade

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

// The environment of a process that is to take over. New removes all of it, so
// that the program's own children take over nothing.
const (
	envPrefix   = "CROSSFADE_"
	envSocket   = envPrefix + "SOCKET"   // the path of the control socket
	envFD       = envPrefix + "FD"       // an inherited connection to the owner
	envInstance = envPrefix + "INSTANCE" // the name of this run
	envEpoch    = envPrefix + "EPOCH"    // the epoch of this deployment
	envForce    = envPrefix + "FORCE"    // 1: take over from a higher epoch too

	envProbation      = envPrefix + "PROBATION"        // how long this deployment is on probation, 30s
	envAtProbationEnd = envPrefix + "AT_PROBATION_END" // settle or rollback
	envTrustDirectory = envPrefix + "TRUST_DIRECTORY"  // 1: whoever can write to the control socket's directory is trusted
)

// environment is what the variables said.
type environment struct {
	socket   string
	fd       int // -1 if there is none
	instance string
	epoch    uint64
	force    bool

	probation      *time.Duration // nil if there is none
	atProbationEnd *ProbationEnd  // nil if there is none

	trustDirectory bool
}

// envMu makes taking the environment one step: of two Upgraders in one process
// only one gets it.
var envMu sync.Mutex

// takeEnvironment reads the variables and removes them.
func takeEnvironment() (environment, error) {
	envMu.Lock()
	defer envMu.Unlock()
	vars := make(map[string]string)
	for _, kv := range os.Environ() {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, envPrefix) {
			vars[name] = value
			if err := os.Unsetenv(name); err != nil {
				return environment{}, err
			}
		}
	}
	env := environment{socket: vars[envSocket], instance: vars[envInstance], fd: -1}
	if v := vars[envFD]; v != "" {
		fd, err := strconv.Atoi(v)
		if err != nil || fd < 3 {
			return env, fmt.Errorf("%s=%q is not the number of an inherited descriptor", envFD, v)
		}
		env.fd = fd
	}
	if v := vars[envEpoch]; v != "" {
		epoch, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return env, fmt.Errorf("%s=%q is not a number", envEpoch, v)
		}
		env.epoch = epoch
	}
	if v := vars[envForce]; v != "" {
		force, err := strconv.ParseBool(v)
		if err != nil {
			return env, fmt.Errorf("%s=%q is neither 0 nor 1", envForce, v)
		}
		env.force = force
	}
	trust, err := trustsDirectory(vars[envTrustDirectory])
	if err != nil {
		return env, err
	}
	env.trustDirectory = trust
	if v := vars[envProbation]; v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return env, fmt.Errorf("%s=%q is not a duration such as 30s", envProbation, v)
		}
		d = min(d, maxDuration)
		env.probation = &d
	}
	if v := vars[envAtProbationEnd]; v != "" {
		end := SettleAtEnd
		switch v {
		case RollbackAtEnd.String():
			end = RollbackAtEnd
		case SettleAtEnd.String():
		default:
			return env, fmt.Errorf("%s=%q is neither %v nor %v", envAtProbationEnd, v, SettleAtEnd, RollbackAtEnd)
		}
		env.atProbationEnd = &end
	}
	return env, nil
}

// trustsDirectory reads the one variable that a [Controller] heeds too.
func trustsDirectory(value string) (bool, error) {
	if value == "" {
		return false, nil
	}
	trust, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("%s=%q is neither 0 nor 1", envTrustDirectory, value)
	}
	return trust, nil
}

// abandon closes the inherited connection, whose end tells the predecessor, of a
// process that gives up because of err.
func (env environment) abandon(err error) error {
	if env.fd < 0 {
		return err
	}
	return errors.Join(err, scm.NewFD(env.fd).Close())
}

// childEnviron returns environ without the variables of an earlier handoff and
// with those that a process needs to take over through the descriptor fd.
func childEnviron(environ []string, c *Config, instance string, fd int) []string {
	environ = slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		return strings.HasPrefix(kv, envPrefix)
	})
	if c.Socket != "" {
		environ = append(environ, envSocket+"="+c.Socket)
	}
	if c.Epoch != 0 {
		environ = append(environ, envEpoch+"="+strconv.FormatUint(c.Epoch, 10))
	}
	if c.TrustDirectory {
		environ = append(environ, envTrustDirectory+"=1")
	}
	return append(environ, envInstance+"="+instance, envFD+"="+strconv.Itoa(fd))
}
