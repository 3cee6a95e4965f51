"""HLS packages: a playlist and everything it refers to, as one source of many files.

The package is read as if its members were concatenated: segments, keys and maps, the
playlists of a master, and last the main playlist. Each member becomes one object, and one
part of the plan.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Self

from uploader.errors import SourceUnreadable, UnsafePath
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.hls import (
    MAX_PLAYLIST_SIZE,
    Playlist,
    Reference,
    file_path,
    flat_names,
    parse_playlist,
    rewritten,
)
from uploader.protocol.integrity import crc64, join_crc64
from uploader.protocol.wire import Body
from uploader.sources.bytes import BytesSource
from uploader.sources.contract import (
    Checksums,
    Fingerprint,
    Source,
    changed_source,
    empty_source,
    irregular_source,
    unreadable_source,
)
from uploader.sources.files import FileSource
from uploader.threads import DISKS

__all__ = ["HlsPackage", "Member", "is_playlist_path"]

MAX_MEMBER_COUNT: Final = 100_000
"""Objects of one package: at 2 seconds a segment, more than two days of one rendition."""

MAX_PLAYLIST_COUNT: Final = 200
"""Playlists of one master; all are held in memory."""


@dataclass(frozen=True, slots=True)
class Member:
    """One object of a package.

    Attributes:
        number: from 1, the number of its part; the main playlist is last.
        name: of the object, below the prefix; "" for the main playlist, which VOD names.
        offset, size: where its bytes are in the package.
        path: the file; None for playlists, whose rewritten text is `data`.
        fingerprint: of the file when the package was opened.
    """

    number: int
    name: str
    offset: int
    size: int
    path: str | None
    fingerprint: Fingerprint
    data: bytes = field(default=b"", repr=False)

    def source(self) -> Source:
        """Return the member as a source."""
        return BytesSource(self.data, self.name) if self.path is None else FileSource(self.path)


def is_playlist_path(path: object) -> bool:
    """Whether a path names an HLS playlist, by its extension."""
    return isinstance(path, str | os.PathLike) and os.fspath(path)[-5:].lower() in {
        ".m3u8",
        b".m3u8",
    }


class HlsPackage:
    """An HLS playlist with all its files. A `Source`; mutable: open or not.

    All files must be below the folder of the playlist. Members are opened one by one
    (`opened`), never all at once. `follow_symlinks`: whether the playlist itself may be a
    symbolic link.
    """

    stream = None  # all of it is there

    def __init__(self, path: str | os.PathLike[str], *, follow_symlinks: bool = True) -> None:
        self._path = os.fspath(path)
        self.name = self._path.encode(errors="replace").decode()  # "?" for what is not UTF-8
        self._follow_symlinks = follow_symlinks
        self._members: tuple[Member, ...] = ()
        self._offsets: list[int] = []
        self._open: dict[int, Source] = {}

    @property
    def identity(self) -> str:
        """The absolute path of the playlist."""
        return os.path.abspath(self._path)

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, the main playlist last."""
        if not self._members:
            raise RuntimeError("the package is not open: use it inside `async with`")
        return self._members

    @property
    def size(self) -> int:
        """Bytes of all members together."""
        return self.members[-1].offset + self.members[-1].size

    async def __aenter__(self) -> Self:
        """Read the playlists and take the fingerprint of every file.

        Raises:
            SourceUnreadable: a file is missing or empty, or a playlist is malformed,
                unfinished, or refers to something that is not a file of the package.
            UnsafePath: a reference leads out of the playlist's folder.
        """
        self._members = await self._read_members()
        self._offsets = [member.offset for member in self._members]
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self._members = ()

    async def fingerprint(self) -> Fingerprint:
        """Return what identifies all members right now; `inode` is a CRC-64 of their own ones."""
        return _fingerprint_of_all(await self._read_members())

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Return a range within one member, which must be `opened` or a playlist."""
        member = self._member_at(offset)
        opened = self._open.get(member.number)
        if opened is None and member.path is not None:
            raise RuntimeError(f"{member.path} is not opened")
        return (opened or member.source()).body(offset - member.offset, size, on_sent)

    @asynccontextmanager
    async def opened(self, number: int) -> AsyncIterator[Source]:
        """Open one member.

        Raises:
            SourceChanged: it is not the file it was when the package was opened. A new change
                time alone is left to the end of the upload, which compares all bytes.
        """
        member = self.members[number - 1]
        async with member.source() as source:
            if member.path is not None:
                known, now = member.fingerprint, await source.fingerprint()
                if now != known and not known.is_touched(now):
                    raise changed_source(member.path, *known.changes(now))
            self._open[number] = source
            try:
                yield source
            finally:
                del self._open[number]

    async def read_crc(self, offset: int, size: int, *, with_md5: bool = False) -> Checksums:
        """Return the CRC-64 of a range of whole members, and the MD5 of a single one."""
        first, end = (bisect_left(self._offsets, place) for place in (offset, offset + size))
        members = self.members[first:end]
        if sum(m.size for m in members) != size:
            raise RuntimeError("a package is read member by member")
        found: list[tuple[int, int]] = []
        md5: str | None = None
        for member in members:
            async with self.opened(member.number) as source:
                crc, md5 = await source.read_crc(0, member.size, with_md5=with_md5)
            found.append((crc, member.size))
        return join_crc64(found), md5 if len(members) == 1 else None

    async def _read_members(self) -> tuple[Member, ...]:
        return await DISKS.run(self._read_members_now)

    def _read_members_now(self) -> tuple[Member, ...]:
        if not self._follow_symlinks and os.path.islink(self._path):
            raise unreadable_source(self._path, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
        return tuple(_read(self._path))

    def _member_at(self, offset: int) -> Member:
        return self.members[bisect_right(self._offsets, offset) - 1]


def _fingerprint_of_all(members: tuple[Member, ...]) -> Fingerprint:
    prints = [member.fingerprint for member in members]
    untouched = [replace(one, ctime_ns=0).to_text() for one in prints]
    text = "\n".join(f"{m.name} {one}" for m, one in zip(members, untouched, strict=True))
    return Fingerprint(
        size=sum(member.size for member in members),
        mtime_ns=max(one.mtime_ns for one in prints),
        ctime_ns=max(one.ctime_ns for one in prints),
        inode=crc64(text.encode(errors="surrogateescape")),
        device=len(members),
    )


# --- reading a package from disk, in a thread -------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """The files of a package: absolute paths, in the order of the references to them."""

    folder: str
    main: str
    playlists: Mapping[str, Playlist]
    files: Mapping[str, Fingerprint]

    def relative(self, path: str) -> str:
        return os.path.relpath(path, self.folder).replace(os.sep, "/")


def _read(path: str) -> Iterator[Member]:
    found = _find(path)
    playlists = [playlist for playlist in found.playlists if playlist != found.main]
    names = flat_names(map(found.relative, (*found.files, *playlists)))
    number = offset = 0
    for file, fingerprint in found.files.items():
        number += 1
        name = names[found.relative(file)]
        yield Member(number, name, offset, fingerprint.size, file, fingerprint)
        offset += fingerprint.size
    for playlist in (*playlists, found.main):
        number += 1
        data = _renamed(found, playlist, names)
        name = "" if playlist == found.main else names[found.relative(playlist)]
        fingerprint = Fingerprint.of_content(len(data), crc64(data))
        yield Member(number, name, offset, len(data), None, fingerprint, data)
        offset += len(data)


def _renamed(found: _Found, playlist: str, names: Mapping[str, str]) -> bytes:
    """Return a playlist with its references changed to the names in the upload's folder."""

    def name_of(reference: Reference) -> str:
        return names[found.relative(_path_of(reference, playlist))]

    return rewritten(found.playlists[playlist], name_of)


def _find(path: str) -> _Found:
    main = _real(path, path)
    folder = os.path.dirname(main)
    playlists = {main: _playlist(main)}
    files: dict[str, Fingerprint] = {}
    for reference in playlists[main].references:
        target = _inside(reference, main, folder)
        if reference.is_playlist and target not in playlists:
            if len(playlists) > MAX_PLAYLIST_COUNT:
                raise _refused(main, f"it lists more than {MAX_PLAYLIST_COUNT} playlists")
            playlists[target] = _playlist(target)
            if playlists[target].is_master:
                raise _refused(target, "it is a master playlist in a master playlist")
    for playlist, content in playlists.items():
        for reference in content.references:
            if not reference.is_playlist:
                file = _inside(reference, playlist, folder)
                if file not in files:
                    files[file] = _fingerprint_of_file(file)
    if len(files) > MAX_MEMBER_COUNT:
        raise _refused(main, f"it refers to more than {MAX_MEMBER_COUNT} files")
    return _Found(folder, main, playlists, files)


def _playlist(path: str) -> Playlist:
    if _fingerprint_of_file(path).size > MAX_PLAYLIST_SIZE:
        raise _refused(path, "it is too large for a playlist")
    try:
        with open(path, "rb") as file:
            return parse_playlist(file.read(MAX_PLAYLIST_SIZE + 1))
    except OSError as exc:
        raise unreadable_source(path, exc) from exc
    except MalformedDocument as exc:
        raise _refused(path, str(exc)) from None


def _inside(reference: Reference, playlist: str, folder: str) -> str:
    """Return the path of a reference, whose target must be below the package's folder."""
    path = _path_of(reference, playlist)
    real = _real(path, f"{playlist}, line {reference.line + 1}: {file_path(reference.uri)}")
    if os.path.commonpath([real, folder]) != folder:
        raise UnsafePath(
            f"{playlist}, line {reference.line + 1}, refers to a file outside {folder}.",
            next_step="Put the whole package below the folder of its playlist.",
        )
    return path


def _path_of(reference: Reference, playlist: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(playlist), file_path(reference.uri)))


def _real(path: str, name: str) -> str:
    try:
        return os.path.realpath(path, strict=True)
    except (OSError, ValueError) as exc:
        raise unreadable_source(name, exc) from exc


def _fingerprint_of_file(path: str) -> Fingerprint:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as exc:
        raise unreadable_source(path, exc) from exc
    if not stat.S_ISREG(status.st_mode):
        raise irregular_source(path, status.st_mode)
    if status.st_size == 0:
        raise empty_source(path)
    return Fingerprint.of_file(status)


def _refused(path: str, why: str) -> SourceUnreadable:
    return SourceUnreadable(
        f"{path} cannot be uploaded as an HLS package: {why}.",
        next_step="Package a finished stream with all its files below the playlist's folder.",
    )
