"""What the two services share: options, clock, storage, statistics, faults, secrets, videos."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from .faults import Fault, FaultScript
from .options import DevServerOptions
from .stats import Stats
from .storage import Credential, Storage, Video
from .throttle import Throttle

_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz123456789"


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
        self.access_key_id = storage.remembered("access_key_id", "LTAI5t" + random_text(18))
        self.access_key_secret = storage.remembered("access_key_secret", random_text(30))
        self.security_token = storage.remembered("security_token", random_token())
        self.bucket = storage.remembered("bucket", "outin-" + secrets.token_hex(16))
        self.other_bucket = storage.remembered("other_bucket", "outin-" + secrets.token_hex(16))
        self.oss_endpoint = ""
        self.other_oss_endpoint = ""

    def set_options(self, **changes: Any) -> None:
        """Change options while the server runs."""
        self.options = self.options.changed(**changes)
        self.throttle.rate = self.options.bandwidth

    def now(self) -> float:
        """The server's time, in seconds of the epoch."""
        return time.time() + self.options.clock_offset_s

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
        now = time.time()
        is_stale = self.options.refreshed_already_expired and video.generation > 1
        credential = Credential(
            access_key_id="STS.N" + random_text(24),
            secret=random_text(44),
            token=random_token(),
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
        self.storage.expire_credentials(time.time(), video_id)

    def seconds_since_expiry(self, credential: Credential) -> float:
        """How long ago credentials expired, in seconds; negative while they are valid."""
        return time.time() - credential.expires_at

    # videos

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
            finished_at=time.time(),
        )
        self.storage.save_video(finished)

    def names_of_video(self, name: str) -> set[str]:
        """All names of a video, one of which is ``name``: its VideoId and its ReferenceId."""
        video = self.storage.video(name) or self.storage.video_by_reference(name)
        return {name, video.video_id, video.reference_id or ""} if video else {name}

    def status_of(self, video: Video) -> str:
        """A video's status as GetVideoInfo names it ("VOD: Video status")."""
        if video.status != "Uploaded":
            return video.status
        age, processing = time.time() - video.finished_at, self.options.processing_s
        if age >= processing or video.detail("TemplateGroupId") == "VOD_NO_TRANSCODE":
            return self.options.status_after_upload
        return "UploadSucc" if age < processing / 2 else "Transcoding"


def random_text(length: int) -> str:
    """Random letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def random_token() -> str:
    """A SecurityToken: about 960 characters that begin with ``CAIS``."""
    return "CAIS" + secrets.token_hex(4).upper() + secrets.token_urlsafe(690).rstrip("-_") + "=="


def http_date(epoch: float) -> str:
    """``Sun, 22 Nov 2026 09:03:54 GMT``."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def iso_date(epoch: float, *, millis: bool = False) -> str:
    """``2026-11-22T09:03:54Z``, with ``.000`` as OSS writes it."""
    return datetime.fromtimestamp(epoch, UTC).strftime(
        "%Y-%m-%dT%H:%M:%S.000Z" if millis else "%Y-%m-%dT%H:%M:%SZ"
    )
