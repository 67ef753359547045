package scm

import "golang.org/x/sys/unix"

// The keep-alive times are sysctls of the whole system here, tcp(4).
var tcpOptions = []option{
	{unix.IPPROTO_TCP, unix.TCP_NODELAY},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
}
