"""The caller's own code, called before a video is created, after it is verified, and on failure.

Hooks differ from listeners (`on_event`): they are awaited, they may take time, and a hook may
change or refuse a video before it is created. They are given facts, never credentials.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final

from uploader.commands import CommandNotStarted, describe_status, run_command, split_command
from uploader.errors import ConfigurationError, HookError, VodupError
from uploader.events import UploadResult
from uploader.protocol.documents import clean_text
from uploader.protocol.vod import VideoMeta
from uploader.tasks import in_own_task
from uploader.threads import Threads

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS: Final = "vodup.hooks"
"""The group in which packages name a `Hooks`, or a function without arguments that returns one."""

_MAX_THREAD_COUNT: Final = 1024
"""Threads cannot be stopped. Too few: hooks of uploads that end together fail without a reason.
Too many: hooks that hang for every file of a batch use up the machine's threads."""

_THREADS = Threads("vodup-hook", _MAX_THREAD_COUNT)

SECRETS: Final = (
    "ALIBABA_CLOUD_ACCESS_KEY_ID",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
    "ALIBABA_CLOUD_SECURITY_TOKEN",
    "VODUP_AUTH_URL_TOKEN",
)
"""Variables that a command is not given: it needs none of them."""

_VARIABLES: Final = "status key file video_id bucket object_key size crc64 error message".split()
"""What a command's environment holds, each name after "VODUP_"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVideo:
    """A video that is about to be created.

    Attributes:
        key: the upload's name in the state store.
        source: where the bytes come from, for people.
        size: bytes; 0 while a stream has no end.
        meta: the metadata for CreateUploadVideo.
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
    """Functions or coroutine functions that are called for each upload.

    A function runs in a thread, with the caller's context variables; a coroutine function
    runs on the uploader's loop, which it must not block.

    Attributes:
        before_create: called before CreateUploadVideo, by every run that has to create a
            video. It may return another `VideoMeta`, which the next hook gets. If it raises,
            the upload fails before anything exists: a `VodupError` is raised as it is
            (`PolicyError` to refuse the video), anything else as `HookError`. If it sets a
            `reference_id`, that must be the same for the same `PlannedVideo.key`: a video
            whose answer was lost is found again by it.
        after_verify: called once OSS holds the verified object, and again by every later
            run that finds the result recorded (`result.is_earlier_result`): at least once, also
            after a crash. Its failure does not change the result; it is reported as
            `HookFailed`, in the log, and in `UploadResult.hook_failures`.
        on_failure: called with every error that ends an upload; not on cancellation. Its
            failure does not change the error; it is reported as `HookFailed` and in the log.
        name: what messages call these hooks.
        timeout_s: how long each call may take. A function in a thread cannot be stopped;
            it is not waited for any longer.
    """

    before_create: (
        Callable[[PlannedVideo], VideoMeta | Awaitable[VideoMeta | None] | None] | None
    ) = None
    after_verify: Callable[[EndedUpload], object] | None = None
    on_failure: Callable[[EndedUpload], object] | None = None
    name: str = "hooks"
    timeout_s: float = 60.0


async def run_before_create(hooks: Sequence[Hooks], planned: PlannedVideo) -> VideoMeta:
    """Call the hooks before a video is created; return the metadata to create it with.

    Raises:
        VodupError: raised by a hook.
        HookError: a hook failed, took too long or returned something else.
    """
    for hook in hooks:
        if hook.before_create is None:
            continue
        name = f"The hook {hook.name} (before_create)"
        try:
            answer = await _call(hook.before_create, planned, hook.timeout_s)
        except VodupError:
            raise
        except Exception as error:
            raise HookError(f"{name} failed: {_reason(error)}. No video was created.") from error
        if answer is not None and not isinstance(answer, VideoMeta):
            raise HookError(f"{name} returned {type(answer).__name__}, not VideoMeta.")
        planned = replace(planned, meta=answer or planned.meta)
    return planned.meta


async def notify_ended(hooks: Sequence[Hooks], ended: EndedUpload) -> list[HookError]:
    """Tell the hooks how an upload has ended; return their failures, which change nothing."""
    failures = []
    moment = "after_verify" if ended.error is None else "on_failure"
    for hook in hooks:
        function = hook.after_verify if ended.error is None else hook.on_failure
        if function is None:
            continue
        try:
            await _call(function, ended, hook.timeout_s)
        except Exception as error:
            message = f"The hook {hook.name} ({moment}) failed: {_reason(error)}."
            failures.append(HookError(message, video_id=ended.video_id))
    return failures


def _reason(error: Exception) -> str:
    if isinstance(error, VodupError):
        return error.message.rstrip(".")
    if isinstance(error, _NoAnswer):
        return str(error)
    return clean_text(f"{type(error).__name__}: {error}")


class _NoAnswer(Exception):
    """A call has neither returned nor raised an error to report; the text says why."""


async def _call(function: Callable[[Any], object], value: object, timeout_s: float) -> object:
    """Call a hook and wait for it. It can end neither this task nor the process."""
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await in_own_task(_answer_of(function, value))
    except TimeoutError:
        if not limit.expired():
            raise
        raise _NoAnswer(f"it did not finish within {timeout_s:g} s") from None


async def _answer_of(function: Callable[[Any], object], value: object) -> object:
    try:
        if iscoroutinefunction(function):
            return await function(value)
        if _THREADS.is_exhausted:
            raise _NoAnswer(f"{_MAX_THREAD_COUNT:,} earlier calls of hooks have not finished")
        answer = await _THREADS.run(function, value)
        return await answer if isawaitable(answer) else answer
    except SystemExit as error:
        raise _NoAnswer(f"it called sys.exit({error.code})") from None


def installed_hooks() -> tuple[Hooks, ...]:
    """Return the hooks that installed packages name as entry points, sorted by name.

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
        if not isinstance(hooks, Hooks):
            raise TypeError(f"it is {type(hooks).__name__}")
    except Exception as error:
        reason = clean_text(f"{type(error).__name__}: {error}")
        raise ConfigurationError(
            f"The hooks {point.name} ({point.value}) of an installed package cannot be used: "
            f"{reason}.",
            next_step="Fix or uninstall that package, or pass --no-installed-hooks.",
        ) from error
    return replace(hooks, name=point.name)


def command_hooks(command: str | Sequence[str], *, timeout_s: float = 600.0) -> Hooks:
    """Return hooks that run a command after every upload, verified or failed.

    The command runs without a shell; a string is split as a shell would. Its environment is ours
    without the AccessKey, the token of the auth URL (`SECRETS`) and a database URL in VODUP_STATE,
    and has VODUP_STATUS ("verified" or "failed"), VODUP_KEY, VODUP_FILE and VODUP_VIDEO_ID; if
    verified VODUP_BUCKET, VODUP_OBJECT_KEY, VODUP_SIZE and VODUP_CRC64; if failed VODUP_ERROR and
    VODUP_MESSAGE. Its standard input is one line of JSON with the same and more. The end of its
    output is logged at debug, and shown if it fails. It fails if it cannot be started, exits with
    another status than 0, or does not finish in time; it is ended then, with all processes that it
    has started.

    Raises:
        ConfigurationError: the command is empty or cannot be split.
    """
    argv = split_command(command, "The command to run after uploads")

    async def run(ended: EndedUpload) -> None:
        facts = facts_of(ended)
        line = json.dumps(facts).encode() + b"\n"
        try:
            command = await run_command(argv, environment=_environment(facts), stdin=line)
        except CommandNotStarted as error:
            raise HookError(f"{argv[0]} cannot be started ({error})") from error
        if command.status != 0:
            raise HookError(f"{argv[0]} {describe_status(command.status, command.last_output)}")

    name = os.path.basename(argv[0])
    return Hooks(after_verify=run, on_failure=run, name=name, timeout_s=timeout_s)


def facts_of(ended: EndedUpload) -> dict[str, Any]:
    """What commands and webhooks are given, as JSON has it."""
    facts: dict[str, Any] = {
        "status": "verified" if ended.error is None else "failed",
        "key": ended.key,
        "file": ended.source,
        "video_id": ended.video_id,
    }
    if ended.result is not None:
        result = asdict(ended.result)
        del result["hook_failures"]  # this is one of the hooks
        # Many readers of JSON keep only 53 bits of a number.
        facts["result"] = result | {"crc64": str(ended.result.crc64)}
    return facts | (facts_of_error(ended.error) if ended.error is not None else {})


def facts_of_error(error: VodupError) -> dict[str, Any]:
    """The same of an error."""
    names = ("message", "code", "request_id", "next_step", "is_resumable")
    return {"error": type(error).__name__, **{name: getattr(error, name) for name in names}}


def _environment(facts: dict[str, Any]) -> dict[str, str]:
    """Our variables without secrets, and those of this upload alone."""
    facts = facts | facts.get("result", {})
    ours = {name: value for name, value in os.environ.items() if name not in SECRETS}
    if "://" in ours.get("VODUP_STATE", ""):
        del ours["VODUP_STATE"]  # a database's URL may hold its password
    for name in _VARIABLES:
        ours.pop(variable := f"VODUP_{name.upper()}", None)
        if (value := facts.get(name)) is not None:
            ours[variable] = str(value).replace("\0", "")
    # A vodup that the command starts must not run the command again.
    return ours | {"VODUP_ON_FINISHED": ""}
