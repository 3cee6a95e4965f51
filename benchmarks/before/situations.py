"""The situations: each plays one misfortune to one library and says what it did."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.before.stage import PART_COUNT, Ended, Stage, Stranger
from uploader.devserver import Fault

__all__ = ["SITUATIONS", "Outcome", "Situation"]


@dataclass(frozen=True)
class Outcome:
    """What a library did.

    Attributes:
        is_kept: whether that is what the promise says; None where the question does not
            arise, for example where no object came about without any fault.
        sentence: what happened, for people.
    """

    is_kept: bool | None
    sentence: str


@dataclass(frozen=True)
class Situation:
    """One misfortune."""

    name: str
    promise: str
    title: str
    play: Callable[[Stage], Outcome]
    part_size: int | None = None


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def _object(stage: Stage) -> str:
    found = stage.objects()
    if not found:
        return "no object"
    if stage.is_stored:
        return "the object is the file"
    if all(stored == stage.content for stored in found):
        return f"{len(found)} objects"
    return "the object is not the file"


def _how(ended: Ended) -> str:
    return {
        "returned": "returned normally",
        "hung": f"still waiting after {ended.seconds:.0f} s",
        "killed": "killed",
        "error": f"raised {ended.error}",
    }[ended.how]


def _ending(ended: Ended, stage: Stage) -> str:
    return f"{_how(ended)}; {_object(stage)}"


def _is_honest(ended: Ended, stage: Stage) -> bool:
    """Returned with the object there, or an error; never silence, never a wait for ever."""
    return ended.how == "error" or (ended.how == "returned" and stage.is_stored)


def _token_expires(stage: Stage) -> Outcome:
    stage.order(Fault(action="expire_credentials", operation="UploadPart", part=8))
    first = stage.run()
    sentence = _ending(first, stage)
    if first.how != "returned" and not stage.makes_videos:
        stage.renew()
        second = stage.run()
        sentence += f"; again with new credentials: {_ending(second, stage)}"
    sentence += f"; {_mib(stage.twice_bytes)} sent twice, {stage.server.stats.initiates} multipart"
    kept = first.how == "returned" and stage.is_stored and stage.video_count == 1
    # Who speaks to OSS only cannot renew: that is its caller's affair.
    return Outcome(kept if stage.makes_videos else None, sentence)


def _killed(stage: Stage) -> Outcome:
    stage.killed_after(10)
    second = stage.run()
    allowed = 3 * stage.part_size
    sentence = f"{_ending(second, stage)}; {_mib(stage.twice_bytes)} sent twice"
    sentence += f", {stage.video_count} video{'s' * (stage.video_count != 1)}"
    kept = second.how == "returned" and stage.is_stored and stage.video_count == 1
    return Outcome(kept and stage.twice_bytes <= allowed, sentence)


def _damaged_checkpoint(stage: Stage) -> Outcome:
    stage.killed_after(10)
    for file in Path(stage.job.folder).rglob("*"):
        if file.is_file() and not file.name.endswith((".owner", ".in-use", ".opening")):
            file.write_bytes(b"[1]")
    second, third = stage.run(), stage.run()
    sentence = f"{_ending(second, stage)}; once more: {_ending(third, stage)}"
    kept = third.how == "returned" and _is_honest(third, stage)
    return Outcome(kept, sentence)


def _rots(stage: Stage) -> Outcome:
    stage.order(Fault(action="rot", operation="UploadPart", part=3))
    ended = stage.run()
    return Outcome(_is_honest(ended, stage), _ending(ended, stage))


def _rots_and_resumes(stage: Stage) -> Outcome:
    stage.order(Fault(action="rot", operation="UploadPart", part=3))
    stage.killed_after(10)
    stage.order()
    ended = stage.run()
    return Outcome(_is_honest(ended, stage), _ending(ended, stage))


def _overwritten(stage: Stage) -> Outcome:
    stage.killed_after(10)
    stage.overwrite_part(2)
    ended = stage.run()
    return Outcome(_is_honest(ended, stage), _ending(ended, stage))


def _edited(stage: Stage) -> Outcome:
    stage.killed_after(10)
    before = stage.path.stat()
    with stage.path.open("r+b") as file:
        for offset in (0, len(stage.content) - 1000):
            file.seek(offset)
            file.write(bytes(1000))
    os.utime(stage.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    ended = stage.run()
    is_new = stage.objects() == [stage.path.read_bytes()]
    found = "the object is the file as it is now" if is_new else _object(stage)
    sentence = f"{_how(ended)}; {found}"
    return Outcome(ended.how == "error" or (ended.how == "returned" and is_new), sentence)


def _stops_reading(stage: Stage) -> Outcome:
    stage.order(
        Fault(action="stop_reading", operation="UploadPart", part=2, after_bytes=65536, count=1)
    )
    ended = stage.run()
    return Outcome(_is_honest(ended, stage), f"{_ending(ended, stage)}; {ended.seconds:.0f} s")


def _redirected(stage: Stage) -> Outcome:
    with Stranger() as stranger:
        stage.order(
            Fault(
                action="redirect",
                operation="UploadPart",
                part=2,
                status=307,
                location=stranger.url,
                count=None,
            )
        )
        ended = stage.run()
        sent = stranger.header_names & {"authorization", "x-oss-security-token"}
        if stranger.request_count:
            got = [*sorted(sent), f"{_mib(stranger.body_bytes)} of the film"]
            sentence = f"the other host got {' and '.join(got)}"
        else:
            sentence = "the other host got nothing"
        kept = not stranger.request_count and _is_honest(ended, stage)
        return Outcome(kept, f"{sentence}; {_ending(ended, stage)}")


def _secrets(stage: Stage) -> Outcome:
    stage.server.set_options(refreshed_already_expired=True)
    stage.order(
        Fault(action="expire_credentials", operation="UploadPart", part=4, count=None),
    )
    ended = stage.run()
    leaked = stage.leaked(ended)
    sentence = ", ".join(leaked) if leaked else "no secret in log, exception or files"
    return Outcome(not leaked, f"{sentence}; {_ending(ended, stage)}")


def _two_processes(stage: Stage) -> Outcome:
    stage.server.set_options(connection_bandwidth=4.0 * stage.part_size)
    both = [stage.start(), stage.start()]
    one, other = (running.wait() for running in both)
    sentence = f"one {_ending(one, stage)}; the other {other}"
    sentence += (
        f"; {stage.server.stats.initiates} multiparts, {stage.server.open_upload_count} left"
    )
    sentence += f", {stage.video_count} video{'s' * (stage.video_count != 1)}"
    sentence += f", {_mib(stage.twice_bytes)} sent twice"
    returned = [ended for ended in (one, other) if ended.how == "returned"]
    kept = len(returned) == 1 and stage.is_stored and stage.server.stats.initiates == 1
    return Outcome(kept, sentence)


def _truncated(stage: Stage) -> Outcome:
    stage.server.set_options(connection_bandwidth=2.0 * stage.part_size)
    running = stage.start()
    stage.wait_for(lambda: stage.server.stats.parts_stored >= 6 or running.is_over)
    with stage.path.open("r+b") as file:
        file.truncate(stage.part_size * PART_COUNT // 2 + 1000)
    stage.server.set_options(connection_bandwidth=None)
    ended = running.wait()
    kept = ended.how == "error" and not stage.objects()
    return Outcome(kept, f"{_ending(ended, stage)}")


def _false_ok(stage: Stage) -> Outcome:
    stage.order(Fault(action="html", operation="CompleteMultipartUpload", status=200))
    ended = stage.run()
    return Outcome(_is_honest(ended, stage), _ending(ended, stage))


def _error_in_ok(stage: Stage) -> Outcome:
    stage.order(
        Fault(
            action="error_body",
            operation="CompleteMultipartUpload",
            code="InternalError",
            count=1,
        )
    )
    ended = stage.run()
    return Outcome(_is_honest(ended, stage), _ending(ended, stage))


def _refused_part(stage: Stage) -> Outcome:
    stage.order(
        Fault(
            action="error",
            operation="UploadPart",
            part=2,
            status=403,
            code="AccessDenied",
            count=None,
        )
    )
    ended = stage.run()
    return Outcome(ended.how == "error" and not stage.objects(), _ending(ended, stage))


def _nothing(stage: Stage) -> Outcome:
    ended = stage.run()
    return Outcome(ended.how == "returned" and stage.is_stored, _ending(ended, stage))


SITUATIONS = (
    Situation("nothing", "-", "nothing goes wrong", _nothing),
    Situation("rot", "P1", "storage damages a part after acknowledging it", _rots),
    Situation(
        "rot-resumed", "P1", "the same, and the run is killed and resumed", _rots_and_resumes
    ),
    Situation(
        "overwritten", "P1", "killed; another client overwrites a part; resumed", _overwritten
    ),
    Situation("edited", "P1", "killed; the file is edited, its mtime restored; resumed", _edited),
    Situation("false-ok", "P1", "a false 200 for Complete: nothing is stored", _false_ok),
    Situation("error-in-ok", "P1", "a 200 for Complete with an error document", _error_in_ok),
    Situation("refused-part", "P2", "one part is refused for good", _refused_part),
    Situation("truncated", "P2", "the file is cut while it is sent", _truncated),
    Situation("token", "P3", "the token expires in mid-upload", _token_expires),
    Situation("kill", "P4", "kill -9, and the same command again", _killed),
    Situation("stall", "P5", "the peer stops reading once", _stops_reading, 8 * 2**20),
    Situation("checkpoint", "P6", "kill -9, and the checkpoint holds garbage", _damaged_checkpoint),
    Situation("two", "P7", "two processes on one file", _two_processes),
    Situation("secrets", "P8", "credentials expire for good; logs at DEBUG", _secrets),
    Situation("redirect", "P9", "OSS redirects a part to another host", _redirected),
)
