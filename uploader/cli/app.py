"""The table of commands. Each loads its module when it runs, so that `--help` stays fast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import Signature
from typing import Any, TypeVar, get_type_hints

import typer

from uploader.cli.flags import (
    AbortFlags,
    CleanFlags,
    DemoFlags,
    DevserverFlags,
    DoctorFlags,
    EnqueueFlags,
    IngestFlags,
    InspectFlags,
    OutputFlags,
    PushFlags,
    ResultsFlags,
    ResumeFlags,
    StatusFlags,
    UpgradeFlags,
    VerifyFlags,
    VersionFlags,
    WorkerFlags,
)
from uploader.cli.options import parameters_of, values_of
from uploader.cli.printing import err, paragraph
from uploader.cli.run import exit_code, finish
from uploader.errors import VodupError

__all__ = ["app", "run"]

app = typer.Typer(
    name="vodup",
    help="Upload large files to Alibaba Cloud ApsaraVideo VOD, resumable and verified. "
    "Every flag can also be set as VODUP_<FLAG>. AccessKeys are read from "
    "ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET only.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    # Plain help is printed in 0.1 s; rich alone takes longer to load than that.
    rich_markup_mode=None,
    # A traceback with locals would print credentials.
    pretty_exceptions_enable=False,
)
database = typer.Typer(help="Manage the database of a cluster.", no_args_is_help=True)
app.add_typer(database, name="db")

F = TypeVar("F")


def run(words: list[str] | None = None) -> None:
    """Run a command line, that of this process unless `words` are given, and exit."""
    try:
        app(words, prog_name="vodup")
    except VodupError as error:  # from reading a flag
        err(paragraph(error))
        raise SystemExit(exit_code(error)) from None


def command(to: typer.Typer = app) -> Callable[[Callable[[F], int]], None]:
    """Make a command of a function that takes its flags and returns the exit code."""

    def register(function: Callable[[F], int]) -> None:
        flags_type = get_type_hints(function)["flags"]

        @functools.wraps(function)
        def callback(**given: Any) -> None:
            flags = values_of(flags_type, given)
            output = flags if isinstance(flags, OutputFlags) else None
            raise typer.Exit(finish(lambda: function(flags), output))

        parameters = list(parameters_of(flags_type))
        callback.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        to.command()(callback)

    return register


@command()
def push(flags: PushFlags) -> int:
    """Upload one or more files. Run the same command again to resume."""
    from uploader.cli.push import push

    return push(flags)


@command()
def ingest(flags: IngestFlags) -> int:
    """Upload many files, listed in manifests or folders. Run the same command again to resume."""
    from uploader.cli.ingest import ingest

    return ingest(flags)


@command()
def enqueue(flags: EnqueueFlags) -> int:
    """Queue many files for workers on many machines. No file is queued twice."""
    from uploader.cli.cluster import enqueue

    return enqueue(flags)


@command()
def worker(flags: WorkerFlags) -> int:
    """Upload queued files until stopped. Run any number of workers, on any machine."""
    from uploader.cli.cluster import worker

    return worker(flags)


@command()
def results(flags: ResultsFlags) -> int:
    """Write the results of queued uploads, in the format of ingest --report."""
    from uploader.cli.cluster import results

    return results(flags)


@command(database)
def upgrade(flags: UpgradeFlags) -> int:
    """Create or migrate the tables. Safe to repeat."""
    from uploader.cli.cluster import upgrade

    return upgrade(flags)


@command()
def resume(flags: ResumeFlags) -> int:
    """Resume recorded uploads."""
    from uploader.cli.push import resume

    return resume(flags)


@command()
def status(flags: StatusFlags) -> int:
    """Show recorded uploads: their progress, the process that sends them, their last error."""
    from uploader.cli.records import status

    return status(flags)


@command()
def abort(flags: AbortFlags) -> int:
    """Abort uploads and remove their parts from OSS. The videos stay in VOD."""
    from uploader.cli.records import abort

    return abort(flags)


@command()
def clean(flags: CleanFlags) -> int:
    """Remove records of finished and aborted uploads."""
    from uploader.cli.records import clean

    return clean(flags)


@command()
def verify(flags: VerifyFlags) -> int:
    """Read a file again and compare it with the object stored at OSS."""
    from uploader.cli.records import verify

    return verify(flags)


@command()
def inspect(flags: InspectFlags) -> int:
    """Show the contents of an UploadAddress and UploadAuth, without their secrets."""
    from uploader.cli.inspect import inspect

    return inspect(flags)


@command()
def doctor(flags: DoctorFlags) -> int:
    """Check credentials, network, clock, state and versions. Prints no secret."""
    from uploader.cli.doctor import doctor

    return doctor(flags)


@command()
def devserver(flags: DevserverFlags) -> int:
    """Run a local OSS and VOD server for experiments and tests. Prints one JSON line when ready."""
    from uploader.devserver.__main__ import main

    given = {
        "--host": flags.host,
        "--port": flags.port,
        "--oss-port": flags.oss_port,
        "--data": flags.data,
        "--credential-ttl": flags.credential_ttl,
        "--bandwidth": flags.bandwidth,
        "--faults": flags.faults,
        "--options": flags.options,
    }
    words = [f"{name}={value}" for name, value in given.items() if value is not None]
    return main([*words, "--tls"] if flags.tls else words)


@command()
def demo(flags: DemoFlags) -> int:
    """Upload to a local server, kill the upload, resume it, and check that nothing was lost."""
    from uploader.cli.demo import demo

    return demo(flags)


@command()
def version(flags: VersionFlags) -> int:
    """Print the version."""
    import json
    import platform
    from importlib.metadata import version

    from uploader.cli.printing import out

    facts = {"vodup": version("vodup"), "python": platform.python_version()}
    out(json.dumps(facts) if flags.json else f"vodup {facts['vodup']}")
    return 0
