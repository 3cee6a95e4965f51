"""The table of commands. Each loads its module when it runs, so that `--help` stays fast."""

from __future__ import annotations

from importlib import import_module
from inspect import Signature
from typing import Any, cast

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
from uploader.cli.printing import err, out, out_json, paragraph
from uploader.cli.run import exit_code, finish
from uploader.errors import VodupError

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


def run(words: list[str] | None = None) -> None:
    """Run a command line, that of this process unless `words` are given, and exit."""
    try:
        app(words, prog_name="vodup")
    except VodupError as error:  # from reading a flag
        err(*paragraph(error))
        raise SystemExit(exit_code(error)) from None


def _add(to: typer.Typer, name: str, module: str, flags_type: type[Any]) -> None:
    """Add a command: the function `name` of a module, which takes flags and returns an exit code.

    The help text is the docstring of the flags.
    """

    def callback(**given: Any) -> None:
        flags = values_of(flags_type, given)

        def work() -> int:
            function = getattr(import_module(f"uploader.cli.{module}"), name)
            return cast("int", function(flags))

        raise typer.Exit(finish(work, flags if isinstance(flags, OutputFlags) else None))

    callback.__signature__ = Signature(list(parameters_of(flags_type)))  # type: ignore[attr-defined]
    to.command(name, help=flags_type.__doc__)(callback)


def devserver(flags: DevserverFlags) -> int:
    """Run the development server until stopped."""
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


def version(flags: VersionFlags) -> int:
    """Print the version."""
    import platform
    from importlib.metadata import version

    facts = {"vodup": version("vodup"), "python": platform.python_version()}
    if flags.json:
        out_json(facts)
    else:
        out(f"vodup {facts['vodup']}")
    return 0


_add(app, "push", "push", PushFlags)
_add(app, "ingest", "ingest", IngestFlags)
_add(app, "enqueue", "cluster", EnqueueFlags)
_add(app, "worker", "cluster", WorkerFlags)
_add(app, "results", "cluster", ResultsFlags)
_add(database, "upgrade", "cluster", UpgradeFlags)
_add(app, "resume", "push", ResumeFlags)
_add(app, "status", "records", StatusFlags)
_add(app, "abort", "records", AbortFlags)
_add(app, "clean", "records", CleanFlags)
_add(app, "verify", "records", VerifyFlags)
_add(app, "inspect", "inspect", InspectFlags)
_add(app, "doctor", "doctor", DoctorFlags)
_add(app, "devserver", "app", DevserverFlags)
_add(app, "demo", "demo", DemoFlags)
_add(app, "version", "app", VersionFlags)
