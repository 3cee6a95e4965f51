"""What `push` uploads: files, growing ones, URLs, standard input, the output of a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from uploader import (
    CommandReader,
    FollowedFile,
    MemoryBuffer,
    Spool,
    StreamSource,
    Until,
    UploadRecord,
)
from uploader.cli.options import (
    Feed,
    Urls,
    parse_duration_s,
    parse_number,
    parse_size,
    split_command,
)
from uploader.errors import ConfigurationError, SourceNotRepeatable, UnsupportedState
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.plan import read_plan
from uploader.sources import AnySource, DescriptorReader, UrlPolicy, of_url
from uploader.sources.part_buffer import DEFAULT_MEMORY_SIZE, PartBuffer
from uploader.sources.readers import Reader
from uploader.sources.spool import DEFAULT_SPOOL_SIZE
from uploader.sources.url_policy import parsed_url, shown

__all__ = [
    "can_come_again",
    "make_url_policy",
    "named_sources",
    "recorded_source",
    "shown_name",
    "source_of",
]

_STDIN: Final = "-"
_USUAL_IDLE: Final = "30"


def named_sources(paths: Sequence[str], feed: Feed) -> list[str]:
    """What is to be uploaded, as the user calls it."""
    _require_followed(feed)
    if feed.pipe_command is None:
        if not paths:
            raise ConfigurationError(
                "There is nothing to upload.",
                next_step="Name a file, - for standard input, or a command (--pipe-command).",
            )
        return list(paths)
    if [path for path in paths if path != _STDIN]:
        raise ConfigurationError("--pipe-command is uploaded alone, without paths.")
    return [_STDIN]


def shown_name(name: str) -> str:
    """A name as it may be printed: the query of a URL may be a presigned one."""
    return shown(parsed_url(name)) if _is_http(name) else name


def _is_http(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def source_of(name: str, feed: Feed, file_name: str | None, *, has_video: bool) -> AnySource:
    """Return the source that a name on the command line means.

    `has_video`: there is a video already, so that VOD need not be told a file name.
    """
    if feed.follow:
        return _followed(name, feed)
    if "://" in name and not os.path.exists(name):
        named = file_name or os.path.basename(shown_name(name)) or "stream"
        return of_url(name, policy=make_url_policy(feed), buffer=_buffer(feed, named))
    if name != _STDIN:
        return os.path.abspath(name)
    if file_name is None and not has_video:
        raise ConfigurationError(
            "What comes through a pipe has no name, and VOD wants one.",
            next_step="Pass --file-name, with a video's extension: --file-name movie.mp4.",
        )
    name = file_name or "stdin"
    expected = feed.expected_size
    return StreamSource(
        _reader(feed),
        name,
        buffer=_buffer(feed, name),
        expected_size=parse_size(expected, "--expected-size") if expected else None,
    )


def _followed(name: str, feed: Feed) -> AnySource:
    if name == _STDIN or _is_http(name):
        raise ConfigurationError("--follow is for a file that is still written.")
    idle, pid = feed.until_idle, feed.until_exit
    if (feed.until_file, idle, pid) == (None, None, None):
        idle = _USUAL_IDLE
    return FollowedFile(
        os.path.abspath(name),
        Until(
            marker=os.path.abspath(feed.until_file) if feed.until_file else None,
            idle_s=parse_duration_s(idle, "--until-idle") if idle else None,
            pid=parse_number(pid, "--until-exit", least=1, most=2**31) if pid else None,
        ),
    )


def _require_followed(feed: Feed) -> None:
    given = {
        "--until-file": feed.until_file,
        "--until-exit": feed.until_exit,
        "--until-idle": feed.until_idle,
    }
    for flag_name in [flag_name for flag_name, value in given.items() if value is not None]:
        if not feed.follow:
            raise ConfigurationError(f"{flag_name} is for --follow.")


def make_url_policy(urls: Urls) -> UrlPolicy:
    """Return where URLs may lead."""
    return UrlPolicy(
        allow_private=urls.allow_private_sources,
        max_redirects=parse_number(urls.max_redirects, "--max-redirects", least=0, most=20),
    )


def _reader(feed: Feed) -> Reader:
    if feed.pipe_command is not None:
        return CommandReader(split_command(feed.pipe_command, "--pipe-command"))
    if sys.stdin.isatty():
        raise ConfigurationError(
            "Standard input is a terminal.", next_step="Pipe the video into this command."
        )
    return DescriptorReader(sys.stdin.fileno(), "standard input")


def _buffer(feed: Feed, name: str) -> PartBuffer:
    if feed.spool is None:
        if feed.spool_size is not None:
            raise ConfigurationError("--spool-size is for --spool.")
        memory = feed.memory
        return MemoryBuffer(parse_size(memory, "--memory") if memory else DEFAULT_MEMORY_SIZE)
    if feed.memory is not None:
        raise ConfigurationError("--memory and --spool exclude each other.")
    most = feed.spool_size
    return Spool(feed.spool, name, parse_size(most, "--spool-size") if most else DEFAULT_SPOOL_SIZE)


# --- resuming by the record alone -------------------------------------------------------


def can_come_again(record: UploadRecord) -> bool:
    """Whether a recorded upload is of a file or a URL, rather than of a stream that is gone."""
    return os.path.isabs(record.source) or "://" in record.source


def recorded_source(record: UploadRecord, urls: Urls) -> AnySource:
    """Return the source of a recorded upload; of a stream that came once, what stands for it."""
    if "://" in record.source:
        return of_url(record.source, policy=make_url_policy(urls))
    if os.path.isabs(record.source) and not _is_arriving(record):
        return record.source
    return StreamSource(_Absent(record.source, record.key), record.source)


def _is_arriving(record: UploadRecord) -> bool:
    """Whether the end of the source was not known yet."""
    if record.plan is None:
        return False
    try:
        return read_plan(record.plan).is_open
    except (MalformedDocument, UnsupportedState):
        return False  # the upload itself says what is wrong with it


class _Absent:
    """Whoever produced is not here; an upload that has all its parts does without."""

    def __init__(self, source: str, key: str) -> None:
        self._source, self._key = source, key

    async def read(self, into: memoryview) -> int:
        raise SourceNotRepeatable(
            f"{self._source} was uploaded while it came, and its bytes are not here.",
            next_step="Run the `vodup push` that began it once more, from the producer's start, "
            f"with --key {self._key}: what OSS has is compared and not sent again.",
        )

    async def close(self) -> None:
        return None
