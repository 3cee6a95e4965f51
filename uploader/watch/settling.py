"""Which files have stopped changing. No clock: the caller says what time it is.

Only the time between two looks counts, never the time of modification: rsync, cp -p and archives
set that to the past while or after they write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from uploader.watch.scan import FoundFile, Stamp


class Lack(StrEnum):
    """What a file lacks to be complete."""

    MARKER = "its marker is missing"
    CONTENT = "it is empty"
    END = "it is still being written"


_WRITTEN_S: Final = 1.0

_State = Literal["settling", "taken", "ended"]


@dataclass(slots=True)
class _Seen:
    """What is known of one file. Mutable.

    Attributes:
        due_s: when it is complete if it stays the same, or is tried again; None: never.
        is_touched: its change time may be our own doing.
    """

    signature: tuple[object, ...]
    stamp: Stamp
    due_s: float | None
    state: _State = "settling"
    has_changed: bool = False
    is_ready: bool | None = None
    is_empty: bool = False
    is_touched: bool = False

    def is_other(self, file: FoundFile) -> bool:
        """Whether the file is not the one that was seen."""
        if self.is_touched and self.stamp[:3] == file.stamp[:3]:
            self.signature, self.is_touched = file.signature, False
        return self.signature != file.signature


class Settling:
    """The files in the folder, and what became of each. Mutable.

    Args:
        settle_s: how long a file must stay the same. Too short: a writer that pauses is taken
            for one that has finished. Too long: every video starts late.

    Attributes:
        settling_count: files that were not complete at the last look.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._entries: dict[str, _Seen] = {}
        self._looked_s = 0.0
        self.settling_count = 0

    def observe(
        self, files: Iterable[FoundFile], *, began_s: float, ended_s: float
    ) -> list[FoundFile]:
        """Record what one look has found; returns the files to take.

        A file that has been taken is returned again only if it has changed after its end, or
        if it is to be tried again.
        """
        former, self._entries, self._looked_s = self._entries, {}, began_s
        due_s = ended_s + self._settle_s if self._settle_s else began_s
        taken: list[FoundFile] = []
        for file in files:
            entry = former.pop(file.path, None)
            if entry is None:
                entry = _Seen(file.signature, file.stamp, due_s)
            elif entry.state != "taken" and entry.is_other(file):
                entry = _Seen(file.signature, file.stamp, due_s, has_changed=True)
            entry.is_ready, entry.is_empty = file.is_ready, file.stamp[0] == 0
            self._entries[file.path] = entry
            if self._is_due(entry):
                entry.state, entry.due_s = "taken", None
                taken.append(file)
        kept = {path: entry for path, entry in former.items() if entry.state == "taken"}
        self._entries.update(kept)
        settling = (entry.state == "settling" for entry in self._entries.values())
        self.settling_count = sum(settling)
        return taken

    def _is_due(self, entry: _Seen) -> bool:
        if entry.state == "settling" and entry.is_ready is not None:
            return entry.is_ready
        is_over = entry.due_s is not None and entry.due_s <= self._looked_s
        return is_over and not entry.is_empty

    def end(self, path: str, *, retry_s: float | None = None, is_touched: bool = False) -> None:
        """A file that was taken has ended; it is taken again at `retry_s`, or never.

        `is_touched`: it was renamed and got its name back, which has changed its change time.
        """
        if (entry := self._entries.get(path)) is not None:
            entry.state, entry.due_s, entry.is_touched = "ended", retry_s, is_touched

    def put_back(self, path: str, now_s: float) -> None:
        """A file that was taken is still being written."""
        if (entry := self._entries.get(path)) is not None:
            entry.state, entry.due_s = "settling", now_s + max(_WRITTEN_S, self._settle_s)
            entry.has_changed = True

    def next_s(self) -> float | None:
        """When a file may become due; None: nothing waits for the time."""
        return min((entry.due_s for entry in self._pending() if entry.due_s), default=None)

    def _pending(self) -> Iterator[_Seen]:
        """Those that time may complete."""
        for entry in self._entries.values():
            is_waiting = entry.is_ready is None and entry.state == "settling"
            if (is_waiting or entry.state == "ended") and (entry.due_s or 0) > self._looked_s:
                yield entry

    def waits(self) -> Iterator[tuple[str, Lack]]:
        """Yield the files that time alone will not complete, each with what it lacks."""
        for path, entry in self._entries.items():
            if entry.state == "settling":
                if entry.is_ready is False:
                    yield path, Lack.MARKER
                elif entry.is_empty and (entry.due_s or 0) <= self._looked_s:
                    yield path, Lack.CONTENT
                elif entry.has_changed:
                    yield path, Lack.END

    def is_settled(self) -> bool:
        """Whether nothing is under way, and no file will prove complete without being touched."""
        if any(entry.state == "taken" for entry in self._entries.values()):
            return False
        return all(entry.has_changed or entry.state == "ended" for entry in self._pending())
