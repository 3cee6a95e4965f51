"""What survives a restart: videos, credentials, uploads, parts and objects in one SQLite file.

Bodies are files beside it, one per part; an object is the list of its parts' files, so that
completing an upload copies nothing. Every write is one short transaction on the event loop;
``synchronous=OFF`` survives the death of the process, which is all a development server needs.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS videos(
    video_id TEXT PRIMARY KEY, title TEXT, file_name TEXT, bucket TEXT, object_key TEXT,
    object_prefix TEXT, reference_id TEXT UNIQUE, status TEXT, created_at REAL,
    finished_at REAL, generation INTEGER, refresh_count INTEGER, details TEXT);
CREATE TABLE IF NOT EXISTS credentials(
    access_key_id TEXT PRIMARY KEY, secret TEXT, token TEXT, video_id TEXT, generation INTEGER,
    scopes TEXT, issued_at REAL, expires_at REAL);
CREATE TABLE IF NOT EXISTS uploads(
    upload_id TEXT PRIMARY KEY, bucket TEXT, object_key TEXT, initiated_at REAL,
    content_type TEXT, is_sequential INTEGER, kept_headers TEXT);
CREATE TABLE IF NOT EXISTS parts(
    upload_id TEXT, part_number INTEGER, path TEXT, size INTEGER, etag TEXT, crc64 TEXT,
    modified_at REAL, PRIMARY KEY(upload_id, part_number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects(
    bucket TEXT, object_key TEXT, size INTEGER, etag TEXT, crc64 TEXT, kind TEXT,
    content_type TEXT, modified_at REAL, files TEXT, kept_headers TEXT,
    PRIMARY KEY(bucket, object_key));
CREATE TABLE IF NOT EXISTS url_jobs(job_id TEXT PRIMARY KEY, created_at REAL, document TEXT);
"""


@dataclass(frozen=True, slots=True)
class Video:
    """One video of the account. Instants are seconds of the Unix epoch."""

    video_id: str
    title: str
    file_name: str
    bucket: str
    object_key: str
    object_prefix: str
    reference_id: str | None
    status: str
    created_at: float
    finished_at: float
    generation: int
    refresh_count: int
    details: tuple[tuple[str, str], ...] = ()
    """Further parameters of Create and Update that are shown again, such as Tags."""

    def detail(self, name: str) -> str:
        """One of them, or an empty string."""
        return dict(self.details).get(name, "")


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """One set of STS credentials: its video, what it may write, and until when."""

    access_key_id: str
    secret: str
    token: str
    video_id: str
    generation: int
    scopes: tuple[str, ...]
    """Resources as ``bucket/key``; one that ends in ``/`` covers everything below it."""
    issued_at: float
    expires_at: float

    def may_touch(self, bucket: str, object_key: str) -> bool:
        """Whether the policy of this token covers the object."""
        resource = f"{bucket}/{object_key}"
        return any(
            resource == scope or (scope.endswith("/") and resource.startswith(scope))
            for scope in self.scopes
        )

    def may_list(self, bucket: str) -> bool:
        """Whether the policy of this token covers something in the bucket."""
        return any(scope.startswith(bucket + "/") for scope in self.scopes)


@dataclass(frozen=True, slots=True)
class Upload:
    """One open multipart upload."""

    upload_id: str
    bucket: str
    object_key: str
    initiated_at: float
    content_type: str
    is_sequential: bool
    kept_headers: tuple[tuple[str, str], ...] = ()
    """Names in lower case and values, for the object."""


@dataclass(frozen=True, slots=True)
class Part:
    """One stored part; an empty path means that its bytes were discarded."""

    upload_id: str
    part_number: int
    path: str
    size: int
    etag: str
    crc64: int
    modified_at: float


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One finished object; ``files`` are (path, size in bytes) in order."""

    bucket: str
    object_key: str
    size: int
    etag: str
    crc64: int
    kind: str
    content_type: str
    modified_at: float
    files: tuple[tuple[str, int], ...]
    kept_headers: tuple[tuple[str, str], ...] = ()
    """Names in lower case and values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlJob:
    """One URL whose file VOD fetches. Instants are seconds of the Unix epoch."""

    job_id: str
    source_url: str
    created_at: float
    title: str
    extension: str
    details: Mapping[str, str]
    """Parameters of the video that are shown again, such as Tags."""
    status: str = "PENDING"
    media_id: str = ""
    size: int = 0
    completed_at: float = 0.0
    error_code: str = ""
    error_message: str = ""


class Storage:
    """The tables and the folder of bodies. Mutable; SQLite serialises its callers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bodies = folder / "bodies"
        self._bodies.mkdir(parents=True, exist_ok=True)
        self._bodies.chmod(0o700)
        database = folder / "devserver.sqlite3"
        database.touch(mode=0o600)
        database.chmod(0o600)  # what SQLite writes beside it has its mode
        self._db = sqlite3.connect(
            database,
            isolation_level=None,
            check_same_thread=False,
            # From Python 3.13 on two threads may get the same cached statement at once, and
            # one of them the row of the other.
            cached_statements=0,
        )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.executescript(_SCHEMA)
        self._remove_strays()

    def close(self) -> None:
        """Close the database; the files stay."""
        self._db.close()

    def _remove_strays(self) -> None:
        """Remove incomplete bodies that a process which died left behind."""
        for stray in self._bodies.glob("*.tmp"):
            stray.unlink()

    def remembered(self, name: str, fresh: str) -> str:
        """The value stored under ``name``; the first call stores ``fresh``."""
        self._db.execute("INSERT OR IGNORE INTO meta VALUES(?, ?)", (name, fresh))
        row = self._db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return str(row[0])

    def count(self, name: str) -> int:
        """Add one to a number that is kept, and return it; the first is 1."""
        number = int(self.remembered(name, "0")) + 1
        self._db.execute("UPDATE meta SET value=? WHERE name=?", (str(number), name))
        return number

    # files that VOD fetches

    def save_url_job(self, job: UrlJob) -> None:
        """Insert or replace a job."""
        row = (job.job_id, job.created_at, json.dumps(dataclasses.asdict(job)))
        self._db.execute(_upsert("url_jobs", row), row)

    def url_jobs(self) -> tuple[UrlJob, ...]:
        """All jobs, oldest first."""
        rows = self._db.execute("SELECT document FROM url_jobs ORDER BY created_at, rowid")
        return tuple(UrlJob(**json.loads(document)) for (document,) in rows)

    # bodies

    def new_body(self) -> Path:
        """A new path for a body that is being received."""
        return self._bodies / f"{secrets.token_hex(16)}.tmp"

    def keep_body(self, path: Path) -> str:
        """Rename a finished body to its final name, atomically; return the name to record."""
        kept = path.with_suffix(".body")
        path.rename(kept)
        return kept.name

    def body_path(self, name: str) -> Path | None:
        """Where a recorded body is; ``None`` when it was discarded."""
        return self._bodies / name if name else None

    def drop_bodies(self, names: Iterable[str]) -> None:
        """Delete bodies nothing refers to any more."""
        for name in names:
            if name:
                (self._bodies / name).unlink(missing_ok=True)

    # videos

    def save_video(self, video: Video) -> None:
        """Insert or replace a video."""
        *values, details = (getattr(video, name) for name in Video.__slots__)
        row = (*values, json.dumps(details))
        self._db.execute(_upsert("videos", row), row)

    def video(self, video_id: str) -> Video | None:
        """The video of this id."""
        return self._one_video("SELECT * FROM videos WHERE video_id=?", video_id)

    def video_by_reference(self, reference_id: str) -> Video | None:
        """The video of this custom id."""
        return self._one_video("SELECT * FROM videos WHERE reference_id=?", reference_id)

    def videos(self) -> tuple[Video, ...]:
        """All videos, oldest first."""
        rows = self._db.execute("SELECT * FROM videos ORDER BY created_at")
        return tuple(map(_video, rows))

    def _one_video(self, query: str, *values: str) -> Video | None:
        row = self._db.execute(query, values).fetchone()
        return _video(row) if row else None

    # credentials

    def save_credential(self, credential: Credential) -> None:
        """Store issued credentials."""
        values = (
            credential.access_key_id,
            credential.secret,
            credential.token,
            credential.video_id,
            credential.generation,
            json.dumps(credential.scopes),
            credential.issued_at,
            credential.expires_at,
        )
        self._db.execute(_upsert("credentials", values), values)

    def credential(self, access_key_id: str) -> Credential | None:
        """The credentials of this key id."""
        row = self._db.execute(
            "SELECT * FROM credentials WHERE access_key_id=?", (access_key_id,)
        ).fetchone()
        return _credential(row) if row else None

    def credentials(self) -> tuple[Credential, ...]:
        """All credentials ever issued."""
        return tuple(_credential(row) for row in self._db.execute("SELECT * FROM credentials"))

    def expire_credentials(self, at: float, video_id: str | None = None) -> None:
        """Expire credentials at ``at`` at the latest, those of one video or all."""
        self._db.execute(
            "UPDATE credentials SET expires_at=:at WHERE expires_at>:at AND "
            "(:video_id IS NULL OR video_id=:video_id)",
            {"at": at, "video_id": video_id},
        )

    # multipart uploads

    def save_upload(self, upload: Upload) -> None:
        """Store an open upload."""
        *values, kept_headers = (getattr(upload, name) for name in Upload.__slots__)
        row = (*values, json.dumps(kept_headers))
        self._db.execute(_upsert("uploads", row), row)

    def upload(self, upload_id: str) -> Upload | None:
        """The open upload of this id."""
        row = self._db.execute("SELECT * FROM uploads WHERE upload_id=?", (upload_id,)).fetchone()
        return _upload(row) if row else None

    def uploads(self, bucket: str) -> tuple[Upload, ...]:
        """The open uploads of a bucket in the order ListMultipartUploads names them."""
        rows = self._db.execute(
            "SELECT * FROM uploads WHERE bucket=? ORDER BY object_key, upload_id", (bucket,)
        )
        return tuple(map(_upload, rows))

    def open_upload_count(self) -> int:
        """How many multipart uploads are open."""
        return int(self._db.execute("SELECT COUNT(*) FROM uploads").fetchone()[0])

    def remove_upload(self, upload_id: str) -> None:
        """Remove an upload and delete its parts."""
        names = [part.path for part in self.parts(upload_id)]
        with self._transaction():
            self._forget_upload(upload_id)
        self.drop_bodies(names)

    def finish_upload(self, upload_id: str, stored: StoredObject) -> None:
        """Turn an upload into an object, all or nothing; parts it does not use are deleted."""
        used = {path for path, _ in stored.files}
        unused = {part.path for part in self.parts(upload_id)} - used
        replaced = self._bodies_at(stored.bucket, stored.object_key)
        with self._transaction():
            self._put_object(stored)
            self._forget_upload(upload_id)
        self.drop_bodies([*unused, *replaced])

    def _forget_upload(self, upload_id: str) -> None:
        self._db.execute("DELETE FROM uploads WHERE upload_id=?", (upload_id,))
        self._db.execute("DELETE FROM parts WHERE upload_id=?", (upload_id,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        with self._db:
            yield

    def save_part(self, part: Part) -> None:
        """Store a part; one of the same number is replaced, the last to finish wins."""
        earlier = self.part(part.upload_id, part.part_number)
        values = (
            part.upload_id,
            part.part_number,
            part.path,
            part.size,
            part.etag,
            str(part.crc64),
            part.modified_at,
        )
        self._db.execute(_upsert("parts", values), values)
        if earlier is not None:
            self.drop_bodies([earlier.path])

    def part(self, upload_id: str, part_number: int) -> Part | None:
        """One stored part."""
        row = self._db.execute(
            "SELECT * FROM parts WHERE upload_id=? AND part_number=?", (upload_id, part_number)
        ).fetchone()
        return _part(row) if row else None

    def parts(self, upload_id: str) -> tuple[Part, ...]:
        """The stored parts of an upload by number."""
        rows = self._db.execute(
            "SELECT * FROM parts WHERE upload_id=? ORDER BY part_number", (upload_id,)
        )
        return tuple(_part(row) for row in rows)

    # objects

    def save_object(self, stored: StoredObject) -> None:
        """Store an object under its key; an earlier object is deleted."""
        replaced = self._bodies_at(stored.bucket, stored.object_key)
        self._put_object(stored)
        self.drop_bodies(replaced)

    def _bodies_at(self, bucket: str, object_key: str) -> tuple[str, ...]:
        stored = self.object(bucket, object_key)
        return tuple(path for path, _ in stored.files) if stored else ()

    def _put_object(self, stored: StoredObject) -> None:
        values = (
            stored.bucket,
            stored.object_key,
            stored.size,
            stored.etag,
            str(stored.crc64),
            stored.kind,
            stored.content_type,
            stored.modified_at,
            json.dumps(stored.files),
            json.dumps(stored.kept_headers),
        )
        self._db.execute(_upsert("objects", values), values)

    def object(self, bucket: str, object_key: str) -> StoredObject | None:
        """The object at a key."""
        row = self._db.execute(
            "SELECT * FROM objects WHERE bucket=? AND object_key=?", (bucket, object_key)
        ).fetchone()
        return _object(row) if row else None

    def remove_object(self, bucket: str, object_key: str) -> None:
        """Delete an object, if it is there."""
        names = self._bodies_at(bucket, object_key)
        self._db.execute(
            "DELETE FROM objects WHERE bucket=? AND object_key=?", (bucket, object_key)
        )
        self.drop_bodies(names)

    def objects(self, bucket: str) -> tuple[StoredObject, ...]:
        """All objects of a bucket."""
        rows = self._db.execute("SELECT * FROM objects WHERE bucket=?", (bucket,))
        return tuple(map(_object, rows))

    def content(self, stored: StoredObject) -> bytes:
        """All bytes of an object; none if bodies are discarded."""
        paths = (self.body_path(name) for name, _ in stored.files)
        return b"".join(path.read_bytes() for path in paths if path is not None)


def _upsert(table: str, values: tuple[object, ...]) -> str:
    return f"INSERT OR REPLACE INTO {table} VALUES({','.join('?' * len(values))})"


def _credential(row: tuple[object, ...]) -> Credential:
    values = list(row)
    values[5] = tuple(json.loads(str(row[5])))
    return Credential(*values)  # type: ignore[arg-type]  # the table's columns are the fields


def _video(row: tuple[object, ...]) -> Video:
    values = [*row[:-1], _pairs(row[-1])]
    return Video(*values)  # type: ignore[arg-type]


def _upload(row: tuple[object, ...]) -> Upload:
    *values, kept_headers = row
    values.append(_pairs(kept_headers))
    return Upload(*values)  # type: ignore[arg-type]


def _part(row: tuple[object, ...]) -> Part:
    values = list(row)
    values[5] = _unsigned(row[5])
    return Part(*values)  # type: ignore[arg-type]


def _object(row: tuple[object, ...]) -> StoredObject:
    values = list(row)
    values[4] = _unsigned(row[4])
    values[8] = tuple((str(path), int(size)) for path, size in json.loads(str(row[8])))
    values[9] = _pairs(row[9])
    return StoredObject(*values)  # type: ignore[arg-type]


def _pairs(text: object) -> tuple[tuple[str, str], ...]:
    return tuple((str(name), str(value)) for name, value in json.loads(str(text)))


def _unsigned(value: object) -> int:
    """CRCs have 64 bits without a sign; SQLite's integers have one, so they are text."""
    return int(str(value))
