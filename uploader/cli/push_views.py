"""What `push` and `resume` print: sentences for people, JSON lines for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from uploader import events, units
from uploader.cli import run
from uploader.cli.flag_groups import OutputFlags
from uploader.cli.meters import STALLED_S, Gauge
from uploader.cli.printing import err, out, out_json, paragraph
from uploader.cli.progress import Shown, bars_of, sample_every_second, show_progress, upload_meter
from uploader.errors import VodupError
from uploader.tasks import beside
from uploader.tracker import TrackedUpload, Tracker

if TYPE_CHECKING:
    from uploader import PlayableVideo, StoredMedia, VideoInfo

_JSON_INTERVAL_S: Final = 1.0


@dataclass(slots=True)
class PushedFile:
    """One file of a push. Mutable: how far it is, and how it ended.

    Attributes:
        source: what the user calls it.
        label: the same, in sentences.
        upload: once it has started.
        code: its exit code, once it has ended.
        size: of the file, if it is known before the upload starts; then of the object.
        noun: what becomes of it.
        is_stored: whether it is verified; its video may be waited for.
    """

    source: str
    label: str
    upload: TrackedUpload | None = None
    code: int | None = None
    size: int = 0
    noun: str = "video"
    is_stored: bool = False

    def update(self, event: events.Event, tracker: Tracker) -> None:
        """Apply an event of this upload."""
        tracker(event)
        if isinstance(event, events.UploadStarted):
            self.upload = tracker.active[event.key]
            self.upload.source = self.label

    @property
    def video_id(self) -> str | None:
        """Once it is known."""
        return self.upload.video_id if self.upload else None

    @property
    def done_bytes(self) -> int:
        """At OSS or on the way there."""
        if self.is_stored:
            return self.size
        return self.upload.done_bytes if self.upload else 0

    @property
    def whole_bytes(self) -> int:
        """What there is to send: of a failed file, no more than was sent."""
        if self.code is not None or self.is_stored:
            return self.done_bytes
        return self.upload.size if self.upload else self.size

    @property
    def is_active(self) -> bool:
        """Whether it is being sent."""
        return self.upload is not None and self.code is None and not self.is_stored


# --- sentences --------------------------------------------------------------------------


def success(
    file: PushedFile, result: events.UploadResult, *, is_single: bool, is_verbose: bool
) -> str:
    """What an upload came to, in one line of a terminal if it is one of several."""
    if result.is_earlier_result:
        return (
            f"{file.label} is already uploaded as {file.noun} {result.video_id}; nothing to send."
        )
    facts = [units.size(result.size)]
    if result.sent_bytes:
        facts[0] += f" in {units.duration(result.seconds)}"
        if is_single or is_verbose:
            facts[0] += f", {units.rate(result.sent_bytes / max(result.seconds, 0.001))}"
    if is_verbose:
        facts.append(f"CRC-64 {result.crc64}, verified by {result.verified_by}")
        facts.append(units.count(result.part_count, "part"))
        facts.append(f"sent to {result.endpoint}")
        facts.append(f"TCP congestion control {result.congestion or 'unknown'}")
    else:
        facts[0] += ", verified"
    if result.resumed_part_count:
        parts = units.count(result.part_count, "part")
        facts.append(f"{result.resumed_part_count} of {parts} from an earlier run")
    if result.renewal_count:
        facts.append(f"credentials renewed {units.count(result.renewal_count, 'time')}")
    if result.retry_count:
        facts.append(f"{units.count(result.retry_count, 'request')} retried")
    return f"Uploaded {file.label} → {file.noun} {result.video_id} ({'; '.join(facts)})."


def beginning(file: PushedFile, event: events.UploadStarted) -> str:
    """How an upload starts."""
    video = f"{file.noun} {event.video_id}"
    if not event.size:
        stored = "size unknown"
        if event.is_resumed:
            stored = f"{units.size(event.done_bytes)} already uploaded"
        return f"{file.label}: uploading as {video}; {stored}."
    if event.is_resumed:
        return (
            f"{file.label}: resuming {video}; {event.resumed_part_count} of "
            f"{units.count(event.part_count, 'part')} "
            f"({units.share(event.done_bytes, event.size)}) already uploaded."
        )
    return f"{file.label}: uploading {units.size(event.size)} as {video}."


def incident(file: PushedFile, event: events.Event) -> str | None:
    """What else people want to know of an upload; None for other events."""
    match event:
        case events.UploadStarted():
            return beginning(file, event)
        case events.UploadRestarted():
            return f"{file.label}: {event.reason}; uploading all parts again, to the same video."
        case events.MediaAbandoned():
            left = (
                f"{file.noun} {event.media_id} stays at VOD"
                if event.media_id
                else ("what that run created stays at VOD under an unknown id")
            )
            return f"{file.label}: {event.reason}; creating a new {file.noun} ({left})."
        case events.PartsAdopted():
            parts = units.count(event.part_count, "part")
            return f"{file.label}: OSS already has {parts} that were not recorded; verified."
        case events.EarlierVideoFound(earlier_video_id=video_id, is_same=True):
            return (
                f"{file.label}: a run whose checkpoint is lost has uploaded it as video "
                f"{video_id}; verified."
            )
        case events.EarlierVideoFound(earlier_video_id=video_id):
            state = f"is video {video_id}, with other content" if video_id else "is gone"
            return (
                f"{file.label}: the video of a run whose checkpoint is lost {state}; "
                "creating a new video."
            )
        case events.HookFailed():
            return f"{file.label}: {event.message}"
        case _:
            return None


_STATUSES: Final = {
    "Uploading": "VOD has not received the upload yet",
    "UploadSucc": "stored, not transcoded yet",
    "Transcoding": "transcoding",
    "Checking": "transcoded, and under review",
}
"""A video that does not play yet ("VOD: Video status")."""


def _failure_type(file: PushedFile, error: str) -> str:
    """What a stored file failed with is about its video, not about the upload."""
    if not file.is_stored:
        return events.UploadFailed.type
    return "video.not_playable" if error == "NotPlayable" else "video.incomplete"


def playing(file: PushedFile, video: PlayableVideo) -> list[str]:
    """How a video plays: a sentence, and a line for each URL."""
    length = f" ({units.duration(video.duration_s)})" if video.duration_s else ""
    lines = [f"{file.label}: video {video.video_id} plays{length}."]
    if video.cover_url:
        lines.append(f"  cover: {video.cover_url}")
    for stream in video.streams:
        facts = [stream.definition, stream.format]
        facts += [f"{stream.width}x{stream.height}"] if stream.width and stream.height else []
        facts += [units.size(stream.size)] if stream.size else []
        lines.append(f"  {' '.join(filter(None, facts))}: {stream.url}")
    return lines


def interruption(file: PushedFile, *, is_kept: bool) -> str:
    """How far an upload came before a signal stopped it, and how to resume it."""
    upload = file.upload
    if file.is_stored:
        return (
            f"Interrupted: {file.label} is uploaded and verified; its video may not play yet. To "
            "go on waiting, run the same command again."
        )
    if upload is None:
        return f"Interrupted: {file.label}, nothing uploaded yet."
    done = units.count(upload.acked_part_count, "part")
    if upload.part_count:
        done = f"{upload.acked_part_count} of {units.count(upload.part_count, 'part')}"
    if not is_kept:
        resume = "With --state memory nothing is saved: the same command starts over."
    elif upload.part_count:
        resume = "To resume, run the same command again."
    else:
        resume = (
            f"To resume, run the same command again with --key {upload.key}, and send the data "
            "from its start."
        )
    return f"Interrupted: {file.label}, {done} uploaded. {resume}"


# --- for programs -----------------------------------------------------------------------


class JsonView:
    """One JSON object per line; the last one of each file is its outcome.

    CRC-64s are decimal strings: many readers of JSON keep only 53 bits of a number.
    Mutable: when the progress of each file was last printed.
    """

    def __init__(self) -> None:
        self._printed_s: dict[int, float] = {}

    def event(self, file: PushedFile, event: events.Event) -> None:
        """Print the event; progress at most once a second, and only once it has started."""
        if isinstance(event, events.UploadFinished | events.UploadFailed | events.UploadCancelled):
            return  # printed by `finished`, `failed`, `interrupted`, which know the exit code
        if isinstance(event, events.PartStored):
            return  # the progress counts them
        if isinstance(event, events.UploadProgress) and not self._is_due(file):
            return
        self._print(file, event.type, **asdict(event))

    def _is_due(self, file: PushedFile) -> bool:
        now_s = time.monotonic()
        is_early = now_s - self._printed_s.get(id(file), float("-inf")) < _JSON_INTERVAL_S
        if is_early or not file.is_active:
            return False
        self._printed_s[id(file)] = now_s
        return True

    def finished(self, file: PushedFile, result: events.UploadResult) -> None:
        """Print the result."""
        self._print(file, events.UploadFinished.type, **asdict(result))

    def media(self, file: PushedFile, media: StoredMedia) -> None:
        """Print where an image or attached media is."""
        fields = asdict(media) | {"kind": str(media.kind)}
        self._print(file, "media.stored", **fields)

    def status(self, file: PushedFile, info: VideoInfo) -> None:
        """Print what VOD does with a stored video."""
        self._print(file, "video.status", video_id=info.video_id, status=info.status)

    def playable(self, file: PushedFile, video: PlayableVideo) -> None:
        """Print how the video plays."""
        self._print(file, "video.playable", **asdict(video))

    def planned(self, file: PushedFile) -> None:
        """Print what --dry-run found."""
        self._print(file, "upload.planned", size=file.size)

    def failed(self, file: PushedFile, error: VodupError) -> None:
        """Print the error."""
        code = run.exit_code(error)
        self._print_failure(file, error, type(error).__name__, code, error.is_resumable)

    def refused(self, files: Sequence[PushedFile], error: VodupError) -> None:
        """Print the error for each file."""
        for file in files:
            self.failed(file, error)

    def interrupted(self, file: PushedFile, code: int, sentence: str) -> None:
        """Print that it was stopped (`interruption`)."""
        self._print_failure(file, VodupError(sentence), "Interrupted", code, True)

    def _print_failure(
        self, file: PushedFile, error: VodupError, name: str, exit_code: int, resumable: bool
    ) -> None:
        self._print(
            file,
            _failure_type(file, name),
            video_id=error.video_id or file.video_id,
            error=name,
            message=error.message,
            code=error.code,
            request_id=error.request_id,
            resumable=resumable,
            next_step=error.next_step,
            exit_code=exit_code,
        )

    def _print(self, file: PushedFile, type_: str, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat()
        line = {"type": type_, "at": now, **fields, "source": file.source}
        if "crc64" in line:
            line["crc64"] = str(line["crc64"])
        out_json(line)

    def total(self, files: Sequence[PushedFile], tracker: Tracker) -> None:
        """Print the totals for people."""
        err(totals(files, tracker))

    async def watch(self, files: Sequence[PushedFile], tracker: Tracker) -> None:
        """Print nothing: the events are enough."""


# --- for people -------------------------------------------------------------------------


def totals(files: Sequence[PushedFile], tracker: Tracker) -> str:
    """What a push came to."""
    done = [file for file in files if file.is_stored]
    size = units.size(sum(file.size for file in done))
    pace = f"; {units.rate(tracker.new_bytes / max(tracker.seconds, 0.001))}"
    return (
        f"{len(done)} of {units.count(len(files), 'file')} uploaded, {size} in total"
        f"{pace if tracker.new_bytes else ''}."
    )


class TextView:
    """Sentences: results on standard output, all else on standard error.

    With --quiet only VideoIds and errors are printed. A bar says how an upload starts, so that no
    sentence repeats it, unless --verbose is given. Mutable: the number of files.
    """

    def __init__(self, flags: OutputFlags, service: str = "") -> None:
        """`service` is what creates the videos: its name and address."""
        self._is_quiet, self._is_verbose = flags.quiet, flags.verbose
        self.service = service
        self._file_count = 1

    def event(self, file: PushedFile, event: events.Event) -> None:
        """Print what is out of the ordinary."""
        is_start = isinstance(event, events.UploadStarted)
        if self._is_quiet or (is_start and bars_of(sys.stderr) and not self._is_verbose):
            return
        if (sentence := incident(file, event)) is not None:
            err(sentence)

    def finished(self, file: PushedFile, result: events.UploadResult) -> None:
        """Print the result."""
        if self._is_quiet:
            out(result.video_id)
        else:
            is_single = self._file_count == 1
            out(success(file, result, is_single=is_single, is_verbose=self._is_verbose))

    def media(self, file: PushedFile, media: StoredMedia) -> None:
        """Print where an image or attached media is."""
        if not self._is_quiet:
            out(f"{file.label}: {media.kind} {media.media_id} at {media.url}")

    def status(self, file: PushedFile, info: VideoInfo) -> None:
        """Print what VOD does with a stored video."""
        if not self._is_quiet and info.status in _STATUSES:
            err(f"{file.label}: {_STATUSES[info.status]}.")

    def playable(self, file: PushedFile, video: PlayableVideo) -> None:
        """Print how the video plays."""
        if not self._is_quiet:
            out(*playing(file, video))

    def planned(self, file: PushedFile) -> None:
        """Print what --dry-run found."""
        size = units.size(file.size) if file.size else "size unknown"
        out(f"Would upload {file.label} ({size}). Dry run: nothing sent.")

    def failed(self, file: PushedFile, error: VodupError) -> None:
        """Print what failed and what to do."""
        err(*paragraph(error, about=file.label))

    def refused(self, files: Sequence[PushedFile], error: VodupError) -> None:
        """Print the error once."""
        err(*paragraph(error))

    def interrupted(self, file: PushedFile, code: int, sentence: str) -> None:
        """Print how far it came."""
        err(sentence)

    def total(self, files: Sequence[PushedFile], tracker: Tracker) -> None:
        """Print the totals."""
        if not self._is_quiet:
            err(totals(files, tracker))

    async def watch(self, files: Sequence[PushedFile], tracker: Tracker) -> None:
        """Show progress until cancelled."""
        self._file_count = len(files)
        if self._is_quiet:
            return
        view = Shown(
            tracker,
            lambda: total_meter(files, tracker),
            lambda: [
                upload_meter(tracker, file.upload, file.label)
                for file in files
                if file.is_active and file.upload and len(files) > 1
            ],
            lambda: service_waited_for(files, tracker, self.service),
        )
        async with beside(sample_every_second(tracker)):
            await show_progress(view)


def service_waited_for(files: Sequence[PushedFile], tracker: Tracker, service: str) -> str:
    """The service, while a file waits to start; "" while one is sent or only hooks are left."""
    has_waiting = any(file.upload is None and file.code is None for file in files)
    return service if has_waiting and not tracker.active else ""


def total_meter(files: Sequence[PushedFile], tracker: Tracker) -> Gauge:
    """How far all files are: all are counted from the start, whether they have started or not."""
    done = sum(file.done_bytes for file in files)
    whole = sum(file.whole_bytes for file in files)
    if len(files) == 1:
        upload = files[0].upload or TrackedUpload()
        meter = upload_meter(tracker, upload, files[0].label, files[0].size)
        return replace(meter, is_waiting=meter.is_waiting and files[0].is_active)
    is_known = all(file.whole_bytes or file.code is not None for file in files)
    seconds, bytes_per_s = tracker.seconds, tracker.bytes_per_s()
    average = tracker.new_bytes / seconds if seconds else 0.0
    is_moving = tracker.stalled_s < STALLED_S and whole > done
    ended = sum(file.code is not None for file in files)
    failed = sum(file.code is not None and not file.is_stored for file in files)
    notes = [f"{ended} of {len(files)} files", f"{failed} failed" if failed else ""]
    return Gauge(
        name="total",
        done=done,
        of=whole if is_known else 0,
        amount=units.share(done, whole) if is_known else units.size(done),
        bytes_per_s=bytes_per_s if is_moving else 0.0,
        left_s=(whole - done) / average if is_moving and is_known and average else None,
        is_waiting=is_known and done == whole and any(file.is_active for file in files),
        notes=tuple(filter(None, notes)),
    )


PushView = JsonView | TextView


def make_push_view(flags: OutputFlags, service: str = "") -> PushView:
    """Return the view that the flags select; `service` is what creates the videos."""
    return JsonView() if flags.json else TextView(flags, service)
