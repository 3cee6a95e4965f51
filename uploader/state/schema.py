"""The tables, for SQLite and PostgreSQL alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

__all__ = ["SCHEMA_VERSION", "db_now", "lease", "metadata", "orphan", "part", "store", "upload"]

SCHEMA_VERSION: Final = 1

metadata = sa.MetaData()

_RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts only in INTEGER


class db_now(FunctionElement[float]):
    """Seconds since 1970 on the database's clock, the one all its users share."""

    type = sa.Double()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **kwargs: Any) -> str:
    # Not now(): that is when the transaction began, which may have waited for a lock since.
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


store = sa.Table(
    "vodup_store",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("store_id", sa.Text, nullable=False),  # names lock files of this store
    # Counted for the whole store: the epoch of a key grows even if its record was deleted
    # in between. The row also serialises claims.
    sa.Column("epoch", sa.BigInteger, nullable=False),
)

lease = sa.Table(
    "vodup_lease",
    metadata,
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
)

upload = sa.Table(
    "vodup_upload",
    metadata,
    sa.Column("id", _RowId, primary_key=True, autoincrement=True),  # grows: newest is largest
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("reference_id", sa.Text),
    sa.Column("meta", sa.Text),
    sa.Column("video_id", sa.Text, unique=True),
    sa.Column("endpoint", sa.Text),
    sa.Column("region", sa.Text),
    sa.Column("bucket", sa.Text),
    sa.Column("object_key", sa.Text),
    sa.Column("upload_id", sa.Text),
    sa.Column("plan", sa.Text),
    sa.Column("receipt", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("is_overwrite", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sqlite_autoincrement=True,
)

part = sa.Table(
    "vodup_part",
    metadata,
    sa.Column("upload", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("etag", sa.Text, nullable=False),
    sa.Column("crc64", sa.BigInteger, nullable=False),  # two's complement: no dialect has uint64
    sa.Column("md5", sa.Text),
    sqlite_with_rowid=False,
)

orphan = sa.Table(
    "vodup_orphan",
    metadata,
    sa.Column("upload_id", sa.Text, primary_key=True),
    sa.Column("video_id", sa.Text),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("region", sa.Text),
    sa.Column("bucket", sa.Text, nullable=False),
    sa.Column("object_key", sa.Text, nullable=False),
    sa.Column("noted_at", sa.Double, nullable=False),
)
