"""How rows ended, read from the database in the order of its transactions, none missed.

A record carries the id of the transaction that wrote it. All transactions below the oldest
one still running have ended: what they wrote is complete, and the next read begins there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from uploader.bulk.ledger import CompactMap
from uploader.cluster.database import borrowed

if TYPE_CHECKING:
    from uploader.cluster.database import Pool

_POLL_S: Final = 1.0
_PAGE: Final = 1000

_OLDEST_RUNNING: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"

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
    """Return a record as a ledger has it, at the place where its row was named last."""
    read: dict[str, Any] = json.loads(record)
    return read | {"id": row_id, "manifest": manifest, "row": number}


class AwaitedRows:
    """The rows that have no record yet. Mutable."""

    def __init__(self) -> None:
        self._rows = CompactMap()  # 1 while awaited, then 2
        self.count = 0

    def add(self, ids: Iterable[str]) -> None:
        """Await these as well."""
        for row_id in ids:
            number = int(row_id, 16)
            self.count += self._rows.get(number) == 0
            self._rows.set(number, 1)

    def remove(self, row_id: str) -> bool:
        """A row has ended; returns whether it was awaited."""
        number = int(row_id, 16)
        if self._rows.get(number) != 1:
            return False
        self._rows.set(number, 2)
        self.count -= 1
        return True


class Results:
    """The records of some manifests, or of all, as rows end. Mutable: how far it has read."""

    def __init__(self, pool: Pool, manifests: Sequence[str] | None = None) -> None:
        self._pool = pool
        self._manifests = None if manifests is None else list(manifests)
        self._since = "0"

    async def skip_past(self) -> None:
        """Leave out what ended before now."""
        self._since = await self._oldest_running()

    async def new(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what ended since the last call.

        Raises:
            StateUnavailable: the database cannot be used.
        """
        until = await self._oldest_running()
        values = {"since": self._since, "until": until, "manifests": self._manifests}
        async with (
            borrowed(self._pool) as connection,
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
        return int(await self._value(_QUEUED, {"manifests": self._manifests}))

    async def until_all(self, awaited: AwaitedRows) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the records of awaited rows, until all of them have come."""
        while awaited.count:
            async for record in self.new():
                if awaited.remove(record["id"]):
                    yield record
            if awaited.count:
                await asyncio.sleep(_POLL_S)

    async def _oldest_running(self) -> str:
        return str(await self._value(_OLDEST_RUNNING))

    async def _value(self, query: str, values: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
        async with borrowed(self._pool) as connection:
            row = await (await connection.execute(query.encode(), values)).fetchone()
        return row[0] if row else 0
