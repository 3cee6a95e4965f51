"""The caller's own code at three moments: before a video is made, after it is verified, on failure.

Hooks differ from listeners (`on_event`): they are awaited, may take their time, and the first of
them has a say. They are given facts, never credentials.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import shlex
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final

from uploader.commands import CommandNotStarted, describe_status, run_command
from uploader.errors import ConfigurationError, HookError, VodupError
from uploader.events import UploadResult
from uploader.protocol.documents import clean_text
from uploader.protocol.vod import VideoMeta
from uploader.threads import Worker

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

_MOST_THREADS: Final = 1024
"""Functions at once, in threads that cannot be stopped. Too few: files that end together wait for
nothing and fail. Too many: what hangs for every file of a batch takes the machine's threads."""

SECRETS: Final = (
    "ALIBABA_CLOUD_ACCESS_KEY_ID",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
    "ALIBABA_CLOUD_SECURITY_TOKEN",
    "VODUP_AUTH_URL_TOKEN",
)
"""Variables that a command of the caller's is not given: what tells of an upload needs none."""

_VARIABLES: Final = (
    "status",
    "key",
    "file",
    "video_id",
    "bucket",
    "object_key",
    "size",
    "crc64",
    "error",
    "message",
)
"""What a command is told in its environment, after "VODUP_"."""

_COMMAND_TIMEOUT_S: Final = 600.0


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

    A function runs in a thread of its own, with the caller's context variables; a coroutine
    function on the uploader's loop, which it must not block.

    Attributes:
        before_create: called before CreateUploadVideo, by every run that has to make a
            video. May return another `VideoMeta`, which the next hook sees. What it raises
            ends the upload before anything exists: a `VodupError` as it is (`PolicyError`
            for a veto), anything else as `HookError`. A `reference_id` of its choice must be
            the same for the same `PlannedVideo.key`: a video whose answer was lost is found
            again by it.
        after_verify: called once OSS holds the verified object, and again by every later
            run that finds the receipt (`result.is_receipt`): at least once, whatever
            crashes in between. Failing changes nothing about the upload; it is told as
            `HookFailed`, in the log, and in `UploadResult.hook_failures`.
        on_failure: called with every error an upload ends with; not on cancellation.
            Failing changes nothing about the error; it is told as `HookFailed` and in the
            log.
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
                f"before_create of {hook.name} failed ({_reason(error)}); no video was made."
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
            words = f"{moment} of {hook.name} failed ({_reason(error)})."
            failures.append(HookError(words, video_id=ended.video_id))
    return failures


def _reason(error: Exception) -> str:
    if isinstance(error, VodupError):
        return error.message.rstrip(".")
    if isinstance(error, _NoAnswer):
        return str(error)
    return clean_text(f"{type(error).__name__}: {error}")


class _NoAnswer(Exception):
    """A call that neither returned nor raised what may be passed on; the text is for people."""


async def _called(function: Callable[[Any], object], told: object, timeout_s: float) -> object:
    """Call it and wait; whatever it does, it ends neither this task nor this process."""
    try:
        async with asyncio.timeout(timeout_s) as limit:
            answer = (
                function(told) if iscoroutinefunction(function) else await _threaded(function, told)
            )
            return await answer if isawaitable(answer) else answer
    except TimeoutError:
        if not limit.expired():
            raise
        raise _NoAnswer(f"no end within {timeout_s:g} s") from None
    except asyncio.CancelledError:
        if _is_being_cancelled():
            raise
        raise _NoAnswer("what it waited for was cancelled") from None
    except SystemExit as error:
        raise _NoAnswer(f"it left with {error.code}") from None


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


_threads = threading.BoundedSemaphore(_MOST_THREADS)


def _threaded(function: Callable[[Any], object], told: object) -> asyncio.Future[object]:
    """In a thread that nobody has to wait for, when the process ends or time is over."""
    threads = _threads
    if not threads.acquire(blocking=False):
        raise _NoAnswer(f"{_MOST_THREADS:,} earlier calls of hooks have not ended")

    def call() -> object:
        try:
            return function(told)
        except StopIteration as error:  # no future takes it
            raise RuntimeError("StopIteration") from error
        finally:
            threads.release()

    worker = Worker("vodup-hook")
    try:
        return worker.call(partial(contextvars.copy_context().run, call))
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
        next_step="Mend or uninstall that package, or pass --no-installed-hooks.",
    )


# --- a command ----------------------------------------------------------------------------


def command_hooks(command: str | Sequence[str], *, timeout_s: float = _COMMAND_TIMEOUT_S) -> Hooks:
    """Hooks that run a command after every upload, however it ended.

    It runs without a shell; a text is split as one would. Its environment has VODUP_STATUS
    ("verified" or "failed"), VODUP_KEY, VODUP_FILE, VODUP_VIDEO_ID, of a verified one
    VODUP_BUCKET, VODUP_OBJECT_KEY, VODUP_SIZE and VODUP_CRC64, of a failed one VODUP_ERROR and
    VODUP_MESSAGE, and else what ours has, without the AccessKey, the auth URL's token (`SECRETS`)
    and a database's URL in VODUP_STATE. The same and more is a line of JSON on its standard input.
    What it prints goes to our standard error. It has failed if it cannot be started, does not end
    with 0, or not in time: it is ended then, with all it started.

    Raises:
        ConfigurationError: there is no command, or it cannot be split.
    """
    argv = _argv(command)

    async def run(ended: EndedUpload) -> None:
        await _run_command(argv, ended)

    return Hooks(
        after_verify=run, on_failure=run, name=os.path.basename(argv[0]), timeout_s=timeout_s
    )


def _argv(command: str | Sequence[str]) -> list[str]:
    try:
        argv = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise ConfigurationError(f"The command cannot be split: {error}.") from None
    if not argv:
        raise ConfigurationError("The command to run after uploads is empty.")
    return argv


async def _run_command(argv: Sequence[str], ended: EndedUpload) -> None:
    told = _told(ended)
    line = json.dumps(told).encode() + b"\n"
    try:
        command = await run_command(argv, environment=_environment(told), stdin=line)
    except CommandNotStarted as error:
        raise HookError(f"{argv[0]} cannot be started ({error})") from error
    if command.status != 0:
        raise HookError(f"{argv[0]} {describe_status(command.status)}")


def _told(ended: EndedUpload) -> dict[str, Any]:
    told: dict[str, Any] = {
        "status": "verified" if ended.error is None else "failed",
        "key": ended.key,
        "file": ended.source,
        "video_id": ended.video_id,
    }
    if ended.result is not None:
        result = asdict(ended.result)
        del result["hook_failures"]  # this is one of the hooks
        # Many readers of JSON keep only 53 bits of a number.
        told["result"] = result | {"crc64": str(ended.result.crc64)}
    if (error := ended.error) is not None:
        told |= {
            "error": type(error).__name__,
            "message": error.message,
            "code": error.code,
            "request_id": error.request_id,
            "next_step": error.next_step,
            "is_resumable": error.is_resumable,
        }
    return told


def _environment(told: dict[str, Any]) -> dict[str, str]:
    """Ours without secrets, and what the command is told; nothing of an upload but this one."""
    facts = told | told.get("result", {})
    ours = {name: value for name, value in os.environ.items() if name not in SECRETS}
    if "://" in ours.get("VODUP_STATE", ""):
        del ours["VODUP_STATE"]  # a database's URL may hold its password
    for name in _VARIABLES:
        ours.pop(variable := f"VODUP_{name.upper()}", None)
        if (value := facts.get(name)) is not None:
            ours[variable] = str(value).replace("\0", "")
    # A vodup that the command starts must not run the command again.
    return ours | {"VODUP_ON_FINISHED": ""}
