"""aiohttp behind `Transport`: bodies streamed with a CRC, a watchdog, errors of our own."""

from uploader.transport.client import AiohttpTransport
from uploader.transport.sockets import may_use_congestion
from uploader.transport.tls import tls_context

__all__ = ["AiohttpTransport", "may_use_congestion", "tls_context"]
