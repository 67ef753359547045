//go:build !linux

package systemd

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

func monotonic() (time.Duration, error) {
	return 0, fmt.Errorf("the clock of a service manager on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
