"""Calls to VOD a second, shared by all workers: its quotas are an account's, not a machine's.

One row says when the next call may be made, on the database's clock. A caller moves it
ahead by the time between two calls and waits for its turn on its own. Nothing is held: the
lock on the row lasts for one statement, and a worker that dies leaves at most the turns
within `_AHEAD_S` unused.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from uploader.cluster.database import in_our_words

if TYPE_CHECKING:
    from uploader.cluster.database import Pool

__all__ = ["SharedBudget"]

_AHEAD_S: Final = 2.0
"""How far ahead turns are given out. Too little: many workers ask again and again. Too
much: turns of a worker that died are missing for that long."""

_MIN_BURST_S: Final = 0.05  # of turns nobody took: a late caller may still use them

_TAKE: Final = """
INSERT INTO vodup_budget AS budget (name, next_at)
VALUES (%(name)s, extract(epoch FROM clock_timestamp())::float8 + %(gap)s)
ON CONFLICT (name) DO UPDATE
SET next_at = greatest(
        budget.next_at, extract(epoch FROM clock_timestamp())::float8 - %(burst)s
    ) + %(gap)s
WHERE budget.next_at < extract(epoch FROM clock_timestamp())::float8 + %(ahead)s
RETURNING next_at - %(gap)s - extract(epoch FROM clock_timestamp())::float8
"""


class SharedBudget:
    """Waits for this account's next turn.

    Args:
        name: whose quota it is; all workers with the same name share it.
        calls_per_s: the same for all of them.
    """

    def __init__(self, pool: Pool, name: str, calls_per_s: float) -> None:
        self._pool = pool
        self._values = {
            "name": name,
            "gap": 1 / calls_per_s,
            "burst": _MIN_BURST_S,
            "ahead": _AHEAD_S,
        }

    async def __call__(self) -> None:
        """Return when a call may be made.

        Raises:
            StateUnavailable: the database cannot be asked.
        """
        while (wait_s := await self._taken()) is None:  # noqa: ASYNC110 - a row tells nobody
            # Spread, or all who were turned away would come back at once.
            await asyncio.sleep(_AHEAD_S * random.uniform(0.2, 0.5))
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _taken(self) -> float | None:
        """Seconds until our turn; None when too many wait already."""
        with in_our_words():
            async with self._pool.connection() as connection:
                row = await (await connection.execute(_TAKE, self._values)).fetchone()
        return None if row is None else float(row[0])
