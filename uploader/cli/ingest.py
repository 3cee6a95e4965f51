"""`ingest`: manifests in, a ledger out."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from uploader import Bandwidth, Uploader
from uploader.bulk.estimate import ASSUMED_BYTES_PER_S, Estimate
from uploader.bulk.ledger import Ledger
from uploader.bulk.manifests import Stream, files_from, folder_stream, manifest_stream
from uploader.bulk.outputs import require_output, require_outputs
from uploader.bulk.progress import BatchProgress
from uploader.bulk.rows import FileIdentity, Root, RowRules, require_title_template
from uploader.bulk.runner import Batch, BatchOptions, Reading, read_rows
from uploader.cli import run, settings
from uploader.cli.batch_views import BatchView, make_batch_view
from uploader.cli.flag_groups import RowFlags, VideoFlags
from uploader.cli.flags import IngestFlags
from uploader.cli.printing import err, report_notices
from uploader.errors import ConfigurationError, VodupError
from uploader.options import UploadOptions
from uploader.tasks import beside
from uploader.threads import in_thread


def ingest(flags: IngestFlags) -> int:
    """Upload the batch and return the exit code."""
    streams = make_streams(flags)
    paths = {"--report": flags.report, "--failed": flags.failed, "--html": flags.html}
    outputs = require_outputs(paths, inputs=[stream.name for stream in streams], state=flags.state)
    options = replace(settings.make_options(flags), vod_calls_per_s=float(flags.api_rate))
    view = make_batch_view(flags)
    rules = make_rules(flags, flags, outputs)
    if flags.dry_run:
        readings = make_readings(streams, flags, rules, settings.scope_of(flags))
        return _dry_run(readings, options, view)
    with settings.serve_metrics(flags.metrics_port) as listener:
        uploader = settings.make_uploader(flags, options, on_event=listener)
        readings = make_readings(streams, flags, rules, uploader.scope)
        try:
            return run.run_async(_perform(uploader, readings, flags, view), uploader)
        except run.Interrupted:
            view.stopped("interrupted", flags)
            raise


# --- what is to be done -----------------------------------------------------------------


def make_streams(flags: RowFlags) -> list[Stream]:
    """Return what is to be read: manifests, folders and lists."""
    encoding = flags.manifest_encoding
    streams = [
        manifest_stream(path, err, encoding=encoding, root=flags.root) for path in flags.manifests
    ]
    given = {name: getattr(flags, name) for name in ("include", "exclude", "follow_symlinks")}
    streams += [folder_stream(folder, notice=err, **given) for folder in flags.recursive]
    if flags.files_from:
        streams.append(files_from(flags.files_from, encoding=encoding))
    if not streams:
        raise ConfigurationError(
            "No files given.",
            next_step="Name a manifest, a folder (-r FOLDER) or a list (--files-from FILE).",
        )
    if len({stream.name for stream in streams}) < len(streams):
        raise ConfigurationError(
            "The same manifest or folder is given twice.", next_step="Leave one of them out."
        )
    return streams


def make_rules(rows: RowFlags, video: VideoFlags, outputs: frozenset[FileIdentity]) -> RowRules:
    """What holds for every row; the root and the scope are filled in for each manifest."""
    template = rows.title_template
    return RowRules(
        root=Root.at(rows.root or os.curdir, follow_symlinks=rows.follow_symlinks),
        title_template=require_title_template(template) if template else None,
        defaults=settings.make_meta(video),
        outputs=outputs,
        on_source_change="overwrite" if rows.overwrite else rows.changed,
    )


def make_readings(
    streams: Sequence[Stream], rows: RowFlags, rules: RowRules, scope: str
) -> list[Reading]:
    """Each stream with the rules for its rows; --include allows types that are not listed."""
    folders = set(map(os.path.abspath, rows.recursive)) if rows.include else set[str]()
    return [
        (
            stream,
            replace(
                rules,
                scope=scope,
                root=rules.root if rows.root else replace(rules.root, folder=stream.folder),
                takes_any_type=stream.name in folders,
            ),
        )
        for stream in streams
    ]


# --- doing it ---------------------------------------------------------------------------


async def _perform(
    uploader: Uploader, readings: Sequence[Reading], flags: IngestFlags, view: BatchView
) -> int:
    options = BatchOptions(
        files=flags.files,
        retries=flags.retries,
        stop_on_error=flags.stop_on_error,
        max_duration_s=flags.max_duration,
        wait_s=flags.wait,
        overwrite=flags.overwrite,
        urls=settings.make_url_policy(flags),
    )
    with await in_thread(Ledger, flags.report) as ledger:
        batch = Batch(uploader, ledger, options, exit_code=run.exit_code, on_record=view.record)
        progress = batch.progress
        try:
            async with uploader, _dashboard(progress, flags), beside(view.watch(progress)):
                await batch.run(readings)
                if uploader.notifications is not None:
                    await uploader.notifications.post_batch(_counts_of(progress))
        except VodupError as error:
            progress.stopped = error.message
            raise
        except BaseException:
            progress.stopped = progress.stopped or "interrupted"
            raise
        finally:
            # Interrupted or not, what ended is reported.
            _write_files(ledger, progress, flags)
            view.summary(progress, flags)
            report_notices(uploader.state, uploader.notifications)
    if progress.stopped is not None:
        view.stopped(progress.stopped, flags)
    return _code_of(progress)


def _counts_of(progress: BatchProgress) -> dict[str, Any]:
    """What the notification of the end says."""
    return {
        "rows": progress.read_count,
        "uploaded": progress.done_count,
        "failed": progress.failed_count,
        "done_before": progress.skipped_count,
        "bytes": progress.stored_bytes,
        "errors": dict(progress.errors),
        "stopped": progress.stopped,
    }


@asynccontextmanager
async def _dashboard(progress: BatchProgress, flags: IngestFlags) -> AsyncIterator[None]:
    if flags.dashboard is None:
        yield
        return
    from uploader.bulk.dashboard import serving

    async with serving(progress, flags.dashboard) as url:
        err(f"vodup: the live page is at {url}")
        yield


def _write_files(ledger: Ledger, progress: BatchProgress, flags: IngestFlags) -> None:
    write_failed(ledger, flags.failed)
    if flags.html is not None:
        from uploader.bulk.report import write_report

        require_output("--html", flags.html)
        write_report(flags.html, progress, ledger.records())


def write_failed(ledger: Ledger, path: str | None) -> None:
    """Write the failed rows, if --failed names a file."""
    if path is not None:
        require_output("--failed", path)
        ledger.write_failures(path)


def _code_of(progress: BatchProgress) -> int:
    codes = set(progress.codes)
    if progress.stopped is not None and not codes:
        codes = {run.TEMPORARY}
    if progress.tracker.hook_failure_count and not codes:
        codes = {run.HOOK_FAILED}
    return run.common_code(codes)


# --- dry run ----------------------------------------------------------------------------


def _dry_run(readings: Sequence[Reading], options: UploadOptions, view: BatchView) -> int:
    """Check every row and count what the batch would take. Opens no network and no state."""
    estimate = Estimate(
        bytes_per_s=_usual_rate(options.bandwidth_limit),
        part_size=options.part_bytes,
        vod_calls_per_s=options.vod_calls_per_s,
    )
    with Ledger() as ledger:
        for checked in read_rows(readings, ledger):
            if (error := estimate.add(checked)) is not None:
                code = run.exit_code(error)
                estimate.codes[code] += 1
                view.refused(checked.row, error, code)
    view.estimate(estimate)
    return run.common_code(estimate.codes)


def _usual_rate(bandwidth: Bandwidth | None) -> float:
    """A limit that changes with the time of day counts with its lowest rate."""
    rates = [rate for _, rate in bandwidth.changes if rate] if bandwidth else []
    return float(min(rates, default=ASSUMED_BYTES_PER_S))
