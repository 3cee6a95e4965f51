"""Options of the development server: one frozen value, changed by replacing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .cors import OPEN, CorsRule

_FIXED = frozenset(
    "host port oss_port oss_host data_dir tls record seed clock callback_key".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevServerOptions:
    """Every option of the server; the defaults behave as the documents say.

    Durations are seconds, sizes are bytes, bandwidths are bytes a second. Everything except
    ``host``, the ports, ``oss_host``, ``data_dir``, ``tls``, ``record``, ``seed``, ``clock`` and
    ``callback_key`` may be changed while the server runs.
    """

    host: str = "127.0.0.1"
    port: int = 0
    """Port of the VOD API; 0 lets the kernel choose."""
    oss_port: int = 0
    """Port of OSS; 0 lets the kernel choose."""
    data_dir: Path | None = None
    """Folder of all data; ``None`` is a temporary folder, removed at exit."""
    tls: bool = False
    record: Path | None = None
    """File for a line of JSON per request, secrets masked; it is appended to."""
    region: str = "cn-shanghai"
    seed: str | None = None
    """Ids, keys and tokens are the same in every run with this seed. They are no secrets then."""
    clock: str = ""
    """An instant such as ``2026-01-01T00:00:00Z`` at which the server's clock stands until it is
    advanced; "" is the machine's clock."""

    credential_ttl_s: float = 3000
    """Life of an UploadAuth ("VOD: Upload URLs and credentials": 3,000 s)."""
    expired_grace_s: float = 1800
    """How long an expired token is answered SecurityTokenExpired; then InvalidAccessKeyId."""
    check_expiry_at_end: bool = False
    """Check the token again when the body has been read."""
    api_signatures: tuple[str, ...] = ("acs3", "v2")
    """Signatures of VOD calls that are accepted. Another one is an IncompleteSignature here; what
    a gateway without V2 would answer is not documented."""
    caller_security_token: bool = False
    """The caller's own AccessKey is a temporary one with a SecurityToken."""

    address_endpoint: str = ""
    """Endpoint that UploadAddress names; "" is the server's own. Requests for its hosts have to
    be brought here by the test."""
    oss_host: str = ""
    """Host in the server's OSS endpoint, in place of ``host``: a name that clients resolve to
    loopback, such as oss-cn-shanghai.localhost in browsers."""
    cname: str = ""
    """A host that is bound to the bucket."""
    public_endpoint: bool = True
    """False: only internal hosts and the CNAME may be used, as for OSS accounts since 2025-03-20
    ("OSS: Access OSS via custom domain name")."""
    machine_region: str | None = None
    """Region that the ECS metadata service names, at the port of VOD; ``None``: there is none."""
    bucket_region_header: bool = False
    """Refusals of a V4 region name the right one in ``x-oss-bucket-region``."""
    signature_versions: tuple[str, ...] = ("v1", "v4")
    """OSS signature versions that are accepted."""
    crc_headers: bool = True
    list_crc: bool = True
    """ListParts names the CRC-64 of each part."""
    denied_operations: tuple[str, ...] = ()
    """OSS operations the STS policy does not allow, for example ``("ListParts",)``."""
    allowed_vod_operations: tuple[str, ...] | None = None
    """The only VOD operations the caller's RAM policy allows; ``None``: all."""
    denied_vod_operations: tuple[str, ...] = ()
    """VOD operations the caller's RAM policy does not allow."""
    allowed_actions: tuple[str, ...] = ()
    """What the STS policy allows besides an upload: ``ListObjects``, ``DeleteObject``. The
    policies of VOD are not documented; clients must get along without them."""
    forbid_overwrite: Literal["honoured", "ignored", "denied", "invalid"] = "honoured"
    """What becomes of ``x-oss-forbid-overwrite``: obeyed; ignored, as where the bucket keeps
    versions; 403 AccessDenied; 400 InvalidArgument."""
    cors: Literal["open", "none"] | tuple[Mapping[str, Any], ...] = "open"
    """Cross-origin rules of the buckets: any origin, none, or rules with the fields of
    ``CorsRule``."""
    drain_before_refusal: bool = True
    """Read the whole body before a refusal is answered."""
    xml_namespace: bool = False
    list_page_size: int = 1000
    """The most parts or uploads on a page, whatever the request allows."""
    min_part_size: int = 102_400
    complete_delay_s: float = 0
    body_idle_timeout_s: float = 60
    """Silence inside a request body after which OSS answers 400 RequestTimeout."""
    discard_bodies: bool = False
    """Keep sizes, MD5s and CRCs, but no bytes."""
    bandwidth: float | None = None
    """Bytes a second of all connections together."""
    connection_bandwidth: float | None = None

    clock_offset_s: float = 0
    """Seconds added to the server's clock."""
    vod_qps: int | None = None
    """Calls a second and operation before Throttling.User."""
    duplicate_reference: Literal["error", "same_video"] = "error"
    """What Create does with a ReferenceId that exists; the documents do not say."""
    duplicate_reference_code: str = "InvalidReferenceId.Duplicate"
    status_after_upload: str = "Normal"
    callback_url: str = ""
    """Where events are posted; "" sends none. UserData may name another URL on loopback or of the
    same host."""
    callback_key: str | None = None
    """The key that signs callbacks; "" signs none, ``None`` makes one."""
    callback_events: tuple[str, ...] = ("ALL",)
    """The types of the events that are sent."""
    callback_pause_s: float = 1
    """Pause between the three tries of a callback ("VOD: HTTP callbacks")."""
    fetch_max_size: int = 1024**3
    """Size that a file fetched by UploadMediaByURL can have; the service's limit is 20 GB."""
    fetch_timeout_s: float = 60
    file_url: bool = True
    """GetMezzanineInfo gives a signed URL of the source file."""
    processing_s: float = 0
    """How long a finished upload is UploadSucc and Transcoding before its last status."""

    refresh_target: Literal["same", "key", "bucket", "endpoint"] = "same"
    """What differs in a refreshed UploadAddress."""
    refresh_scope: Literal["original", "refreshed", "both"] = "both"
    """Which object a refreshed credential may write when its address differs."""
    refreshed_already_expired: bool = False
    refresh_video_id: Literal["same", "absent", "different"] = "same"
    expiration: Literal["string", "number", "missing"] = "string"
    expiration_s: int | None = None
    """``Expiration`` in the grant; ``None`` is the true one, anything else replaces it."""
    expire_utc_time: bool = True
    auth_region: str = ""
    """Region that UploadAuth names, VOD's own; "" is OSS's."""
    swapped_pair: bool = False
    """UploadAddress and UploadAuth change places, as the official samples print them."""
    newline: Literal["none", "json", "base64"] = "none"
    """Where a line break sits in UploadAddress and UploadAuth."""

    request_log_size: int = 200_000
    """Requests kept in the log; older ones are dropped."""

    def __post_init__(self) -> None:
        self.cors_rules()
        if not self.host:
            raise ValueError("the host is empty: that would be every address of this machine")
        self.clock_instant()

    def clock_instant(self) -> float | None:
        """The instant that ``clock`` names, in seconds of the epoch; ``None``: the machine's.

        Raises: ValueError when it is none in UTC.
        """
        if not self.clock:
            return None
        try:
            return (
                datetime.strptime(self.clock, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
            )
        except ValueError:
            raise ValueError("clock must be an instant such as 2026-01-01T00:00:00Z") from None

    def cors_rules(self) -> tuple[CorsRule, ...]:
        """The rules that ``cors`` names.

        Raises: ValueError for a rule with an unknown field.
        """
        if isinstance(self.cors, str):
            return OPEN if self.cors == "open" else ()
        try:
            return tuple(CorsRule(**rule) for rule in self.cors)
        except TypeError as error:
            raise ValueError(f"cors: {error}") from error

    def changed(self, **changes: Any) -> DevServerOptions:
        """A copy with some options changed.

        Raises: ValueError for a name that is no option or cannot change while the server runs.
        """
        frozen = _FIXED & changes.keys()
        unknown = changes.keys() - {field.name for field in dataclasses.fields(self)}
        if frozen or unknown:
            raise ValueError(f"not changeable: {', '.join(sorted(frozen | unknown))}")
        tupled: dict[str, Any] = {name: _tupled(value) for name, value in changes.items()}
        return dataclasses.replace(self, **tupled)


def _tupled(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
