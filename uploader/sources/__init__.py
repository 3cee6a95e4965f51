"""Where bytes come from, and which source stands for what a caller passes.

Sources are read by position, as often as needed, and only while they stay the same.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable
from typing import cast

from uploader.errors import ConfigurationError
from uploader.sources.bytes import BytesSource
from uploader.sources.contract import BytesLike, Fingerprint, PartStream, Source
from uploader.sources.file_objects import BinaryFile, FileObjectSource, of_file_object
from uploader.sources.files import FileSource
from uploader.sources.hls import HlsPackage, is_playlist_path
from uploader.sources.part_buffer import MemoryBuffer, PartBuffer
from uploader.sources.readers import CommandReader, DescriptorReader
from uploader.sources.streams import StreamSource
from uploader.sources.url_policy import UrlPolicy

__all__ = [
    "AnySource",
    "BytesSource",
    "CommandReader",
    "DescriptorReader",
    "FileObjectSource",
    "FileSource",
    "Fingerprint",
    "HlsPackage",
    "MemoryBuffer",
    "PartStream",
    "Source",
    "StreamSource",
    "UrlPolicy",
    "as_source",
    "of_path",
    "of_url",
    "require_source",
]

AnySource = Source | str | os.PathLike[str] | BytesLike | AsyncIterable[BytesLike] | BinaryFile


def as_source(given: AnySource, *, policy: UrlPolicy | None = None) -> Source:
    """Return the source that `given` stands for; a source stands for itself.

    A path is a `FileSource`, or an `HlsPackage` where it names a playlist; an http or https
    URL is a `UrlSource`, any other an `FsspecSource`; bytes are a `BytesSource`, an async
    iterable is a `StreamSource`, and a binary file object is read by position if it can
    seek. `policy` is for URLs.
    """
    if hasattr(given, "read_crc"):  # a source of any class, which may have any other method too
        return cast("Source", given)
    if isinstance(given, BytesLike):
        return BytesSource(memoryview(given).cast("B"))
    if isinstance(given, str) and "://" in given:
        return of_url(given, policy=policy)
    if isinstance(given, str | os.PathLike):
        return of_path(os.fspath(given), follow_symlinks=True)
    if isinstance(given, AsyncIterable):
        return StreamSource(given)
    require_source(given)
    return of_file_object(given)


def require_source(given: object) -> None:
    """Refuse what `as_source` has no source for.

    Raises:
        ConfigurationError: it is neither a source nor stands for one.
    """
    if isinstance(given, str | os.PathLike | BytesLike | AsyncIterable | BinaryFile):
        return
    if not hasattr(given, "read_crc"):
        raise ConfigurationError(
            f"{type(given).__name__} cannot be uploaded.",
            next_step="Pass a path, a URL, bytes, a binary file object, an async iterable or a "
            "Source.",
        )


def of_path(path: str, *, follow_symlinks: bool, root: str | None = None) -> Source:
    """Return the source at a path, below `root`; a playlist stands for all it refers to."""
    if is_playlist_path(path):
        return HlsPackage(path, follow_symlinks=follow_symlinks, root=root)
    return FileSource(path, follow_symlinks=follow_symlinks, root=root)


def of_url(
    url: str,
    name: str | None = None,
    *,
    policy: UrlPolicy | None = None,
    buffer: PartBuffer | None = None,
) -> Source:
    """Return the source behind a URL; fsspec reads what is not http or https.

    The module that reads it is imported only now. `policy` and `buffer` are for http and
    https: where a URL may lead, and what holds the parts of a server without ranges. Stores
    of fsspec are the caller's own, and no manifest may name them.
    """
    if not url.lower().startswith(("http://", "https://")):
        from uploader.sources.fsspec import FsspecSource

        return FsspecSource(url, name)
    from uploader.sources.urls import UrlSource

    return UrlSource(url, name, policy=policy, buffer=buffer)
