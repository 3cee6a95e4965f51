"""The development server in its own thread, for code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from .faults import Fault
from .options import DevServerOptions
from .server import DevServer

_START_TIMEOUT_S = 30


class ThreadedDevServer:
    """A sync context manager around ``DevServer``; mutable like it.

    ``server`` is the running server: its counters, videos, faults and knobs may be used from
    the caller's thread.
    """

    def __init__(
        self,
        options: DevServerOptions | None = None,
        faults: Iterable[Fault | Mapping[str, Any]] = (),
    ) -> None:
        self.server = DevServer(options, faults)
        self._thread = threading.Thread(target=self._run, name="vodup-devserver", daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT_S):
            raise TimeoutError("the development server did not start")
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # carried to the thread that waits in __enter__
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self.server:
            self._ready.set()
            await self._stop.wait()
