"""`UploadOptions`: how an uploader sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uploader.errors import require_type
from uploader.hooks import Hooks
from uploader.pace import Bandwidth
from uploader.protocol.signing import OssDialect
from uploader.session import RetryPolicy

if TYPE_CHECKING:
    from uploader.notifications import Webhook


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How an uploader sends. The defaults suit a fast connection and large files.

    Attributes:
        part_size: bytes; None chooses by file size. Too small: requests cost more than
            bytes, and 10,000 parts do not hold the file. Too large: more is sent again
            after a crash, and a part may take longer than credentials live.
        concurrency: connections that carry bodies at once, over all uploads; "auto"
            adapts to the link. Never more than a quarter of the descriptors the process may
            open (`ulimit -n`).
        bandwidth: limit over all connections; None for none.
        signature, oss_region, is_cname: how OSS wants requests signed and addressed
            (see `OssDialect`). `is_cname` is about endpoints that an address names.
        oss_endpoint: "public", "internal", "accelerate", "dualstack" or "auto", of the
            bucket's region, or a URL (see `OssEndpoints`); None: as the address says.
        metadata_url: where "auto" finds the region of an ECS instance; None: where ECS has it.
        retry: how long and how often failed requests are retried.
        stall_timeout_s: how long a peer may neither take nor send a byte.
        on_target_change: when VOD moves an upload to another bucket or key and the first
            is refused: "fail", or "restart" there under the same VideoId.
        notification: value of `x-oss-notification` (base64 JSON for VOD), sent with
            Initiate and Complete.
        ca_file: one more certificate authority to trust, besides those of the system, also
            for sources behind a URL. The environment variables SSL_CERT_FILE and SSL_CERT_DIR
            are not read.
        proxy: the URL of an HTTP proxy for all requests, "http://USER:PASSWORD@HOST:PORT"; "env"
            for those that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY name; "none" for none.
            None is "none", and errors name a proxy of the environment that is not used. Requests
            to this machine never go through a proxy.
        submitted: uploads that `Uploader.submit` runs at once. Too few: small files wait for
            each other's round trips. Too many: each holds a file open.
        hooks: called before a video is made and after each upload, in this order.
        webhooks: URLs that are sent a signed notification when an upload is verified or has
            failed; kept in the state until delivered.
        vod_calls_per_s: calls to the VOD API a second (quotas are 40 to 80 an account).
    """

    part_size: int | None = None
    concurrency: int | Literal["auto"] = "auto"
    bandwidth: Bandwidth | None = None
    signature: Literal["v4", "v1"] = "v4"
    oss_region: str | None = None
    is_cname: bool = False
    oss_endpoint: str | None = None
    metadata_url: str | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    stall_timeout_s: float = 30.0
    on_target_change: Literal["fail", "restart"] = "fail"
    notification: str | None = None
    ca_file: Path | None = None
    proxy: str | None = field(default=None, repr=False)
    submitted: int = 32
    hooks: Sequence[Hooks] = ()
    webhooks: Sequence[Webhook] = ()
    vod_calls_per_s: float = 20.0

    def __post_init__(self) -> None:
        in_bytes = "Pass bytes, for example part_size=8 * 2**20."
        require_type("part_size", self.part_size, int, instead=in_bytes)
        if self.concurrency != "auto":
            require_type("concurrency", self.concurrency, int)
        limit = 'Pass parse_bandwidth("4M").'
        require_type("bandwidth", self.bandwidth, Bandwidth, instead=limit)
        require_type("retry", self.retry, RetryPolicy, instead="Pass RetryPolicy(patience_s=…).")
        require_type("stall_timeout_s", self.stall_timeout_s, int, float)
        require_type("ca_file", self.ca_file, Path, str)
        require_type("submitted", self.submitted, int)
        require_type("vod_calls_per_s", self.vod_calls_per_s, int, float)
        for name in ("oss_region", "oss_endpoint", "metadata_url", "notification", "proxy"):
            require_type(name, getattr(self, name), str)
        for hooks in self.hooks:
            require_type("hooks", hooks, Hooks, instead="Pass a list of Hooks(…).")

    @property
    def dialect(self) -> OssDialect:
        """How requests to the endpoint of an address are signed."""
        return OssDialect(self.oss_region, self.signature, self.is_cname)
