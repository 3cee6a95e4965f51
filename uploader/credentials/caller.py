"""The caller's own AccessKey, and calls of VOD and IMS that it signs."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from uploader.clock import Clock
from uploader.errors import CallerNotAuthenticated, ConfigurationError, VodupError
from uploader.protocol.signing import ApiSignature, sign_rpc
from uploader.protocol.vod import AccessKey
from uploader.protocol.wire import Operation, SignedRequest
from uploader.tasks import in_own_task
from uploader.threads import in_thread

_SOURCES: Final = {
    "env": "",
    "aliyun": "CLIProfileCredentialsProvider",
    "ecs": "EcsRamRoleCredentialsProvider",
    "oidc": "OIDCRoleArnCredentialsProvider",
}
"""By source, the class of alibabacloud-credentials."""
_NAMED_SOURCES: Final = {"aliyun": "profile_name", "ecs": "role_name"}

AccessKeys = Callable[[], AccessKey | Awaitable[AccessKey]]


@dataclass(frozen=True, slots=True)
class CallerProvider:
    """A service that is called with the caller's own AccessKey.

    Attributes:
        access_key: a key, or a callable (plain or async) that returns the newest one.
        region: of the service, for example "cn-shanghai". Videos of another region are not
            found. IMS has "cn-shanghai", "cn-beijing" and "cn-shenzhen" (CreateUploadMedia).
        endpoint: overrides "https://vod.<region>.aliyuncs.com", for IMS "https://ice…".
        signature: of the calls: "acs3", or "v2" for gateways that know only the signature
            before it.
    """

    HOST: ClassVar[str]
    ENDPOINT_VARIABLE: ClassVar[str]

    access_key: AccessKey | AccessKeys = field(repr=False)
    region: str = "cn-shanghai"
    endpoint: str | None = None
    signature: ApiSignature = "acs3"

    @classmethod
    def from_env(
        cls,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        signature: ApiSignature = "acs3",
        credentials: str | None = None,
    ) -> Self:
        """Take the AccessKey from ALIBABA_CLOUD_ACCESS_KEY_ID, _SECRET and _SECURITY_TOKEN.

        Without them, the default chain of alibabacloud-credentials is used (config files,
        ECS role, OIDC), if that package is installed. The region defaults to `default_region`,
        the endpoint to VODUP_VOD_ENDPOINT or VODUP_IMS_ENDPOINT.

        Args:
            credentials: the only source to use: "env", "aliyun" or "aliyun:PROFILE" of the aliyun
                CLI, "ecs" or "ecs:ROLE" of an instance, "oidc" of a pod. All but the first need
                vodup[credentials].

        Raises:
            CallerNotAuthenticated: there is no AccessKey.
            ConfigurationError: there is no such source.
        """
        return cls(
            _access_key_of(credentials),
            region or default_region(credentials),
            endpoint or os.environ.get(cls.ENDPOINT_VARIABLE) or None,
            signature,
        )

    @property
    def scope(self) -> str:
        """The endpoint, for example "https://vod.cn-shanghai.aliyuncs.com"."""
        return self.endpoint or f"https://{self.HOST}.{self.region}.aliyuncs.com"


def default_region(credentials: str | None = None) -> str:
    """Return the region that the environment or the aliyun CLI's profile names.

    VODUP_REGION, else that of the profile if `credentials` is "aliyun" or "aliyun:PROFILE", else
    ALIBABA_CLOUD_REGION_ID, else that of the current profile if the default chain has to find
    the keys, else "cn-shanghai". VOD serves cn-hangzhou, the CLI's usual region, in cn-shanghai
    (VOD SDK, endpoint map).
    """
    if given := os.environ.get("VODUP_REGION"):
        return given
    source, _, profile = (credentials or "").partition(":")
    is_chain = not credentials and not os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_ID")
    region = (
        (_aliyun_region(profile) if source == "aliyun" else None)
        or os.environ.get("ALIBABA_CLOUD_REGION_ID")
        or (_aliyun_region("") if is_chain else None)
        or "cn-shanghai"
    )
    return "cn-shanghai" if region == "cn-hangzhou" else region


def _aliyun_region(profile: str) -> str | None:
    try:
        config = json.loads(Path("~/.aliyun/config.json").expanduser().read_text())
        name = profile or os.environ.get("ALIBABA_CLOUD_PROFILE") or config["current"]
        return next(p["region_id"] for p in config["profiles"] if p["name"] == name) or None
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, StopIteration):
        return None


def _access_key_of(source: str | None) -> AccessKey | AccessKeys:
    """Return the caller's AccessKey as `CallerProvider.from_env` finds it."""
    kind, _, name = (source or "env").partition(":")
    if kind not in _SOURCES or (name and kind not in _NAMED_SOURCES):
        raise ConfigurationError(
            f"{source!r} is no source of AccessKeys.",
            next_step="Write env, aliyun, aliyun:PROFILE, ecs, ecs:ROLE or oidc (--credentials).",
        )
    if kind != "env":
        return _keys_from(kind, name)
    key_id = os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_ID", "").strip()
    secret = os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "").strip()
    if bool(key_id) != bool(secret):
        raise CallerNotAuthenticated(
            "Only one of ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET is set."
        )
    token = os.environ.get("ALIBABA_CLOUD_SECURITY_TOKEN", "").strip()
    if not key_id and source == "env":
        raise CallerNotAuthenticated("No AccessKey found: ALIBABA_CLOUD_ACCESS_KEY_ID is not set.")
    if not key_id:
        return _keys_from("", "")
    return AccessKey(id=key_id, secret=secret, security_token=token or None)


def _keys_from(kind: str, name: str) -> AccessKeys:
    """The keys of a source that alibabacloud-credentials reads and renews."""
    log = logging.getLogger("credentials")  # theirs: they print to stderr where nobody asked for it
    handlers = [*log.handlers] or [logging.NullHandler()]
    try:
        from alibabacloud_credentials import provider
        from alibabacloud_credentials.client import Client
    except ImportError as error:
        if kind:
            raise ConfigurationError(
                f"--credentials {kind} needs an optional package ({error.name}).",
                next_step="Run `pip install 'vodup[credentials]'`.",
            ) from None
        raise CallerNotAuthenticated(
            "No AccessKey found: ALIBABA_CLOUD_ACCESS_KEY_ID is not set.",
            next_step="Set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or "
            "install vodup[credentials] for config files and roles, or push with --grant, "
            "--auth-command or --auth-url, which need no AccessKey.",
        ) from None
    log.handlers[:] = handlers

    @functools.cache
    def client() -> Any:  # noqa: ANN401 - the package has no types
        return Client(provider=source(**arguments))

    source = getattr(provider, _SOURCES.get(kind, "DefaultCredentialsProvider"))
    arguments = {_NAMED_SOURCES[kind]: name} if name else {}
    where = f"--credentials {kind}" if kind else "the default credential chain"

    def read() -> AccessKey:
        found = client().get_credential()
        return AccessKey(
            id=found.access_key_id,
            secret=found.access_key_secret,
            security_token=found.security_token or None,
        )

    async def read_in_thread() -> AccessKey:
        # Its own async path holds a thread lock on the event loop; a thread does not.
        try:
            return await in_thread(read)
        except Exception as error:  # the chain raises bare exceptions of many kinds
            raise CallerNotAuthenticated(
                f"No AccessKey found in {where} ({type(error).__name__})."
            ) from None

    return read_in_thread


class CallerSigner:
    """Signs RPC calls with the caller's AccessKey. Mutable: the newest key.

    One upload may renew credentials and read facts at a time, so the key is requested
    by one of them, and the other waits.
    """

    def __init__(self, provider: CallerProvider, clock: Clock) -> None:
        self._source, self._clock = provider.access_key, clock
        self._signature = provider.signature
        self._key: AccessKey | None = None
        self._generation = 0
        self._lock = asyncio.Lock()

    async def prepare(self) -> None:
        """Get the key."""
        async with self._lock:
            if self._key is None:
                self._key = await self._newest()

    def is_ready(self) -> bool:
        """Whether there is a key."""
        return self._key is not None

    async def _newest(self) -> AccessKey:
        if isinstance(self._source, AccessKey):
            return self._source
        try:
            return await in_own_task(_called(self._source))
        except VodupError:
            raise
        except Exception as error:
            # Its text is not repeated: it may hold what the callable uses to authenticate.
            raise CallerNotAuthenticated(
                f"The callable for the AccessKey raised {type(error).__name__}.",
                next_step="Fix the callable, then run again.",
            ) from error

    def sign(
        self, operation: Operation[Any], *, clock_offset_s: float, region: str | None = None
    ) -> SignedRequest:
        """Sign with the newest key."""
        if self._key is None:  # pragma: no cover - a Session prepares before it signs
            raise RuntimeError("prepare() comes first")
        at = self._clock.utc_now() + timedelta(seconds=clock_offset_s)
        nonce = secrets.token_hex(16)
        return sign_rpc(
            operation,
            self._key,
            at=at,
            nonce=nonce,
            generation=self._generation,
            signature=self._signature,
        )

    def is_aged(self, signed: SignedRequest) -> bool:
        """Whether the key has been replaced since."""
        return signed.generation != self._generation

    async def renew(self, refused: SignedRequest) -> None:
        """Get a newer key than the one that signed `refused`."""
        async with self._lock:
            if refused.generation != self._generation:
                return
            fresh = await self._newest()
            if fresh == self._key:
                raise CallerNotAuthenticated(
                    "The service rejected this AccessKey: it is unknown, disabled or expired."
                )
            self._key, self._generation = fresh, self._generation + 1

    def accepted(self, signed: SignedRequest) -> None:
        """Nothing to record."""


async def _called(source: AccessKeys) -> AccessKey:
    found = source()
    return await found if inspect.isawaitable(found) else found
