"""What every section of the benchmarks works with, and what it gives back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import Track
from benchmarks.measure import Failed

__all__ = ["ALL", "GB", "MB", "QUICK", "SHORT", "Bench", "Piece", "Scale", "Section", "Table"]

MB: Final = 10**6
GB: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        cells: of the main table: (file size, connections, "warm" or "cold", rounds).
        growth_rounds: for each size and number of parts.
        slow_share: contenders that cost seconds a gigabyte get files this much smaller.
        part_counts: of 100 KiB each.
        static_connections: fixed numbers that "auto" is compared with.
        network_s: how long the link would need at its full rate, where the link names no size.
        network_scale: how many times that much is sent.
        network_patience: a run over a link is cut after so many times the time of its full rate.
    """

    name: str
    cells: tuple[tuple[int, int, str, int], ...]
    rounds: int
    slow_share: int
    growth_rounds: int
    growth_sizes: tuple[int, ...]
    part_counts: tuple[int, ...]
    networks: str
    static_connections: tuple[int, ...]
    network_s: float
    network_patience: float
    network_scale: int = 1
    bulk: tuple[tuple[str, int, int], ...]
    resume_parts: int
    paced_s: float


QUICK: Final = Scale(
    name="quick",
    cells=((16 * MB, 4, "warm", 1),),
    rounds=1,
    slow_share=4,
    growth_rounds=1,
    growth_sizes=(8 * MB, 16 * MB, 32 * MB),
    part_counts=(10, 50, 100),
    networks="lossy",
    static_connections=(8,),
    network_s=1.0,
    network_patience=5.0,
    bulk=(("20 × 100 KB", 20, 100_000),),
    resume_parts=50,
    paced_s=1.0,
)

SHORT: Final = Scale(
    name="short",
    cells=((1 * GB, 8, "warm", 5),),
    rounds=5,
    slow_share=5,
    growth_rounds=5,
    growth_sizes=(64 * MB, 256 * MB, 512 * MB, 1 * GB, 2 * GB),
    part_counts=(500, 1000, 2500, 5000, 10_000),
    networks="short",
    static_connections=(4, 16, 64),
    network_s=3.0,
    network_patience=4.0,
    bulk=(("300 × 100 KB", 300, 100_000), ("50 × 5 MB", 50, 5 * MB)),
    resume_parts=10_000,
    paced_s=20.0,
)

ALL: Final = Scale(
    name="all",
    cells=(
        *((1 * GB, count, "warm", 5) for count in (1, 4, 8, 16)),
        (1 * GB, 8, "cold", 5),
        (100 * MB, 8, "warm", 5),
        (8 * GB, 8, "warm", 3),
    ),
    rounds=5,
    slow_share=5,
    growth_rounds=3,
    growth_sizes=(64 * MB, 256 * MB, 1 * GB, 4 * GB, 16 * GB, 64 * GB),
    part_counts=(500, 1000, 2500, 5000, 10_000),
    networks="all",
    static_connections=(1, 2, 4, 8, 16, 32, 64),
    network_s=5.0,
    network_patience=4.0,
    bulk=(
        ("1,000 × 100 KB", 1000, 100_000),
        ("200 × 5 MB", 200, 5 * MB),
        ("mixed: 500 × 20 KB to 20 MB", 500, 0),
    ),
    resume_parts=10_000,
    paced_s=10.0,
)


@dataclass
class Table:
    """Columns, rows, and what has to be said about them."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Piece:
    """What is measured at one time, and is replaced as a whole when it is measured again.

    Attributes:
        data: the figures behind the table, for JSON, for `targets` and for `quotes`.
        plots: SVG by file name.
        measured: when, on which sources, and how busy the machine was.
    """

    table: Table
    data: Mapping[str, Any]
    plots: Mapping[str, str]
    measured: Mapping[str, Any]


@dataclass
class Section:
    """Everything one part of the benchmarks found out, by the name of each piece.

    Attributes:
        facts: gives the day, the sources and the load; called before each piece.
    """

    name: str
    title: str
    facts: Callable[[], Mapping[str, Any]] = dict
    pieces: dict[str, Piece] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    before: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.facts()

    def add(
        self,
        key: str,
        table: Table,
        data: Mapping[str, Any] | None = None,
        plots: Mapping[str, str] | None = None,
    ) -> None:
        """Keep a piece. `key` is what `--only SECTION/KEY` names."""
        self.pieces[key] = Piece(table, data or {}, plots or {}, self.before)
        self.before = self.facts()


@dataclass
class Bench:
    """A place to work in, a sink to work against, and how much to do.

    Attributes:
        only: patterns "SECTION" or "SECTION/KEY" of what is wanted; none: everything.
    """

    track: Track
    scale: Scale
    folder: Path
    only: Sequence[str] = ()

    def wants(self, section: str, key: str) -> bool:
        """Whether this piece of this section is to be measured."""
        name = f"{section}/{key}"
        patterns = [p if "/" in p else f"{p}/*" for p in self.only]
        return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)

    def make_file(self, size: int, name: str = "") -> Path:
        """A file of random bytes, kept for the next benchmark that needs it."""
        path = self.folder / (name or f"random-{size}")
        if not path.exists() or path.stat().st_size != size:
            block = os.urandom(min(size, 16 * 2**20)) or b""
            with path.open("wb") as file:
                for at in range(0, size, len(block) or 1):
                    file.write(block[: size - at])
                file.flush()
                os.fsync(file.fileno())
        return path

    def make_slices(self, size: int, count: int) -> tuple[Path, ...]:
        """As many files, which together have that size."""
        edges = [size * number // count for number in range(count + 1)]
        return tuple(
            self.make_file(stop - start, f"slice-{size}-{count}-{number}")
            for number, (start, stop) in enumerate(pairwise(edges))
        )

    def make_sparse_file(self, size: int) -> Path:
        """A file of zeros that takes no room on the disk."""
        path = self.folder / f"sparse-{size}"
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def say(self, text: str) -> None:
        """Tell whoever waits what is being done."""
        print(f"benchmarks: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def make_cold(path: Path) -> None:
    """Drop a file's pages from the cache.

    Raises:
        Failed: they stay there.
    """
    _drop_pages(path)
    share = _cached_share(path, places=20)
    _drop_pages(path)  # for looking has begun to read ahead
    if share > 0.1:
        raise Failed(f"{path.name} stays in the page cache")


def _drop_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_warm(path: Path) -> None:
    """Bring all pages of a file into the cache.

    Raises:
        Failed: it does not hold them.
    """
    for _ in range(3):
        with path.open("rb") as file:
            while file.read(16 * 2**20):
                pass
        if _cached_share(path, places=1000) == 1.0:
            return
    raise Failed(f"{path.name} does not stay in the page cache: is there memory enough?")


def _cached_share(path: Path, *, places: int) -> float:
    """The share of so many places at which a byte can be read without waiting."""
    with path.open("rb", buffering=0) as file:
        size, byte = os.fstat(file.fileno()).st_size, bytearray(1)
        offsets = range(0, size, max(1, size // places))
        return sum(_is_cached(file.fileno(), byte, at) for at in offsets) / max(1, len(offsets))


def _is_cached(fd: int, byte: bytearray, offset: int) -> bool:
    try:
        return os.preadv(fd, [byte], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
