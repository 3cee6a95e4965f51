"""A TCP server that follows a script byte by byte, for what no HTTP server would do."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from ssl import SSLContext

import trustme

from uploader.protocol.integrity import crc64


@dataclass
class Connection:
    """One accepted connection, counted from 1."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_head(self) -> "Head":
        """Read a request up to the empty line."""
        return Head.parsed(await self.reader.readuntil(b"\r\n\r\n"))

    async def read_body(self, head: "Head") -> tuple[int, int]:
        """Read the body; returns how long it was and its CRC-64."""
        left, crc = head.content_size, 0
        while left:
            piece = await self.reader.read(min(left, 1 << 20))
            if not piece:
                break
            crc, left = crc64(piece, crc), left - len(piece)
        return head.content_size - left, crc

    async def answer(self, status: int = 200, body: bytes = b"", *headers: str) -> None:
        """Answer with that body; headers as whole lines."""
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
        await self.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def write(self, data: bytes) -> None:
        """Send these very bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def reset(self) -> None:
        """Cut the connection with an RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: on, 0 s
        self.writer.transport.abort()

    async def idle(self) -> None:
        """Do nothing until the server is closed."""
        await asyncio.Event().wait()


@dataclass(frozen=True)
class Head:
    """A request without its body; header names in lower case."""

    method: str
    path: str
    headers: list[tuple[str, str]]

    @classmethod
    def parsed(cls, raw: bytes) -> "Head":
        lines = raw.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        pairs = [line.partition(": ") for line in lines[1:] if line]
        return cls(method, path, [(name.lower(), value) for name, _, value in pairs])

    @property
    def content_size(self) -> int:
        return int(self.get("content-length") or 0)

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


Script = Callable[[Connection], Awaitable[None]]


@dataclass
class RawServer:
    """What there is to know about the running server."""

    url: str = ""
    connection_count: int = 0
    heads: list[Head] = field(default_factory=list)


@asynccontextmanager
async def serving(
    script: Script, *, tls: SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[RawServer]:
    """Run `script` for each connection; what it still does at the end is cancelled."""
    server = RawServer()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connection_count += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(Connection(server.connection_count, reader, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.transport.abort()

    listener = await asyncio.start_server(serve, host, port, ssl=tls, limit=1 << 20)
    port = listener.sockets[0].getsockname()[1]
    named = f"[{host}]" if ":" in host else host
    server.url = f"{'https' if tls else 'http'}://{named}:{port}"
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2)
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Authority:
    """A certificate authority and the file that holds its certificate."""

    ca: trustme.CA
    ca_file: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "Authority":
        ca, ca_file = trustme.CA(), folder / "ca.pem"
        ca.cert_pem.write_to_path(str(ca_file))
        return cls(ca, ca_file)

    def server(self, *names: str, not_after: datetime | None = None) -> SSLContext:
        """The context of a server that has a certificate for `names`."""
        context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("127.0.0.1",)), not_after=not_after).configure_cert(context)
        return context


async def echo_checksums(connection: Connection) -> None:
    """Answer every request with the size and the CRC-64 of what arrived."""
    while True:
        head = await connection.read_head()
        size, crc = await connection.read_body(head)
        await connection.answer(200, b"", f"X-Size: {size}", f"X-Crc: {crc}")
