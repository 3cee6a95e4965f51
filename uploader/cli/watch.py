"""`watch`: a folder in, videos out, until a signal; also as a service of systemd."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from uploader import Uploader
from uploader.bulk.outputs import require_outputs
from uploader.bulk.rows import MAX_PRIORITY, shown_record
from uploader.cli import run, settings
from uploader.cli.batch_views import total_of
from uploader.cli.flags import WatchFlags
from uploader.cli.printing import err, out, out_json, report_notices
from uploader.cli.progress import Shown, show_progress
from uploader.errors import ConfigurationError
from uploader.private_files import make_private_folder
from uploader.state.locations import state_directory
from uploader.tasks import beside
from uploader.threads import in_thread
from uploader.units import count
from uploader.watch.after import parse_after
from uploader.watch.carrying import Attach, Uploads
from uploader.watch.endings import WatchOutcome
from uploader.watch.options import WatchOptions
from uploader.watch.watcher import Watcher

if TYPE_CHECKING:
    from uploader.metrics import Metrics

_JSON_INTERVAL_S: Final = 10.0
_QUEUED_FILES: Final = 1000
"""So many files are in the queue at once; the others wait here, in the order of priority."""


def watch(flags: WatchFlags) -> int:
    """Watch until stopped, or with --once until all has ended. SIGTERM is how a service ends: 0."""
    options = replace(settings.make_options(flags), vod_calls_per_s=float(flags.api_rate))
    watching = make_watch_options(flags)
    report = flags.report or _default_report(flags.folder)
    require_outputs({"--report": report}, inputs=(), state=flags.state)
    with settings.serve_metrics(flags.metrics_port) as listener:
        uploader = None
        if flags.enqueue:
            uploads = _queued(flags)
        else:
            uploader = settings.make_uploader(flags, options, on_event=listener)
            uploads = _opened(uploader)
        try:
            work = _watch(uploads, watching, report, flags, listener)
            return run.run_async(work, uploader)
        except run.Interrupted as interrupted:
            if interrupted.code != run.interrupted_code(signal.SIGTERM) or flags.once:
                raise
            return run.DONE


def make_watch_options(flags: WatchFlags) -> WatchOptions:
    """Return how the folder is watched.

    Raises:
        ConfigurationError: a flag is wrong.
    """
    if flags.enqueue and flags.wait is not None:
        raise ConfigurationError(
            "--wait and --enqueue cannot be used together: only workers have credentials.",
            next_step="Leave one of them out.",
        )
    return WatchOptions(
        include=flags.include,
        exclude=flags.exclude,
        settle_s=flags.settle,
        ready=flags.ready,
        after=parse_after(flags.after),
        failed_folder=os.path.abspath(flags.failed_dir) if flags.failed_dir else None,
        rescan_s=flags.rescan,
        wait_s=flags.wait,
        poll_s=flags.poll,
        is_once=flags.once,
        files=flags.files or (_QUEUED_FILES if flags.enqueue else None),
        requires_metadata=flags.require_metadata,
        title_template=flags.title_template,
        meta=settings.make_meta(flags),
        priorities=tuple(map(_priority, flags.priority)),
    )


def _priority(text: str) -> tuple[str, int]:
    glob, _, number = text.rpartition("=")
    with suppress(ValueError):
        if glob and abs(int(number)) <= MAX_PRIORITY:
            return glob, int(number)
    raise ConfigurationError(
        f"--priority: expected GLOB=N, got {text!r}.",
        next_step=f"Write for example 'urgent/*=50', from -{MAX_PRIORITY} to {MAX_PRIORITY}.",
    )


def _default_report(folder: str) -> str:
    """One for each folder: a restart has to find it by itself."""
    state = state_directory()
    make_private_folder(state)
    path = os.path.realpath(folder)
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return str(state / f"watch-{name}.jsonl")


@asynccontextmanager
async def _opened(uploader: Uploader) -> AsyncIterator[Uploads]:
    async with uploader:
        try:
            yield uploader
        finally:
            report_notices(uploader.state)


@asynccontextmanager
async def _queued(flags: WatchFlags) -> AsyncIterator[Uploads]:
    """The queue of the cluster; workers have the credentials."""
    from uploader.cluster.database import conninfo_of, open_pool, require_packages

    require_packages()
    from uploader.cluster.feed import queued_uploads
    from uploader.cluster.jobs import Places

    places = Places(flags.node or socket.gethostname(), flags.shared)
    scope = settings.scope_of(flags)
    async with (
        open_pool(conninfo_of(flags.state)) as pool,
        queued_uploads(pool, flags.folder, scope, places, run.exit_code) as uploads,
    ):
        yield uploads


async def _watch(
    uploads: AbstractAsyncContextManager[Uploads],
    options: WatchOptions,
    report: str,
    flags: WatchFlags,
    metrics: Metrics | None,
) -> int:
    view = _View(flags)
    async with AsyncExitStack() as stack:
        uploader = await stack.enter_async_context(uploads)
        watcher = Watcher(
            uploader,
            flags.folder,
            options=options,
            ledger=report,
            attach=await _attaching(uploader, flags),
            exit_code=run.exit_code,
            on_skipped=view.skipped,
            on_notice=view.notice,
        )
        await stack.enter_async_context(watcher)
        stack.callback(view.ended, watcher)
        if metrics is not None:
            metrics.add_watcher(watcher.counts)
        await stack.enter_async_context(_serving(watcher, flags))
        await stack.enter_async_context(beside(view.watch(watcher)))
        await stack.enter_async_context(service(watcher))
        async for outcome in watcher:
            view.outcome(outcome)
    return run.common_code(watcher.progress.codes)


async def _attaching(uploader: Uploads, flags: WatchFlags) -> Attach | None:
    if not isinstance(uploader, Uploader) or not flags.companions:
        return None
    from uploader.watch.attaching import attach_companions

    return attach_companions(uploader, await in_thread(os.path.realpath, flags.folder))


@asynccontextmanager
async def _serving(watcher: Watcher, flags: WatchFlags) -> AsyncIterator[None]:
    if flags.dashboard is None:
        yield
        return
    from uploader.bulk.dashboard import serving

    async with serving(watcher.progress, flags.dashboard, watcher.figures) as url:
        err(f"vodup: the live page is at {url}, the health of the service at {url}health")
        yield


class _View:
    """Prints what happens: sentences for people, JSON lines for programs."""

    def __init__(self, flags: WatchFlags) -> None:
        self._flags = flags

    def outcome(self, outcome: WatchOutcome) -> None:
        """Print how a file ended."""
        error, path = outcome.error, outcome.path
        if self._flags.json:
            self._print(_type_of(outcome), _fields_of(outcome))
        elif error is not None:
            again = "" if outcome.is_final else " It is tried again."
            err(f"vodup: {path}: {error.message}{again}", f"next: {error.next_step}")
        elif not self._flags.quiet and outcome.result is not None:
            plays = ", plays" if outcome.video else ""
            out(f"{path}: video {outcome.result.video_id}, verified{plays}")
        if outcome.problem and not self._flags.json:
            err(f"vodup: {path} cannot be put away: {outcome.problem}. It is tried again.")

    def skipped(self, path: str, reason: str) -> None:
        """Print why a file is left alone."""
        if self._flags.json:
            self._print("file.skipped", {"path": path, "reason": reason})
        elif self._flags.verbose:
            err(f"vodup: left alone: {path}: {reason}.")

    def notice(self, text: str) -> None:
        """Print a sentence about the watcher."""
        err(f"vodup: {text}")

    def ended(self, watcher: Watcher) -> None:
        """Print the counts."""
        figures = watcher.figures()
        if self._flags.json:
            self._print("watch.ended", figures)
        elif not self._flags.quiet:
            done = count(watcher.progress.done_count, "file")
            err(f"vodup: {done} uploaded and verified, {watcher.progress.failed_count:,} failed.")

    async def watch(self, watcher: Watcher) -> None:
        """Show progress until cancelled."""
        if not self._flags.json and not self._flags.quiet:
            progress = watcher.progress
            await show_progress(Shown(progress.tracker, lambda: total_of(progress)))
        while self._flags.json:
            await asyncio.sleep(_JSON_INTERVAL_S)
            self._print("watch.progress", watcher.figures())

    def _print(self, type_: str, fields: dict[str, Any]) -> None:
        out_json({"type": type_, **fields})


def _type_of(outcome: WatchOutcome) -> str:
    if outcome.error is None:
        return "file.done"
    return "file.failed" if outcome.is_final else "file.retrying"


def _fields_of(outcome: WatchOutcome) -> dict[str, Any]:
    fields = {
        "path": outcome.path,
        **shown_record(outcome.record),
        "moved_to": outcome.moved_to,
        "problem": outcome.problem,
        **({"playable": asdict(outcome.video)} if outcome.video else {}),
        **({"attached": list(map(asdict, outcome.attached))} if outcome.attached else {}),
    }
    if outcome.error is not None:
        fields |= {
            "error": type(outcome.error).__name__,
            "message": outcome.error.message,
            "next_step": outcome.error.next_step,
        }
    return fields


# --- a service of systemd ---------------------------------------------------------------


@asynccontextmanager
async def service(watcher: Watcher) -> AsyncIterator[None]:
    """Tell systemd that the service is ready, alive and stopping, where it wants to know.

    sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names; sd_watchdog_enabled(3).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        yield
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.setblocking(False)

        def send(*lines: str) -> None:
            with suppress(OSError):  # systemd is restarting, or its queue is full
                notify.sendto("\n".join(lines).encode(), address.replace("@", "\0", 1))

        send("READY=1", _status(watcher))
        try:
            async with beside(_keep_alive(watcher, send)):
                yield
        finally:
            send("STOPPING=1", "STATUS=Stopping: uploads resume at the next start.")


async def _keep_alive(watcher: Watcher, send: Any) -> None:  # noqa: ANN401
    """A watcher that does not look any more is restarted; a folder that is away is no reason."""
    watchdog_s = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6
    while True:
        await asyncio.sleep(watchdog_s / 3 or _JSON_INTERVAL_S)
        alive = [] if watcher.is_late else ["WATCHDOG=1"]
        send(*alive, _status(watcher))


def _status(watcher: Watcher) -> str:
    figures = watcher.figures()
    return "STATUS=" + (
        watcher.problem
        or f"{figures['active']} uploading, {figures['queued']} queued, {figures['done']} done, "
        f"{figures['failed']} failed."
    )
