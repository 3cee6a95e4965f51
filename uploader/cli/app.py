"""The table of commands. Each loads its module when it runs, so that `--help` stays fast."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, cast

import click

from uploader.cli import flags as commands
from uploader.cli.flag_groups import AccessFlags, OutputFlags, StateFlags
from uploader.cli.flags import DevserverFlags, VersionFlags
from uploader.cli.options import (
    Argument,
    config_path,
    group,
    heading_of,
    parameters_of,
    with_bare_values,
)
from uploader.cli.printing import out, out_json
from uploader.cli.run import explain, finish, report_error
from uploader.errors import VodupError


def run(words: Sequence[str] | None = None) -> None:
    """Run a command line, that of this process unless `words` are given, and exit."""
    try:
        code = app.main(words, prog_name="vodup", standalone_mode=False)
    except click.ClickException as error:  # a mistake on the command line
        error.show()
        reported = VodupError(error.format_message(), next_step="See --help.")
        report_error(reported, type(error).__name__, error.exit_code)
        code = error.exit_code
    except Exception as error:  # from reading a flag
        code = explain(error)
    raise SystemExit(code or 0)


_VERBOSE = {"-vv": ("-v", "--log-level=info"), "-vvv": ("-v", "--log-level=debug")}

_ANSWERS = {
    **dict.fromkeys(
        ("-r", "-R", "--recursive"), "a folder is uploaded with: vodup ingest -r FOLDER"
    ),
    **dict.fromkeys(("-y", "--yes"), "vodup never asks for confirmation; leave it out."),
    "--retries": "requests are retried for a time: use --retry-for DURATION.",
    **dict.fromkeys(
        ("-c", "--resume", "--continue"),
        "uploads resume by themselves: run the same command again.",
    ),
    **dict.fromkeys(
        ("-k", "--insecure", "--no-verify-ssl", "--no-check-certificate"),
        "certificates are always checked; use --ca-file FILE to trust another one.",
    ),
    **dict.fromkeys(
        ("--jobs", "--transfers", "--threads", "--parallel"), "use -j N or --concurrency N."
    ),
    "--bandwidth": "use --bwlimit RATE.",
    "--debug": "use --log-level debug.",
    **dict.fromkeys(
        ("--access-key-id", "--access-key-secret", "--secret-key"),
        "AccessKeys are read from ALIBABA_CLOUD_ACCESS_KEY_ID and "
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET, because other users can read the command line.",
    ),
}
"""What to use instead of flags that other programs have."""


class _Command(click.Command):
    """A command: the function `name` of a module, which takes flags and returns an exit code.

    The help text is the docstring of the flags. Mutable: the flags are declared when they are
    needed, which the list of all commands does not do.
    """

    def __init__(self, name: str, module: str, flags_type: type[Any]) -> None:
        super().__init__(name, help=flags_type.__doc__)
        self._module, self._flags_type = module, flags_type

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Declare the flags, once."""
        self.params = self.params or list(self.declared())
        return super().get_params(ctx)

    def declared(self) -> Iterator[click.Parameter]:
        """Yield the flags; settings of services come from profiles as well."""
        if issubclass(self._flags_type, AccessFlags | StateFlags):
            yield click.Option(
                ["--profile"],
                help="Profile of the config file (`vodup config path`). [default: default]",
                metavar="NAME",
                envvar="VODUP_PROFILE",
                callback=_use_profile,
                expose_value=False,
                is_eager=True,
            )
        yield from parameters_of(self._flags_type)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; flags of other programs are answered."""
        args = [word for each in args for word in _VERBOSE.get(each, (each,))]
        try:
            return super().parse_args(ctx, with_bare_values(args, self.get_params(ctx)))
        except click.NoSuchOption as error:
            if answer := _ANSWERS.get(error.option_name):
                raise click.UsageError(f"{error.option_name}: {answer}", ctx) from None
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, then the flags under the headings of their groups."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        own = heading_of(self._flags_type)
        for each in self.get_params(ctx):
            heading = getattr(each, "heading", own)
            if isinstance(each, Argument):
                heading, record = "Arguments", each.help_record
            else:
                record = each.get_help_record(ctx)
            if record:
                name = "Options" if heading == own else heading
                sections.setdefault(name, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> None:
        """Run the command and exit."""
        if ctx.params.get("output") == "json":
            ctx.params["json"] = True
        flags = self._flags_type(**ctx.params)

        def work() -> int:
            function = getattr(import_module(f"uploader.cli.{self._module}"), str(self.name))
            gc.freeze()  # what is imported stays
            gc.set_threshold(50_000, 20, 20)
            gc.enable()
            return cast("int", function(flags))

        ctx.exit(finish(work, flags if isinstance(flags, OutputFlags) else None))


class _Commands(click.Group):
    """A table of commands."""

    def __init__(self, name: str, help: str, *commands: click.Command, **settings: Any) -> None:
        by_name = {str(command.name): command for command in commands}
        super().__init__(name, by_name, help=help, no_args_is_help=True, **settings)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; `help COMMAND` is `COMMAND --help`."""
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table, not by name."""
        return list(self.commands)


@group
class ConfigPathFlags(OutputFlags):
    """Print where the config file is, or would be."""


@group
class ConfigShowFlags(OutputFlags):
    """Print the profiles of the config file."""


def _use_profile(ctx: click.Context, parameter: click.Parameter, name: str | None) -> None:
    """Take defaults from the profile `name`, or from the default one if there is any."""
    where = config_path()
    is_there = where.is_absolute() and where.exists()  # without a home, it is not absolute
    if ctx.resilient_parsing or not (name or os.environ.get("VODUP_CONFIG") or is_there):
        return
    from uploader.cli import config

    ctx.default_map = config.profile(where, name, config.known_flags(ctx))
    ctx.meta[config.__name__] = name or config.DEFAULT


def devserver(flags: DevserverFlags) -> int:
    """Run the development server until stopped."""
    from uploader.devserver.__main__ import run_server

    return run_server(**vars(flags))


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


def _show_version(ctx: click.Context, parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        version(VersionFlags(json=False))
        ctx.exit()


def _show_completion(ctx: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    """Print what makes a shell complete the words of this command line."""
    from click.shell_completion import get_completion_class

    if shell is not None and (kind := get_completion_class(shell)):
        out(*kind(ctx.command, {}, "vodup", "_VODUP_COMPLETE").source().splitlines())
        ctx.exit()


app = _Commands(
    "vodup",
    "Upload large files to Alibaba Cloud ApsaraVideo VOD, resumable and verified. "
    "Every flag can also be set as VODUP_<FLAG>. AccessKeys are read from "
    "ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET only.",
    _Command("push", "push", commands.PushFlags),
    _Command("ingest", "ingest", commands.IngestFlags),
    _Command("watch", "watch", commands.WatchFlags),
    _Command("serve", "serve", commands.ServeFlags),
    _Command("enqueue", "cluster", commands.EnqueueFlags),
    _Command("worker", "cluster", commands.WorkerFlags),
    _Command("results", "cluster", commands.ResultsFlags),
    _Command("resume", "push", commands.ResumeFlags),
    _Command("status", "records", commands.StatusFlags),
    _Command("abort", "records", commands.AbortFlags),
    _Command("clean", "records", commands.CleanFlags),
    _Command("verify", "records", commands.VerifyFlags),
    _Command("list", "library", commands.ListFlags),
    _Command("delete", "library", commands.DeleteFlags),
    _Command("pull", "library", commands.PullFlags),
    _Command("register", "library", commands.RegisterFlags),
    _Command("inspect", "doctor", commands.InspectFlags),
    _Command("doctor", "doctor", commands.DoctorFlags),
    _Command("devserver", "app", commands.DevserverFlags),
    _Command("demo", "demo", commands.DemoFlags),
    _Command("version", "app", commands.VersionFlags),
    _Commands(
        "config",
        "Show the config file, whose profiles set flags.",
        _Command("show", "config", ConfigShowFlags),
        _Command("path", "config", ConfigPathFlags),
    ),
    _Commands(
        "db",
        "Manage the database of a cluster.",
        _Command("upgrade", "cluster", commands.UpgradeFlags),
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        click.Option(
            ["--show-completion"],
            type=click.Choice(["bash", "zsh", "fish"]),
            callback=_show_completion,
            expose_value=False,
            is_eager=True,
            metavar="SHELL",
            help="Print the completion for bash, zsh or fish; its startup file can run that.",
        ),
        click.Option(
            ["-V", "--version"],
            is_flag=True,
            callback=_show_version,
            expose_value=False,
            is_eager=True,
            help="Print the version.",
        ),
    ],
)
