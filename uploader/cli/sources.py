"""What `push` reads: files, growing files, URLs, standard input, the output of a command."""

from __future__ import annotations

import os
from typing import Final

from uploader import CommandReader, MemoryBuffer, StreamSource, UploadRecord
from uploader.cli.flag_groups import StreamFlags, UrlFlags
from uploader.cli.flags import PushFlags
from uploader.cli.options import flag_of
from uploader.cli.records import recorded_plan
from uploader.cli.settings import make_url_policy
from uploader.errors import ConfigurationError, SourceNotRepeatable
from uploader.sources import AnySource, DescriptorReader, of_url
from uploader.sources.part_buffer import DEFAULT_MEMORY_SIZE, PartBuffer
from uploader.sources.readers import Reader, stdin_descriptor
from uploader.sources.url_policy import parsed_url, shown

_STDIN: Final = "-"
_DEFAULT_IDLE_S: Final = 30.0


def names_of(flags: PushFlags) -> tuple[str, ...]:
    """Return what is to be uploaded, as the user calls it.

    Raises:
        ConfigurationError: there is nothing, or flags do not go together.
    """
    _require_follow(flags)
    if flags.pipe_command is None:
        if not flags.paths:
            raise ConfigurationError(
                "No files given.", next_step="vodup push FILE... (use - for standard input)"
            )
        return flags.paths
    if [path for path in flags.paths if path != _STDIN]:
        raise ConfigurationError(
            "--pipe-command cannot be used together with files.",
            next_step="Push the files with a command of their own.",
        )
    return (_STDIN,)


def shown_name(name: str) -> str:
    """A name that may be printed: the query of a URL may hold a signature."""
    return shown(parsed_url(name)) if _is_http(name) else name


def label_of(name: str, flags: PushFlags) -> str:
    """What a source is called in sentences."""
    if name != _STDIN:
        return shown_name(name)
    origin = "standard input" if flags.pipe_command is None else "output of a command"
    return f"{flags.file_name} ({origin})" if flags.file_name else origin.capitalize()


def size_of(name: str, flags: StreamFlags) -> int:
    """Bytes of a finished local file; 0 for everything else."""
    if name == _STDIN or flags.follow or _is_http(name):
        return 0
    try:
        return os.path.getsize(name) if os.path.isfile(name) else 0
    except (OSError, ValueError):
        return 0


def _is_http(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def source_of(name: str, flags: PushFlags, *, has_video: bool) -> AnySource:
    """Return the source that a name on the command line means.

    `has_video`: the video exists already, so that VOD needs no file name.
    """
    if flags.follow:
        return _followed(name, flags)
    if "://" in name and not os.path.exists(name):
        file_name = flags.file_name or os.path.basename(shown_name(name)) or "stream"
        return of_url(name, policy=make_url_policy(flags), buffer=_buffer(flags, file_name))
    if name != _STDIN:
        return os.path.abspath(name)
    if flags.file_name is None and not has_video:
        raise ConfigurationError(
            "Data from standard input or a command needs a file name.",
            next_step="Add --file-name, for example --file-name movie.mp4.",
        )
    name = flags.file_name or "stdin"
    return StreamSource(
        _reader(flags), name, buffer=_buffer(flags, name), expected_size=flags.expected_size
    )


def _followed(name: str, flags: StreamFlags) -> AnySource:
    if name == _STDIN or _is_http(name):
        raise ConfigurationError("--follow only works with files.", next_step="Leave --follow out.")
    from uploader import FollowedFile, Until

    is_open = (flags.until_file, flags.until_idle, flags.until_exit) == (None, None, None)
    return FollowedFile(
        os.path.abspath(name),
        Until(
            marker=os.path.abspath(flags.until_file) if flags.until_file else None,
            idle_s=_DEFAULT_IDLE_S if is_open else flags.until_idle,
            pid=flags.until_exit,
        ),
    )


def _require_follow(flags: StreamFlags) -> None:
    for name in ("until_file", "until_exit", "until_idle"):
        flag = flag_of(name)
        if getattr(flags, name) is not None and not flags.follow:
            raise ConfigurationError(
                f"{flag} only works with --follow.", next_step=f"Add --follow, or leave {flag} out."
            )


def _reader(flags: StreamFlags) -> Reader:
    if flags.pipe_command is not None:
        return CommandReader(flags.pipe_command)
    descriptor = stdin_descriptor()
    if os.isatty(descriptor):
        raise ConfigurationError(
            "Standard input is a terminal.",
            next_step="Pipe the video into it: `... | vodup push - --file-name movie.mp4`.",
        )
    return DescriptorReader(descriptor, "standard input")


def _buffer(flags: StreamFlags, name: str) -> PartBuffer:
    if flags.spool is None:
        if flags.spool_size is not None:
            raise ConfigurationError(
                "--spool-size only works with --spool.",
                next_step="Add --spool FOLDER, or leave --spool-size out.",
            )
        return MemoryBuffer(DEFAULT_MEMORY_SIZE if flags.memory is None else flags.memory)
    if flags.memory is not None:
        raise ConfigurationError(
            "--memory and --spool cannot be used together.", next_step="Leave one of them out."
        )
    from uploader.sources.spool import DEFAULT_SPOOL_SIZE, Spool

    return Spool(
        flags.spool, name, DEFAULT_SPOOL_SIZE if flags.spool_size is None else flags.spool_size
    )


def is_repeatable(record: UploadRecord) -> bool:
    """Whether a recorded upload is of a file or a URL, rather than of a stream that is gone."""
    return os.path.isabs(record.source) or "://" in record.source


def recorded_source(record: UploadRecord, flags: UrlFlags) -> AnySource:
    """Return the source of a recorded upload; of a stream that came once, a stand-in."""
    if "://" in record.source:
        return of_url(record.source, policy=make_url_policy(flags))
    plan = recorded_plan(record)
    if os.path.isabs(record.source) and (plan is None or not plan.is_open):
        return record.source  # a plan that cannot be read fails the upload itself
    return StreamSource(_Absent(record.source, record.key), record.source)


class _Absent:
    """The producer is not here; an upload that has all its parts does not need it."""

    def __init__(self, source: str, key: str) -> None:
        self._source, self._key = source, key

    async def read(self, into: memoryview) -> int:
        raise SourceNotRepeatable(
            f"{self._source} was uploaded from a stream, and its data is not stored here.",
            next_step="Run the `vodup push` that started it again, with the data from its start "
            f"and --key {self._key}. Parts that OSS has are compared, not sent again.",
        )

    async def close(self) -> None:
        return None
