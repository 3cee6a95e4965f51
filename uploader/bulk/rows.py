"""Rows of a manifest: from what was written to what is to be uploaded, or why it cannot be."""

from __future__ import annotations

import functools
import json
import os
import re
import stat
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from uploader.errors import ConfigurationError, SourceUnreadable, UnsafePath, VodupError
from uploader.protocol.vod import VideoMeta, problem_of, refuses_name, title_of
from uploader.sources.url_policy import URL, identity_of, parsed_url, shown
from uploader.unexpected import unexpected
from uploader.upload.request import OnSourceChange, default_key

_META: Final = frozenset(
    (
        "title description tags cate_id template_group_id workflow_id storage_location cover_url "
        "user_data app_id reference_id file_name enable_first_frame_cover generate_thumbnail"
    ).split()
)
_NO_META: Final = VideoMeta()
_EMPTY: Final[tuple[object, ...]] = (None, "", [])
COLUMNS: Final = frozenset(["path", "source", "key", "video_id", "priority", *_META])
MAX_PRIORITY: Final = 100

RESULT_COLUMNS: Final = frozenset(
    # What a ledger adds to its rows: a ledger is a manifest as well.
    """
    type id row manifest status at size crc64 etag bucket object_key upload_id part_count
    resumed_part_count renewal_count retry_count sent_bytes verified_by seconds is_earlier_result
    earlier_video_id endpoint congestion hook_failures error message code request_id resumable
    temporary next_step exit_code attempts source_size source_mtime_ns former_video_id
    """.split()
)

_MAX_TEXT: Final = {"path": 4096, "key": 200, "video_id": 64}
_TEMPLATE_FIELDS: Final = frozenset({"stem", "name", "folder", "row"})


FileIdentity = tuple[int, int] | str
"""Device and inode, or a path with its links resolved where there is no file."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as read.

    Attributes:
        number: the line it begins at, or its position where there are no lines; from 1.
        fields: by column; empty when the row could not be read.
        problem: why it could not be read.
    """

    number: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row, valid or refused.

    Attributes:
        manifest: where it comes from, for people and for the ledger.
        key: identifies the row in every run; "" for a refused row.
        upload_key: of the upload in the state; None: the state derives it from `video_id`.
        path: absolute, or a URL; "" where there is none.
        columns: what a corrected row would have to give again.
        stamp: size and time of modification (ns) of the file when the row was checked.
        error: why the row is refused.
        priority: from -100 to 100; higher is uploaded first. None: the row gives none.
    """

    manifest: str
    number: int
    key: str = ""
    upload_key: str | None = None
    path: str = ""
    video_id: str | None = None
    meta: VideoMeta | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    stamp: tuple[int, int] | None = None
    error: VodupError | None = None
    priority: int | None = None

    @property
    def where(self) -> str:
        """Manifest and line, for people."""
        return f"{self.manifest}:{self.number}"

    @property
    def source_name(self) -> str:
        """The path, or the URL without anything secret in it."""
        return shown_path(self.path)


@dataclass(frozen=True, slots=True)
class Root:
    """The folder that a batch's paths are relative to and must stay below.

    Attributes:
        folder: absolute.
        follow_symlinks: whether symbolic links may lead out of it.
    """

    folder: str
    follow_symlinks: bool = False

    @classmethod
    def at(cls, folder: str | os.PathLike[str], *, follow_symlinks: bool = False) -> Root:
        """Make a root; `folder` may be relative to the working directory."""
        return cls(os.path.abspath(folder), follow_symlinks)

    def absolute(self, path: str) -> str:
        """Make a row's path absolute, without looking at the disk.

        Raises:
            UnsafePath: the path as written leaves the root.
        """
        absolute = os.path.normpath(path if path.startswith(os.sep) else f"{self.folder}/{path}")
        if not _is_below(absolute, self.folder):
            raise UnsafePath(
                f"{path} is outside of {self.folder}.",
                next_step="To upload files of another folder, pass it with --root FOLDER.",
            )
        # normpath makes "b" of "a/../b", which is another file if "a" is a link.
        if ".." in path and ".." in path.split(os.sep):
            raise UnsafePath(f"{path} contains '..'.", next_step="Write the path without '..'.")
        return absolute

    @property
    def real_folder(self) -> str | None:
        """What files must be in when they are opened, links resolved; None: any folder."""
        return None if self.follow_symlinks else _real(self.folder)

    def resolved(self, absolute: str) -> tuple[str, os.stat_result]:
        """Return the path with links resolved, and what the file system says of the file.

        Raises:
            UnsafePath: a symbolic link leads out of the root.
            SourceUnreadable: it is missing, empty or not a regular file.
        """
        try:
            real, status = _resolved(absolute)
            if not self.follow_symlinks and not _is_below(real, _real(self.folder)):
                raise UnsafePath(
                    f"{absolute} leads out of {self.folder} by a symbolic link.",
                    next_step="To follow such links, pass --follow-symlinks.",
                )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise SourceUnreadable(f"{absolute} cannot be read: {reason}.") from error
        if not stat.S_ISREG(status.st_mode):
            raise SourceUnreadable(f"{absolute} is not a regular file.")
        if status.st_size == 0:
            raise SourceUnreadable(f"{absolute} is empty.")
        return real, status


def _resolved(absolute: str) -> tuple[str, os.stat_result]:
    """Resolve a path and stat it; the links of each folder are looked up once."""
    folder, name = os.path.split(absolute)
    real = os.path.join(_real(folder), name)
    status = os.lstat(real)
    if stat.S_ISLNK(status.st_mode):
        real = os.path.realpath(real, strict=True)
        status = os.stat(real)
    return real, status


def identity_of_path(absolute: str) -> str:
    """As `path_identity` of the sources; the links of each folder are looked up once."""
    folder, name = os.path.split(absolute)
    return os.path.join(_folder_identity(folder), name)


_folder_identity: Final = functools.lru_cache(maxsize=1024)(os.path.realpath)


@functools.lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    return os.path.realpath(folder, strict=True)


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """What rows are checked against.

    Attributes:
        root: where paths may lead.
        scope: of the uploader; part of the key of rows that give none.
        title_template: for rows without a title: "{stem}", "{name}", "{folder}", "{row}".
        defaults: for the fields a row does not give.
        outputs: the files that the batch writes; no row may be one of them.
        takes_any_type: VOD decides whether it accepts the type of a file.
        on_source_change: what becomes of a row whose file has changed since it was verified.
    """

    root: Root
    scope: str = ""
    title_template: str | None = None
    defaults: VideoMeta = field(default_factory=VideoMeta)
    outputs: frozenset[FileIdentity] = frozenset()
    takes_any_type: bool = False
    on_source_change: OnSourceChange = "fail"

    def identify(self, raw: RawRow, manifest: str) -> Row:
        """Find out which upload a row is; enough for rows that are done already.

        Never raises for the content of a row: that is `Row.error`.
        """
        try:
            if raw.problem is not None:
                raise _wrong(raw.problem)
            return self._identified(raw, manifest)
        except VodupError as error:
            return Row(manifest, raw.number, columns=_storable(raw.fields), error=error)
        except Exception as bug:
            return Row(manifest, raw.number, columns=_storable(raw.fields), error=unexpected(bug))

    def _identified(self, raw: RawRow, manifest: str) -> Row:
        columns = {n: v for n, v in raw.fields.items() if v not in _EMPTY and n in COLUMNS}
        path = identity = _path_of(columns)
        if is_url(path):
            identity = identity_of(parsed_url(path))
        else:
            path = self.root.absolute(path)
            identity = identity_of_path(path)
        key = _text(columns, "key")
        video_id = _text(columns, "video_id")
        if key is None and video_id is None:
            key = default_key(self.scope, identity)
        columns["path"] = path
        columns.pop("source", None)
        return Row(
            manifest,
            raw.number,
            key=key or f"video-{video_id}",
            upload_key=key,
            path=path,
            video_id=video_id,
            columns=columns,
            priority=_priority(columns),
        )

    def describe(self, row: Row) -> Row:
        """Add the parameters of CreateUploadVideo, checked. Never raises for the content."""
        try:
            meta = self._meta_of(row)
            name = meta.file_name or os.path.basename(_path_within(row.path))
            if row.video_id is None and not self.takes_any_type and refuses_name(name):
                raise _wrong(
                    f"VOD does not accept files like {name!r}.",
                    "Give file_name with an extension that VOD accepts, such as mp4, mov, mkv, "
                    "flv or ts.",
                )
        except VodupError as error:
            return replace(row, error=error)
        except Exception as bug:
            return replace(row, error=unexpected(bug))
        return replace(row, meta=meta)

    def _meta_of(self, row: Row) -> VideoMeta:
        values: dict[str, Any] = {}
        for name in row.columns.keys() & _META:
            reader = _META_READERS.get(name) or _text
            values[name] = reader(row.columns, name)
        if "title" not in values and self.defaults.title is None and self.title_template:
            values["title"] = _title(self.title_template, row.path, row.number)
        if not values:
            return self.defaults
        has_defaults = self.defaults != _NO_META
        meta = replace(self.defaults, **values) if has_defaults else VideoMeta(**values)
        if (problem := problem_of(meta)) is not None:
            raise _wrong(f"{problem[0].upper()}{problem[1:]}.")
        return meta


def is_url(path: str) -> bool:
    """Whether a row's path is read over the network."""
    return "://" in path


def shown_path(path: str) -> str:
    """A path, or a URL without anything secret in it: a presigned URL is a key."""
    if not is_url(path):
        return path
    try:
        return shown(URL(path))
    except ValueError:
        return f"{path.partition('://')[0]}://…"


def shown_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for people and programs that do not need to read its URLs again."""
    urls = {name: shown_path(str(record[name])) for name in ("path", "cover_url") if name in record}
    return {**record, **urls}


def _path_within(path: str) -> str:
    """A path, or the path of a URL."""
    return parsed_url(path).path if is_url(path) else path


def _wrong(message: str, next_step: str = "Correct the row and run again.") -> ConfigurationError:
    return ConfigurationError(message, next_step=next_step)


def _path_of(columns: Mapping[str, Any]) -> str:
    path, source = _text(columns, "path"), _text(columns, "source")
    if path is not None and source is not None and path != source:
        raise _wrong("The columns path and source name different files.")
    if (named := path or source) is None:
        raise _wrong("The row names no path.")
    return named


def _text(columns: Mapping[str, Any], name: str) -> str | None:
    value = columns.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _wrong(f"{name} must be text, not {_kind(value)}.")
    if "\0" in value:
        raise _wrong(f"{name} has a NUL character.")
    if len(value) > (most := _MAX_TEXT.get(name, 65536)):
        raise _wrong(f"{name} has {len(value):,} characters; the maximum is {most:,}.")
    if not value.isascii():
        _require_encodable(value, name)
    return value


def _require_encodable(value: str, name: str) -> None:
    """Refuse lone surrogates, but in paths those that stand for bytes of a file name."""
    is_path = name in ("path", "source") and not is_url(value)
    try:
        value.encode(errors="surrogateescape" if is_path else "strict")
    except UnicodeEncodeError:
        raise _wrong(f"{name} is not UTF-8 text.") from None


def _number(columns: Mapping[str, Any], name: str) -> int | None:
    value = columns.get(name)
    if isinstance(value, str):
        value = value.strip()
        if not (value.isascii() and value.isdecimal() and len(value) <= 18):
            raise _wrong(f"{name} must be a whole number, not {value[:40]!r}.")
        return int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong(f"{name} must be a whole number, not {_kind(value)}.")
    return value


def _priority(columns: Mapping[str, Any]) -> int | None:
    value = columns.get("priority")
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,3}", value.strip()):
        value = int(value)
    if value is None or (type(value) is int and abs(value) <= MAX_PRIORITY):
        return value
    raise _wrong(f"priority must be a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}.")


def _tags(columns: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    value = columns.get(name)
    if value is None:
        return None
    tags = value.split(",") if isinstance(value, str) else value
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
        raise _wrong("tags must be text with commas, or a list of texts.")
    for tag in tags:
        _require_encodable(tag, name)
    return tuple(filter(None, (tag.strip() for tag in tags)))


def _json(columns: Mapping[str, Any], name: str) -> str | None:
    value = columns.get(name)
    return json.dumps(value) if isinstance(value, dict) else _text(columns, name)


def _boolean(columns: Mapping[str, Any], name: str) -> bool | None:
    value = columns.get(name)
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    if value is None or isinstance(value, bool):
        return value
    raise _wrong(f"{name} must be true or false.")


_META_READERS: Final[dict[str, Callable[[Mapping[str, Any], str], Any]]] = {
    "cate_id": _number,
    "enable_first_frame_cover": _boolean,
    "generate_thumbnail": _boolean,
    "tags": _tags,
    "user_data": _json,
}


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "an object"}
    return kinds.get(type(value), "a list" if isinstance(value, list) else "something else")


def _storable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a ledger can hold of a refused row."""
    known = {name: value for name, value in fields.items() if name in COLUMNS}
    return {
        name: f"{value[:4096]}…" if isinstance(value, str) and len(value) > 4096 else value
        for name, value in known.items()
        if isinstance(value, str | int | float)
    }


def _title(template: str, path: str, number: int) -> str:
    folder, name = os.path.split(_path_within(path))
    words = {
        "stem": name.rpartition(".")[0] or name,
        "name": name,
        "folder": os.path.basename(folder),
        "row": str(number),
    }
    return title_of(template.format_map(words).encode(errors="replace").decode())


def require_title_template(template: str) -> str:
    """Return `template` if it names only fields that exist.

    Raises:
        ConfigurationError: it does not.
    """
    try:
        pieces = list(string.Formatter().parse(template))
        plain = all(name is None or name in _TEMPLATE_FIELDS for _, name, _, _ in pieces)
        if plain and not any(spec or conversion for _, _, spec, conversion in pieces):
            return template
    except ValueError:
        pass
    raise ConfigurationError(
        f"--title-template: cannot parse {template!r}.",
        next_step="Write for example '{stem}'; the fields are {stem}, {name}, {folder} and {row}.",
    )
