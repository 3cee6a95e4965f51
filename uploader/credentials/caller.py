"""The caller's own AccessKey, and what signs with it."""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from uploader.clock import Clock
from uploader.errors import (
    CallerNotAuthenticated,
)
from uploader.protocol.signing import sign_rpc
from uploader.protocol.vod import AccessKey
from uploader.protocol.wire import Operation, SignedRequest
from uploader.threads import in_thread

AccessKeys = Callable[[], AccessKey | Awaitable[AccessKey]]


def access_key_from_env() -> AccessKey | AccessKeys:
    """The caller's AccessKey as `VodProvider.from_env` finds it."""
    return _key_from_env() or _default_chain()


def _key_from_env() -> AccessKey | None:
    key_id = os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_ID", "").strip()
    secret = os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "").strip()
    if bool(key_id) != bool(secret):
        raise CallerNotAuthenticated(
            "Only one of ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET is set."
        )
    token = os.environ.get("ALIBABA_CLOUD_SECURITY_TOKEN", "").strip()
    return AccessKey(id=key_id, secret=secret, security_token=token or None) if key_id else None


def _default_chain() -> AccessKeys:
    try:
        from alibabacloud_credentials.client import Client
    except ImportError:
        raise CallerNotAuthenticated(
            "There is no AccessKey: ALIBABA_CLOUD_ACCESS_KEY_ID is not set.",
            next_step="Set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or "
            "install vodup[credentials] for config files and roles, or push with --grant, "
            "--auth-command or --auth-url, which need no AccessKey.",
        ) from None
    client: list[Any] = []

    def ask() -> AccessKey:
        # Its own async path holds a thread lock on the event loop; a thread does not.
        if not client:
            client.append(Client())
        found = client[0].get_credential()
        return AccessKey(
            id=found.access_key_id,
            secret=found.access_key_secret,
            security_token=found.security_token or None,
        )

    async def ask_in_thread() -> AccessKey:
        try:
            return await in_thread(ask)
        except Exception as error:  # the chain raises bare exceptions of many kinds
            raise CallerNotAuthenticated(
                f"The default credential chain found no AccessKey ({type(error).__name__})."
            ) from None

    return ask_in_thread


class CallerSigner:
    """Signs calls of RPC style with the caller's AccessKey. Mutable state: the newest key.

    One upload may ask VOD for credentials and for facts at a time, so keys are asked for
    one at a time, too.
    """

    def __init__(self, access_key: AccessKey | AccessKeys, clock: Clock) -> None:
        self._source, self._clock = access_key, clock
        self._key: AccessKey | None = None
        self._generation = 0
        self._lock = asyncio.Lock()

    async def prepare(self) -> None:
        """Get the key."""
        async with self._lock:
            if self._key is not None:
                return
            self._key = await self._ask()

    def is_ready(self) -> bool:
        """Whether there is one."""
        return self._key is not None

    async def _ask(self) -> AccessKey:
        if isinstance(self._source, AccessKey):
            return self._source
        found = self._source()
        return await found if inspect.isawaitable(found) else found

    def sign(self, operation: Operation[Any], *, clock_offset_s: float) -> SignedRequest:
        """Sign with the newest key."""
        if self._key is None:  # pragma: no cover - a Session prepares before it signs
            raise RuntimeError("prepare() comes first")
        at = self._clock.utc_now() + timedelta(seconds=clock_offset_s)
        nonce = secrets.token_hex(16)
        return sign_rpc(operation, self._key, at=at, nonce=nonce, generation=self._generation)

    def is_aged(self, signed: SignedRequest) -> bool:
        """Whether it was replaced since."""
        return signed.generation != self._generation

    async def renew(self, refused: SignedRequest) -> None:
        """Ask for another one."""
        async with self._lock:
            if refused.generation != self._generation:
                return
            fresh = await self._ask()
            if fresh == self._key:
                raise CallerNotAuthenticated(
                    "VOD does not accept this AccessKey, or it has expired."
                )
            self._key, self._generation = fresh, self._generation + 1

    def accepted(self, signed: SignedRequest) -> None:
        """Nothing to note."""
