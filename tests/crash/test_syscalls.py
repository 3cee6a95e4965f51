"""One system call of an upload fails, or the process dies at it: the k-th, for every k.

`strace` attaches to a forked child and injects: SIGKILL on entering the call, or an error in
place of it. Whatever it was, the run ends verified, dead or with a typed error, and the next
run without faults ends verified, under the same VideoId, with little sent twice.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.harness import PART, Desk, until

from .child import DONE_MARK
from .conftest import Nursery, job_of

CONCURRENCY = 2
SIZE = 5 * PART - 7
SYNCS = ("fdatasync", "fsync")
WRITES = ("pwrite64", "write", "ftruncate")
FILES = ("openat", "rename", "unlink")
WIRE = ("connect", "sendto", "sendmsg")

FAULTS = {
    **dict.fromkeys([*SYNCS, *WRITES, *FILES, *WIRE], ("signal=SIGKILL",)),
    "fdatasync": ("signal=SIGKILL", "error=EIO", "error=ENOSPC", "error=EINTR"),
    "fsync": ("signal=SIGKILL", "error=EIO"),
    "pwrite64": ("signal=SIGKILL", "error=EIO", "error=ENOSPC", "error=EINTR"),
    "write": ("signal=SIGKILL", "error=EIO", "error=ENOSPC"),
    "openat": ("signal=SIGKILL", "error=EIO", "error=ENOSPC", "error=EMFILE"),
    "rename": ("signal=SIGKILL", "error=EIO", "error=ENOSPC"),
    "unlink": ("signal=SIGKILL", "error=EIO"),
    "connect": ("signal=SIGKILL", "error=EINTR", "error=ENETUNREACH"),
    # Errors of sendto would hit the socket by which threads wake the loop, which never fails.
    "sendto": ("signal=SIGKILL",),
    "sendmsg": ("signal=SIGKILL", "error=EPIPE"),
}
UNSPEAKABLE = (".py", "site-packages", "/report-", "/output-")
"""Where Python could not read its own code, or a test's child not write how it ended."""

PAIRS = [(call, how) for call, hows in FAULTS.items() for how in hows]


def why_not() -> str:
    """Why nothing can be injected here; "" if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian, Ubuntu: apt install strace)"
    tried = subprocess.run(
        ["strace", "-e", "inject=fsync:error=EIO", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if tried.returncode == 0 else f"ptrace is refused: {tried.stderr[-200:].strip()}"


WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


KILLED = "+++ killed by SIGKILL +++"


@dataclass(frozen=True)
class Hit:
    """What the trace shows of an injected fault."""

    lines: list[str]
    is_after_the_commit: bool

    @classmethod
    def read(cls, trace: Path) -> Hit:
        lines = trace.read_text(errors="replace").splitlines()
        hits = [n for n, line in enumerate(lines) if "(INJECTED)" in line or line.endswith(KILLED)]
        marks = [n for n, line in enumerate(lines) if DONE_MARK in line]
        is_after = bool(hits and marks and hits[0] > marks[0])
        return cls([lines[n] for n in hits], is_after)


async def traced(desk: Desk, nursery: Nursery, call: str, how: str, k: int, movie: Path) -> bool:
    """Hit the k-th such call of a run, then run again; whether there was a k-th one."""
    trace = desk.folder / f"{movie.stem}.trace"
    state = desk.folder / movie.stem / "state.db"
    job = job_of(desk, str(state), source=str(movie), key=movie.stem, concurrency=CONCURRENCY)
    child = nursery.start(**job, do="upload", is_traced=True)
    await until(lambda: status_of(child.pid) in "Tt")
    words = [
        "strace", "-f", "-y", "-p", str(child.pid), "-o", str(trace), "-e",
        f"trace={call},newfstatat,stat,access,faccessat2",
        "-e", f"inject={call}:{how}:when={k}",
    ]  # fmt: skip
    tracer = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.PIPE)
    assert tracer.stderr is not None
    assert b"attached" in await tracer.stderr.readline()
    child.signal(signal.SIGCONT)
    report = await child.ended()
    await tracer.wait()
    hit = Hit.read(trace)
    judge(report, hit, call, how)
    again = nursery.start(**job, do="upload")
    report = await again.ended()
    await judge_again(desk, movie, report)
    return bool(hit.lines)


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def judge(report: dict | None, hit: Hit, call: str, how: str) -> None:
    """A typed error, a death at the call, or a result that nothing has put in doubt."""
    if how == "signal=SIGKILL":
        assert report is not None or hit.lines
        return
    if call == "write" and report is None:
        return  # the fault may have hit the file in which a test's child says how it ended
    if report is None and any(where in line for line in hit.lines for where in UNSPEAKABLE):
        return
    assert report is not None, f"it ended without a word: {hit.lines}"
    is_file = any("state.db" in line for line in hit.lines)
    if "result" in report and call in SYNCS and is_file:  # SQLite overlooks its folder's
        assert hit.is_after_the_commit, f"called durable after {hit.lines}"


async def judge_again(desk: Desk, movie: Path, report: dict | None) -> None:
    assert report is not None
    assert "result" in report, report
    result = report["result"]
    video = desk.server.videos[result["video_id"]]
    named = [v for v in desk.server.videos.values() if v.reference_id == video.reference_id]
    assert len(named) == 1
    assert desk.server.object_bytes(result["video_id"]) == await asyncio.to_thread(movie.read_bytes)
    assert desk.server.stats.completes_by_video[result["video_id"]] == 1
    sent = sum(
        size
        for (upload_id, _), size in desk.server.stats.bytes_by_part.items()
        if upload_id == result["upload_id"]
    )
    assert sent <= SIZE + CONCURRENCY * PART + PART


async def hit_at(desk: Desk, nursery: Nursery, call: str, how: str, k: int) -> bool:
    name = re.sub(r"\W+", "-", f"{call}-{how}-{k}")
    before = len(desk.server.videos)
    found = await traced(desk, nursery, call, how, k, desk.file(SIZE, f"{name}.mp4", seed=k))
    assert len(desk.server.videos) == before + 1, "another video was made"
    return found


BRIEF = [
    ("fdatasync", "error=EIO", 1),
    ("fdatasync", "error=EIO", 2),
    ("fdatasync", "error=EIO", 5),
    ("fdatasync", "signal=SIGKILL", 4),
    ("pwrite64", "error=ENOSPC", 12),
    ("pwrite64", "error=EIO", 30),
    ("pwrite64", "signal=SIGKILL", 20),
    ("openat", "error=EMFILE", 3),
    ("rename", "signal=SIGKILL", 1),
    ("unlink", "signal=SIGKILL", 1),
    ("unlink", "error=EIO", 5),
    ("sendto", "signal=SIGKILL", 9),
    ("sendto", "error=EPIPE", 6),
    ("connect", "error=ENETUNREACH", 2),
]


@pytest.mark.parametrize(("call", "how", "k"), BRIEF)
async def test_a_call_that_fails(desk: Desk, nursery: Nursery, call: str, how: str, k: int) -> None:
    await hit_at(desk, nursery, call, how, k)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("call", "how"), PAIRS)
async def test_every_call_that_fails(desk: Desk, nursery: Nursery, call: str, how: str) -> None:
    k = 1
    while await hit_at(desk, nursery, call, how, k):
        print(f"{call} {how} {k}", flush=True)  # seen with pytest -s
        k += 1
    assert k > 1 or call in ("fsync", "write", "ftruncate", "sendmsg"), "no such call was made"
