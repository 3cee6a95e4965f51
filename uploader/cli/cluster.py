"""`enqueue`, `worker`, `results` and `db upgrade`: the same uploads on many machines."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from socket import gethostname
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from uploader import GrantProvider, Uploader, UploadOptions
from uploader.bulk.ledger import Ledger
from uploader.bulk.outputs import require_outputs
from uploader.bulk.rows import Row
from uploader.bulk.runner import Reading
from uploader.cli import run, settings
from uploader.cli.batch_views import make_batch_view
from uploader.cli.flag_groups import ClusterFlags, OutputFlags, StateFlags
from uploader.cli.flags import EnqueueFlags, ResultsFlags, UpgradeFlags, WorkerFlags
from uploader.cli.ingest import make_readings, make_rules, make_streams, write_failed
from uploader.cli.printing import err, out_json
from uploader.cluster.database import conninfo_of, open_pool, refuse_newer, require_packages
from uploader.cluster.database import upgrade as upgrade_queue
from uploader.cluster.embedded import EmbeddedPostgres
from uploader.errors import ConfigurationError
from uploader.events import Event, HookFailed, Listener
from uploader.pace import MAX_CONCURRENCY
from uploader.state import SqlState
from uploader.threads import in_thread
from uploader.units import MIB, count

if TYPE_CHECKING:
    from uploader.cluster.enqueue import EnqueueCounts
    from uploader.cluster.jobs import Places
    from uploader.cluster.worker import WorkerOptions

_UNIT_SIZE: Final = MIB
"""What a connection holds of a body: a buffer of 512 KiB, and as much in the kernel."""


# --- which database ---------------------------------------------------------------------


@contextmanager
def place_of(flags: ClusterFlags) -> Iterator[str]:
    """The state's URL; an embedded server runs for as long as the block."""
    require_packages()
    if flags.embedded is None:
        _warn_of_password(flags)
        yield flags.state or ""
        return
    with EmbeddedPostgres(flags.embedded) as server:
        _upgrade(server.url)
        yield server.url


def _warn_of_password(flags: StateFlags) -> None:
    url = flags.state or ""
    if any(url and url in word for word in sys.argv) and "@" in url and urlsplit(url).password:
        err(
            "vodup: other users of this machine can read the password in --state. Put the URL in "
            "VODUP_STATE, or the password in ~/.pgpass."
        )


def _upgrade(url: str) -> bool:
    """Bring both schemas up to date: the checkpoints' and the queue's."""

    async def make_state() -> int:
        async with SqlState(url):
            return 0

    conninfo = conninfo_of(url)
    refuse_newer(conninfo)
    run.run_async(make_state())
    return upgrade_queue(conninfo)


def upgrade(flags: UpgradeFlags) -> int:
    """Create or migrate the tables."""
    with place_of(flags) as url:
        conninfo_of(url)
        is_changed = _upgrade(url)
    if not flags.quiet:
        err("vodup: the database is " + ("now" if is_changed else "already") + " up to date.")
    return run.DONE


def enqueue(flags: EnqueueFlags) -> int:
    """Queue rows, wait for them with --wait, and return the exit code."""
    from uploader.cluster.jobs import PlacedRules, Places

    streams = make_streams(flags)
    paths = {"--report": flags.report, "--failed": flags.failed}
    outputs = require_outputs(paths, inputs=[stream.name for stream in streams], state=flags.state)
    rules = make_rules(flags, flags, outputs)
    places = Places(flags.node or gethostname(), flags.shared)
    placed = PlacedRules(**{f.name: getattr(rules, f.name) for f in fields(rules)}, places=places)
    readings = make_readings(streams, flags, placed, settings.scope_of(flags))
    with place_of(flags) as url:
        return run.run_async(_enqueued(url, readings, places, flags))


async def _enqueued(
    url: str, readings: Sequence[Reading], places: Places, flags: EnqueueFlags
) -> int:
    from uploader.cluster.enqueue import Enqueuer
    from uploader.cluster.results import AwaitedRows, Results

    view = make_batch_view(flags)
    codes: Counter[int] = Counter()
    with await in_thread(Ledger, flags.report) as ledger:

        def ended(record: Mapping[str, Any]) -> None:
            ledger.add(record, replaces=True)
            view.record(record)
            codes[record.get("exit_code", run.DONE)] += 1

        async with open_pool(conninfo_of(url)) as pool:
            awaited, coming = AwaitedRows(), Results(pool)
            await coming.skip_past()
            enqueuer = Enqueuer(
                pool,
                ledger,
                places,
                priority=flags.priority,
                overwrite=flags.overwrite,
                exit_code=run.exit_code,
                on_ended=ended,
                awaited=awaited,
            )
            read: list[str] = []
            try:
                await enqueuer.run(readings)
                read = [stream.name for stream, _ in readings]
                _print_counts(enqueuer.counts, flags)
                if flags.wait:
                    async for record in coming.until_all(awaited):
                        ended(record)
            finally:
                ledger.compact(manifests=read)  # what was not read keeps its records
                write_failed(ledger, flags.failed)
    return run.common_code(codes)


def _print_counts(counts: EnqueueCounts, flags: OutputFlags) -> None:
    if flags.json:
        out_json({"type": "batch.queued", **asdict(counts)})
    elif not flags.quiet:
        err(
            f"vodup: {count(counts.read_count, 'row')}: {counts.queued_count:,} queued, "
            f"{counts.waiting_count:,} already queued, {counts.done_count:,} done, "
            f"{counts.refused_count:,} rejected."
        )


def results(flags: ResultsFlags) -> int:
    """Write the ledger of what is queued, and return the exit code."""
    paths = {"--report": flags.report, "--failed": flags.failed}
    require_outputs(paths, inputs=flags.manifests, state=flags.state)
    with place_of(flags) as url:
        names = [os.path.abspath(path) for path in flags.manifests] or None
        return run.run_async(_written(url, names, flags))


async def _written(url: str, names: list[str] | None, flags: ResultsFlags) -> int:
    from uploader.cluster.results import Results

    view = make_batch_view(flags)
    statuses: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    with await in_thread(Ledger, flags.report) as ledger:
        async with open_pool(conninfo_of(url)) as pool:
            found = Results(pool, names)
            async for record in found.new():
                ledger.add(record, replaces=True)
                view.record(record)
                statuses[record["status"]] += 1
                codes[record.get("exit_code", run.DONE)] += 1
            queued = await found.queued_count()
        ledger.compact()
        write_failed(ledger, flags.failed)
    if queued:
        codes[run.TEMPORARY] += 1
    if not flags.quiet and not flags.json:
        err(
            f"vodup: {statuses['done']:,} done, {statuses['failed']:,} failed, "
            f"{queued:,} not finished."
        )
    return run.common_code(codes)


def worker(flags: WorkerFlags) -> int:
    """Work until stopped. A worker that SIGTERM stopped has done what it should: 0."""
    require_packages()
    options = _worker_options(flags)
    provider = settings.require_provider(flags)
    with place_of(flags) as url, settings.serve_metrics(flags.metrics_port) as listener:
        try:
            return run.run_async(_work(url, provider, options, flags, listener))
        except run.Interrupted as interrupted:
            if interrupted.code != run.interrupted_code(signal.SIGTERM):
                raise
            return run.DONE


async def _work(
    url: str,
    provider: GrantProvider,
    options: WorkerOptions,
    flags: WorkerFlags,
    listener: Listener | None,
) -> int:
    from uploader.cluster.worker import QueueWorker, SharedBudget

    view = make_batch_view(flags)

    def say(sentence: str) -> None:
        if not flags.quiet:
            err(f"vodup: {sentence}")

    def on_event(event: Event) -> None:
        if isinstance(event, HookFailed):
            say(event.message)
        if listener is not None:
            listener(event)

    def on_given_back(row: Row, why: str) -> None:
        say(f"{row.source_name or row.where}: {why} It returns to the queue.")

    async with open_pool(conninfo_of(url), wait_s=min(10, options.patience_s / 2)) as pool:
        uploader = Uploader(
            provider,
            state=SqlState(url, lease_ttl_s=options.silent_s),
            options=make_worker_options(flags),
            trust=settings.make_trust(flags),
            on_event=on_event,
            shared_vod_budget=SharedBudget(pool, provider.scope, float(flags.api_rate)),
        )
        async with uploader:
            say(f"worker {os.getpid()} on {options.node} is ready.")
            await QueueWorker(
                uploader,
                pool,
                options,
                exit_code=run.exit_code,
                on_record=view.record,
                on_given_back=on_given_back,
            ).run()
    return run.DONE


def _worker_options(flags: WorkerFlags) -> WorkerOptions:
    from uploader.cluster.jobs import queue_at
    from uploader.cluster.worker import WorkerOptions

    if not 0.1 <= flags.heartbeat <= 3600:
        raise ConfigurationError(
            f"--heartbeat: expected 0.1 s to 1 hour, got {flags.heartbeat} s.",
            next_step="Pass a duration such as 10s.",
        )
    node = flags.node or gethostname()
    queue_at(node)
    return WorkerOptions(
        files=flags.files,
        node=node,
        heartbeat_s=flags.heartbeat,
        grace_s=flags.grace,
        tries=flags.tries,
        is_draining=flags.drain,
        roots=tuple(os.path.realpath(folder) for folder in flags.root),
        urls=settings.make_url_policy(flags),
    )


def make_worker_options(flags: WorkerFlags) -> UploadOptions:
    """Return how a worker sends data, with no more connections than --memory has room for."""
    options = replace(settings.make_options(flags), vod_calls_per_s=float(flags.api_rate))
    if flags.memory is None:
        return options
    most = flags.memory // _UNIT_SIZE
    wanted = MAX_CONCURRENCY if options.concurrency == "auto" else options.concurrency
    return options if wanted <= most else replace(options, concurrency=most)
