"""`push` and `resume`: several uploads at once; each succeeds or fails by itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from uploader import Uploader, UploadGrant, UploadItem, UploadRecord, VideoMeta, decode_answer
from uploader.cli import run, settings
from uploader.cli.flag_groups import UrlFlags
from uploader.cli.flags import PushFlags, ResumeFlags
from uploader.cli.options import flag_of
from uploader.cli.printing import report_notices
from uploader.cli.push_views import PushedFile, interruption, make_push_view
from uploader.cli.records import find_record
from uploader.cli.sources import (
    is_repeatable,
    label_of,
    names_of,
    recorded_source,
    shown_name,
    size_of,
    source_of,
)
from uploader.errors import ConfigurationError, VodupError
from uploader.events import Event, Listener, UploadResult
from uploader.protocol.vod import refuses_name
from uploader.sources import as_source
from uploader.state import Phase
from uploader.tasks import beside, one_error
from uploader.tracker import Tracker
from uploader.unexpected import unexpected

if TYPE_CHECKING:
    from uploader.protocol.media import MediaKind, StoredMedia

_FILES_AT_ONCE: Final = 4


Finder = Callable[[Uploader], Awaitable[Sequence[UploadItem]]]
"""Returns what is to be uploaded; `tag` is its `PushedFile`."""


def push(flags: PushFlags) -> int:
    """Upload files and return the exit code."""
    names = names_of(flags)

    def prepare(on_event: Listener | None) -> tuple[Uploader, Finder]:
        _require_sense(names, flags)
        grant = decode_answer(settings.read_input(flags.grant, "--grant")) if flags.grant else None
        items = _items_of(names, files, flags, grant)

        async def find(_: Uploader) -> Sequence[UploadItem]:
            return items

        options = settings.make_options(flags)
        return settings.make_uploader(
            flags, options, has_grant=grant is not None, on_event=on_event
        ), find

    noun = flags.as_ or "video"
    files = [
        PushedFile(shown_name(name), label_of(name, flags), size=size_of(name, flags), noun=noun)
        for name in names
    ]
    if flags.dry_run:
        _require_sense(names, flags)
        return run.run_async(_checked(_items_of(names, files, flags, None), flags))
    with settings.serve_metrics(flags.metrics_port) as on_event:
        is_kept = flags.state != "memory"
        pushed = _Push(
            flags, files, is_kept=is_kept, wait_s=flags.wait, attachments=Attachments.of(flags)
        )
        return pushed.run(partial(prepare, on_event))


def _items_of(
    names: Sequence[str], files: Sequence[PushedFile], flags: PushFlags, grant: UploadGrant | None
) -> list[UploadItem]:
    meta, kind = settings.make_meta(flags), _kind_of(flags.as_)
    has_video = flags.video_id is not None or grant is not None
    return [
        UploadItem(
            tag=file,
            source=source_of(name, flags, has_video=has_video),
            meta=meta,
            video_id=flags.video_id,
            grant=grant,
            key=flags.key,
            overwrite=flags.overwrite,
            on_source_change=flags.changed,
            media=kind,
        )
        for name, file in zip(names, files, strict=True)
    ]


def _kind_of(name: str | None) -> MediaKind | None:
    if not name:
        return None
    from uploader.protocol.media import MediaKind  # few uploads need it

    return MediaKind(name)


async def _checked(items: Sequence[UploadItem], flags: PushFlags) -> int:
    """Open every local file, as an upload would; sends nothing."""
    view, codes = make_push_view(flags), list[int]()
    for item in items:
        file: PushedFile = item.tag
        try:
            if isinstance(item.source, str) and "://" not in item.source:
                async with as_source(item.source) as source:
                    file.size = source.size
                _require_type(flags.file_name or os.path.basename(item.source), flags)
            view.planned(file)
        except VodupError as error:
            view.failed(file, error)
            codes.append(run.exit_code(error))
    return run.common_code(codes)


def _require_type(name: str, flags: PushFlags) -> None:
    """Refuse a file of a type that CreateUploadVideo refuses."""
    is_new = flags.video_id is None and flags.grant is None and flags.as_ is None
    if is_new and refuses_name(name):
        raise ConfigurationError(
            f"VOD does not accept files like {name!r}.",
            next_step="Pass --file-name with an extension that VOD accepts, such as mp4 or mov.",
        )


def _require_sense(names: Sequence[str], flags: PushFlags) -> None:
    """Refuse flags that do not go together, or not with the number of files."""
    single = "title file_name reference_id key video_id grant cover subtitle".split()
    given = [flag_of(name) for name in single if getattr(flags, name) not in (None, ())]
    of_video = [flag for flag in given if flag not in {"--title", "--key", "--file-name"}]
    of_video += ["--wait"] * (flags.wait is not None)
    if flags.as_ is not None and of_video:
        raise ConfigurationError(
            f"{of_video[0]} is for videos, and --as {flags.as_} uploads none.",
            next_step=f"Leave out --as or {of_video[0]}.",
        )
    if len(names) > 1 and given:
        raise ConfigurationError(
            f"{given[0]} can only be used with a single file ({len(names)} given).",
            next_step=f"Push the files one by one, or leave {given[0]} out.",
        )
    if flags.grant == "-" and "-" in names:
        raise ConfigurationError(
            "Standard input cannot be both the grant and the video.",
            next_step="Write the grant to a file and pass --grant FILE.",
        )
    if len({os.path.abspath(shown_name(name)) for name in names}) < len(names):
        raise ConfigurationError(
            "The same path is given twice.", next_step="Leave one of them out."
        )


def resume(flags: ResumeFlags) -> int:
    """Resume recorded uploads and return the exit code."""
    if bool(flags.names) == flags.all:
        raise ConfigurationError(
            "Name the uploads to resume, or pass --all.", next_step="`vodup status` lists them."
        )

    async def find(uploader: Uploader) -> list[UploadItem]:
        records = await (_named(uploader, flags.names) if flags.names else _unfinished(uploader))
        return [_recorded_item(record, flags) for record in records]

    with settings.serve_metrics(flags.metrics_port) as on_event:
        return _Push(flags, wait_s=flags.wait).run(
            lambda: (
                settings.make_uploader(flags, settings.make_options(flags), on_event=on_event),
                find,
            )
        )


async def _unfinished(uploader: Uploader) -> list[UploadRecord]:
    """Return the uploads that can be resumed without their producer, oldest first."""
    ended = {Phase.DONE, Phase.ABORTED}
    found = [s.record async for s in uploader.state.uploads() if s.record.phase not in ended]
    return [record for record in reversed(found) if is_repeatable(record)]


async def _named(uploader: Uploader, names: Sequence[str]) -> list[UploadRecord]:
    records = [await find_record(uploader.state, name) for name in names]
    for record in records:
        if record.phase is Phase.ABORTED:
            raise ConfigurationError(
                f"The upload {record.key} was aborted and cannot be resumed.",
                next_step=f"Start over with: vodup push {record.source}",
            )
    return records


def _recorded_item(record: UploadRecord, flags: UrlFlags) -> UploadItem:
    kind = record.scope.partition(" ")[2]  # of an image or attached media: `media_scope`
    return UploadItem(
        tag=PushedFile(record.source, record.source, noun=kind or "video"),
        media=_kind_of(kind),
        source=recorded_source(record, flags),
        # What the first run was to send with CreateUploadVideo, if no video was created yet.
        meta=VideoMeta.from_text(record.meta or "{}"),
        video_id=None if kind else record.video_id,
        key=record.key,
        overwrite=record.is_overwrite,
    )


AllFlags = PushFlags | ResumeFlags


@dataclass(frozen=True, slots=True)
class Attachments:
    """The cover and the subtitles of a video: language and path."""

    cover: str | None = None
    subtitles: tuple[tuple[str, str], ...] = ()
    storage_location: str | None = None

    @classmethod
    def of(cls, flags: PushFlags) -> Attachments:
        """Read the flags.

        Raises:
            ConfigurationError: a subtitle names no language or no file.
        """
        subtitles = [text.partition("=")[::2] for text in flags.subtitle]
        if not all(language and path for language, path in subtitles):
            raise ConfigurationError(
                "--subtitle needs a language and a file, such as zh=movie.zh.srt.",
                next_step="Correct --subtitle (or VODUP_SUBTITLE), then run again.",
            )
        return cls(flags.cover, tuple(subtitles), flags.storage_location)

    async def upload(
        self, uploader: Uploader, video_id: str
    ) -> AsyncIterator[tuple[str, StoredMedia]]:
        """Upload all of them; yields the path of each, and where it is."""
        if not (self.cover or self.subtitles):
            return
        from uploader.companions import upload_cover, upload_subtitle

        place = self.storage_location
        if self.cover:
            stored = await upload_cover(uploader, self.cover, video_id, storage_location=place)
            yield self.cover, stored
        for language, path in self.subtitles:
            stored = await upload_subtitle(
                uploader, path, language=language, storage_location=place
            )
            yield path, stored


def waited_for(flags: AllFlags, files: Sequence[PushedFile]) -> str:
    """What has not answered while no upload has started: a URL is opened before VOD is called."""
    has_url = any("://" in file.source for file in files)
    return f"{'the source or ' if has_url else ''}{settings.issuer_of(flags)}"


class _Push:
    """One run over several files. Mutable: the files."""

    def __init__(
        self,
        flags: AllFlags,
        files: Sequence[PushedFile] = (),
        *,
        is_kept: bool = True,
        wait_s: float | None = None,
        attachments: Attachments | None = None,
    ) -> None:
        """`is_kept`: whether the state outlives this process. `wait_s`: for videos to play."""
        self._view = make_push_view(flags, waited_for(flags, files))
        self._files = list(files)
        self._tracker = Tracker()
        self._is_kept, self._wait_s = is_kept, wait_s
        self._attachments = attachments or Attachments()

    def run(self, prepare: Callable[[], tuple[Uploader, Finder]]) -> int:
        """Upload everything; the end of every file is printed, whatever happens."""
        try:
            uploader, find = prepare()
            return run.run_async(self._perform(uploader, find), uploader)
        except VodupError as error:
            if not self._files:
                raise
            self._view.refused(self._open_files, error)
            return run.exit_code(error)
        except run.Interrupted as interrupted:
            for file in self._open_files:
                sentence = interruption(file, is_kept=self._is_kept)
                self._view.interrupted(file, interrupted.code, sentence)
            raise

    @property
    def _open_files(self) -> list[PushedFile]:
        return [file for file in self._files if file.code is None]

    async def _perform(self, uploader: Uploader, find: Finder) -> int:
        async with uploader:
            items = await find(uploader)
            self._files = [item.tag for item in items]
            gate = asyncio.Semaphore(_FILES_AT_ONCE)
            watching = self._view.watch(self._files, self._tracker)
            async with beside(watching), one_error() as group:
                tasks = [group.create_task(self._upload(uploader, one, gate)) for one in items]
        report_notices(uploader.state, uploader.notifications)
        if len(items) > 1:
            self._view.total(self._files, self._tracker)
        return run.common_code(task.result() for task in tasks)

    async def _upload(self, uploader: Uploader, item: UploadItem, gate: asyncio.Semaphore) -> int:
        file: PushedFile = item.tag

        def on_event(event: Event) -> None:
            file.update(event, self._tracker)
            self._view.event(file, event)

        try:
            async with gate:
                result = await uploader.upload_item(item, on_event=on_event)
        except VodupError as error:
            return self._fail(file, error)
        except Exception as error:  # a bug that affects one file must not stop the others
            run.explain_bug(error)
            return self._fail(file, unexpected(error))
        file.size, file.is_stored = result.size, True
        self._view.finished(file, result)
        try:
            await self._follow_up(uploader, item, file, result)
        except VodupError as error:
            return self._fail(file, error)
        file.code = run.HOOK_FAILED if result.hook_failures else run.DONE
        return file.code

    async def _follow_up(
        self, uploader: Uploader, item: UploadItem, file: PushedFile, result: UploadResult
    ) -> None:
        """Do what the flags ask for once a file is verified."""
        if item.media is not None:
            from uploader.companions import located

            self._view.media(file, await located(uploader, item.media, result))
            return
        async for source, media in self._attachments.upload(uploader, result.video_id):
            self._view.media(replace(file, source=source, label=source), media)
        if self._wait_s is not None:
            playable = await uploader.wait_until_playable(
                result.video_id,
                timeout_s=self._wait_s,
                on_status=lambda info: self._view.status(file, info),
            )
            self._view.playable(file, playable)

    def _fail(self, file: PushedFile, error: VodupError) -> int:
        file.code = run.exit_code(error)
        self._view.failed(file, error)
        return file.code
