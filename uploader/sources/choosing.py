"""What a caller may name as a source, and which kind that is."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable
from typing import cast

from uploader.errors import ConfigurationError
from uploader.sources.bytes import BytesSource
from uploader.sources.contract import Source
from uploader.sources.file_objects import BinaryFile, of_file_object
from uploader.sources.files import FileSource
from uploader.sources.hls import HlsPackage, is_playlist_path
from uploader.sources.part_buffer import Window
from uploader.sources.streams import StreamSource
from uploader.sources.url_policy import UrlPolicy

__all__ = ["AnySource", "as_source", "of_path", "of_url"]

AnySource = (
    Source
    | str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | AsyncIterable[bytes]
    | BinaryFile
)


def of_path(path: str, *, follow_symlinks: bool) -> Source:
    """What a path names: a playlist stands for all it refers to."""
    if is_playlist_path(path):
        return HlsPackage(path, follow_symlinks=follow_symlinks)
    return FileSource(path, follow_symlinks=follow_symlinks)


def as_source(given: AnySource) -> Source:
    """Return the source that `given` stands for, and a source as it is.

    A path is a `FileSource`, or an `HlsPackage` where it names a playlist; an http or https
    URL is a `UrlSource`, any other an `FsspecSource`; bytes are a `BytesSource`, an async
    iterable is a `StreamSource`, and a binary file object is read by position if it can
    seek.
    """
    if hasattr(given, "read_crc"):  # a source of anybody's; it may have any other method too
        return cast("Source", given)
    if isinstance(given, bytes | bytearray | memoryview):
        return BytesSource(memoryview(given).cast("B"))
    if isinstance(given, str) and "://" in given:
        return of_url(given)
    if isinstance(given, str | os.PathLike):
        return of_path(os.fspath(given), follow_symlinks=True)
    if isinstance(given, AsyncIterable):
        return StreamSource(given)
    if isinstance(given, BinaryFile):
        return of_file_object(given)
    raise ConfigurationError(
        f"{type(given).__name__} is nothing to upload.",
        next_step="Pass a path, a URL, bytes, a binary file object, an async iterable or a Source.",
    )


def of_url(
    url: str,
    name: str | None = None,
    *,
    policy: UrlPolicy | None = None,
    window: Window | None = None,
) -> Source:
    """Return the source behind a URL; fsspec reads what is not http or https.

    What reads it is loaded only now. `window` keeps parts where a server gives no ranges.
    `policy` is about http and https: fsspec's stores are
    the caller's own, and no manifest may name them.
    """
    if not url.lower().startswith(("http://", "https://")):
        from uploader.sources.fsspec import FsspecSource

        return FsspecSource(url, name)
    from uploader.sources.urls import UrlSource

    return UrlSource(url, name, policy=policy, window=window)
