"""What the commands can be told: groups of flags, and how their texts are read.

A command takes a group as one parameter; `grouped` shows typer the flags inside. Every
flag can also be given as VODUP_<FLAG>. Secrets are never flags: argv is public.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

from uploader.errors import ConfigurationError

__all__ = [
    "Access",
    "BatchFlags",
    "ClusterFlags",
    "Describe",
    "DescribeAll",
    "EnqueueFlags",
    "Feed",
    "Output",
    "Rows",
    "Store",
    "Transfer",
    "Urls",
    "Which",
    "WorkerFlags",
    "flag",
    "grouped",
    "parse_duration_s",
    "parse_number",
    "parse_size",
]


def flag(*names: str, help: str, metavar: str | None = None) -> Any:  # noqa: ANN401
    """Describe a flag that is also read from VODUP_<FLAG>."""
    long_name = next(name for name in names if name.startswith("--"))
    variable = "VODUP_" + long_name.partition("/")[0].strip("-").replace("-", "_").upper()
    return typer.Option(*names, help=help, metavar=metavar, envvar=variable, show_envvar=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where uploads are remembered."""

    state: Annotated[
        str | None,
        flag(
            "--state",
            metavar="URL",
            help="Where uploads are remembered: a path, postgresql://..., or memory. "
            "[default: a file in your state directory]",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who hands out grants, and which hosts are trusted."""

    region: Annotated[
        str | None,
        flag("--region", metavar="REGION", help="Of VOD or IMS. [default: cn-shanghai]"),
    ] = None
    service: Annotated[
        str,
        flag("--service", metavar="vod|ims", help="VOD, or Intelligent Media Services (IMS)."),
    ] = "vod"
    vod_endpoint: Annotated[
        str | None,
        flag("--vod-endpoint", metavar="URL", help="Instead of https://vod.REGION.aliyuncs.com."),
    ] = None
    ims_endpoint: Annotated[
        str | None,
        flag("--ims-endpoint", metavar="URL", help="Instead of https://ice.REGION.aliyuncs.com."),
    ] = None
    auth_command: Annotated[
        str | None,
        flag(
            "--auth-command",
            metavar="CMD",
            help="A command that prints grants, instead of an AccessKey on this machine.",
        ),
    ] = None
    auth_url: Annotated[
        str | None,
        flag(
            "--auth-url",
            metavar="URL",
            help="An app server that answers with grants; its bearer token is "
            "VODUP_AUTH_URL_TOKEN.",
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        flag(
            "--allow-host",
            metavar="HOST",
            help="One more host that may receive credentials. May be repeated.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How bytes are carried."""

    part_size: Annotated[
        str | None,
        flag("--part-size", metavar="SIZE", help="For example 8MiB. [default: by file size]"),
    ] = None
    concurrency: Annotated[
        str,
        flag("--concurrency", metavar="N|auto", help="Connections, over all files."),
    ] = "auto"
    bwlimit: Annotated[
        str | None,
        flag(
            "--bwlimit",
            metavar="RATE",
            help='Bytes a second: 10M, or by the time of day: "08:00,10M 20:00,off".',
        ),
    ] = None
    oss_region: Annotated[
        str | None,
        flag("--oss-region", metavar="REGION", help="For signing; only for hosts of your own."),
    ] = None
    signature: Annotated[str, flag("--signature", metavar="v4|v1", help="Of OSS requests.")] = "v4"
    on_target_change: Annotated[
        str,
        flag(
            "--on-target-change",
            metavar="fail|restart",
            help="When VOD moves an upload to another bucket or key.",
        ),
    ] = "fail"
    retry_for: Annotated[
        str | None,
        flag(
            "--retry-for",
            metavar="SECONDS",
            help="How long a request may go on failing. [default: 900]",
        ),
    ] = None
    on_finished: Annotated[
        str | None,
        flag(
            "--on-finished",
            metavar="CMD",
            help="Run this after each upload; how it ended is in VODUP_STATUS, VODUP_VIDEO_ID, "
            "..., and as JSON on its standard input.",
        ),
    ] = None
    installed_hooks: Annotated[
        bool,
        flag(
            "--installed-hooks/--no-installed-hooks",
            help="Call the hooks that installed packages bring.",
        ),
    ] = True
    metrics_port: Annotated[
        str | None,
        flag(
            "--metrics-port",
            metavar="[HOST:]PORT",
            help="Serve metrics for Prometheus, on 127.0.0.1 without a HOST.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What is printed."""

    json: Annotated[bool, flag("--json", help="JSON lines on stdout.")] = False
    quiet: Annotated[bool, flag("-q", "--quiet", help="No progress; only what was asked.")] = False
    log_level: Annotated[
        str,
        flag("--log-level", metavar="LEVEL", help="debug, info, warning or error, to stderr."),
    ] = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeAll:
    """What CreateUploadVideo is told of each of several new videos."""

    description: Annotated[
        str | None, flag("--description", metavar="TEXT", help="Up to 1,024 characters.")
    ] = None
    tags: Annotated[str | None, flag("--tags", metavar="A,B", help="Up to 16.")] = None
    cate_id: Annotated[str | None, flag("--cate-id", metavar="N", help="Category.")] = None
    template_group_id: Annotated[
        str | None, flag("--template-group-id", metavar="ID", help="Transcoding templates.")
    ] = None
    workflow_id: Annotated[
        str | None, flag("--workflow-id", metavar="ID", help="Wins over a template group.")
    ] = None
    storage_location: Annotated[
        str | None, flag("--storage-location", metavar="BUCKET", help="As VOD's console shows it.")
    ] = None
    app_id: Annotated[str | None, flag("--app-id", metavar="ID", help="Of the VOD app.")] = None
    cover_url: Annotated[str | None, flag("--cover-url", metavar="URL", help="Of a picture.")] = (
        None
    )
    user_data: Annotated[
        str | None, flag("--user-data", metavar="JSON", help="Callbacks and extensions.")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Describe(DescribeAll):
    """What CreateUploadVideo is told of a new video."""

    title: Annotated[
        str | None, flag("--title", metavar="TEXT", help="[default: the file's name]")
    ] = None
    file_name: Annotated[
        str | None,
        flag("--file-name", metavar="NAME", help="With a video's extension. [default: PATH's]"),
    ] = None
    reference_id: Annotated[
        str | None,
        flag("--reference-id", metavar="ID", help="Your own id, unique in the account."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Which upload a push is."""

    video_id: Annotated[
        str | None, flag("--video-id", metavar="ID", help="Continue this video; make none.")
    ] = None
    grant: Annotated[
        str | None,
        flag(
            "--grant",
            metavar="FILE|-",
            help="An answer of CreateUploadVideo or RefreshUploadVideo, JSON or XML.",
        ),
    ] = None
    key: Annotated[
        str | None,
        flag("--key", metavar="NAME", help="The upload's name in the state. [default: derived]"),
    ] = None
    overwrite: Annotated[
        bool, flag("--overwrite", help="Replace the content of a finished video.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Urls:
    """Where URLs may lead."""

    allow_private_sources: Annotated[
        bool,
        flag("--allow-private-sources", help="URLs may lead to this machine and private networks."),
    ] = False
    max_redirects: Annotated[
        str, flag("--max-redirects", metavar="N", help="How many a URL may take.")
    ] = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed(Urls):
    """How what is no finished file is read."""

    pipe_command: Annotated[
        str | None,
        flag(
            "--pipe-command",
            metavar="CMD",
            help="Upload what a command writes, and only if it ends with exit status 0.",
        ),
    ] = None
    follow: Annotated[
        bool, flag("--follow", help="PATH is still written: upload it meanwhile, up to its end.")
    ] = False
    until_file: Annotated[
        str | None, flag("--until-file", metavar="FILE", help="Its end: this file exists.")
    ] = None
    until_exit: Annotated[
        str | None, flag("--until-exit", metavar="PID", help="Its end: this process has ended.")
    ] = None
    until_idle: Annotated[
        str | None,
        flag(
            "--until-idle",
            metavar="SECONDS",
            help="Its end: nothing was written for so long. [default: 30, if no other is given]",
        ),
    ] = None
    memory: Annotated[
        str | None,
        flag(
            "--memory",
            metavar="SIZE",
            help="What is kept of a stream until OSS has it. [default: 96MiB]",
        ),
    ] = None
    spool: Annotated[
        str | None,
        flag("--spool", metavar="FOLDER", help="Keep it there instead, across restarts."),
    ] = None
    spool_size: Annotated[
        str | None,
        flag("--spool-size", metavar="SIZE", help="The most the folder holds. [default: 8GiB]"),
    ] = None
    expected_size: Annotated[
        str | None,
        flag(
            "--expected-size",
            metavar="SIZE",
            help="A guess of a stream's size: parts are then like those of a file.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Which files a batch is about."""

    folders: Annotated[
        list[str] | None,
        flag("-r", "--recursive", metavar="FOLDER", help="All videos below it. May be repeated."),
    ] = None
    files_from: Annotated[
        str | None,
        flag("--files-from", metavar="FILE|-", help="A list of paths, one a line."),
    ] = None
    include: Annotated[
        list[str] | None,
        flag("--include", metavar="GLOB", help="Of folders, only these. May be repeated."),
    ] = None
    exclude: Annotated[
        list[str] | None,
        flag("--exclude", metavar="GLOB", help="Of folders, not these. May be repeated."),
    ] = None
    root: Annotated[
        str | None,
        flag(
            "--root",
            metavar="FOLDER",
            help="Paths are relative to it and stay below it. [default: the manifest's folder]",
        ),
    ] = None
    follow_symlinks: Annotated[
        bool, flag("--follow-symlinks", help="Symbolic links may lead out of the root.")
    ] = False
    title_template: Annotated[
        str | None,
        flag(
            "--title-template",
            metavar="TEXT",
            help="For rows without a title: {stem}, {name}, {folder}, {row}.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFlags(Urls):
    """How a batch is carried out and what is written of it."""

    files: Annotated[
        str | None, flag("--files", metavar="N", help="Files at once. [default: 32]")
    ] = None
    is_dry: Annotated[
        bool, flag("-n", "--dry-run", help="Check every row and estimate; send nothing.")
    ] = False
    report: Annotated[
        str | None,
        flag(
            "--report",
            metavar="FILE",
            help="The ledger: one JSON line for each row. The same again continues it.",
        ),
    ] = None
    failed: Annotated[
        str | None,
        flag("--failed", metavar="FILE", help="The failures alone; a manifest to run again."),
    ] = None
    html: Annotated[
        str | None, flag("--html", metavar="FILE", help="A report for people, in one file.")
    ] = None
    dashboard: Annotated[
        str | None,
        flag("--dashboard", metavar="PORT", help="A live page on 127.0.0.1; 0 takes any port."),
    ] = None
    stop_on_error: Annotated[bool, flag("--stop-on-error", help="End at the first failure.")] = (
        False
    )
    max_duration: Annotated[
        str | None, flag("--max-duration", metavar="6h", help="End after so long, resumably.")
    ] = None
    retries: Annotated[
        str,
        flag("--retries", metavar="N", help="Rounds for rows that failed temporarily."),
    ] = "1"
    api_rate: Annotated[
        str,
        flag("--api-rate", metavar="N", help="Calls to VOD a second; quotas are 40 to 80."),
    ] = "20"
    overwrite: Annotated[
        bool, flag("--overwrite", help="Rows with a VideoId may replace finished videos.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFlags:
    """Which queue it is about."""

    embedded: Annotated[
        str | None,
        flag(
            "--embedded",
            metavar="FOLDER",
            help="A PostgreSQL of its own in FOLDER, instead of --state: to try a cluster on "
            "one machine.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueFlags:
    """How rows are queued and what is written of them."""

    shared: Annotated[
        list[str] | None,
        flag(
            "--shared",
            metavar="FOLDER",
            help="Every worker has it under the same path; other files are left to workers on "
            "this machine. May be repeated.",
        ),
    ] = None
    node: Annotated[
        str | None, flag("--node", metavar="NAME", help="This machine. [default: its host name]")
    ] = None
    priority: Annotated[
        str, flag("--priority", metavar="N", help="Higher is taken first; -100 to 100.")
    ] = "0"
    overwrite: Annotated[
        bool, flag("--overwrite", help="Rows with a VideoId may replace finished videos.")
    ] = False
    is_waiting: Annotated[
        bool, flag("--wait", help="Stay until every row has ended; exit as ingest does.")
    ] = False
    report: Annotated[
        str | None,
        flag(
            "--report",
            metavar="FILE",
            help="The ledger: one JSON line for each row that has ended.",
        ),
    ] = None
    failed: Annotated[
        str | None,
        flag("--failed", metavar="FILE", help="The failures alone; a manifest to run again."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFlags:
    """How a worker works."""

    files: Annotated[str, flag("--files", metavar="N", help="Rows at once.")] = "8"
    memory: Annotated[
        str | None,
        flag("--memory", metavar="SIZE", help="For bodies under way: caps the connections."),
    ] = None
    node: Annotated[
        str | None, flag("--node", metavar="NAME", help="This machine. [default: its host name]")
    ] = None
    heartbeat: Annotated[
        str,
        flag(
            "--heartbeat",
            metavar="SECONDS",
            help="A worker silent for three of these counts as dead. The same for all workers.",
        ),
    ] = "10"
    grace: Annotated[
        str,
        flag(
            "--grace",
            metavar="SECONDS",
            help="How long uploads may go on after SIGTERM before they are given back.",
        ),
    ] = "20"
    tries: Annotated[
        str, flag("--tries", metavar="N", help="Temporary failures until a row has failed.")
    ] = "10"
    api_rate: Annotated[
        str,
        flag("--api-rate", metavar="N", help="Calls to VOD a second, of all workers together."),
    ] = "20"
    roots: Annotated[
        list[str] | None,
        flag(
            "--root",
            metavar="FOLDER",
            help="Upload only files below it, whatever the queue says. May be repeated.",
        ),
    ] = None
    is_draining: Annotated[bool, flag("--drain", help="End when nothing is left in the queue.")] = (
        False
    )


# --- groups of flags ------------------------------------------------------------------


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with the fields of its option groups as parameters of their own."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if _is_group(kind)}
    parameters = list(_flattened(command, hints))

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        made = {name: group(**_taken(group, values)) for name, group in groups.items()}
        command(**values, **made)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return wrapper


def _is_group(kind: object) -> bool:
    return dataclasses.is_dataclass(kind)


def _taken(group: Any, values: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Take the fields of a group out of `values`."""
    return {field.name: values.pop(field.name) for field in dataclasses.fields(group)}


def _flattened(command: Callable[..., None], hints: dict[str, Any]) -> Iterator[inspect.Parameter]:
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if _is_group(kind):
            yield from _fields_as_parameters(kind)
        else:
            yield parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)


def _fields_as_parameters(group: Any) -> Iterator[inspect.Parameter]:  # noqa: ANN401
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )


# --- texts to values ------------------------------------------------------------------

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_SIZE_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.IGNORECASE)
_DURATION_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def split_command(text: str, name: str) -> list[str]:
    """Split a command line as a shell would; no shell ever sees it."""
    try:
        argv = shlex.split(text)
    except ValueError as error:
        raise ConfigurationError(f"{name} cannot be split: {error}.") from None
    if not argv:
        raise ConfigurationError(f"{name} is empty.")
    return argv


def parse_size(text: str, name: str) -> int:
    """Read "8MiB", "8M" or "8388608" as bytes; units are powers of 1024.

    Raises:
        ConfigurationError: it is none, naming the flag `name`.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(
            f"{name}: {text!r} is not a size.", next_step="Write for example 8MiB, 8M or 8388608."
        )
    return int(float(found[1]) * _SIZE_UNITS[(found[2] or "").upper()])


def parse_duration_s(text: str, name: str) -> float:
    """Read "90", "15m", "12h" or "30d" as seconds.

    Raises:
        ConfigurationError: it is none, naming the flag `name`.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(
            f"{name}: {text!r} is not a duration.",
            next_step="Write seconds, or for example 15m, 12h or 30d.",
        )
    return float(found[1]) * _DURATION_UNITS[found[2].lower()]


def parse_number(text: str, name: str, *, least: int, most: int) -> int:
    """Read a whole number from `least` to `most`.

    Raises:
        ConfigurationError: it is none, naming the flag `name`.
    """
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or not least <= int(text) <= most:
        raise ConfigurationError(
            f"{name}: {text!r} is not a whole number from {least} to {most:,}."
        )
    return int(text)


def require_one_of(text: str, name: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among `choices`.

    Raises:
        ConfigurationError: naming the flag `name`.
    """
    if text not in choices:
        raise ConfigurationError(
            f"{name}: {text!r} is not known.", next_step=f"Write {' or '.join(choices)}."
        )


def read_text(where: str, name: str) -> str:
    """Read a small file, or standard input for "-".

    Raises:
        ConfigurationError: it cannot be read, naming the flag `name`.
    """
    import sys

    limit = 1024 * 1024
    try:
        if where == "-":
            return sys.stdin.read(limit)
        with Path(where).open(encoding="utf-8") as file:
            return file.read(limit)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"{name}: {where} cannot be read: {reason}.") from error
