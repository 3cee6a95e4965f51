"""The caller's own code: before a video is made, after it is verified, on failure."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uploader import (
    ConfigurationError,
    EndedUpload,
    HookError,
    HookFailed,
    Hooks,
    PermissionDenied,
    PlannedVideo,
    PolicyError,
    VideoMeta,
    command_hooks,
    decode_grant,
    installed_hooks,
)
from uploader.devserver import Fault
from uploader.hooks import ENTRY_POINTS, SECRETS
from uploader.threads import Threads

from .harness import PART, Desk, created, until

REFUSED = Fault(action="error", operation="UploadPart", status=403, code="AccessDenied", count=None)


def renamed(planned: PlannedVideo) -> VideoMeta:
    return replace(planned.meta, title=f"{planned.meta.title}!")


async def renamed_later(planned: PlannedVideo) -> VideoMeta:
    await asyncio.sleep(0)
    return renamed(planned)


async def test_hooks_may_change_the_metadata_of_a_video(desk: Desk) -> None:
    planned: list[PlannedVideo] = []
    hooks = [
        Hooks(before_create=planned.append),
        Hooks(before_create=renamed),
        Hooks(before_create=renamed_later),
    ]
    movie = desk.file(2 * PART)

    result = await desk.push(movie, hooks=hooks, meta=VideoMeta(title="A film"))

    assert desk.server.videos[result.video_id].title == "A film!!"
    (video,) = planned
    assert (video.key, video.source, video.size) == (result.key, str(movie), 2 * PART)
    assert video.meta == VideoMeta(title="A film")
    assert json.loads((await desk.record()).meta or "")["title"] == "A film!!"


@pytest.mark.parametrize("bad", ["\udcff", "a\x07", "\x7f"])
async def test_what_no_service_can_be_given_is_refused_before_anything_exists(
    desk: Desk, bad: str
) -> None:
    def spoil(planned: PlannedVideo) -> VideoMeta:
        return VideoMeta(description=bad)

    movie = desk.file(PART)
    error = await desk.fail(movie, meta=VideoMeta(tags=("a", bad)))
    assert isinstance(error, ConfigurationError)
    assert "tags has control characters or is not UTF-8" in error.message
    error = await desk.fail(movie, hooks=[Hooks(before_create=spoil)])
    assert isinstance(error, ConfigurationError)
    assert "description has control characters" in error.message
    error = await desk.fail(movie, video_id=bad)
    assert isinstance(error, ConfigurationError)
    assert "video_id has control characters" in error.message
    assert desk.server.stats.requests.total() == 0
    async with desk.uploader() as up:
        assert [status async for status in up.state.uploads()] == []


async def test_a_veto_comes_before_anything_exists(desk: Desk) -> None:
    def forbid(planned: PlannedVideo) -> None:
        raise PolicyError(f"{planned.meta.title} is not ours to publish.")

    hooks = [Hooks(before_create=forbid)]
    error = await desk.fail(desk.file(PART), hooks=hooks, meta=VideoMeta(title="A film"))

    assert isinstance(error, PolicyError)
    assert "not ours" in error.message
    assert error.phase == "create"
    assert desk.server.stats.requests.total() == 0
    async with desk.uploader() as up:
        assert [status async for status in up.state.uploads()] == []
    await desk.push(desk.file(PART))  # without the hook the same command goes on


def failing(planned: object) -> None:
    raise KeyError("no such title")


async def hanging(planned: object) -> None:
    await asyncio.sleep(3600)


def blocking(planned: object) -> None:
    time.sleep(1)


def confused(planned: PlannedVideo) -> Any:  # noqa: ANN401 - on purpose
    return "A film"


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (failing, "KeyError: 'no such title'"),
        (hanging, "did not finish within 0.2 s"),
        (blocking, "did not finish within 0.2 s"),
        (confused, "returned str"),
    ],
)
async def test_a_hook_that_fails_before_the_video_is_made_ends_the_upload(
    desk: Desk, hook: Callable[[Any], Any], words: str
) -> None:
    hooks = [Hooks(before_create=hook, name="titles", timeout_s=0.2)]
    error = await desk.fail(desk.file(PART), hooks=hooks)

    assert isinstance(error, HookError)
    assert "titles" in error.message
    assert words in error.message
    assert desk.server.videos == {}


async def test_before_create_is_not_called_for_an_existing_video(desk: Desk) -> None:
    movie = desk.file(4 * PART)
    desk.order(REFUSED)
    await desk.fail(movie)
    desk.order()

    await desk.push(movie, hooks=[Hooks(before_create=failing)])

    assert len(desk.server.videos) == 1


async def test_before_create_is_not_called_for_a_given_video_id(desk: Desk) -> None:
    hooks = [Hooks(before_create=failing)]
    made = await created(desk.server)
    other = await created(desk.server)
    pair = other["UploadAddress"], other["UploadAuth"]
    grant = decode_grant(*pair, video_id=other["VideoId"])

    await desk.push(desk.file(PART), video_id=made["VideoId"], hooks=hooks)
    await desk.push(desk.file(PART, "other.mp4"), grant=grant, hooks=hooks)

    assert desk.server.videos.keys() == {made["VideoId"], other["VideoId"]}


async def test_after_verify_is_called_again_by_later_runs(desk: Desk) -> None:
    received: list[EndedUpload] = []
    threads: list[threading.Thread] = []

    async def note(ended: EndedUpload) -> None:
        received.append(ended)

    def look(ended: EndedUpload) -> None:
        threads.append(threading.current_thread())

    hooks = [Hooks(after_verify=note, on_failure=failing), Hooks(after_verify=look)]
    movie = desk.file(2 * PART)
    result = await desk.push(movie, hooks=hooks)
    again = await desk.push(movie, hooks=hooks)

    assert result.hook_failures == again.hook_failures == ()
    assert [ended.result for ended in received] == [result, again]
    assert again.is_earlier_result
    assert {(e.key, e.source, e.video_id, e.error) for e in received} == {
        (result.key, str(movie), result.video_id, None)
    }
    assert threading.main_thread() not in threads
    assert desk.events_of(HookFailed) == []


async def test_on_failure_gets_the_error_that_is_raised(desk: Desk) -> None:
    received: list[EndedUpload] = []
    desk.order(REFUSED)

    error = await desk.fail(desk.file(2 * PART), hooks=[Hooks(on_failure=received.append)])
    missing = await desk.fail(desk.folder / "none.mp4", hooks=[Hooks(on_failure=received.append)])

    assert isinstance(error, PermissionDenied)
    assert [ended.error for ended in received] == [error, missing]
    assert received[0].video_id == error.video_id is not None
    assert received[1].key == ""


@pytest.mark.parametrize("hook", [failing, hanging, blocking])
async def test_a_hook_that_fails_afterwards_changes_nothing(
    desk: Desk, hook: Callable[[Any], Any]
) -> None:
    hooks = [Hooks(after_verify=hook, on_failure=hook, name="ours", timeout_s=0.2)]
    movie = desk.file(2 * PART)

    result = await desk.push(movie, hooks=hooks)

    await desk.assert_stored(result, movie)
    (failed,) = desk.events_of(HookFailed)
    assert "The hook ours (after_verify) failed" in failed.message
    assert result.hook_failures == (failed.message,)
    assert (failed.key, failed.video_id) == (result.key, result.video_id)
    desk.order(REFUSED)
    error = await desk.fail(desk.file(2 * PART, "other.mp4"), hooks=hooks)
    assert isinstance(error, PermissionDenied)
    assert "The hook ours (on_failure) failed" in desk.events_of(HookFailed)[-1].message


def leaving(ended: object) -> None:
    raise SystemExit(3)


async def leaving_on_the_loop(ended: object) -> None:
    raise SystemExit(3)


def exhausted(ended: object) -> object:
    return next(iter(()))


def impatient(ended: object) -> None:
    raise TimeoutError("the house's server is slow")


async def waiting_for_what_is_cancelled(ended: object) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (leaving, "it called sys.exit(3)"),
        (leaving_on_the_loop, "it called sys.exit(3)"),
        (exhausted, "StopIteration"),
        (impatient, "TimeoutError: the house's server is slow"),
        (waiting_for_what_is_cancelled, "was cancelled"),
    ],
)
async def test_whatever_a_hook_does_ends_neither_the_upload_nor_the_process(
    desk: Desk, hook: Callable[[Any], Any], words: str
) -> None:
    movie = desk.file(PART)
    result = await desk.push(movie, hooks=[Hooks(after_verify=hook)])
    await desk.assert_stored(result, movie)
    (failure,) = result.hook_failures
    assert words in failure


async def test_an_upload_that_is_cancelled_while_a_hook_runs_is_cancelled(desk: Desk) -> None:
    begun = asyncio.Event()

    async def wait(ended: EndedUpload) -> None:
        begun.set()
        await asyncio.sleep(3600)

    async with desk.uploader(hooks=[Hooks(after_verify=wait)]) as up:
        task = asyncio.create_task(up.upload(desk.file(PART)))
        await asyncio.wait_for(begun.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert desk.events_of(HookFailed) == []


async def test_hooks_that_hang_do_not_take_thread_after_thread(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uploader.hooks._THREADS", Threads("vodup-hook", 2))
    resumed = threading.Event()
    others = set(threading.enumerate())

    def hooked() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "vodup-hook" and t not in others]

    def hang(ended: EndedUpload) -> None:
        resumed.wait(60)

    hooks = [Hooks(after_verify=hang, timeout_s=0.1)]
    failures: list[str] = []
    try:
        for _ in range(4):
            failures += (await desk.push(desk.file(PART), hooks=hooks)).hook_failures
        assert len(hooked()) == 2
    finally:
        resumed.set()
    assert ["earlier calls" in failure for failure in failures] == [False, False, True, True]
    assert (await desk.push(desk.file(PART), hooks=hooks)).hook_failures == ()


async def test_a_hook_in_a_thread_has_the_callers_context(desk: Desk) -> None:
    request = contextvars.ContextVar("request", default="")
    seen: list[str] = []
    request.set("publish 7")
    await desk.push(
        desk.file(PART), hooks=[Hooks(after_verify=lambda ended: seen.append(request.get()))]
    )
    assert seen == ["publish 7"]


async def test_hook_failures_are_not_in_the_recorded_result(desk: Desk) -> None:
    await desk.push(desk.file(PART), hooks=[Hooks(after_verify=failing)])
    assert "hook_failures" not in json.loads((await desk.record()).result or "")
    assert (await desk.push(desk.file(PART))).hook_failures == ()


async def test_a_cancelled_upload_is_no_failure(desk: Desk) -> None:
    received: list[EndedUpload] = []
    desk.order(Fault(action="slow", operation="UploadPart", delay_s=5.0))
    async with desk.uploader(hooks=[Hooks(on_failure=received.append)]) as up:
        task = asyncio.create_task(up.upload(desk.file(4 * PART)))
        await until(lambda: desk.count("UploadPart") > 0)
        task.cancel()
        await asyncio.wait([task])
    assert received == []


async def test_hooks_are_not_given_credentials(desk: Desk) -> None:
    received: list[object] = []
    hooks = [
        Hooks(
            before_create=received.append, after_verify=received.append, on_failure=received.append
        )
    ]
    await desk.push(desk.file(2 * PART), hooks=hooks)
    desk.order(REFUSED)
    await desk.fail(desk.file(2 * PART, "other.mp4"), hooks=hooks)

    assert len(received) == 4
    assert desk.server.access_key_secret not in repr(received)
    assert "STS." not in repr(received)


# --- of installed packages ----------------------------------------------------------------

MODULE = """
from uploader import Hooks
hooks = Hooks(after_verify=print)
def make(): return Hooks(on_failure=print, name="its own")
wrong = 7
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A package as pip would leave it."""
    (folder / "house_hooks.py").write_text(MODULE)
    about = folder / "house_hooks-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: house-hooks\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINTS}]", *lines]))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "house_hooks", raising=False)


def test_installed_packages_bring_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_hooks() == ()
    install(tmp_path, monkeypatch, "b = house_hooks:make", "a = house_hooks:hooks")

    first, second = installed_hooks()

    assert (first.name, first.after_verify) == ("a", print)
    assert (second.name, second.on_failure) == ("b", print)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("house_hooks:wrong", "not callable"),
        ("house_hooks:missing", "AttributeError"),
        ("builtins:int", "it is int"),
    ],
)
def test_unusable_hooks_of_an_installed_package_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    install(tmp_path, monkeypatch, f"a = {value}")
    with pytest.raises(ConfigurationError, match=words) as caught:
        installed_hooks()
    assert value in caught.value.message


# --- a command ----------------------------------------------------------------------------

NOTES = """
import json, os, sys
received = {name: os.environ[name] for name in os.environ if name.startswith("VODUP_")}
with open(sys.argv[1], "a") as notes:
    print(json.dumps([received, json.load(sys.stdin)]), file=notes)
"""


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.posix
async def test_a_command_gets_the_result_of_each_upload(desk: Desk) -> None:
    notes = desk.folder / "notes"
    hooks = [command_hooks([sys.executable, "-c", NOTES, str(notes)])]
    movie = desk.file(2 * PART, "film; rm -rf $HOME.mp4")
    result = await desk.push(movie, hooks=hooks)
    desk.order(REFUSED)
    error = await desk.fail(desk.file(2 * PART, "other.mp4"), hooks=hooks)

    (good, line), (bad, other) = lines_of(notes)
    assert good["VODUP_STATUS"] == line["status"] == "verified"
    assert good["VODUP_FILE"] == str(movie)
    assert good["VODUP_VIDEO_ID"] == line["result"]["video_id"] == result.video_id
    assert (good["VODUP_SIZE"], good["VODUP_CRC64"]) == (str(result.size), str(result.crc64))
    assert (good["VODUP_BUCKET"], good["VODUP_OBJECT_KEY"]) == (result.bucket, result.object_key)
    assert (bad["VODUP_STATUS"], bad["VODUP_ERROR"]) == ("failed", "PermissionDenied")
    assert bad["VODUP_MESSAGE"] == other["message"] == error.message
    assert other["is_resumable"] is True
    assert (other["code"], other["request_id"]) == (error.code, error.request_id)
    assert "VODUP_SIZE" not in bad


@pytest.mark.posix
async def test_a_command_gets_no_variables_of_another_upload(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VODUP_VIDEO_ID", "VODUP_SIZE", "VODUP_ERROR"):
        monkeypatch.setenv(name, "another's")
    notes = desk.folder / "notes"
    hooks = [command_hooks([sys.executable, "-c", NOTES, str(notes)])]
    error = await desk.fail(desk.folder / "none.mp4", hooks=hooks)
    result = await desk.push(desk.file(PART), hooks=hooks)

    (bad, _), (good, line) = lines_of(notes)
    assert bad["VODUP_ERROR"] == type(error).__name__
    assert not bad.keys() & {"VODUP_VIDEO_ID", "VODUP_SIZE"}
    assert "VODUP_ERROR" not in good
    assert good["VODUP_VIDEO_ID"] == result.video_id
    assert line["result"]["crc64"] == good["VODUP_CRC64"]


@pytest.mark.posix
async def test_a_command_is_not_given_our_secrets(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("VODUP_STATE", "postgresql://vodup:canary@db/vodup")
    monkeypatch.setenv("HOUSE", "ours")
    seen = desk.folder / "seen"
    await desk.push(desk.file(PART), hooks=[command_hooks(f"sh -c 'env > {seen}'")])
    assert "HOUSE=ours" in seen.read_text()
    assert "canary" not in seen.read_text()


@pytest.mark.posix
async def test_a_command_may_know_where_the_state_is_if_that_needs_no_password(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VODUP_STATE", "/srv/vodup.db")
    seen = desk.folder / "seen"
    await desk.push(desk.file(PART), hooks=[command_hooks(f"sh -c 'env > {seen}'")])
    assert "VODUP_STATE=/srv/vodup.db" in seen.read_text()


@pytest.mark.parametrize(("command", "words"), [("", "empty"), ([], "empty"), ("a 'b", "split")])
def test_what_is_no_command_is_refused(command: str | list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        command_hooks(command)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["false"], "false failed with exit status 1"),
        (["sh", "-c", "echo no disk; exit 2"], "status 2 (its last output: no disk)"),
        (["no-such-command"], "no-such-command cannot be started"),
        (["true"], None),  # does not read its input
    ],
)
@pytest.mark.posix
async def test_a_command_that_fails_is_reported(
    desk: Desk, argv: list[str], words: str | None
) -> None:
    await desk.push(desk.file(PART), hooks=[command_hooks(argv)])
    received = desk.events_of(HookFailed)
    assert len(received) == (words is not None)
    assert all(words in failed.message for failed in received if words)


@pytest.mark.posix
async def test_a_command_that_hangs_is_ended_with_all_it_started(desk: Desk) -> None:
    pids = desk.folder / "pids"
    script = f"sleep 3600 & echo $! > {pids}; trap '' TERM; wait; sleep 3600"
    hooks = [command_hooks(["sh", "-c", script], timeout_s=0.5)]
    began = time.monotonic()

    await desk.push(desk.file(PART), hooks=hooks)

    assert 0.5 <= time.monotonic() - began < 20
    assert "did not finish within 0.5 s" in desk.events_of(HookFailed)[0].message
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)
