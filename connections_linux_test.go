package crossfade_test

import "golang.org/x/sys/unix"

func init() {
	sockOptions = append(sockOptions,
		sockOption{"idle", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		sockOption{"interval", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
		sockOption{"count", unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
	)
}
