"""A run in a process of its own, which gets a signal as its site's request goes out."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

from uploader import VodupError
from uploader.protocol.wire import SignedRequest
from uploader.sources import FileSource
from uploader.state import SqlState

from .caller import SHORT, UploadCall, run_once
from .table import SITES

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
INTERRUPTED, FAILED = 130, 1
_MOMENT_S = 0.003
"""From a request's start to the signal: it may be on its way, applied, or answered by then."""


_PRELOADED = [
    __name__,
    # What the package itself imports late.
    "aliyunsdkcore.auth.composer.rpc_signature_composer",
    "oss2.auth",
    "uploader.state.sqlite",
    "uploader.state.transactions",
]


def forkserver() -> ForkServerContext:
    """Processes that begin with everything imported; started by the first call."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    multiprocessing.forkserver.ensure_running()
    return context


async def exit_code_of(call: UploadCall, path: Path, state: Path, site: str, how: str) -> int:
    """Run it to its end; negative is the signal that ended it."""
    process = forkserver().Process(target=_main, args=(call, path, state, site, how))
    await asyncio.to_thread(process.start)
    try:
        await asyncio.to_thread(process.join, 30)
        code = process.exitcode
        assert code is not None, "the child does not end"
        return code
    finally:
        if process.exitcode is None:
            process.kill()
            process.join()
        process.close()


def _main(call: UploadCall, path: Path, state: Path, site: str, how: str) -> None:
    # Whoever starts the tests in the background of a shell has it ignored for all of us.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        asyncio.run(_run(call, path, state, site, how))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except VodupError:
        sys.exit(FAILED)


async def _run(call: UploadCall, path: Path, state: Path, site_name: str, how: str) -> None:
    site = next(site for site in SITES if site.name == site_name)

    def before(request: SignedRequest) -> SignedRequest:
        if call.account.is_at(site, request):
            loop = asyncio.get_running_loop()
            loop.call_later(_MOMENT_S, os.kill, os.getpid(), SIGNALS[how])
        return request

    await run_once(call, FileSource(path), SqlState(state), SHORT, before=before)
