package crossfade

import (
	"errors"
	"fmt"
	"os"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/scm"
)

// Peer is who is at the other end of a connection to the control socket, as the
// kernel says.
type Peer = scm.Peer

// Access is what somebody at the other end of a connection needs to be allowed, as
// [Config.Authorize] sees it.
type Access = handoff.Access

// What [Config.Authorize] decides.
const (
	// AccessRead: to speak on the control socket at all, which is to see the status.
	AccessRead = handoff.AccessRead
	// AccessChange: to take over, to have this process do something.
	AccessChange = handoff.AccessChange
	// AccessOwner: to be the process that this one takes over from.
	AccessOwner = handoff.AccessOwner
)

// defaultAuthorize is [Config.Authorize] where the program has none.
func defaultAuthorize(socketGroup, readGroup string) (func(*Peer, Access) error, error) {
	full, err := rendezvous.LookupGroup(socketGroup)
	if err != nil {
		return nil, err
	}
	read, err := rendezvous.LookupGroup(readGroup)
	if err != nil {
		return nil, err
	}
	return func(peer *Peer, access Access) error { return authorize(peer, access, full, read) }, nil
}

// unmappedRemedy is what helps a service that runs as the overflow uid.
const unmappedRemedy = "run the service as a user of its own, not as nobody, or give it a SocketGroup"

// warnUnmapped says at once what else is found out only when there is something to be
// deployed.
func (c *Config) warnUnmapped() {
	uid := os.Geteuid()
	if c.Socket != "" && (&Peer{UID: uint32(uid)}).Unmapped() && c.SocketGroup == "" {
		c.Logger.Warn("this process runs as the overflow uid, which is nobody's: of its own user no process can take over by the control socket", "uid", uid, "help", unmappedRemedy)
	}
}

// authorize admits by numbers that are known to be somebody's: an overflow number
// is no member, nor a user. full and read are -1 for none.
func authorize(peer *Peer, access Access, full, read int) error {
	own := os.Geteuid()
	switch {
	case peer == nil:
		return nil // connecting needed write permission on the socket's file, and the directory vouches for an owner
	case !peer.Unmapped() && (peer.UID == 0 || int(peer.UID) == own):
		return nil
	case full >= 0 && peer.In(uint32(full)):
		return nil
	case access == AccessRead && read >= 0 && peer.In(uint32(read)):
		return nil
	}
	whom, besides := fmt.Sprintf("uid %d", peer.UID), ""
	if peer.Unmapped() && int(peer.UID) == own {
		return fmt.Errorf("it is of uid %d, as this process is, but that is the overflow uid, which stands for everybody without a number in this user namespace, "+
			"and proves nothing: %s", own, unmappedRemedy)
	}
	if peer.Unmapped() {
		whom = fmt.Sprintf("its user has no number in this user namespace, and so cannot be known (it shows as uid %d): it", peer.UID)
	}
	if full >= 0 {
		besides = fmt.Sprintf(" nor a member of group %d", full)
	}
	if access == AccessRead && read >= 0 {
		besides += fmt.Sprintf(" nor of group %d, which may read", read)
	}
	if besides == "" {
		return fmt.Errorf("%s is neither root nor uid %d; Config.SocketGroup can admit a group", whom, own)
	}
	return fmt.Errorf("%s is neither root nor uid %d%s", whom, own, besides)
}

// checkOwner asks the program's own rule about the process that listens on the
// control path, before anything is told to it.
func (u *Upgrader) checkOwner(conn *scm.Conn) error {
	peer, err := conn.Peer()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("%w: the process that listens on %s has no credentials: %w", ErrDenied, u.cfg.Socket, err)
	}
	if peer != nil {
		defer peer.Close()
	}
	if err := u.cfg.Authorize(peer, AccessOwner); err != nil {
		return fmt.Errorf("%w: nothing is taken from the process that listens on %s (%v): %w; %s",
			ErrDenied, u.cfg.Socket, peerName(peer), err, rendezvous.Rights(u.cfg.Socket))
	}
	return nil
}

func peerName(p *Peer) string {
	if p == nil {
		return "credentials unknown"
	}
	return p.String()
}

// explainDenied adds to a refusal what this process can see itself: the owner tells
// no stranger whom it lets in.
func explainDenied(err error, socket string) error {
	var refused *RefusedError
	if err == nil || !errors.Is(err, ErrDenied) || !errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("%w; %s", err, rendezvous.Rights(socket))
}
