"""Our sockets: their options, their congestion control, and what the kernel reports of them."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from uploader.pace import LinkSample

__all__ = ["Sockets", "congestion_of", "link_sample", "may_use_congestion", "tcp_info_of"]


class Sockets:
    """Makes our sockets and remembers the open ones. Mutable."""

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
        self._fitted: WeakSet[socket.socket] = WeakSet()
        self.congestion = ""

    def make(self, address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """A socket for that address (aiohttp's `socket_factory`)."""
        family, kind, protocol, _, _ = address
        made = socket.socket(family=family, type=kind, proto=protocol)
        for option, value in self._options:
            _set_option(made, option, value)
        self.congestion = _choose_congestion(made, self._first_congestion)
        self._made[made] = next(self._serials)
        self._by_number[made.fileno()] = made
        return made

    def fitted(self, transport: asyncio.Transport) -> socket.socket | None:
        """The socket of `transport`, fit for its path; None where it is not ours to use."""
        shown = transport.get_extra_info("socket")
        made = None if shown is None else self._by_number.get(shown.fileno())
        if made is None or made.fileno() < 0 or sys.platform == "win32":
            return None
        self.fit(made)
        return made

    def fit(self, made: socket.socket) -> None:
        """Go over to bbr where the peer is far; once for each connection.

        Near ones keep what they began with: bbr's pacing costs a timer for every few
        segments, and there a loss is made good at once. The other way round does not work,
        for a socket that once was paced stays so. The round trip is the handshake's.
        """
        if self._far_congestion is None or made in self._fitted:
            return
        info = _tcp_info(made)
        if info is None or info.rtt_us == 0:
            return  # there is no connection yet
        self._fitted.add(made)
        if info.rtt_us >= self._near_rtt_us:
            self.congestion = _choose_congestion(made, self._far_congestion)

    def open(self) -> list[tuple[int, socket.socket]]:
        """Those not closed yet, each with its number."""
        return [(serial, sock) for sock, serial in self._made.items() if sock.fileno() >= 0]


def _socket_options(
    notsent_lowat: int | None, stall_timeout_s: float
) -> list[tuple[tuple[int, str], int]]:
    """(level, name), value. The kernel's own time-out stands behind the watchdog's."""
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


def _set_option(made: socket.socket, option: tuple[int, str], value: int) -> None:
    """Set it where the system knows it; none of them is needed for correctness."""
    level, name = option
    number = getattr(socket, name, None)
    if number is not None:
        with suppress(OSError):
            made.setsockopt(level, number, value)


def _choose_congestion(made: socket.socket, wanted: str | None) -> str:
    """Ask for it, and tell what is in use: the kernel may not have it, or not allow it."""
    option = getattr(socket, "TCP_CONGESTION", None)
    if option is not None and wanted:
        with suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, option, wanted.encode())
    return congestion_of(made)


def may_use_congestion(name: str) -> bool:
    """Whether the kernel has that congestion control and lets this process use it."""
    with socket.socket() as probe:
        return _choose_congestion(probe, name) == name


def congestion_of(sock: socket.socket) -> str:
    """What the socket uses; while it connects, a route may have put another in its place."""
    option = getattr(socket, "TCP_CONGESTION", None)
    if option is None:
        return ""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, option, 16).rstrip(b"\0").decode()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class _TcpInfo:
    """What we read of Linux's `struct tcp_info` (include/uapi/linux/tcp.h)."""

    unacked_size: int
    rtt_us: int
    retransmit_count: int
    acked_bytes: int
    min_rtt_us: int


_TCP_INFO: Final = struct.Struct("=68xI28xI16xQ20xI")  # rtt, retransmits, acked, min_rtt
_NO_RTT_US: Final = 2**32 - 1  # nothing was acknowledged yet
_SIOCOUTQ: Final = 0x5411  # unacknowledged bytes in the send queue (linux/sockios.h)


def tcp_info_of(transport: asyncio.Transport) -> _TcpInfo | None:
    """What the kernel reports of the transport's connection; None where it does not."""
    sock = transport.get_extra_info("socket")
    return _tcp_info(sock) if sock is not None else None


def _tcp_info(sock: socket.socket) -> _TcpInfo | None:
    """None where the system is not Linux, or the socket is closed."""
    if sys.platform != "linux":
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
    """What the steering looks at; None where the kernel does not report it."""
    info = _tcp_info(sock)
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
