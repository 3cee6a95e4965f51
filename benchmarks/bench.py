"""What every section of the benchmarks works with, and what it gives back."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import Track

__all__ = ["ALL", "GB", "MB", "QUICK", "SHORT", "Bench", "Scale", "Section", "Table"]

MB: Final = 10**6
GB: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        cells: of the main table: (file size, connections, "warm" or "cold", rounds).
        slow_share: contenders that cost seconds a gigabyte get files this much smaller.
        part_counts: of 100 KiB each.
        static_connections: fixed numbers that "auto" is compared with.
        network_s: how long the link would need at its full rate.
        network_limit_s: when a run over a link is cut.
    """

    name: str
    cells: tuple[tuple[int, int, str, int], ...]
    rounds: int
    slow_share: int
    growth_sizes: tuple[int, ...]
    part_counts: tuple[int, ...]
    networks: str
    static_connections: tuple[int, ...]
    network_s: float
    network_limit_s: float
    bulk: tuple[tuple[str, int, int], ...]
    resume_parts: int
    paced_s: float


QUICK: Final = Scale(
    name="quick",
    cells=((16 * MB, 4, "warm", 1),),
    rounds=1,
    slow_share=4,
    growth_sizes=(8 * MB, 16 * MB, 32 * MB),
    part_counts=(10, 50, 100),
    networks="lossy",
    static_connections=(8,),
    network_s=1.0,
    network_limit_s=5.0,
    bulk=(("20 × 100 KB", 20, 100_000),),
    resume_parts=50,
    paced_s=1.0,
)

SHORT: Final = Scale(
    name="short",
    cells=((1 * GB, 8, "warm", 5),),
    rounds=5,
    slow_share=5,
    growth_sizes=(64 * MB, 256 * MB, 512 * MB, 1 * GB, 2 * GB),
    part_counts=(500, 1000, 2500, 5000),
    networks="short",
    static_connections=(4, 16, 64),
    network_s=3.0,
    network_limit_s=12.0,
    bulk=(("300 × 100 KB", 300, 100_000), ("50 × 5 MB", 50, 5 * MB)),
    resume_parts=10_000,
    paced_s=5.0,
)

ALL: Final = Scale(
    name="all",
    cells=(
        *((1 * GB, count, "warm", 5) for count in (1, 4, 8, 16)),
        (1 * GB, 8, "cold", 5),
        (100 * MB, 8, "warm", 5),
        (8 * GB, 8, "warm", 3),
        (8 * GB, 16, "warm", 3),
    ),
    rounds=5,
    slow_share=5,
    growth_sizes=(64 * MB, 256 * MB, 1 * GB, 4 * GB, 16 * GB, 64 * GB),
    part_counts=(500, 1000, 2500, 5000, 10_000),
    networks="all",
    static_connections=(1, 2, 4, 8, 16, 32, 64),
    network_s=5.0,
    network_limit_s=12.0,
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


@dataclass
class Section:
    """Everything one part of the benchmarks found out.

    Attributes:
        data: the figures behind the tables, for JSON and for `targets`.
        plots: SVG by file name.
    """

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    plots: dict[str, str] = field(default_factory=dict)


@dataclass
class Bench:
    """A place to work in, a sink to work against, and how much to do."""

    track: Track
    scale: Scale
    folder: Path

    def make_file(self, size: int, name: str = "") -> Path:
        """A file of random bytes, kept for the next who asks."""
        path = self.folder / (name or f"random-{size}")
        if not path.exists() or path.stat().st_size != size:
            block = os.urandom(min(size, 16 * 2**20)) or b""
            with path.open("wb") as file:
                for at in range(0, size, len(block) or 1):
                    file.write(block[: size - at])
                file.flush()
                os.fsync(file.fileno())
        return path

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
    """Drop a file's pages from the cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
