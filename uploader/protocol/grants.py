"""Grants: where to send one video, and with which credentials.

VOD issues them as UploadAddress and UploadAuth; `decode` reads these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from uploader.redaction import remember

# 32 hexadecimal digits in practice; the form that the API allows for ReferenceId bounds it.
_VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """Where the object is stored, as the address names it; see `TrustPolicy.check_target`.

    Attributes:
        endpoint: scheme and host, no trailing slash; https where no scheme was given.
        object_key: what VOD calls `FileName`.
        object_prefix: only for HLS, where segments are stored below it.
    """

    endpoint: str
    bucket: str
    object_key: str
    object_prefix: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class StsCredentials:
    """Temporary credentials for one upload. They have no repr and cannot be pickled.

    They are kept in memory only. Do not pass them to `dataclasses.asdict`.

    Attributes:
        expires_at: aware UTC, from `ExpireUTCTime`; None when it is absent or unreadable.
        life_s: seconds of life counted from issue, from `Expiration`; None when absent,
            not above 0 or longer than a day. The documents say 3,000 s, whatever this field says.
        region: the VOD API's region, for RefreshUploadVideo. Not OSS's: accounts in VOD
            Shanghai may store in Beijing.
    """

    access_key_id: str
    access_key_secret: str
    security_token: str
    expires_at: datetime | None = None
    life_s: float | None = None
    region: str | None = None

    def __post_init__(self) -> None:
        remember(self.access_key_secret, self.security_token)

    def __repr__(self) -> str:
        return "StsCredentials(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials are never written down: StsCredentials cannot be pickled")


@dataclass(frozen=True, slots=True)
class UploadGrant:
    """What VOD issues for one upload: a video, a target and credentials.

    Attributes:
        video_id: None when the answer does not name it, as with some app servers.
        was_swapped: UploadAddress and UploadAuth were in each other's place, as they are
            printed in samples of the official documents.
    """

    video_id: str | None
    target: UploadTarget
    credentials: StsCredentials
    request_id: str = ""
    was_swapped: bool = False


def is_video_id(text: str) -> bool:
    """Whether `text` can be a VideoId: 1 to 64 letters, digits, "_" or "-"."""
    return _VIDEO_ID.fullmatch(text) is not None


def mask(grant: UploadGrant) -> dict[str, str | float | bool | None]:
    """Return the fields that may be shown: no secret, the AccessKeyId shortened."""
    credentials, key_id = grant.credentials, grant.credentials.access_key_id
    expires_at = credentials.expires_at
    return {
        "video_id": grant.video_id,
        "endpoint": grant.target.endpoint,
        "bucket": grant.target.bucket,
        "object_key": grant.target.object_key,
        "object_prefix": grant.target.object_prefix,
        # "STS." and three characters are enough to distinguish two credentials.
        "access_key_id": f"{key_id[:7]}…" if len(key_id) >= 16 else "…",
        "expires_at": expires_at.isoformat() if expires_at else None,
        "life_s": credentials.life_s,
        "region": credentials.region,
        "request_id": grant.request_id,
        "was_swapped": grant.was_swapped,
    }
