"""HLS packages: a playlist and everything it refers to, as one source of many files.

The package is read as if its members were concatenated: segments, keys and maps, the
playlists of a master, and last the main playlist. Each member becomes one object, and one
part of the plan.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Self

from uploader.errors import SourceUnreadable, UnsafePath
from uploader.protocol import hls
from uploader.protocol.documents import MalformedDocument
from uploader.protocol.integrity import crc64, join_crc64
from uploader.protocol.wire import Body
from uploader.sources.bytes import BytesSource
from uploader.sources.contract import (
    Checksums,
    Fingerprint,
    Source,
    changed_source,
    empty_source,
    unreadable_source,
)
from uploader.sources.files import FileSource, open_regular_file, path_identity
from uploader.threads import DISKS

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
        path: the file, links resolved; None for playlists, whose rewritten text is `data`.
        fingerprint: of the file when the package was opened.
        root: a folder that the file must be in when it is opened.
    """

    number: int
    name: str
    offset: int
    size: int
    path: str | None
    fingerprint: Fingerprint
    data: bytes = field(default=b"", repr=False)
    root: str | None = None

    def source(self) -> Source:
        """Return the member as a source."""
        if self.path is None:
            return BytesSource(self.data, self.name)
        return FileSource(self.path, root=self.root)


def is_playlist_path(path: object) -> bool:
    """Whether a path names an HLS playlist, by its extension."""
    return isinstance(path, str | os.PathLike) and os.fspath(path)[-5:].lower() in {
        ".m3u8",
        b".m3u8",
    }


class HlsPackage:
    """An HLS playlist with all its files. A `Source`; mutable: open or not.

    All files must be below the folder of the playlist. Members are opened one by one
    (`opened`), never all at once. `follow_symlinks` and `root` are those of a `FileSource`,
    for the playlist itself.
    """

    stream = None  # all of it is there

    def __init__(
        self, path: str | os.PathLike[str], *, follow_symlinks: bool = True, root: str | None = None
    ) -> None:
        self._path = os.fspath(path)
        self.name = self._path.encode(errors="replace").decode()  # "?" for what is not UTF-8
        self._follow_symlinks = follow_symlinks
        self._root = root
        self._members: tuple[Member, ...] = ()
        self._offsets: list[int] = []
        self._open: dict[int, Source] = {}

    @property
    def identity(self) -> str:
        """The absolute path of the playlist."""
        return path_identity(self._path)

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
        self._members = await DISKS.run(self._read_members)
        self._offsets = [member.offset for member in self._members]
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self._members = ()

    async def fingerprint(self) -> Fingerprint:
        """Return what identifies all members right now; `inode` is a CRC-64 of their own ones."""
        return _fingerprint_of_all(await DISKS.run(self._read_members))

    def body(self, offset: int, size: int, on_sent: Callable[[int], None] | None = None) -> Body:
        """Return a range within one member, which must be `opened` or a playlist."""
        member = self.members[bisect_right(self._offsets, offset) - 1]
        opened = self._open.get(member.number)
        if opened is None and member.path is not None:
            raise RuntimeError(f"{member.path} is not opened")
        return (opened or member.source()).body(offset - member.offset, size, on_sent)

    @asynccontextmanager
    async def opened(self, number: int) -> AsyncIterator[Source]:
        """Open one member, or return the source of an enclosing block that has opened it.

        Raises:
            SourceChanged: it is not the file it was when the package was opened. A new change
                time alone is left to the end of the upload, which compares all bytes.
        """
        if (known_source := self._open.get(number)) is not None:
            yield known_source
            return
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

    def _read_members(self) -> tuple[Member, ...]:
        if not self._follow_symlinks and os.path.islink(self._path):
            raise unreadable_source(self._path, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
        return tuple(_read(self._path, self._root))


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
    """The files of a package: absolute paths, in the order of the references to them.

    Attributes:
        files: where links lead from a path, and the fingerprint of what is there.
        root: a folder that all of them are below, without a link on the way.
    """

    folder: str
    root: str
    main: str
    playlists: Mapping[str, hls.Playlist]
    files: Mapping[str, tuple[str, Fingerprint]]

    def relative(self, path: str) -> str:
        return os.path.relpath(path, self.folder).replace(os.sep, "/")


def _read(path: str, root: str | None) -> Iterator[Member]:
    found = _find(path, root)
    playlists = [playlist for playlist in found.playlists if playlist != found.main]
    names = hls.flat_names(map(found.relative, (*found.files, *playlists)))
    number = offset = 0
    for file, (real, fingerprint) in found.files.items():
        number += 1
        name, size = names[found.relative(file)], fingerprint.size
        yield Member(number, name, offset, size, real, fingerprint, root=found.root)
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

    def name_of(reference: hls.Reference) -> str:
        return names[found.relative(_path_of(reference, playlist))]

    return hls.rewritten(found.playlists[playlist], name_of)


def _find(path: str, root: str | None) -> _Found:
    main = _real(path, path) if root is None else path  # links below a root are refused
    folder = os.path.dirname(main)
    root = root or folder
    playlists = {main: _playlist(main, root)}
    files: dict[str, tuple[str, Fingerprint]] = {}
    for reference in playlists[main].references:
        target, real = _inside(reference, main, folder)
        if reference.is_playlist and target not in playlists:
            if len(playlists) > MAX_PLAYLIST_COUNT:
                raise _refused(main, f"it lists more than {MAX_PLAYLIST_COUNT} playlists")
            playlists[target] = _playlist(real, root)
            if playlists[target].is_master:
                raise _refused(target, "it is a master playlist in a master playlist")
    for playlist, content in playlists.items():
        for reference in content.references:
            if not reference.is_playlist:
                file, real = _inside(reference, playlist, folder)
                if file not in files:
                    files[file] = real, _fingerprint_and_content(real, root)[0]
    if len(files) > MAX_MEMBER_COUNT:
        raise _refused(main, f"it refers to more than {MAX_MEMBER_COUNT} files")
    return _Found(folder, root, main, playlists, files)


def _playlist(path: str, root: str) -> hls.Playlist:
    fingerprint, content = _fingerprint_and_content(path, root, hls.MAX_PLAYLIST_SIZE + 1)
    if fingerprint.size > hls.MAX_PLAYLIST_SIZE:
        raise _refused(path, "it is too large for a playlist")
    try:
        return hls.parse_playlist(content)
    except MalformedDocument as exc:
        raise _refused(path, str(exc)) from None


def _fingerprint_and_content(path: str, root: str, size: int = 0) -> tuple[Fingerprint, bytes]:
    """Open a file below the root; return its fingerprint and up to `size` bytes of it."""
    try:
        with open(open_regular_file(path, root=root), "rb") as file:
            status, content = os.fstat(file.fileno()), file.read(size)
    except (OSError, ValueError) as exc:
        raise unreadable_source(path, exc) from exc
    if status.st_size == 0:
        raise empty_source(path)
    return Fingerprint.of_file(status), content


def _inside(reference: hls.Reference, playlist: str, folder: str) -> tuple[str, str]:
    """Return the path of a reference, and where it leads: below the package's folder."""
    path = _path_of(reference, playlist)
    real = _real(path, f"{playlist}, line {reference.line + 1}: {hls.file_path(reference.uri)}")
    if os.path.commonpath([real, folder]) != folder:
        raise UnsafePath(
            f"{playlist}, line {reference.line + 1}, refers to a file outside {folder}.",
            next_step="Put the whole package below the folder of its playlist.",
        )
    return path, real


def _path_of(reference: hls.Reference, playlist: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(playlist), hls.file_path(reference.uri)))


def _real(path: str, name: str) -> str:
    try:
        return os.path.realpath(path, strict=True)
    except (OSError, ValueError) as exc:
        raise unreadable_source(name, exc) from exc


def _refused(path: str, why: str) -> SourceUnreadable:
    return SourceUnreadable(
        f"{path} cannot be uploaded as an HLS package: {why}.",
        next_step="Package a finished stream with all its files below the playlist's folder.",
    )
