"""Our sockets: options, congestion control, and what the kernel reports about them."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from uploader.pace import LinkSample


class Sockets:
    """Creates the transport's sockets and knows the open ones. Mutable."""

    def __init__(
        self,
        congestion: str | None,
        near_rtt_s: float,
        notsent_lowat: int | None,
        stall_timeout_s: float,
    ) -> None:
        self._far_congestion = "bbr" if congestion == "bbr" else None
        self._first_congestion = "cubic" if self._far_congestion else congestion
        self._near_rtt_us = near_rtt_s * 1e6
        self._options = _socket_options(notsent_lowat, stall_timeout_s)
        self._serials = count(1)
        self._made: WeakKeyDictionary[socket.socket, int] = WeakKeyDictionary()
        self._by_number: WeakValueDictionary[int, socket.socket] = WeakValueDictionary()
        self._tuned: WeakSet[socket.socket] = WeakSet()
        self.congestion = ""

    def make(self, address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """A socket for that address (aiohttp's `socket_factory`)."""
        family, kind, protocol, _, _ = address
        sock = socket.socket(family=family, type=kind, proto=protocol)
        for option, value in self._options:
            _set_option(sock, option, value)
        self.congestion = _choose_congestion(sock, self._first_congestion)
        self._made[sock] = next(self._serials)
        self._by_number[sock.fileno()] = sock
        return sock

    def tuned_socket_of(self, transport: asyncio.Transport) -> socket.socket | None:
        """Our socket of `transport`, tuned; None if it may not be written to directly."""
        wrapped = transport.get_extra_info("socket")
        sock = None if wrapped is None else self._by_number.get(wrapped.fileno())
        if sock is None or sock.fileno() < 0 or sys.platform == "win32":
            return None
        self._tune(sock)
        return sock

    def _tune(self, sock: socket.socket) -> None:
        """Switch to bbr where the peer is far; once for each connection.

        Near ones keep what they started with: bbr's pacing costs a timer for every few
        segments, and there a loss is repaired at once. The other way round does not work:
        a socket that was paced once stays paced. The round trip is the handshake's.
        """
        if self._far_congestion is None or sock in self._tuned:
            return
        info = tcp_info(sock)
        if info is None or info.rtt_us == 0:
            return  # there is no connection yet
        self._tuned.add(sock)
        if info.rtt_us >= self._near_rtt_us:
            self.congestion = _choose_congestion(sock, self._far_congestion)

    def open_sockets(self) -> Iterator[tuple[int, socket.socket]]:
        """Yield those not closed yet, tuned, each with its number."""
        for sock, serial in self._made.items():
            if sock.fileno() >= 0:
                self._tune(sock)
                yield serial, sock


def _socket_options(
    notsent_lowat: int | None, stall_timeout_s: float
) -> list[tuple[tuple[int, str], int]]:
    """Each as ((level, name), value). The kernel's own timeout backs up the watchdog's."""
    options = [
        ((socket.SOL_SOCKET, "SO_KEEPALIVE"), 1),
        ((socket.IPPROTO_TCP, "TCP_NODELAY"), 1),
        ((socket.IPPROTO_TCP, "TCP_KEEPIDLE"), 15),
        ((socket.IPPROTO_TCP, "TCP_KEEPINTVL"), 5),
        ((socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"), int(stall_timeout_s * 2000)),
    ]
    if notsent_lowat is not None:
        options.append(((socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT"), notsent_lowat))
    return options


def _set_option(sock: socket.socket, option: tuple[int, str], value: int) -> None:
    """Set it where the system supports it; none of them is needed for correctness."""
    level, name = option
    number = getattr(socket, name, None)
    if number is not None:
        with suppress(OSError):
            sock.setsockopt(level, number, value)


def _choose_congestion(sock: socket.socket, wanted: str | None) -> str:
    """Request it, and return what is in use: the kernel may not have it, or not allow it."""
    option = getattr(socket, "TCP_CONGESTION", None)
    if option is not None and wanted:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, wanted.encode())
    return congestion_of(sock)


def may_use_congestion(name: str) -> bool:
    """Whether the kernel has that congestion control and allows this process to use it."""
    with socket.socket() as probe:
        return _choose_congestion(probe, name) == name


def congestion_of(sock: socket.socket) -> str:
    """What the socket uses; a route may have replaced it while the socket was connecting."""
    option = getattr(socket, "TCP_CONGESTION", None)
    if option is None:
        return ""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, option, 16).rstrip(b"\0").decode()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class _TcpInfo:
    """The fields we read of Linux's `struct tcp_info` (include/uapi/linux/tcp.h)."""

    unacked_size: int
    rtt_us: int
    retransmit_count: int
    acked_bytes: int
    min_rtt_us: int


_TCP_INFO: Final = struct.Struct("=68xI28xI16xQ20xI")  # rtt, retransmits, acked, min_rtt
_NO_RTT_US: Final = 2**32 - 1  # nothing was acknowledged yet
_SIOCOUTQ: Final = 0x5411  # unacknowledged bytes in the send queue (linux/sockios.h)


def tcp_info(sock: socket.socket | None) -> _TcpInfo | None:
    """What the kernel reports; None where it is not Linux, or the socket is closed."""
    if sock is None or sys.platform != "linux":
        return None
    import fcntl

    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        queued = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return None
    if len(raw) < _TCP_INFO.size:
        return None
    fields = _TCP_INFO.unpack(raw)
    return _TcpInfo(int.from_bytes(queued, sys.byteorder), *fields)


def link_sample(serial: int, sock: socket.socket) -> LinkSample | None:
    """A sample for the steering; None where the kernel does not report it."""
    info = tcp_info(sock)
    if info is None:
        return None
    return LinkSample(
        connection=serial,
        acked_bytes=info.acked_bytes,
        rtt_s=info.rtt_us / 1e6,
        min_rtt_s=0.0 if info.min_rtt_us == _NO_RTT_US else info.min_rtt_us / 1e6,
        retransmit_count=info.retransmit_count,
        is_slowed_by_loss=not congestion_of(sock).startswith("bbr"),
    )
