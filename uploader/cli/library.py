"""`list`, `delete`, `pull`, `register` and `clean --stuck`: what VOD holds."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from uploader import Uploader, VideoInfo, units
from uploader.cli import run, settings
from uploader.cli.flag_groups import OutputFlags
from uploader.cli.flags import CleanFlags, DeleteFlags, ListFlags, PullFlags, RegisterFlags
from uploader.cli.printing import err, out, out_json, paragraph, room
from uploader.errors import ConfigurationError, VideoError, VodupError
from uploader.protocol.catalog import UrlPull, match_of
from uploader.state import Phase

_STUCK_S: Final = 24 * 3600.0
_ENDED: Final = frozenset({Phase.DONE, Phase.ABORTED})


def list(flags: ListFlags) -> int:
    """Print the videos that VOD holds."""
    match = match_of(
        statuses=flags.status,
        title=flags.title or "",
        after=_time_before(flags.newer_than),
        before=_time_before(flags.older_than),
    )

    async def work() -> int:
        async with settings.make_uploader(flags) as uploader:
            async for video in _some(uploader.library.search(match), flags.limit):
                await room()
                _print_video(flags, "video.listed", video)
        return run.DONE

    return run.run_async(work())


async def _some(videos: AsyncIterator[VideoInfo], limit: int | None) -> AsyncIterator[VideoInfo]:
    count = 0
    async for video in videos:
        count += 1
        yield video
        if count == limit:
            return


def _time_before(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print_video(flags: OutputFlags, type_: str, video: VideoInfo) -> None:
    if flags.json:
        out_json({"type": type_, **asdict(video)})
    elif flags.quiet:
        out(video.video_id)
    else:
        out("  ".join((video.video_id, *_facts(video))))


def _facts(video: VideoInfo) -> tuple[str, ...]:
    size = "-" if video.size is None else units.size(video.size)
    return video.status, size, _age_of(video), video.title or "-"


def _age_of(video: VideoInfo) -> str:
    try:
        created = datetime.fromisoformat(video.created_at)
    except ValueError:
        return "-"
    seconds = (datetime.now(UTC) - created.replace(tzinfo=created.tzinfo or UTC)).total_seconds()
    return f"{units.duration(max(0.0, seconds))} ago"


# --- deleting ---------------------------------------------------------------------------


def delete(flags: DeleteFlags) -> int:
    """Delete videos, once that is confirmed."""

    async def work() -> int:
        async with settings.make_uploader(flags) as uploader:
            found = await uploader.library.videos(flags.video_ids)
            unknown = [name for name in flags.video_ids if name not in found]
            _confirm([*found.values()], is_confirmed=flags.yes)
            kept = await uploader.library.delete([*found]) if found else frozenset()
        for video in found.values():
            if video.video_id not in kept:
                _print_deleted(flags, video)
        for name in (*unknown, *sorted(kept)):
            _print_failure(flags, VideoError(
                f"The video {name} was not deleted: VOD does not know it, or not for this caller.",
                next_step="`vodup list` lists the videos.", video_id=name,
            ))  # fmt: skip
        return run.FAILED if unknown or kept else run.DONE

    return run.run_async(work())


def _confirm(videos: Sequence[VideoInfo], *, is_confirmed: bool) -> None:
    """Ask whether these are to be deleted.

    Raises:
        ConfigurationError: they are not.
    """
    if is_confirmed or not videos:
        return
    count = units.count(len(videos), "video")
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"Deleting {count} has to be confirmed, and standard input is no terminal.",
            next_step="Pass --yes (-y) to confirm.",
        )
    err(*("  ".join((video.video_id, *_facts(video))) for video in videos))
    err(f"Delete {count} for good? Type yes:")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise ConfigurationError("Nothing was deleted.", next_step="Run again to delete.")


def _print_deleted(flags: OutputFlags, video: VideoInfo) -> None:
    if flags.json:
        out_json({"type": "video.deleted", "video_id": video.video_id, "title": video.title})
    elif not flags.quiet:
        out(f"Deleted the video {video.video_id} ({', '.join(_facts(video))}).")


def _print_failure(flags: OutputFlags, error: VodupError, **about: str) -> None:
    if flags.json:
        fields = {"video_id": error.video_id, "message": error.message}
        fields |= {"error": type(error).__name__, "next_step": error.next_step}
        out_json({"type": "failed", **about, **fields, "exit_code": run.exit_code(error)})
    else:
        err(*paragraph(error))


def clean_stuck(flags: CleanFlags) -> int:
    """Delete videos whose uploads never ended, but for those that this state can resume."""
    age_s = _STUCK_S if flags.older_than is None else flags.older_than
    match = match_of(statuses=["Uploading"], before=_time_before(age_s))

    async def work() -> int:
        async with settings.make_uploader(flags) as uploader:
            found = [video async for video in uploader.library.search(match)]
            stuck = [video for video in found if not await _is_resumable(uploader, video)]
            if not stuck and not flags.quiet and not flags.json:
                out("No videos are stuck in the status Uploading.")
            if flags.dry_run:
                for video in stuck:
                    _print_video(flags, "video.stuck", video)
                return run.DONE
            _confirm(stuck, is_confirmed=flags.yes)
            for video in stuck:
                if await uploader.library.delete_unfinished(video.video_id):
                    _print_deleted(flags, video)
        return run.DONE

    return run.run_async(work())


async def _is_resumable(uploader: Uploader, video: VideoInfo) -> bool:
    record = await uploader.state.find(video_id=video.video_id)
    return record is not None and record.phase not in _ENDED


# --- without this machine ---------------------------------------------------------------


def pull(flags: PullFlags) -> int:
    """Have VOD fetch URLs, and follow that."""
    meta = settings.make_meta(flags)

    async def work() -> int:
        codes = []
        async with settings.make_uploader(flags) as uploader:
            for url in flags.urls:
                shown, job = url.partition("?")[0], None
                try:
                    async for job in uploader.library.pull(url, meta, again=flags.again):
                        _print_pull(flags, shown, job)
                    codes.append(_require_pulled(shown, job))
                except VodupError as error:
                    _print_failure(flags, error, url=shown)
                    codes.append(run.exit_code(error))
        return run.common_code(codes)

    try:
        return run.run_async(work())
    except run.Interrupted:
        err("Interrupted: VOD goes on fetching. To follow it, run the same command again.")
        raise


def _require_pulled(url: str, job: UrlPull | None) -> int:
    if job is None or job.has_failed:
        reason = (job.error or job.status).rstrip(".") if job else "it made no job"
        raise VideoError(
            f"VOD could not fetch {url}: {reason}.",
            next_step="Check that the URL can be read from the internet, then run the same command "
            "again.",
        )
    return run.DONE


def _print_pull(flags: OutputFlags, url: str, job: UrlPull) -> None:
    """Print a status; the query of a URL may hold a signature."""
    if flags.json:
        fields = {**asdict(job), "url": url}
        out_json({"type": "pull.done" if job.is_done else "pull.status", **fields})
    elif job.is_done:
        out(job.video_id if flags.quiet else f"Fetched {url} → video {job.video_id}.")
    elif not flags.quiet and not job.has_failed:
        err(f"{url}: {job.status} (job {job.job_id})")


def register(flags: RegisterFlags) -> int:
    """Make videos of objects."""
    meta = settings.make_meta(flags)
    place = f"oss-{settings.region_of(flags)}.aliyuncs.com"
    urls = {_file_url(name, place): Path(urlsplit(name).path).name for name in flags.objects}

    async def work() -> int:
        async with settings.make_uploader(flags) as uploader:
            registered, failed = await uploader.library.register(urls, meta)
        for one in registered:
            if flags.json:
                out_json({"type": "video.registered", **asdict(one)})
            else:
                known = "" if one.is_new else " (known before)"
                out(
                    one.video_id if flags.quiet else f"{one.file_url} → video {one.video_id}{known}"
                )
        for url in failed:
            error = VideoError(
                f"VOD did not register {url}.",
                next_step="Check that the object exists, and that its bucket is added in the VOD "
                "console.",
            )
            _print_failure(flags, error, url=url)
        return run.FAILED if failed else run.DONE

    return run.run_async(work())


def _file_url(name: str, place: str) -> str:
    """The URL of an object as RegisterMedia takes it; `oss://` is for the region's public host."""
    parts = urlsplit(name)
    if parts.scheme in {"http", "https"} and parts.netloc and len(parts.path) > 1:
        return name
    if parts.scheme != "oss" or not parts.netloc or len(parts.path) < 2:
        raise ConfigurationError(
            "An object is given as oss://BUCKET/KEY, or as its URL.",
            next_step="Correct it, then run again.",
        )
    key = name.partition("://")[2].partition("/")[2]
    return f"https://{parts.netloc}.{place}/{quote(key)}"
