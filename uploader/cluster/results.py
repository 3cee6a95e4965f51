"""How rows ended: read from the database in the order of its transactions, none missed.

A record carries the id of the transaction that wrote it. All transactions below the
oldest one still running have ended, so what they wrote can be read once and for all, and
the next look begins there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from uploader.bulk.ledger import CompactMap
from uploader.cluster.database import in_our_words

if TYPE_CHECKING:
    from uploader.cluster.database import Pool

__all__ = ["Awaited", "Results", "record_of"]

_LOOK_S: Final = 1.0
_PAGE: Final = 1000

_FRONTIER: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"

_ENDED: Final = """
SELECT id, manifest, number, record::text FROM vodup_job
WHERE ended_xid >= %(since)s::text::xid8 AND ended_xid < %(until)s::text::xid8
  AND (%(manifests)s::text[] IS NULL OR manifest = ANY(%(manifests)s))
"""

_QUEUED: Final = """
SELECT count(*) FROM vodup_job
WHERE status = 'queued' AND (%(manifests)s::text[] IS NULL OR manifest = ANY(%(manifests)s))
"""


def record_of(row_id: str, manifest: str, number: int, record: str) -> dict[str, Any]:
    """A record as a ledger has it, in the place where its row was named last."""
    read: dict[str, Any] = json.loads(record)
    return read | {"id": row_id, "manifest": manifest, "row": number}


class Awaited:
    """The rows that have no record yet. Mutable."""

    def __init__(self) -> None:
        self._rows = CompactMap()
        self.count = 0

    def expect(self, ids: Iterable[str]) -> None:
        """Wait for these as well."""
        for row_id in ids:
            number = int(row_id, 16)
            self.count += self._rows.get(number) == 0
            self._rows.set(number, 1)

    def met(self, row_id: str) -> bool:
        """Note that a row ended; tells whether it was waited for."""
        number = int(row_id, 16)
        if self._rows.get(number) != 1:
            return False
        self._rows.set(number, 2)
        self.count -= 1
        return True


class Results:
    """The records of some manifests, or of all, as they come. Mutable: how far it has read."""

    def __init__(self, pool: Pool, manifests: Sequence[str] | None = None) -> None:
        self._pool = pool
        self._manifests = None if manifests is None else list(manifests)
        self._since = "0"

    async def skip_past(self) -> None:
        """Leave out what ended before now."""
        self._since = await self._frontier()

    async def new(self) -> AsyncIterator[dict[str, Any]]:
        """What ended since the last look.

        Raises:
            StateUnavailable: the database cannot be asked.
        """
        until = await self._frontier()
        values = {"since": self._since, "until": until, "manifests": self._manifests}
        with in_our_words():
            async with (
                self._pool.connection() as connection,
                connection.transaction(),
                connection.cursor("results") as cursor,  # on the server: there may be a million
            ):
                await cursor.execute(_ENDED, values)
                while rows := await cursor.fetchmany(_PAGE):
                    for row in rows:
                        yield record_of(*row)
        self._since = until

    async def queued_count(self) -> int:
        """How many rows have not ended."""
        with in_our_words():
            async with self._pool.connection() as connection:
                cursor = await connection.execute(_QUEUED, {"manifests": self._manifests})
                row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def until_met(self, awaited: Awaited) -> AsyncIterator[Mapping[str, Any]]:
        """The records of awaited rows, until all of them have come."""
        while awaited.count:
            async for record in self.new():
                if awaited.met(record["id"]):
                    yield record
            if awaited.count:
                await asyncio.sleep(_LOOK_S)

    async def _frontier(self) -> str:
        with in_our_words():
            async with self._pool.connection() as connection:
                row = await (await connection.execute(_FRONTIER)).fetchone()
        return str(row[0]) if row else "0"
