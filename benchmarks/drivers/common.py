"""What every driver shares: its job, and the figures around the upload alone."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Job", "measured", "upload_all"]


@dataclass(frozen=True)
class Job:
    """What to upload and where to.

    Attributes:
        paths: one file, or many for the bulk cases.
        warm_path: a tiny file that is uploaded first, so that imports at first use and
            the reading of certificates are not taken for the cost of bytes; "" for an upload
            that begins cold, when nothing is known of the path.
        connections: how many at once; 0 leaves it to the library.
        part_size: bytes; 0 leaves it to the library.
        folder: for state and checkpoints.
        options: what only one driver understands.
    """

    scheme: str
    port: int
    ca_file: str
    paths: list[str]
    warm_path: str
    connections: int
    part_size: int
    folder: str
    options: dict[str, str]

    @classmethod
    def from_argv(cls) -> Job:
        """Read the JSON that the benchmark gave."""
        return cls(**json.loads(sys.argv[1]))

    @property
    def endpoint(self) -> str:
        """For example "https://127.0.0.1:4711"."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def path(self) -> str:
        """The only file."""
        (path,) = self.paths
        return path


def upload_all(upload: Callable[[str], None], job: Job) -> None:
    """Upload the only file as the library does, or many at once in as many threads."""
    if len(job.paths) == 1:
        upload(job.path)
        return
    with ThreadPoolExecutor(job.connections or 8) as threads:
        for _ in threads.map(upload, job.paths):
            pass


@contextmanager
def measured() -> Iterator[None]:
    """Take the cost of the block and print it as the last line."""
    before_kib = _status_kib("VmRSS")
    before, cpu_s = resource.getrusage(resource.RUSAGE_SELF), _cpu_s()
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    after, cpu_s = resource.getrusage(resource.RUSAGE_SELF), _cpu_s() - cpu_s
    figures = {
        "began_s": began,
        "wall_s": seconds,
        "cpu_s": cpu_s,
        "voluntary": after.ru_nvcsw - before.ru_nvcsw,
        "involuntary": after.ru_nivcsw - before.ru_nivcsw,
        "before_kib": before_kib,
        "peak_kib": _status_kib("VmHWM"),
    }
    print(json.dumps({"driver": figures}), flush=True)


def _cpu_s() -> float:
    """Of this process and of the children it has waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))


def _status_kib(name: str) -> int:
    """Of this process's memory map: ru_maxrss would also know the parent's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
