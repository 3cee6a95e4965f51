"""`ingest`: manifests in, a ledger out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from uploader import Bandwidth, Uploader, VideoMeta
from uploader.bulk import Batch, BatchOptions, Ledger, RowRules
from uploader.bulk.estimate import ASSUMED_BYTES_PER_S, Estimate
from uploader.bulk.manifests import Stream, files_from, folder_stream, manifest_stream
from uploader.bulk.paths import Root
from uploader.bulk.progress import BatchProgress
from uploader.bulk.rows import require_title_template
from uploader.bulk.runner import Reading, read_rows
from uploader.cli import exits
from uploader.cli.batchview import BatchView, make_batch_view
from uploader.cli.feeding import make_url_policy
from uploader.cli.loop import run_async
from uploader.cli.opening import make_options, make_provider, make_trust
from uploader.cli.options import (
    Access,
    BatchFlags,
    DescribeAll,
    Output,
    Rows,
    Store,
    Transfer,
    parse_duration_s,
    parse_number,
)
from uploader.cli.pushing import make_meta
from uploader.cli.store import open_store
from uploader.cli.text import err
from uploader.errors import CallerNotAuthenticated, ConfigurationError, VodupError
from uploader.options import UploadOptions
from uploader.protocol.vod import problem_of
from uploader.threads import in_thread

__all__ = ["ingest", "make_readings", "make_rules", "make_streams", "refuse_overwriting"]

_MAX_FILES: Final = 1024


def ingest(
    manifests: Sequence[str],
    rows: Rows,
    flags: BatchFlags,
    describe: DescribeAll,
    transfer: Transfer,
    access: Access,
    store: Store,
    output: Output,
) -> int:
    """Carry the batch out and return the exit code."""
    streams = make_streams(manifests, rows)
    refuse_overwriting(streams, flags.report, flags.html)
    options = replace(make_options(transfer), vod_calls_per_s=_api_rate(flags.api_rate))
    view = make_batch_view(output)
    rules = make_rules(rows, make_meta(describe))
    if flags.is_dry:
        return _try_out(make_readings(streams, rows, rules, _scope(access)), flags, options, view)
    uploader = Uploader(
        make_provider(access, is_optional=False),
        state=open_store(store),
        options=options,
        trust=make_trust(access),
    )
    readings = make_readings(streams, rows, rules, uploader.scope)
    return run_async(_perform(uploader, readings, flags, view))


# --- what is to be done -----------------------------------------------------------------


def make_streams(manifests: Sequence[str], rows: Rows) -> list[Stream]:
    """What is to be read: manifests, folders and lists."""
    streams = [manifest_stream(path, err) for path in manifests]
    for folder in rows.folders or ():
        streams.append(
            folder_stream(
                folder,
                include=rows.include or (),
                exclude=rows.exclude or (),
                follow_symlinks=rows.follow_symlinks,
            )
        )
    if rows.files_from:
        streams.append(files_from(rows.files_from))
    if not streams:
        raise ConfigurationError(
            "There is nothing to upload.",
            next_step="Name a manifest, a folder (-r FOLDER) or a list (--files-from FILE).",
        )
    if len({stream.name for stream in streams}) < len(streams):
        raise ConfigurationError("The same manifest or folder is given twice.")
    return streams


def refuse_overwriting(streams: Sequence[Stream], *paths: str | None) -> None:
    """A ledger that is also read would grow while it is read."""
    written = [os.path.abspath(path) for path in paths if path]
    for stream in streams:
        if stream.name in written:
            raise ConfigurationError(f"{stream.name} is to be read and to be written.")


def make_rules(rows: Rows, defaults: VideoMeta) -> RowRules:
    """What holds for every row; the root and the scope are filled in for each manifest."""
    if (problem := problem_of(defaults)) is not None:
        raise ConfigurationError(f"{problem[0].upper()}{problem[1:]}.")
    template = rows.title_template
    return RowRules(
        root=Root.at(rows.root or os.curdir, follow_symlinks=rows.follow_symlinks),
        title_template=require_title_template(template) if template else None,
        defaults=defaults,
    )


def make_readings(
    streams: Sequence[Stream], rows: Rows, rules: RowRules, scope: str
) -> list[Reading]:
    """Each stream with the rules for its rows."""
    if rows.root:
        return [(stream, replace(rules, scope=scope)) for stream in streams]
    return [
        (stream, replace(rules, scope=scope, root=replace(rules.root, folder=stream.folder)))
        for stream in streams
    ]


def _api_rate(text: str) -> float:
    return float(parse_number(text, "--api-rate", least=1, most=1000))


def _batch_options(flags: BatchFlags) -> BatchOptions:
    most = flags.files
    duration = flags.max_duration
    return BatchOptions(
        files=parse_number(most, "--files", least=1, most=_MAX_FILES) if most else None,
        retries=parse_number(flags.retries, "--retries", least=0, most=100),
        stop_on_error=flags.stop_on_error,
        max_duration_s=parse_duration_s(duration, "--max-duration") if duration else None,
        overwrite=flags.overwrite,
        urls=make_url_policy(flags),
    )


# --- doing it ---------------------------------------------------------------------------


async def _perform(
    uploader: Uploader, readings: Sequence[Reading], flags: BatchFlags, view: BatchView
) -> int:
    options = _batch_options(flags)
    with await in_thread(Ledger, flags.report) as ledger:
        batch = Batch(uploader, ledger, options, exit_code=exits.exit_code, on_record=view.record)
        progress = batch.progress
        try:
            async with uploader, _seen(progress, flags, view):
                await batch.run(readings)
        except BaseException as error:
            progress.stopped = progress.stopped or _why(error)
            raise
        finally:
            # Interrupted or not, what ended is reported.
            _write_files(ledger, progress, flags)
            view.summary(progress, flags.report)
    return _code_of(progress)


def _why(error: BaseException) -> str:
    return error.message if isinstance(error, VodupError) else "interrupted"


@asynccontextmanager
async def _seen(progress: BatchProgress, flags: BatchFlags, view: BatchView) -> AsyncIterator[None]:
    """Show progress while the block runs."""
    failure: Exception | None = None
    async with _dashboard(progress, flags), asyncio.TaskGroup() as group:
        watching = group.create_task(view.watch(progress))
        try:
            yield
        except Exception as error:
            failure = error  # raised below, where the group cannot wrap it
        finally:
            watching.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def _dashboard(progress: BatchProgress, flags: BatchFlags) -> AsyncIterator[None]:
    if flags.dashboard is None:
        yield
        return
    from uploader.bulk.dashboard import serving

    port = parse_number(flags.dashboard, "--dashboard", least=0, most=65535)
    async with serving(progress, port) as url:
        err(f"vodup: the live page is at {url}")
        yield


def _write_files(ledger: Ledger, progress: BatchProgress, flags: BatchFlags) -> None:
    if flags.failed:
        ledger.write_failures(flags.failed)
    if flags.html:
        from uploader.bulk.report import write_report

        write_report(flags.html, progress, ledger.records())


def _code_of(progress: BatchProgress) -> int:
    codes = set(progress.codes)
    if progress.stopped is not None and not codes:
        codes = {exits.TEMPORARY}
    if progress.tracker.hook_failure_count and not codes:
        codes = {exits.HOOK_FAILED}
    return exits.common_code(codes)


# --- trying it out ----------------------------------------------------------------------


def _try_out(
    readings: Sequence[Reading], flags: BatchFlags, options: UploadOptions, view: BatchView
) -> int:
    """Check every row and count what the batch would take. Opens no network and no state."""
    _batch_options(flags)
    estimate = Estimate(
        bytes_per_s=_usual_rate(options.bandwidth),
        part_size=options.part_size,
        vod_calls_per_s=options.vod_calls_per_s,
    )
    with Ledger() as ledger:
        for checked in read_rows(readings, ledger):
            if (error := estimate.add(checked)) is not None:
                code = exits.exit_code(error)
                estimate.codes[code] += 1
                view.refused(checked.row, error, code)
    view.estimate(estimate)
    return exits.common_code(estimate.codes)


def _scope(access: Access) -> str:
    try:
        provider = make_provider(access, is_optional=True)
    except (CallerNotAuthenticated, ConfigurationError) as error:
        err(f"vodup: {error.message} A dry run does without.")
        return ""
    return provider.scope if provider else ""


def _usual_rate(bandwidth: Bandwidth | None) -> float:
    """A limit that changes with the time of day counts with its lowest rate."""
    rates = [rate for _, rate in bandwidth.changes if rate] if bandwidth else []
    return float(min(rates, default=ASSUMED_BYTES_PER_S))
