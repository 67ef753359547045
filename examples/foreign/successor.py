#!/usr/bin/env python3
"""A successor in another language, written from docs/protocol.md.

It takes a service over from the process that owns a control socket, and from
then on answers each client of one TCP listener with a line. It needs nothing
but the standard library, on a system with unix sockets; protobuf is encoded by
hand. Section numbers below are those of docs/protocol.md.

    successor.py --socket /run/app/control.sock --listener http

What it does not do:
  - start as the first: without an owner it ends with an error;
  - hand over: it keeps the control socket, as an owner must, and refuses every
    client of it with POLICY. Stop it, and the next process starts afresh.

Standard output tells what it has become, a line each. SIGTERM and SIGINT stop
it. The exit status is 0 after a stop as the owner, and 1 if it failed to become
the owner.
"""

import argparse
import array
import errno
import fcntl
import ipaddress
import os
import resource
import secrets
import select
import signal
import socket
import stat
import struct
import sys
import time
from dataclasses import dataclass

# Section 6.
MAX_PAYLOAD = 1048576
MAX_DESCRIPTORS_ON_FRAME = 250
MAX_DESCRIPTORS = 131072
MAX_NAME = 200
MAX_REASON = 4000

# Section 12.
PATIENCE = 5.0

# Members of ClientMessage, members of ServerMessage, and enumerations, by their
# numbers in handoff.proto.
HELLO, PREPARED, PAGE_ACK, RECEIVED, PROGRESS, READY, FINAL_RECEIVED, COMMIT_ACK, SETTLE = range(1, 10)
CLIENT_ABORT = 11
WELCOME, REFUSE, MANIFEST_PAGE, COMMIT, PROBATION_OVER, RESUMED, RETIRED, ABORT = range(1, 9)
DRAINING = 10
ROLE_SUCCESSOR = 1
KIND_LISTENER, KIND_PACKET_CONN, KIND_CONN, KIND_FILE, KIND_STATE, KIND_CONTROL, KIND_LOCK, KIND_ALIVE = range(1, 9)
TYPE_OTHER, TYPE_SOCKET, TYPE_REGULAR, TYPE_PIPE = range(4)
REFUSE_BUSY, REFUSE_NOT_READY, REFUSE_PROBATION, REFUSE_DRAINING, REFUSE_POLICY = range(1, 6)
REFUSE_MOVED = 9
PASSING = (REFUSE_BUSY, REFUSE_NOT_READY, REFUSE_PROBATION, REFUSE_DRAINING)
ABORT_PROTOCOL, ABORT_TIMEOUT, ABORT_STOPPING = 1, 2, 3
ABORT_LIMIT, ABORT_DESCRIPTOR, ABORT_FAILED = 5, 6, 9


class Failure(Exception):
    """Ends the attempt. The predecessor is told why."""

    code = ABORT_FAILED


class ProtocolError(Failure):
    code = ABORT_PROTOCOL


class DescriptorError(Failure):
    code = ABORT_DESCRIPTOR


class LimitError(Failure):
    code = ABORT_LIMIT


class TimeoutFailure(Failure):
    code = ABORT_TIMEOUT


class Stopped(Failure):
    code = ABORT_STOPPING


class LastWord(Exception):
    """The owner's own refusal or abort: it needs no answer."""


class Gone(Exception):
    """The peer has fully closed (section 5)."""


class DialAgain(Exception):
    """What spoke against this attempt has passed."""


# Protobuf.


def varint(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value) if value else b""


def nested(field, value):
    """A string, bytes, a message, or numbers packed. An empty one is present."""
    if isinstance(value, str):
        value = value.encode()
    return varint(field << 3 | 2) + varint(len(value)) + value


def read_varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ProtocolError("a payload is no message: a number has no end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & (1 << 64) - 1, at


class Message:
    """A decoded message: the fields by number. Unknown ones are never asked for."""

    def __init__(self, data):
        self.fields = {}
        at = 0
        while at < len(data):
            tag, at = read_varint(data, at)
            wire_type, end = tag & 7, at
            if wire_type == 0:
                value, end = read_varint(data, at)
            elif wire_type == 2:
                size, at = read_varint(data, at)
                end = at + size
                value = data[at:end]
            elif wire_type in (1, 5):
                end = at + (8 if wire_type == 1 else 4)
                value = data[at:end]
            else:
                raise ProtocolError(f"a payload is no message: it has the wire type {wire_type}")
            if end > len(data):
                raise ProtocolError("a payload is no message: a field has no end")
            at = end
            self.fields.setdefault(tag >> 3, []).append(value)

    def number(self, field):
        value = self.fields.get(field, [0])[-1]
        if not isinstance(value, int):
            raise ProtocolError(f"field {field} is no number")
        return value

    def data(self, field):
        value = self.fields.get(field, [b""])[-1]
        if isinstance(value, int):
            raise ProtocolError(f"field {field} is a number")
        return value

    def text(self, field):
        try:
            return self.data(field).decode()
        except UnicodeDecodeError as e:
            raise ProtocolError(f"field {field} is not UTF-8") from e

    def message(self, field):
        return Message(self.data(field))

    def messages(self, field):
        return [Message(v) for v in self.fields.get(field, []) if not isinstance(v, int)]

    def numbers(self, field):
        out = []
        for value in self.fields.get(field, []):
            if isinstance(value, int):
                out.append(value)
                continue
            at = 0
            while at < len(value):
                n, at = read_varint(value, at)
                out.append(n)
        return out

    def seconds(self, field):
        d = self.message(field)
        return d.number(1) + d.number(2) / 1e9


def printable(text):
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_REASON])


# Frames, sections 5 to 7.


class Connection:
    """The connection to the predecessor."""

    # What is asked for does not depend on what is expected.
    room = socket.CMSG_SPACE(254 * 4)

    def __init__(self, sock):
        sock.setblocking(False)  # this end's own description: the peer has another
        self.sock = sock
        self.buffer = bytearray()
        self.queue = []  # descriptors that arrived and belong to no frame yet
        self.read_ended = False
        self.write_failed = False

    def fileno(self):
        return self.sock.fileno()

    def events(self):
        # After a read of 0 only POLLHUP says anything, and it is always asked for.
        return 0 if self.read_ended else select.POLLIN

    def send(self, member, payload=b""):
        """Writes one message. A failure is no news: what the predecessor had
        written before it left is still to be read."""
        message = nested(member, payload)
        frame = struct.pack(">IHH", len(message), 0, 0) + message
        deadline = time.monotonic() + PATIENCE
        while frame and not self.write_failed:
            try:
                frame = frame[self.sock.send(frame):]
            except BlockingIOError:
                writable = select.poll()
                writable.register(self.sock, select.POLLOUT)
                if not writable.poll(max(0, deadline - time.monotonic()) * 1000):
                    self.write_failed = True
            except OSError:
                self.write_failed = True

    def next(self):
        """Returns the next message as (member, message, descriptors), or None
        if nothing whole has arrived. Raises Gone at the full close."""
        while True:
            frame = self.take_frame()
            if frame is not None:
                return frame
            if not self.look():
                return None

    def look(self):
        """Reads once, without waiting. This is the one receive path."""
        try:
            data, control, flags, _ = self.sock.recvmsg(65536, self.room, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        except BlockingIOError:
            return False
        except ConnectionResetError as e:
            raise Gone from e
        for level, kind, rights in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
                self.queue.extend(fds)
                for fd in fds:
                    os.set_inheritable(fd, False)
        if flags & socket.MSG_CTRUNC:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise DescriptorError(f"descriptors were lost on arrival: RLIMIT_NOFILE is {soft}, else ask the security module's log")
        if data:
            self.buffer += data
            return True
        self.read_ended = True
        hung_up = select.poll()
        hung_up.register(self.sock, 0)
        if any(event & select.POLLHUP for _, event in hung_up.poll(0)):
            raise Gone
        return False

    def take_frame(self):
        if len(self.buffer) < 8:
            return None
        length, nfds, zero = struct.unpack(">IHH", self.buffer[:8])
        if zero:
            raise ProtocolError("the reserved bytes of a frame are not zero")
        if length > MAX_PAYLOAD or nfds > MAX_DESCRIPTORS_ON_FRAME:
            raise ProtocolError(f"a frame has {length} bytes and {nfds} descriptors")
        if len(self.buffer) < 8 + length:
            return None
        if nfds > len(self.queue):
            raise ProtocolError(f"a frame announces {nfds} descriptors, {len(self.queue)} arrived")
        payload = bytes(self.buffer[8: 8 + length])
        del self.buffer[: 8 + length]
        fds, self.queue = self.queue[:nfds], self.queue[nfds:]
        try:
            if not self.buffer and self.queue:
                raise ProtocolError("descriptors arrived that no frame announces")
            outer = Message(payload)
            if len(outer.fields) != 1:
                raise ProtocolError("a payload is not one message")
            member = next(iter(outer.fields))
            if fds and member != MANIFEST_PAGE:
                raise ProtocolError(f"message {member} carries descriptors")
            return member, outer.message(member), fds
        except ProtocolError:
            close_all(fds)
            raise

    def close(self):
        close_all(self.queue)
        self.queue = []
        self.sock.close()


def close_all(fds):
    for fd in fds:
        os.close(fd)


# The manifest, section 9.


@dataclass
class Descriptor:
    id: int
    name: str
    kind: int
    network: str
    address: str
    fd: int


def identify(fd):
    """What the kernel says of a descriptor, by the fields of Identity."""
    st = os.fstat(fd)
    identity = {1: TYPE_OTHER, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0, 7: st.st_dev, 8: st.st_ino, 9: "", 10: ""}
    if stat.S_ISREG(st.st_mode):
        identity[1] = TYPE_REGULAR
    elif stat.S_ISFIFO(st.st_mode):
        identity[1] = TYPE_PIPE
    elif stat.S_ISSOCK(st.st_mode):
        identity[1] = TYPE_SOCKET
        sock = socket.socket(fileno=fd)
        try:
            identify_socket(sock, identity)
        finally:
            sock.detach()
    return identity


def identify_socket(sock, identity):
    def option(number):
        try:
            return sock.getsockopt(socket.SOL_SOCKET, number)
        except OSError:
            return 0

    domain = option(socket.SO_DOMAIN) if hasattr(socket, "SO_DOMAIN") else sock.family
    protocol = option(socket.SO_PROTOCOL) if hasattr(socket, "SO_PROTOCOL") else 0
    kind = option(socket.SO_TYPE)
    identity.update({2: domain, 3: kind, 4: protocol, 5: int(option(socket.SO_ACCEPTCONN) != 0)})
    if sys.platform == "linux":
        so_cookie = 57
        try:
            identity[6], = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, so_cookie, 8))
        except OSError:
            pass  # before Linux 4.12
    if domain == socket.AF_UNIX:
        identity[9] = {socket.SOCK_STREAM: "unix", socket.SOCK_DGRAM: "unixgram", socket.SOCK_SEQPACKET: "unixpacket"}.get(kind, "")
        identity[10] = unix_name(sock.getsockname())
    elif domain in (socket.AF_INET, socket.AF_INET6):
        if kind == socket.SOCK_STREAM and protocol in (0, 6, 262):
            identity[9] = "tcp"
        elif kind == socket.SOCK_DGRAM and protocol in (0, 17):
            identity[9] = "udp"
        if identity[9]:
            identity[10] = inet_name(*sock.getsockname())


def unix_name(name):
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    return "@" + name[1:] if name.startswith("\0") else name


def inet_name(host, port, _flow=0, zone=0):
    ip = ipaddress.ip_address(host.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.version == 4:
        return f"{ip}:{port}"
    return f"[{ip}%{socket.if_indextoname(zone)}]:{port}" if zone else f"[{ip}]:{port}"


def check_identity(claimed, fd):
    """Compares each claim with what the kernel says, and returns what it says."""
    actual = identify(fd)
    for field, value in actual.items():
        claim = claimed.text(field) if isinstance(value, str) else claimed.number(field)
        if field == 6 and claim == 0:
            continue  # the sender has no cookies
        if field in (7, 8) and claimed.number(7) == claimed.number(8) == 0:
            continue  # the sender does not say
        if claim != value:
            raise DescriptorError(f"field {field} of the identity is {claim!r} in the manifest and {value!r} here")
    return actual


def check_kind(kind, identity):
    sock, listening, packets = identity[1] == TYPE_SOCKET, identity[5], identity[9] in ("udp", "unixgram")
    fits = {
        KIND_LISTENER: listening,
        KIND_PACKET_CONN: packets,
        KIND_CONN: sock and not listening,
        KIND_FILE: not sock,
        KIND_CONTROL: listening and identity[9] == "unix",
        KIND_LOCK: identity[1] == TYPE_REGULAR,
    }
    if not fits[kind]:
        raise DescriptorError(f"it is not of kind {kind}")


def check_name(name):
    if not 1 <= len(name.encode()) <= MAX_NAME or not name.isprintable():
        raise ProtocolError(f"the name {name!r} is none")


class Control:
    """The control socket, its lock and where they are."""

    def __init__(self, message, path, fds):
        """Takes the first two of fds."""
        self.bound, self.inode, self.backlog = message.text(2), (message.number(3), message.number(4)), message.number(5)
        self.path = path or message.text(1)  # the path that was dialled, if there was one
        self.listener = socket.socket(fileno=fds[0])
        self.lock = fds[1]
        del fds[:2]

    def check(self):
        if unix_name(self.listener.getsockname()) != self.bound:
            raise DescriptorError("the control listener is not bound to what the manifest says")
        if not self.on_path():
            raise DescriptorError(f"{self.path} or its lock is not what was handed over")
        try:
            # A no-op on the description that holds the lock.
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise DescriptorError(f"the lock of {self.path} is held through another descriptor") from e

    def on_path(self):
        """Whether the path and its lock file are those that were handed over."""
        held = os.fstat(self.lock)
        try:
            there, lock = os.lstat(self.path), os.lstat(self.path + ".lock")
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == self.inode and (lock.st_dev, lock.st_ino) == (held.st_dev, held.st_ino)

    def serve(self):
        """Clients see this process's credentials from here on."""
        self.listener.listen(self.backlog)

    def refuse_one(self):
        try:
            client, _ = self.listener.accept()
        except BlockingIOError:
            return
        refusal = number(1, REFUSE_POLICY) + nested(2, f"pid {os.getpid()} owns the service and hands over to nobody: stop it first")
        message = nested(REFUSE, refusal)
        with client:
            client.setblocking(False)
            try:
                client.send(struct.pack(">IHH", len(message), 0, 0) + message)
            except OSError:
                pass  # it has left

    def close(self, unlink=False):
        """Unlinks, if wanted, before the listener is closed, and closes the lock
        last: whoever gets the lock must find nobody listening."""
        if unlink and self.on_path():
            os.unlink(self.path)
        self.listener.close()
        os.close(self.lock)


# The successor, section 11.


class Successor:
    def __init__(self, options):
        self.options = options
        self.conn = None
        self.control = None
        self.descriptors = {}  # by id
        self.next_page = 0
        self.arrived = 0
        self.commit_timeout = 0.0
        self.stopping = False
        self.wakeup, self.wake = socket.socketpair()
        for end in (self.wakeup, self.wake):
            end.setblocking(False)
        signal.set_wakeup_fd(self.wake.fileno())
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self.on_signal)

    def on_signal(self, *_):
        self.stopping = True

    def run(self):
        try:
            self.reach()
            say("received")
            if self.initialise():
                self.own()
            else:
                self.take_over()
            say("owner")
        except BaseException as e:
            # Where there is no Abort the end of the connection says it.
            if isinstance(e, Failure) and self.conn is not None:
                self.conn.send(CLIENT_ABORT, number(1, e.code) + nested(2, str(e)[:MAX_REASON]))
            self.forget()
            raise
        self.serve()

    def forget(self):
        """Closes everything that was received, and the connection last."""
        for d in self.descriptors.values():
            os.close(d.fd)
        self.descriptors = {}
        if self.control is not None:
            self.control.close()
            self.control = None
        if self.conn is not None:
            self.conn.close()
            self.conn = None

    # Up to Received.

    def reach(self):
        """Dials until an owner has handed its offer over."""
        until = time.monotonic() + PATIENCE
        while True:
            self.next_page = self.arrived = 0
            try:
                self.conn = self.dial(until)
                self.take_in()
                return
            except DialAgain:
                until = time.monotonic() + PATIENCE  # it was there to answer
            except Gone:
                if time.monotonic() >= until:
                    raise Failure("the owner left before it had handed everything over") from None
            self.forget()

    def dial(self, until):
        if self.options.fd is not None:
            if self.options.fd < 0:
                raise Failure("the process that started this one has left")
            fd, self.options.fd = self.options.fd, -1  # once
            os.set_inheritable(fd, False)
            return Connection(socket.socket(fileno=fd))
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(max(0.001, until - time.monotonic()))
            try:
                sock.connect(self.options.socket)
                return Connection(sock)
            except OSError as e:
                sock.close()
                if e.errno != errno.EAGAIN or time.monotonic() >= until or self.stopping:
                    raise Failure(f"no owner could be reached at {self.options.socket}: {e}") from e
                self.poll([], 0.05)

    def take_in(self):
        """Everything from Hello to Received."""
        process = nested(1, self.options.instance) + nested(2, "foreign") + number(3, self.options.epoch) + number(5, os.getpid())
        hello = nested(1, varint(1)) + number(3, ROLE_SUCCESSOR) + nested(4, process) + number(7, int(self.options.force))
        self.conn.send(HELLO, hello)
        member, message, _ = self.expect("Welcome", PATIENCE)
        if member == REFUSE:
            self.refused(message)
        if member != WELCOME:
            raise ProtocolError(f"message {member} instead of Welcome")
        total = self.welcome(message)
        # What is pending the owner's program writes first (section 9, States).
        patience = PATIENCE + (message.seconds(6) if message.number(10) else 0)
        self.conn.send(PREPARED)
        last = False
        while not last:
            member, message, fds = self.expect("ManifestPage", patience)
            if member != MANIFEST_PAGE:
                raise ProtocolError(f"message {member} instead of ManifestPage")
            last = self.page(message, fds, total, offer=True)
            if last and self.arrived != total:
                raise ProtocolError(f"{total} descriptors were announced and {self.arrived} came")
            self.conn.send(PAGE_ACK, number(1, self.next_page))
        self.conn.send(RECEIVED)

    def refused(self, message):
        code, reason = message.number(1), printable(message.text(2))
        if code == REFUSE_MOVED:
            raise Gone  # look again, without more time
        if code not in PASSING:
            raise LastWord(f"refused: {reason}")
        say(f"waiting: {reason}")
        try:
            while True:  # everything up to the full close is of no interest
                while self.conn.next() is not None:
                    pass
                if self.stopping:
                    raise LastWord("told to stop while waiting for the owner")
                self.poll([self.conn], None)
        except Gone:
            raise DialAgain from None

    def welcome(self, message):
        generation, total, self.commit_timeout = message.number(4), message.number(5), message.seconds(8)
        if message.number(1) != 1 or generation == 0 or total > MAX_DESCRIPTORS or self.commit_timeout <= 0:
            raise ProtocolError("Welcome grants what was not asked for")
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir("/dev/fd"))
        if soft != resource.RLIM_INFINITY and used + total > soft:
            raise LimitError(f"RLIMIT_NOFILE is {soft}, {used + total} are needed")
        say(f"candidate of generation {generation}")
        return total

    def page(self, message, fds, limit, offer):
        """Checks a page and keeps what it carries. Returns whether it is the last."""
        try:
            listed, last = message.messages(2), bool(message.number(4))
            removed, control = message.numbers(3), 5 in message.fields
            self.arrived += len(listed)
            if message.number(1) != self.next_page:
                raise ProtocolError(f"page {message.number(1)} instead of page {self.next_page}")
            if len(listed) != len(fds):
                raise ProtocolError(f"a page lists {len(listed)} descriptors and carries {len(fds)}")
            if self.arrived > limit:
                raise ProtocolError(f"{self.arrived} descriptors came, the limit is {limit}")
            if control and self.next_page > 0 or removed and offer:
                raise ProtocolError("a page has what has no place on it")
            if not (listed or removed or control or last):
                raise ProtocolError("an empty page")
            if control:
                self.take_control(message.message(5), listed, fds)
            for d in listed[2:] if control else listed:
                self.take_descriptor(d, fds)
            for id in removed:
                d = self.descriptors.get(id)
                if d is not None and not self.claims(d):
                    os.close(self.descriptors.pop(id).fd)
            self.next_page += 1
            return last
        finally:
            close_all(fds)  # those that nobody has taken

    def take_control(self, message, listed, fds):
        if [d.number(3) for d in listed[:2]] != [KIND_CONTROL, KIND_LOCK]:
            raise ProtocolError("page 0 does not begin with the control socket and its lock")
        for d, fd in zip(listed, fds):
            if d.number(3) in (KIND_CONTROL, KIND_LOCK):
                check_kind(d.number(3), check_identity(d.message(6), fd))
        dialled = self.options.socket if self.options.fd is None else None
        self.control = Control(message, dialled, fds)
        self.control.check()

    def take_descriptor(self, message, fds):
        id, name, kind = message.number(1), message.text(2), message.number(3)
        check_name(name)
        if kind in (KIND_STATE, KIND_ALIVE):
            os.close(fds.pop(0))  # of no use here
            return
        if kind not in (KIND_LISTENER, KIND_PACKET_CONN, KIND_CONN, KIND_FILE):
            raise ProtocolError(f"descriptor {name!r} is of kind {kind}")
        if name.startswith("crossfade.") or id in self.descriptors:
            raise ProtocolError(f"descriptor {name!r} has a name or an id that it cannot have")
        try:
            check_kind(kind, check_identity(message.message(6), fds[0]))
        except DescriptorError as e:
            raise DescriptorError(f"descriptor {name!r}: {e}") from e
        if any(d.name == name for d in self.descriptors.values()):
            os.close(fds.pop(0))  # opened anew meanwhile: what is here already wins
            return
        self.descriptors[id] = Descriptor(id, name, kind, message.text(4), message.text(5), fds.pop(0))

    # From Received to the ownership.

    def claims(self, d):
        return d.kind == KIND_LISTENER and d.name == self.options.listener

    def initialise(self):
        """Returns whether the predecessor died meanwhile: this is the heir then."""
        if not any(self.claims(d) and d.network.startswith("tcp") for d in self.descriptors.values()):
            raise Failure(f"the owner has no TCP listener called {self.options.listener!r}")
        heir = False
        ready = not self.options.wait_for_stdin
        while True:
            try:
                message = None if heir else self.next()
                if message is not None:
                    raise ProtocolError(f"message {message[0]} before Ready")
            except Gone:
                heir = True
                say("heir")
                self.conn.close()
                self.conn = None
                if self.control is not None:
                    self.control.serve()
            if self.stopping:
                if heir and self.control is not None:
                    self.control.close(unlink=True)  # nobody comes after it
                    self.control = None
                raise Stopped("the successor was told to stop")
            if ready:
                return heir
            serving = heir and self.control and self.control.listener
            events = self.poll([x for x in (sys.stdin, self.conn, serving) if x], None)
            if sys.stdin.fileno() in events:
                ready = not os.read(sys.stdin.fileno(), 4096)
            if serving and serving.fileno() in events:
                self.control.refuse_one()

    def take_over(self):
        """Everything from Ready to CommitAck."""
        unclaimed = [d for d in self.descriptors.values() if not self.claims(d)]
        ids = b"".join(varint(d.id) for d in unclaimed)
        names = b"".join(nested(2, d.name) for d in unclaimed[:100])
        self.conn.send(READY, number(1, len(unclaimed)) + names + (nested(3, ids) if ids else b""))
        deadline = time.monotonic() + self.commit_timeout
        final = False
        while True:
            try:
                member, message, fds = self.expect("Commit", deadline - time.monotonic())
            except Gone:
                self.conn.close()
                self.conn = None
                self.own()
                return
            if member == MANIFEST_PAGE and not final:
                final = self.page(message, fds, MAX_DESCRIPTORS, offer=False)
                self.conn.send(PAGE_ACK, number(1, self.next_page))
                if final:
                    self.conn.send(FINAL_RECEIVED)
            elif member == COMMIT and final:
                self.own()
                self.conn.send(COMMIT_ACK, number(1, 1))  # settle: no probation is granted
                return
            else:
                close_all(fds)
                raise ProtocolError(f"message {member} instead of Commit")

    def own(self):
        for d in [d for d in self.descriptors.values() if not self.claims(d)]:
            os.close(self.descriptors.pop(d.id).fd)
        if self.control is not None:
            self.control.serve()

    # The ownership.

    def serve(self):
        """Accepts until it is told to stop."""
        claimed = next(iter(self.descriptors.values()))
        listener = socket.socket(fileno=claimed.fd)  # changes no flag of the description
        settled = self.conn is None
        if settled:
            say("settled")
        give_up = None
        while True:
            settled = self.hear_predecessor(settled)
            if self.stopping:
                give_up = give_up or time.monotonic() + self.commit_timeout
                if settled or time.monotonic() >= give_up:
                    break
            serving = self.control and self.control.listener
            events = self.poll([x for x in (listener, serving, self.conn) if x], give_up and give_up - time.monotonic())
            if listener.fileno() in events:
                answer_one(listener)
            if serving and serving.fileno() in events:
                self.control.refuse_one()
        if self.control is not None:
            self.control.close(unlink=settled)
        listener.close()
        if self.conn is not None:
            self.conn.close()  # last: to a predecessor that has not retired it gives the service back
        say("stopped")

    def hear_predecessor(self, settled):
        """Handles what the predecessor has sent, and returns whether it cannot
        come back."""
        try:
            while self.conn is not None:
                message = self.conn.next()
                if message is None:
                    return settled
                if message[0] == RETIRED and not settled:
                    settled = True
                    say("settled")
                elif message[0] not in (PROBATION_OVER, DRAINING):
                    raise ProtocolError(f"message {message[0]} instead of Retired")
        except Gone:
            self.conn.close()
            self.conn = None
            if not settled:
                say("settled")
            say("the predecessor is gone")
            return True
        except Failure as e:
            # Its end is all that is left to wait for. Closing this end would
            # say that this process does not own.
            say(f"the predecessor broke the protocol: {e}")
            self.conn = Deaf(self.conn)
        return settled

    # Waiting.

    def expect(self, what, seconds):
        """The next message. What has arrived comes before the deadline."""
        deadline = time.monotonic() + seconds
        while True:
            stopping, over = self.stopping, time.monotonic() >= deadline
            message = self.next()
            if message is not None:
                return message
            if stopping:
                raise Stopped("the successor was told to stop")
            if over:
                raise TimeoutFailure(f"no {what} within {seconds:g} s")
            self.poll([self.conn], deadline - time.monotonic())

    def next(self):
        message = self.conn.next()
        if message is not None and message[0] == ABORT:
            raise LastWord(f"aborted by the owner: {printable(message[1].text(2))}")
        return message

    def poll(self, watched, seconds):
        """Waits for one of these, a signal or the end of the time."""
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        for x in watched:
            poll.register(x, x.events() if hasattr(x, "events") else select.POLLIN)
        events = {fd for fd, _ in poll.poll(None if seconds is None else max(0, seconds) * 1000)}
        if self.wakeup.fileno() in events:
            self.wakeup.recv(4096)
        return events


class Deaf:
    """A connection of which nothing but the full close is believed."""

    def __init__(self, conn):
        self.conn = conn

    def fileno(self):
        return self.conn.fileno()

    def events(self):
        return self.conn.events()

    def next(self):
        while True:
            self.conn.buffer.clear()
            close_all(self.conn.queue)
            self.conn.queue = []
            try:
                if not self.conn.look():
                    return None
            except Failure:
                pass  # descriptors were lost: they are unwanted anyway

    def close(self):
        self.conn.close()


def answer_one(listener):
    try:
        client, _ = listener.accept()
    except OSError:
        return  # another process was faster, or the client has left
    with client:
        try:
            client.sendall(f"foreign {os.getpid()}\n".encode())
        except OSError:
            pass  # it has left


def say(what):
    print(what, flush=True)


def parse_options():
    parser = argparse.ArgumentParser(description="Take a service over by docs/protocol.md, and answer its clients with a line.")
    parser.add_argument("--socket", help="the control path (default: CROSSFADE_SOCKET)")
    parser.add_argument("--listener", required=True, help="the name of the TCP listener to answer on")
    parser.add_argument("--wait-for-stdin", action="store_true", help="be ready when standard input ends, not at once")
    options = parser.parse_args()
    # Section 18: all variables go, so that this program's children take over nothing.
    env = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("CROSSFADE_")}
    options.socket = options.socket or env.get("CROSSFADE_SOCKET")
    options.fd = int(env["CROSSFADE_FD"]) if env.get("CROSSFADE_FD") else None
    options.instance = env.get("CROSSFADE_INSTANCE") or secrets.token_hex(8)
    options.epoch = int(env.get("CROSSFADE_EPOCH") or 0)
    options.force = env.get("CROSSFADE_FORCE") == "1"
    if options.socket is None and options.fd is None:
        parser.error("neither --socket nor CROSSFADE_SOCKET names the control path")
    return options


def main():
    successor = Successor(parse_options())
    try:
        successor.run()
    except (Failure, LastWord) as e:
        print(f"successor.py: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
