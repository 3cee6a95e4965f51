"""The commands and their flags. What they do is elsewhere, loaded when it is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from uploader.cli.options import (
    Access,
    BatchFlags,
    ClusterFlags,
    Describe,
    DescribeAll,
    EnqueueFlags,
    Feed,
    Output,
    Rows,
    Store,
    Transfer,
    Urls,
    Which,
    WorkerFlags,
    flag,
    grouped,
)
from uploader.cli.running import end

__all__ = ["app", "run"]

app = typer.Typer(
    name="vodup",
    help="Upload large files to Alibaba Cloud ApsaraVideo VOD: resumable, verified. "
    "Every flag can also be given as VODUP_<FLAG>; AccessKeys only as "
    "ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    # Plain help is there in 0.1 s; rich alone takes longer to load than that.
    rich_markup_mode=None,
    # A traceback with locals would print credentials.
    pretty_exceptions_enable=False,
)

Names = Annotated[list[str] | None, typer.Argument(metavar="[KEY|VIDEO_ID]...")]


def run() -> None:
    """Run the command line and exit."""
    app(prog_name="vodup")


@app.command()
@grouped
def push(
    which: Which,
    describe: Describe,
    feed: Feed,
    transfer: Transfer,
    access: Access,
    store: Store,
    output: Output,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH|URL|-...", help="Files, URLs, or - for standard input."),
    ] = None,
) -> None:
    """Upload files, each as a video. The same command again continues."""

    def work() -> int:
        from uploader.cli.pushing import push

        return push(paths or [], which, describe, feed, store, access, transfer, output)

    end(work, output)


@app.command()
@grouped
def ingest(
    rows: Rows,
    batch: BatchFlags,
    describe: DescribeAll,
    transfer: Transfer,
    access: Access,
    store: Store,
    output: Output,
    manifests: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MANIFEST]...", help="CSV, JSON Lines or Parquet."),
    ] = None,
) -> None:
    """Upload many files: manifests in, a ledger out. The same command again continues."""

    def work() -> int:
        from uploader.cli.ingest import ingest

        return ingest(manifests or [], rows, batch, describe, transfer, access, store, output)

    end(work, output)


@app.command()
@grouped
def enqueue(
    rows: Rows,
    flags: EnqueueFlags,
    describe: DescribeAll,
    access: Access,
    store: Store,
    cluster: ClusterFlags,
    output: Output,
    manifests: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MANIFEST]...", help="CSV, JSON Lines or Parquet."),
    ] = None,
) -> None:
    """Queue many files for workers on many machines. The same command again queues none twice."""

    def work() -> int:
        from uploader.cli.cluster import enqueue

        return enqueue(manifests or [], rows, flags, describe, access, store, cluster, output)

    end(work, output)


@app.command()
@grouped
def worker(
    flags: WorkerFlags,
    urls: Urls,
    transfer: Transfer,
    access: Access,
    store: Store,
    cluster: ClusterFlags,
    output: Output,
) -> None:
    """Upload what is queued, until stopped; run as many as you like, on any machine."""

    def work() -> int:
        from uploader.cli.cluster import worker

        return worker(flags, urls, transfer, access, store, cluster, output)

    end(work, output)


@app.command()
@grouped
def results(
    store: Store,
    cluster: ClusterFlags,
    output: Output,
    report: Annotated[
        str | None,
        flag("--report", metavar="FILE", help="The ledger to write or update."),
    ] = None,
    failed: Annotated[
        str | None, flag("--failed", metavar="FILE", help="The failures alone.")
    ] = None,
    manifests: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MANIFEST]...", help="Only the rows of these, as last queued."),
    ] = None,
) -> None:
    """Write how queued rows ended: a ledger, as of ingest."""

    def work() -> int:
        from uploader.cli.cluster import results

        return results(manifests or [], report, failed, store, cluster, output)

    end(work, output)


database = typer.Typer(help="The database of a cluster.", no_args_is_help=True)
app.add_typer(database, name="db")


@database.command()
@grouped
def upgrade(store: Store, cluster: ClusterFlags, output: Output) -> None:
    """Make or migrate the tables; safe to repeat."""

    def work() -> int:
        from uploader.cli.cluster import upgrade

        return upgrade(store, cluster, output)

    end(work, output)


@app.command()
@grouped
def resume(
    urls: Urls,
    transfer: Transfer,
    access: Access,
    store: Store,
    output: Output,
    names: Names = None,
    is_all: Annotated[bool, flag("--all", help="Every unfinished upload of a file.")] = False,
) -> None:
    """Continue recorded uploads."""

    def work() -> int:
        from uploader.cli.pushing import resume

        return resume(names or [], is_all, urls, store, access, transfer, output)

    end(work, output)


@app.command()
@grouped
def status(
    store: Store,
    cluster: ClusterFlags,
    output: Output,
    names: Names = None,
    is_watching: Annotated[bool, flag("--watch", help="Again every two seconds.")] = False,
) -> None:
    """Show recorded uploads: how far they are, who works on them, what went wrong."""

    def work() -> int:
        from uploader.cli.recorded import status

        return status(names or [], is_watching, store, cluster, output)

    end(work, output)


@app.command()
@grouped
def abort(
    names: Annotated[list[str], typer.Argument(metavar="KEY|VIDEO_ID...")],
    access: Access,
    store: Store,
    output: Output,
) -> None:
    """Give uploads up: their parts are removed at OSS. The videos stay."""

    def work() -> int:
        from uploader.cli.recorded import abort

        return abort(names, store, access, output)

    end(work, output)


@app.command()
@grouped
def clean(
    access: Access,
    store: Store,
    output: Output,
    names: Names = None,
    is_done: Annotated[bool, flag("--done", help="Receipts of finished uploads.")] = False,
    is_aborted: Annotated[bool, flag("--aborted", help="Uploads that were given up.")] = False,
    older_than: Annotated[
        str | None, flag("--older-than", metavar="30d", help="Only what has rested for so long.")
    ] = None,
    with_orphans: Annotated[
        bool, flag("--orphans", help="Abort what nobody continues at OSS.")
    ] = False,
    is_forced: Annotated[bool, flag("--force", help="Forget unfinished ones named, too.")] = False,
    is_dry: Annotated[bool, flag("-n", "--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Forget receipts and given-up uploads. Unfinished ones stay unless named with --force."""

    def work() -> int:
        from uploader.cli.recorded import Choice, clean

        choice = Choice(
            names=names or [],
            is_done=is_done,
            is_aborted=is_aborted,
            older_than=older_than,
            with_orphans=with_orphans,
            is_forced=is_forced,
            is_dry=is_dry,
        )
        return clean(choice, store, access, output)

    end(work, output)


@app.command()
@grouped
def verify(
    path: Annotated[str, typer.Argument(metavar="PATH")],
    access: Access,
    store: Store,
    output: Output,
    key: Annotated[str | None, flag("--key", metavar="NAME", help="The upload's name.")] = None,
) -> None:
    """Read a file again and compare it with what OSS holds of it."""

    def work() -> int:
        from uploader.cli.checking import verify

        return verify(path, key, store, access, output)

    end(work, output)


@app.command()
@grouped
def inspect(
    access: Access,
    output: Output,
    where: Annotated[str, typer.Argument(metavar="[FILE|-]")] = "-",
) -> None:
    """Show what an UploadAddress and UploadAuth hold, without their secrets."""

    def work() -> int:
        from uploader.cli.checking import inspect

        return inspect(where, access, output)

    end(work, output)


@app.command()
@grouped
def doctor(access: Access, store: Store, output: Output) -> None:
    """Check credentials, network, clock, state and versions. Prints no secret."""

    def work() -> int:
        from uploader.cli.doctor import doctor

        return doctor(access, store, output)

    end(work, output)


@app.command()
@grouped
def devserver(
    host: Annotated[str, flag("--host", help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, flag("--port", help="Of the VOD API; 0 takes any.")] = 0,
    oss_port: Annotated[int, flag("--oss-port", help="Of OSS; 0 takes any.")] = 0,
    data: Annotated[str | None, flag("--data", help="Folder that keeps everything.")] = None,
    credential_ttl: Annotated[
        float | None, flag("--credential-ttl", help="Life of an UploadAuth in seconds.")
    ] = None,
    bandwidth: Annotated[
        str | None, flag("--bandwidth", metavar="SIZE", help="Bytes a second, for example 25M.")
    ] = None,
    faults: Annotated[str | None, flag("--faults", help="JSON file with a fault script.")] = None,
    options: Annotated[str, flag("--options", help="JSON object with further options.")] = "{}",
    tls: Annotated[bool, flag("--tls/--no-tls", help="https with a certificate of its own.")] = (
        False
    ),
) -> None:
    """Run a local OSS and VOD to try things with; prints one JSON line when ready."""

    def work() -> int:
        from uploader.cli.options import parse_size
        from uploader.devserver.__main__ import main

        given = {
            "--host": host,
            "--port": port,
            "--oss-port": oss_port,
            "--data": data,
            "--credential-ttl": credential_ttl,
            "--bandwidth": parse_size(bandwidth, "--bandwidth") if bandwidth else None,
            "--faults": faults,
            "--options": options,
        }
        words = [f"{name}={value}" for name, value in given.items() if value is not None]
        return main([*words, "--tls"] if tls else words)

    end(work)


@app.command()
@grouped
def demo(
    size: Annotated[str, flag("--size", metavar="SIZE", help="Of the file.")] = "512MiB",
    keep: Annotated[bool, flag("--keep", help="Keep the file and the server's data.")] = False,
    as_json: Annotated[bool, flag("--json", help="The report as one JSON line.")] = False,
) -> None:
    """Upload to a local server, get killed, continue: see that nothing is lost or sent twice."""

    def work() -> int:
        from uploader.cli.demo import demo

        return demo(size, keep, as_json)

    end(work)


@app.command()
@grouped
def version(output: Output) -> None:
    """Print the version."""

    def work() -> int:
        import json
        import platform
        from importlib.metadata import version

        from uploader.cli.text import out

        facts = {"vodup": version("vodup"), "python": platform.python_version()}
        out(json.dumps(facts) if output.json else f"vodup {facts['vodup']}")
        return 0

    end(work)
