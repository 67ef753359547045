package scm

import "golang.org/x/sys/unix"

// What others call TCP_KEEPIDLE is TCP_KEEPALIVE here, tcp(4).
var tcpOptions = []option{
	{unix.IPPROTO_TCP, unix.TCP_NODELAY},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
	{unix.IPPROTO_TCP, unix.TCP_KEEPALIVE},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
}
