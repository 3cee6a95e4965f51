"""Which host requests to OSS go to.

The address of an upload names a public endpoint. The caller may choose another way to the same
bucket; what is signed stays the same. What the address names is recorded, so that an upload may be
resumed from another machine over another endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from uploader.errors import ConfigurationError, TransportError, VodupError
from uploader.log import get_logger
from uploader.protocol.grants import UploadTarget
from uploader.protocol.signing import OssDialect, bucket_url
from uploader.protocol.trust import TrustPolicy, is_oss_host, oss_host, oss_region
from uploader.protocol.wire import Response, SignedRequest, Transport

KINDS: Final = ("public", "internal", "accelerate", "dualstack")
"""Endpoints of every region (OSS doc "Regions and endpoints")."""

METADATA_URL: Final = "http://100.100.100.200"
"""The metadata service of ECS instances; a link-local address (ECS doc "Instance metadata")."""

_CHECK_S: Final = 5.0
_NEAR_S: Final = 0.3
_METADATA_S: Final = 1.0


class OssEndpoints:
    """Chooses endpoints for one uploader. Mutable: what was found out.

    An endpoint other than the address's is used once OSS has answered an unsigned request there.
    """

    def __init__(
        self,
        choice: str,
        *,
        dialect: OssDialect,
        transport: Transport,
        trust: TrustPolicy,
        metadata_url: str | None = None,
    ) -> None:
        """Sends nothing.

        Args:
            choice: "public", "internal", "accelerate", "dualstack": of the bucket's region.
                "auto": the internal one on an ECS instance of that region, if it answers within
                0.3 s, else as the address says. A URL: this endpoint; a CNAME of the bucket
                unless it is one of OSS's own.
            dialect: how requests to the address's endpoint are signed.
            metadata_url: the metadata service, for "auto"; a loopback address, where
                `TrustPolicy.allow_loopback` is. None: that of ECS.

        Raises:
            ConfigurationError, UntrustedEndpoint: the choice is none, or not a place for
                credentials.
        """
        self._choice, self._dialect, self._transport = choice, dialect, transport
        self._url = None if choice in {"auto", *KINDS} else _checked(choice, trust)
        self._metadata_url = _checked_metadata(metadata_url or METADATA_URL, trust)
        self._chosen: dict[tuple[str, str], OssDialect] = {}
        self._machine_region: str | None = None
        self._has_looked = False

    async def dialect(self, target: UploadTarget) -> OssDialect:
        """Return how requests for a checked target are sent and signed.

        Raises:
            ConfigurationError: the choice does not fit the address.
            TransportError: the endpoint does not answer.
        """
        known = (target.endpoint, target.bucket)
        if known not in self._chosen:
            endpoint = await self._endpoint(target)
            is_cname = self._is_cname(endpoint) or self._dialect.is_cname
            found = replace(self._dialect, endpoint=endpoint, is_cname=is_cname)
            if self._choice != "auto" and endpoint != target.endpoint:
                await self._require_answer(found, target)
            get_logger().info("endpoint.chosen", endpoint=endpoint, choice=self._choice)
            self._chosen[known] = found
        return self._chosen[known]

    async def machine_region(self) -> str | None:
        """Return the region of this ECS instance; None: it is none, or does not answer."""
        if not self._has_looked:
            self._machine_region = await self._look_for_region()
            self._has_looked = True
        return self._machine_region

    def _is_cname(self, endpoint: str) -> bool:
        if endpoint != self._url:
            return False
        host = urlsplit(endpoint).hostname or ""
        return not is_oss_host(host) and host not in {"127.0.0.1", "::1"}

    async def _endpoint(self, target: UploadTarget) -> str:
        region = oss_region(target.endpoint) or self._dialect.region
        if self._url is not None:
            _require_region(self._url, region)
            return self._url
        if not is_oss_host(urlsplit(target.endpoint).hostname or "") or region is None:
            return target.endpoint  # the region's hosts are not known, or it is not one of OSS's
        if self._choice != "auto":
            return f"https://{oss_host(region, self._choice)}"
        internal = f"https://{oss_host(region, 'internal')}"
        dialect = replace(self._dialect, endpoint=internal)
        if await self.machine_region() != region:
            return target.endpoint
        is_near = await self._answer(bucket_url(target, dialect), _NEAR_S) is not None
        return internal if is_near else target.endpoint

    async def _require_answer(self, dialect: OssDialect, target: UploadTarget) -> None:
        """Check the endpoint before it gets credentials."""
        url = bucket_url(target, dialect)
        answer = await self._answer(url, _CHECK_S) or await self._answer(url, _CHECK_S)
        next_step = "Check the network, or choose another --oss-endpoint."
        if answer is None:
            raise TransportError(f"{url} does not answer.", is_sent=False, next_step=next_step)
        if "x-oss-request-id" not in answer.headers:
            raise ConfigurationError(f"{url} answers, but it is not OSS.", next_step=next_step)

    async def _answer(
        self,
        url: str,
        most_s: float,
        method: str = "HEAD",
        headers: Mapping[str, str] | None = None,
    ) -> Response | None:
        """Send a request without credentials; None if there is no answer in time."""
        request = SignedRequest(method, url, headers or {})
        try:
            async with asyncio.timeout(most_s):
                return await self._transport.send(request, answer_timeout_s=most_s)
        except (VodupError, TimeoutError):
            return None

    async def _look_for_region(self) -> str | None:
        """ECS doc "Instance metadata", in security-hardened mode: a token, then the region."""
        url, header = f"{self._metadata_url}/latest", "x-aliyun-ecs-metadata-token"
        ask = {f"{header}-ttl-seconds": "60"}
        token = await self._answer(f"{url}/api/token", _METADATA_S, "PUT", ask)
        if token is None or token.status != 200:
            return None
        given = {header: token.body.decode("latin-1").strip()}
        found = await self._answer(f"{url}/meta-data/region-id", _METADATA_S, "GET", given)
        if found is None or found.status != 200:
            return None
        return found.body.decode("latin-1").strip()


def _checked(url: str, trust: TrustPolicy) -> str:
    """The endpoint of a URL. Only what the caller names is trusted: nothing comes from data."""
    if "://" not in url:
        raise ConfigurationError(
            f"{url!r} is no OSS endpoint.",
            next_step=f"Write auto, {', '.join(KINDS)}, or a URL such as https://media.example.com "
            "(--oss-endpoint).",
        )
    try:
        host = urlsplit(url).hostname or ""
        named = replace(trust, allowed_hosts=trust.allowed_hosts | {host})
    except (ValueError, ConfigurationError):
        named = trust
    return named.check_endpoint("OSS", url)


def _checked_metadata(url: str, trust: TrustPolicy) -> str:
    if url == METADATA_URL:
        return url
    host = urlsplit(url).hostname
    if trust.allow_loopback and host in {"127.0.0.1", "::1"}:
        return url.rstrip("/")
    raise ConfigurationError("The metadata service is at 100.100.100.200, or on loopback in tests.")


def _require_region(url: str, region: str | None) -> None:
    named = oss_region(url)
    if named is not None and region is not None and named != region:
        raise ConfigurationError(
            f"The bucket is in {region}, and {url} is an endpoint of {named}.",
            next_step="Choose an endpoint of the bucket's region (--oss-endpoint).",
        )
