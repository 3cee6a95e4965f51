"""What is in a watched folder: videos, what belongs to them, and why the rest is left alone.

Blocks: it is called in a thread. Symbolic links are never followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from uploader.bulk.manifests import matches_any
from uploader.errors import ConfigurationError
from uploader.protocol.vod import refuses_name
from uploader.sources.hls import is_playlist_path

OWN_PREFIX: Final = ".vodup-"
"""Of the names that files have between the folder and where they are moved to."""

_TEMPORARY: Final = (
    ".part .partial .tmp .temp .filepart .crdownload .download .aspera-ckpt .aspx .swp .lock "
    ".inprogress .incomplete .uploading .!ut .!qb ~"
).split()
"""Ends of names that other programs give to files they have not finished."""

_METADATA: Final = ("json", "yaml", "yml", "xml")
_COVERS: Final = ("jpg", "jpeg", "png", "gif", "webp", "heic")
_SUBTITLES: Final = ("srt", "vtt", "ass", "stl", "ttml")
_COMPANIONS: Final = frozenset((*_METADATA, *_COVERS, *_SUBTITLES))
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})*")

Stamp = tuple[int, int, int, int]
"""Size, time of modification, inode and change time of a file; times in ns."""


@dataclass(frozen=True, slots=True)
class Companions:
    """Files beside a video that belong to it by name; absolute paths.

    Attributes:
        metadata: `movie.json`, `.yaml`, `.yml` or `.xml`, or the same after the whole name
            (`movie.mp4.json`).
        cover: `movie.jpg` or another picture.
        subtitles: language and path, such as ("zh", "/ingest/movie.zh.srt"); the language is ""
            for `movie.srt`.
        marker: the file that says that the video is complete.
    """

    metadata: str | None = None
    cover: str | None = None
    subtitles: tuple[tuple[str, str], ...] = ()
    marker: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All of them."""
        given = (self.metadata, self.cover, *(path for _, path in self.subtitles), self.marker)
        return tuple(path for path in given if path is not None)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A video in the folder.

    Attributes:
        path: absolute.
        signature: stamps of the file and its companions: what must stay the same until it is
            complete.
        is_ready: whether its marker says that it is complete; None: there are no markers.
    """

    path: str
    stamp: Stamp
    signature: tuple[object, ...]
    companions: Companions = field(default_factory=Companions)
    is_ready: bool | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at a folder found.

    Attributes:
        root: device and inode of the folder itself; another one is there after it is mounted
            again.
        skipped: why other files are left alone, by path.
        folders: all folders, for notifications.
        leftovers: files that a killed run has renamed and not moved yet.
    """

    root: tuple[int, int]
    files: list[FoundFile] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRules:
    """Which files are videos to be uploaded.

    Attributes:
        folder: absolute, links resolved.
        include, exclude: patterns as for `folder_stream`.
        ready: name of a marker, such as "{path}.done"; None: there are no markers.
        apart: folders below `folder` that are not looked at; real paths.
        has_inodes: whether inodes stay the same when the file system is mounted again.
    """

    folder: str
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    ready: str | None = None
    apart: frozenset[str] = frozenset()
    has_inodes: bool = True

    def scan(self) -> Scan:
        """Look at the whole folder.

        Raises:
            OSError: the folder itself cannot be read.
        """
        status = os.stat(self.folder)
        found = Scan((status.st_dev, status.st_ino))
        is_first = True

        def failed(error: OSError) -> None:
            if is_first:
                raise error
            found.skipped[os.fsdecode(error.filename or "")] = f"cannot be read: {error.strerror}"

        for folder, names, files, descriptor in os.fwalk(self.folder, onerror=failed):
            is_first = False
            found.folders.append(folder)
            names[:] = [name for name in sorted(names) if self._enters(folder, name)]
            for name in names.copy():
                if stat.S_ISLNK(_status(name, descriptor).st_mode if name else 0):
                    names.remove(name)
                    found.skipped[os.path.join(folder, name)] = "a symbolic link"
            _Folder(self, folder, descriptor, files).add_to(found)
        return found

    def _enters(self, folder: str, name: str) -> bool:
        path = os.path.join(folder, name)
        relative = os.path.relpath(path, self.folder)
        is_apart = name.startswith(".") or path in self.apart
        return not is_apart and not matches_any(relative, self.exclude)

    def marker_of(self, path: str) -> str | None:
        """Return the path of the marker of a file."""
        if self.ready is None:
            return None
        folder, name = os.path.split(path)
        stem = os.path.splitext(path)[0]
        return self.ready.format(path=path, stem=stem, name=name, folder=folder)


def require_marker(template: str) -> str:
    """Return the name of a marker if it names the file and stays beside it.

    Raises:
        ConfigurationError: it does not.
    """
    try:
        shown = ScanRules(folder="/f", ready=template).marker_of("/f/a.mp4") or ""
    except (ValueError, LookupError, AttributeError):
        shown = ""
    if os.path.dirname(shown) != "/f" or shown == "/f/a.mp4" or "a" not in os.path.basename(shown):
        raise ConfigurationError(
            f"--ready: cannot use {template!r}.",
            next_step="Write for example '{path}.done'; the fields are {path}, {stem} (the path "
            "without its extension), {folder} and {name}.",
        )
    return template


class _Folder:
    """One folder while it is looked at. Mutable: what has been looked up."""

    def __init__(
        self, rules: ScanRules, folder: str, descriptor: int, names: Sequence[str]
    ) -> None:
        self._rules, self._folder, self._descriptor = rules, folder, descriptor
        self._below = f"{folder}/".removeprefix(f"{rules.folder.rstrip('/')}/")
        self._names = sorted(names)
        self._companions = _by_stem(self._names)
        self._markers = self._marker_names()

    def _marker_names(self) -> frozenset[str]:
        if self._rules.ready is None:
            return frozenset()
        paths = (os.path.join(self._folder, name) for name in self._names)
        markers = (self._rules.marker_of(path) for path in paths)
        return frozenset(os.path.basename(marker) for marker in markers if marker)

    def add_to(self, found: Scan) -> None:
        """Add the files of this folder."""
        for name in self._names:
            path = os.path.join(self._folder, name)
            if name.startswith(OWN_PREFIX):
                found.leftovers.append(path)
                continue
            try:
                reason = self._reason_to_skip(name, path)
                if reason is None:
                    found.files.append(self._file(name, path))
                elif reason:
                    found.skipped[path] = reason
            except FileNotFoundError:
                continue  # it has just been removed
            except OSError as error:
                found.skipped[path] = f"cannot be read: {error.strerror}"

    def _reason_to_skip(self, name: str, path: str) -> str | None:
        """None: it is a video to be uploaded; "": there is nothing to explain."""
        rules, relative = self._rules, self._below + name
        if name in self._markers or matches_any(relative, rules.exclude):
            return ""
        mode = _status(name, self._descriptor).st_mode
        if stat.S_ISLNK(mode):
            return "a symbolic link"
        if not stat.S_ISREG(mode):
            return "not a regular file"
        if name.startswith(".") or name.lower().endswith(tuple(_TEMPORARY)):
            return "its name says that it is not finished"
        if is_playlist_path(path):
            return "a playlist: upload it with `vodup push`"
        if rules.include:
            return None if matches_any(relative, rules.include) else "not matched by --include"
        if not refuses_name(name):
            return None
        return "" if _extension(name) in _COMPANIONS else "not a type of video that VOD accepts"

    def _file(self, name: str, path: str) -> FoundFile:
        stamp = self._stamp(name)
        companions = self._companions_of(name, path)
        stamps = [self._stamp(os.path.basename(path)) for path in companions.paths]
        is_ready = None
        if self._rules.ready is not None:
            is_ready = companions.marker is not None and self._marks(companions.marker, name)
        return FoundFile(path, stamp, (stamp, companions, *stamps), companions, is_ready)

    def _marks(self, marker: str, name: str) -> bool:
        """Whether the marker is not that of an earlier file of this name."""
        mark, file = (_status(each, self._descriptor) for each in (os.path.basename(marker), name))
        newest = max(mark.st_mtime_ns, mark.st_ctime_ns)
        return stat.S_ISREG(mark.st_mode) and newest >= file.st_mtime_ns

    def _companions_of(self, name: str, path: str) -> Companions:
        """Those after the whole name come first."""
        stem, metadata, cover = os.path.splitext(name)[0], None, None
        subtitles: list[tuple[str, str]] = []
        for beside, rest in (*self._companions.get(name, ()), *self._companions.get(stem, ())):
            beside_path = os.path.join(self._folder, beside)
            if beside_path == path:
                continue
            language, kind = rest.rpartition(".")[0], _extension(beside)
            if kind in _SUBTITLES and (not language or _LANGUAGE.fullmatch(language)):
                subtitles.append((language, beside_path))
            elif not language and kind in _METADATA:
                metadata = metadata or beside_path
            elif not language and kind in _COVERS:
                cover = cover or beside_path
        marker = self._rules.marker_of(path)
        if marker is not None and os.path.basename(marker) not in self._names:
            marker = None
        return Companions(metadata, cover, tuple(dict.fromkeys(subtitles)), marker)

    def _stamp(self, name: str) -> Stamp:
        status = _status(name, self._descriptor)
        return stamp_of(status, has_inodes=self._rules.has_inodes)


def stamp_of(status: os.stat_result, *, has_inodes: bool) -> Stamp:
    """Return what changes when a file does."""
    inode = status.st_ino if has_inodes else 0
    return status.st_size, status.st_mtime_ns, inode, status.st_ctime_ns


def _status(name: str, descriptor: int) -> os.stat_result:
    return os.stat(name, dir_fd=descriptor, follow_symlinks=False)


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _by_stem(names: Sequence[str]) -> Mapping[str, list[tuple[str, str]]]:
    """Files that may belong to others: by each stem, with the rest of the name after it."""
    found: dict[str, list[tuple[str, str]]] = {}
    order = {kind: place for place, kind in enumerate((*_METADATA, *_COVERS, *_SUBTITLES))}
    for name in sorted(names, key=lambda name: order.get(_extension(name), 0)):
        if _extension(name) in _COMPANIONS:
            for stem in _stems(name):
                found.setdefault(stem, []).append((name, name[len(stem) + 1 :]))
    return found


def _stems(name: str) -> Iterator[str]:
    """`movie` and `movie.zh` of `movie.zh.srt`."""
    stem = name.rpartition(".")[0]
    yield stem
    if "." in stem:
        yield stem.rpartition(".")[0]
