"""What the two services share: options, clock, storage, statistics, faults, secrets, videos."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from .clock import Clock
from .faults import Fault, FaultScript
from .ids import Ids
from .options import DevServerOptions
from .stats import Stats
from .storage import Credential, Storage, Video
from .throttle import Throttle


class Backend:
    """The account behind both ports. Mutable: options, clock offset and videos change."""

    def __init__(
        self,
        options: DevServerOptions,
        storage: Storage,
        faults: Iterable[Fault | Mapping[str, Any]] = (),
    ) -> None:
        self.options = options
        self.storage = storage
        self.stats = Stats()
        self.faults = FaultScript(faults)
        self.throttle = Throttle(options.bandwidth)
        self.clock = Clock(options.clock_instant())
        ids = self.ids = Ids(options.seed, storage.count("starts"))
        remembered = storage.remembered
        self.access_key_id = remembered("access_key_id", "LTAI5t" + ids.text("key", 18))
        self.access_key_secret = remembered("access_key_secret", ids.text("secret", 30))
        self.security_token = remembered("security_token", ids.token("caller token"))
        self.admin_token = remembered("admin_token", ids.hex("admin token", 16))
        self.callback_key = options.callback_key
        if self.callback_key is None:
            self.callback_key = remembered("callback_key", ids.text("callback key", 30) + "aA1")
        self.bucket = remembered("bucket", "outin-" + ids.hex("bucket", 16))
        self.other_bucket = remembered("other_bucket", "outin-" + ids.hex("bucket", 16))
        self.on_upload: Callable[[Video], None] = lambda video: None
        """Called with each video, picture and attached medium that is stored."""
        self.oss_endpoint = ""
        self.other_oss_endpoint = ""

    def set_options(self, **changes: Any) -> None:
        """Change options while the server runs."""
        self.options = self.options.changed(**changes)
        self.throttle.rate = self.options.bandwidth

    def now(self) -> float:
        """The server's time, in seconds of the epoch."""
        return self.clock.now() + self.options.clock_offset_s

    def skew_s(self, signed_at: float) -> float:
        """How far the instant of a signature is from the server's time.

        Clients cannot follow a clock that stands still: the machine's is right for them too.
        """
        now, offset = self.now(), self.options.clock_offset_s
        real = time.time() + offset if self.clock.is_set else now
        return min(abs(now - signed_at), abs(real - signed_at))

    def secrets(self) -> tuple[str, ...]:
        """Every secret ever issued: caller's secret and token, STS secrets and tokens."""
        issued = self.storage.credentials()
        return (
            self.access_key_secret,
            self.security_token,
            *(credential.secret for credential in issued),
            *(credential.token for credential in issued),
        )

    # credentials

    def issue_credential(self, video: Video, scopes: tuple[str, ...]) -> Credential:
        """New STS credentials of a video's current generation for ``bucket/key`` scopes."""
        now = self.clock.now()
        is_stale = self.options.refreshed_already_expired and video.generation > 1
        credential = Credential(
            access_key_id="STS.N" + self.ids.text("key", 24),
            secret=self.ids.text("secret", 44),
            token=self.ids.token("token"),
            video_id=video.video_id,
            generation=video.generation,
            scopes=scopes,
            issued_at=now,
            expires_at=now - 60 if is_stale else now + self.options.credential_ttl_s,
        )
        self.storage.save_credential(credential)
        return credential

    def expire_credentials(self, video_id: str | None = None) -> None:
        """Expire all credentials, or those of one video, now."""
        self.storage.expire_credentials(self.clock.now(), video_id)

    def seconds_since_expiry(self, credential: Credential) -> float:
        """How long ago credentials expired, in seconds; negative while they are valid."""
        return self.clock.now() - credential.expires_at

    # videos

    def new_media(
        self,
        object_key: str,
        *,
        title: str,
        file_name: str,
        reference_id: str | None = None,
        status: str = "Uploading",
        details: tuple[tuple[str, str], ...] = (),
    ) -> Video:
        """A video, picture or attached medium that is not stored yet; its id is new."""
        now = self.clock.now()
        folder = object_key.rpartition("/")[0]
        return Video(
            video_id=self.ids.hex("media", 16),
            title=title,
            file_name=file_name,
            bucket=self.bucket,
            object_key=object_key,
            object_prefix=f"{folder}/" if object_key.endswith(".m3u8") else "",
            reference_id=reference_id,
            status=status,
            created_at=now,
            finished_at=0.0 if status == "Uploading" else now,
            generation=0,
            refresh_count=0,
            details=details,
        )

    def media_key(self, home: str, file_name: str) -> str:
        """A new object key below ``home`` with the extension of a file."""
        name = f"{self.ids.hex('key', 4)}-{self.ids.hex('key', 6)[:11]}"
        return f"{home}/{name}/{name}.{file_name.rpartition('.')[2].lower()}"

    def url_of(self, video: Video) -> str:
        """Where its object is, unsigned."""
        return f"{self.oss_endpoint}/{video.bucket}/{video.object_key}"

    def upload_finished(self, video_id: str, bucket: str, object_key: str) -> None:
        """Record that the source file of a video is complete, as OSS reports it to VOD.

        The file may be at another address than the first, when a refresh named one; segments
        of an HLS list are not the source file.
        """
        video = self.storage.video(video_id)
        if video is None or (video.object_prefix and object_key != video.object_key):
            return
        finished = dataclasses.replace(
            video,
            bucket=bucket,
            object_key=object_key,
            status="Uploaded",
            finished_at=self.clock.now(),
        )
        self.storage.save_video(finished)
        self.on_upload(finished)

    def names_of_video(self, name: str) -> set[str]:
        """All names of a video, one of which is ``name``: its VideoId and its ReferenceId."""
        video = self.storage.video(name) or self.storage.video_by_reference(name)
        return {name, video.video_id, video.reference_id or ""} if video else {name}

    def status_of(self, video: Video) -> str:
        """A video's status as GetVideoInfo names it ("VOD: Video status")."""
        if video.status != "Uploaded":
            return video.status
        age, processing = self.clock.now() - video.finished_at, self.options.processing_s
        if age >= processing or video.detail("TemplateGroupId") == "VOD_NO_TRANSCODE":
            return self.options.status_after_upload
        return "UploadSucc" if age < processing / 2 else "Transcoding"


def http_date(epoch: float) -> str:
    """``Sun, 22 Nov 2026 09:03:54 GMT``."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def iso_date(epoch: float, *, millis: bool = False) -> str:
    """``2026-11-22T09:03:54Z``, with ``.000`` as OSS writes it."""
    return datetime.fromtimestamp(epoch, UTC).strftime(
        "%Y-%m-%dT%H:%M:%S.000Z" if millis else "%Y-%m-%dT%H:%M:%SZ"
    )
