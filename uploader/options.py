"""`UploadOptions`: how an uploader sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uploader.errors import ConfigurationError, require_type
from uploader.hooks import Hooks
from uploader.pace import Bandwidth, parse_bandwidth
from uploader.protocol.signing import OssDialect
from uploader.session import RetryPolicy
from uploader.units import parse_size

if TYPE_CHECKING:
    from uploader.notifications import Webhook


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How an uploader sends. The defaults suit a fast connection and large files.

    Attributes:
        part_size: bytes, or a text such as "8M"; None chooses by file size. Too small: requests
            cost more than bytes, and 10,000 parts do not hold the file. Too large: more is sent
            again after a crash, and a part may take longer than credentials live.
        concurrency: connections that carry bodies at once, over all uploads; "auto"
            adapts to the link. Never more than a quarter of the descriptors the process may
            open (`ulimit -n`).
        bandwidth: limit over all connections: bytes per second, a text such as "4M" or
            "08:00,10M 20:00,off", or a `Bandwidth`; None for none.
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

    part_size: int | str | None = None
    concurrency: int | Literal["auto"] = "auto"
    bandwidth: Bandwidth | int | str | None = None
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
        in_bytes = 'Pass bytes, for example 8 * 2**20 or "8M".'
        require_type("part_size", self.part_size, int, str, instead=in_bytes)
        if self.concurrency != "auto":
            require_type("concurrency", self.concurrency, int)
        limit = 'Pass bytes per second, for example 4 * 2**20 or "4M", or a Bandwidth.'
        require_type("bandwidth", self.bandwidth, Bandwidth, int, str, instead=limit)
        _ = self.part_bytes, self.bandwidth_limit  # texts can be parsed
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
    def part_bytes(self) -> int | None:
        """`part_size` in bytes.

        Raises:
            ConfigurationError: it is a text that is no size.
        """
        if not isinstance(self.part_size, str):
            return self.part_size
        try:
            return parse_size(self.part_size)
        except ValueError:
            raise ConfigurationError(
                f"part_size: {self.part_size!r} is no size.",
                next_step='Pass bytes, for example 8 * 2**20 or "8M".',
            ) from None

    @property
    def bandwidth_limit(self) -> Bandwidth | None:
        """`bandwidth` by the time of day.

        Raises:
            ConfigurationError: it is a text that is no bandwidth.
        """
        if isinstance(self.bandwidth, str):
            return parse_bandwidth(self.bandwidth)
        if isinstance(self.bandwidth, int):
            return parse_bandwidth(f"{self.bandwidth}B")
        return self.bandwidth

    @property
    def dialect(self) -> OssDialect:
        """How requests to the endpoint of an address are signed."""
        return OssDialect(self.oss_region, self.signature, self.is_cname)
