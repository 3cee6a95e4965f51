"""HLS playlists: finds the files they refer to, and rewrites the references (RFC 8216).

A playlist is rewritten in place: what is not a reference stays the same, to the byte, so
unknown tags are preserved.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from uploader.protocol.documents import MalformedDocument, clean_text

MAX_PLAYLIST_SIZE: Final = 16 * 1024 * 1024
"""Bytes; 24 hours in 2-second segments of 100 characters are 4.3 MB."""

MAX_NAME_LENGTH: Final = 200
"""OSS accepts keys of 1,023 bytes, of which VOD's prefix needs some."""

_MASTER_TAGS: Final = frozenset(
    # RFC 8216 §4.3.4: these appear in master playlists only.
    "#EXT-X-MEDIA #EXT-X-STREAM-INF #EXT-X-I-FRAME-STREAM-INF #EXT-X-SESSION-DATA "
    "#EXT-X-SESSION-KEY".split()
)
_PLAYLIST_TAGS: Final = frozenset({"#EXT-X-MEDIA", "#EXT-X-I-FRAME-STREAM-INF"})
_FILE_TAGS: Final = frozenset({"#EXT-X-MAP", "#EXT-X-PART"})
_KEY_TAGS: Final = frozenset({"#EXT-X-KEY", "#EXT-X-SESSION-KEY", "#EXT-X-SESSION-DATA"})
"""These may refer to files outside the package: a key server, a licence service."""

_LIVE_TAGS: Final = frozenset({"#EXT-X-PRELOAD-HINT", "#EXT-X-RENDITION-REPORT", "#EXT-X-SKIP"})
_ATTRIBUTE: Final = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^",]*)(?:,|\s*$)')
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|//")
_UNSAFE_IN_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Reference:
    """One URI in a playlist.

    Attributes:
        uri: as it is written.
        line, start: where, the line counted from 0 and the character within it.
        is_playlist: whether it refers to another playlist.
    """

    uri: str
    line: int
    start: int
    is_playlist: bool


@dataclass(frozen=True, slots=True)
class Playlist:
    """A playlist, line by line.

    Attributes:
        lines: without the line feeds between them; carriage returns stay.
        references: those to files of the package, in the order of the text; without keys
            and session data on a server.
        is_master: whether it lists playlists instead of segments.
    """

    lines: tuple[str, ...]
    references: tuple[Reference, ...]
    is_master: bool


def parse_playlist(data: bytes) -> Playlist:
    """Read a whole, finished playlist.

    Raises:
        MalformedDocument: it is no playlist, it is still being written (no
            #EXT-X-ENDLIST), or it needs files that are not beside it.
    """
    lines = _lines_of(data)
    tags = {line.partition(":")[0].rstrip() for line in lines if line.startswith("#EXT")}
    _refuse_unfinished(tags)
    is_master = bool(tags & _MASTER_TAGS)
    references = tuple(_references(lines, is_master=is_master))
    if not references:
        raise MalformedDocument("it refers to no file")
    return Playlist(lines, references, is_master)


def rewritten(playlist: Playlist, name_of: Callable[[Reference], str]) -> bytes:
    """Return the playlist with every reference replaced by `name_of(reference)`."""
    lines = list(playlist.lines)
    for reference in reversed(playlist.references):  # from the end: places before stay valid
        line, end = lines[reference.line], reference.start + len(reference.uri)
        lines[reference.line] = line[: reference.start] + name_of(reference) + line[end:]
    return "\n".join(lines).encode()


def file_path(uri: str) -> str:
    """Return the relative path of a URI: decoded, without query and fragment."""
    return unquote(re.split(r"[?#]", uri, maxsplit=1)[0], errors="surrogateescape")


def flat_names(paths: Iterable[str]) -> Mapping[str, str]:
    """Give each relative path a name of its own that is safe in a key and in a URI.

    The last component where that is unique, else all of them joined: "v0/1.ts" becomes
    "v0-1.ts" where there is a "v1/1.ts". The same paths get the same names, always.
    """
    paths = list(dict.fromkeys(paths))
    bases = [_safe(path.rpartition("/")[2]) for path in paths]
    shared = {base for base, count in Counter(bases).items() if count > 1}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path, base in zip(paths, bases, strict=True):
        name = _unused(_safe(path.replace("/", "-")) if base in shared else base, taken)
        names[path] = name
        taken.add(name)
    return names


def _lines_of(data: bytes) -> tuple[str, ...]:
    if len(data) > MAX_PLAYLIST_SIZE:
        raise MalformedDocument(f"it is larger than {MAX_PLAYLIST_SIZE} bytes")
    try:
        lines = tuple(data.decode("utf-8").split("\n"))
    except UnicodeDecodeError:
        raise MalformedDocument("it is not UTF-8") from None
    if lines[0].rstrip() != "#EXTM3U":
        raise MalformedDocument("its first line is not #EXTM3U")
    return lines


def _refuse_unfinished(tags: set[str]) -> None:
    if "#EXT-X-DEFINE" in tags:
        raise MalformedDocument("it uses variables (#EXT-X-DEFINE), which are not supported")
    if tags & _LIVE_TAGS or not (tags & _MASTER_TAGS or "#EXT-X-ENDLIST" in tags):
        raise MalformedDocument("it is live or unfinished: there is no #EXT-X-ENDLIST")


def _references(lines: tuple[str, ...], *, is_master: bool) -> Iterator[Reference]:
    for number, line in enumerate(lines):
        found = _tag_reference(line, number) if line.startswith("#") else None
        if line.strip() and not line.startswith("#"):
            uri = line.strip()
            found = Reference(uri, number, line.index(uri), is_master)
        if found is None:
            continue
        is_key = line.partition(":")[0] in _KEY_TAGS
        if not (is_key and _SCHEME.match(found.uri)):  # a key server is no file of the package
            yield _local(found)


def _tag_reference(line: str, number: int) -> Reference | None:
    tag, _, attributes = line.partition(":")
    if tag not in _PLAYLIST_TAGS | _FILE_TAGS | _KEY_TAGS:
        return None
    for attribute in _ATTRIBUTE.finditer(attributes):
        if attribute[1] == "URI" and attribute[2].startswith('"'):
            start = len(tag) + 1 + attribute.start(2) + 1
            return Reference(attribute[2][1:-1], number, start, tag in _PLAYLIST_TAGS)
    return None


def _local(reference: Reference) -> Reference:
    where = f"line {reference.line + 1}"
    if _SCHEME.match(reference.uri) or reference.uri.startswith("/"):
        raise MalformedDocument(
            f"{where}: {clean_text(reference.uri, 80)} is not a path relative to the playlist"
        )
    if not file_path(reference.uri):
        raise MalformedDocument(f"{where} names no file")
    return reference


def _safe(path: str) -> str:
    """Letters, digits, dots, dashes: the same in a key, a URI and a file system."""
    name = _UNSAFE_IN_NAME.sub("_", path).lstrip(".") or "_"
    return name if len(name) <= MAX_NAME_LENGTH else name[-MAX_NAME_LENGTH:].lstrip(".")


def _unused(name: str, taken: set[str]) -> str:
    stem, dot, extension = name.rpartition(".")
    count = 1
    while name in taken:
        count += 1
        name = f"{stem}-{count}{dot}{extension}"
    return name
