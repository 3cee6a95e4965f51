"""The caller's own code at three moments: before a video is made, after it is verified, on failure.

Hooks differ from listeners (`on_event`): they are awaited, may take their time, and the first of
them has a say. They are given facts, never credentials.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final

from uploader.errors import ConfigurationError, HookError, VodupError
from uploader.events import UploadResult
from uploader.protocol.documents import clean_text
from uploader.protocol.vod import VideoMeta
from uploader.state.worker import Worker

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "ENTRY_POINTS",
    "EndedUpload",
    "Hooks",
    "PlannedVideo",
    "asked_before_create",
    "command_hooks",
    "installed_hooks",
    "told_of_the_end",
]

ENTRY_POINTS: Final = "vodup.hooks"
"""The group in which packages name a `Hooks`, or a function without arguments that makes one."""

_COMMAND_TIMEOUT_S: Final = 600.0
_GRACE_S: Final = 5.0
_STDERR: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVideo:
    """A video that is about to be made.

    Attributes:
        key: the upload's name in the state store.
        source: where the bytes come from, for people.
        size: bytes; 0 while a stream has no end.
        meta: what CreateUploadVideo is to be told.
    """

    key: str
    source: str
    size: int
    meta: VideoMeta


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedUpload:
    """How an upload ended: with a `result`, verified, or with an `error`.

    Attributes:
        key: the upload's name in the state store; "" if it failed before it had one.
        video_id: None if it failed before there was a video.
    """

    key: str
    source: str
    video_id: str | None
    result: UploadResult | None = None
    error: VodupError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Functions or coroutine functions that are called with what happens to each upload.

    A function runs in a thread of its own, a coroutine function on the uploader's loop.

    Attributes:
        before_create: called before CreateUploadVideo, by every run that has to make a
            video. May return another `VideoMeta`, which the next hook sees. What it raises
            ends the upload before anything exists: a `VodupError` as it is (`PolicyError`
            for a veto), anything else as `HookError`.
        after_verify: called once OSS holds the verified object, and again by every later
            run that finds the receipt (`result.is_receipt`): at least once, whatever
            crashes in between. Failing changes nothing about the upload.
        on_failure: called with every error an upload ends with; not on cancellation.
            Failing changes nothing about the error.
        name: what messages call these hooks.
        timeout_s: how long each call may take. A function in a thread cannot be stopped;
            its answer is not waited for any longer.
    """

    before_create: (
        Callable[[PlannedVideo], VideoMeta | Awaitable[VideoMeta | None] | None] | None
    ) = None
    after_verify: Callable[[EndedUpload], object] | None = None
    on_failure: Callable[[EndedUpload], object] | None = None
    name: str = "hooks"
    timeout_s: float = 60.0


async def asked_before_create(hooks: Sequence[Hooks], planned: PlannedVideo) -> VideoMeta:
    """Call what wants a say before a video is made; what CreateUploadVideo is to be told.

    Raises:
        VodupError: a hook's own.
        HookError: a hook failed, took too long or returned something else.
    """
    for hook in hooks:
        if hook.before_create is None:
            continue
        try:
            answer = await _called(hook.before_create, planned, hook.timeout_s)
        except VodupError:
            raise
        except Exception as error:
            raise HookError(
                f"before_create of {hook.name} failed ({_reason(error, hook)}); no video was made."
            ) from error
        if answer is not None and not isinstance(answer, VideoMeta):
            raise HookError(
                f"before_create of {hook.name} returned {type(answer).__name__}, not VideoMeta."
            )
        planned = replace(planned, meta=answer or planned.meta)
    return planned.meta


async def told_of_the_end(hooks: Sequence[Hooks], ended: EndedUpload) -> list[HookError]:
    """Call what wants to know how an upload ended; the failures of hooks, which change nothing."""
    failures = []
    moment = "after_verify" if ended.error is None else "on_failure"
    for hook in hooks:
        function = hook.after_verify if ended.error is None else hook.on_failure
        if function is None:
            continue
        try:
            await _called(function, ended, hook.timeout_s)
        except Exception as error:
            words = f"{moment} of {hook.name} failed ({_reason(error, hook)})."
            failures.append(HookError(words, video_id=ended.video_id))
    return failures


def _reason(error: Exception, hook: Hooks) -> str:
    if isinstance(error, VodupError):
        return error.message.rstrip(".")
    if isinstance(error, TimeoutError):
        return f"no end within {hook.timeout_s:g} s"
    return clean_text(f"{type(error).__name__}: {error}")


async def _called(function: Callable[[Any], object], told: object, timeout_s: float) -> object:
    async with asyncio.timeout(timeout_s):
        answer = (
            function(told) if iscoroutinefunction(function) else await _threaded(function, told)
        )
        return await answer if isawaitable(answer) else answer


def _threaded(function: Callable[[Any], object], told: object) -> asyncio.Future[object]:
    """In a thread that nobody has to wait for, when the process ends or time is over."""
    worker = Worker("vodup-hook")
    try:
        return worker.call(partial(function, told))
    finally:
        worker.stop()


# --- of installed packages ----------------------------------------------------------------


def installed_hooks() -> tuple[Hooks, ...]:
    """Hooks that installed packages name as entry points, by name. The command uses them all.

    Raises:
        ConfigurationError: one cannot be loaded.
    """
    from importlib.metadata import entry_points

    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return tuple(map(_loaded, points))


def _loaded(point: EntryPoint) -> Hooks:
    try:
        hooks = point.load()
        if not isinstance(hooks, Hooks):
            hooks = hooks()
    except Exception as error:
        raise _unusable(point, clean_text(f"{type(error).__name__}: {error}")) from error
    if not isinstance(hooks, Hooks):
        raise _unusable(point, f"it is {type(hooks).__name__}")
    return replace(hooks, name=point.name)


def _unusable(point: EntryPoint, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The hooks {point.name} ({point.value}) of an installed package cannot be used: {reason}.",
        next_step="Mend or uninstall that package.",
    )


# --- a command ----------------------------------------------------------------------------


def command_hooks(argv: Sequence[str], *, timeout_s: float = _COMMAND_TIMEOUT_S) -> Hooks:
    """Hooks that run a command after every upload, however it ended.

    It runs without a shell. Its environment has VODUP_STATUS ("verified" or "failed"),
    VODUP_KEY, VODUP_FILE, VODUP_VIDEO_ID, of a verified one VODUP_BUCKET, VODUP_OBJECT_KEY,
    VODUP_SIZE and VODUP_CRC64, of a failed one VODUP_ERROR and VODUP_MESSAGE; the same and
    more is a line of JSON on its standard input. What it prints goes to our standard error.
    """

    async def run(ended: EndedUpload) -> None:
        await _run_command(argv, ended)

    return Hooks(
        after_verify=run, on_failure=run, name=os.path.basename(argv[0]), timeout_s=timeout_s
    )


async def _run_command(argv: Sequence[str], ended: EndedUpload) -> None:
    told = _told(ended)
    variables = {f"VODUP_{name.upper()}": str(value) for name, value in _flat(told)}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=_STDERR,
            # A vodup that the command starts must not run the command again.
            env={**os.environ, **variables, "VODUP_ON_FINISHED": ""},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise HookError(f"{argv[0]} cannot be started ({error})") from error
    try:
        await process.communicate(json.dumps(told).encode() + b"\n")
    finally:
        if process.returncode is None:
            await _stop(process)
    if process.returncode:
        raise HookError(f"{argv[0]} ended with exit status {process.returncode}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    """With everything it started; asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await process.wait()
                return


def _told(ended: EndedUpload) -> dict[str, Any]:
    told: dict[str, Any] = {
        "status": "verified" if ended.error is None else "failed",
        "key": ended.key,
        "file": ended.source,
        "video_id": ended.video_id,
    }
    if ended.result is not None:
        told["result"] = asdict(ended.result)
    if (error := ended.error) is not None:
        told |= {
            "error": type(error).__name__,
            "message": error.message,
            "next_step": error.next_step,
            "is_resumable": error.is_resumable,
        }
    return told


def _flat(told: dict[str, Any]) -> Iterator[tuple[str, object]]:
    result = told.get("result") or {}
    shown = {name: result[name] for name in ("bucket", "object_key", "size", "crc64") if result}
    for name, value in (told | shown).items():
        if name not in {"result", "is_resumable", "next_step"} and value is not None:
            yield name, str(value).replace("\0", "")
