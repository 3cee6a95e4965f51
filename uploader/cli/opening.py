"""Flags and environment into what an `Uploader` is made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast

from uploader import (
    CommandProvider,
    GrantProvider,
    Hooks,
    ImsProvider,
    RetryPolicy,
    TrustPolicy,
    Uploader,
    UploadOptions,
    UrlProvider,
    VodProvider,
    command_hooks,
    installed_hooks,
    parse_bandwidth,
)
from uploader.cli.options import (
    Access,
    Store,
    Transfer,
    parse_duration_s,
    parse_number,
    parse_size,
    require_one_of,
    split_command,
)
from uploader.cli.store import open_store
from uploader.errors import ConfigurationError
from uploader.events import Listener
from uploader.protocol.plan import MAX_PART_SIZE, MIN_PART_SIZE

__all__ = [
    "api_origin",
    "ca_file",
    "key_origin",
    "make_options",
    "make_provider",
    "make_trust",
    "make_uploader",
]

_MAX_CONCURRENCY = 256
_CHAIN_VARIABLES = (
    # What the default chain of alibabacloud-credentials looks at.
    "ALIBABA_CLOUD_CREDENTIALS_URI",
    "ALIBABA_CLOUD_CREDENTIALS_FILE",
    "ALIBABA_CLOUD_ECS_METADATA",
    "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
    "ALIBABA_CLOUD_PROFILE",
)
_CHAIN_FILES = ("~/.aliyun/config.json", "~/.alibabacloud/credentials.ini")


def make_uploader(
    store: Store,
    access: Access,
    transfer: Transfer | None = None,
    *,
    has_grant: bool = False,
    on_event: Listener | None = None,
) -> Uploader:
    """Make the uploader that the flags describe; nothing is opened yet.

    Raises:
        ConfigurationError, CallerNotAuthenticated: a flag is wrong, or there is no AccessKey.
    """
    return Uploader(
        make_provider(access, is_optional=has_grant),
        state=open_store(store),
        options=make_options(transfer or Transfer()),
        trust=make_trust(access),
        on_event=on_event,
    )


def make_provider(access: Access, *, is_optional: bool) -> GrantProvider | None:
    """Return who hands out grants; None if that is optional and there is nobody."""
    require_one_of(access.service, "--service", ("vod", "ims"))
    if access.auth_command and access.auth_url:
        raise ConfigurationError("--auth-command and --auth-url exclude each other.")
    if access.auth_command:
        return CommandProvider(access.auth_command)
    if access.auth_url:
        return UrlProvider(access.auth_url, os.environ.get("VODUP_AUTH_URL_TOKEN") or None)
    if is_optional and key_origin() is None:
        return None
    if access.service == "ims":
        return ImsProvider.from_env(region=access.region, endpoint=access.ims_endpoint)
    return VodProvider.from_env(region=access.region, endpoint=access.vod_endpoint)


def api_origin(access: Access) -> str:
    """Return where the service that hands out grants is called."""
    region = access.region or os.environ.get("VODUP_REGION") or "cn-shanghai"
    if access.service == "ims":
        return access.ims_endpoint or f"https://ice.{region}.aliyuncs.com"
    return access.vod_endpoint or f"https://vod.{region}.aliyuncs.com"


def key_origin() -> str | None:
    """Say where the caller's AccessKey comes from; None if there is no trace of one."""
    if os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_ID", "").strip():
        return "ALIBABA_CLOUD_ACCESS_KEY_ID"
    for name in _CHAIN_VARIABLES:
        if os.environ.get(name):
            return name
    for name in _CHAIN_FILES:
        if os.path.exists(os.path.expanduser(name)):
            return name
    return None


def make_trust(access: Access) -> TrustPolicy:
    """Return who may receive credentials."""
    return TrustPolicy(
        allowed_hosts=frozenset(access.allow_host or ()),
        allow_loopback=os.environ.get("VODUP_ALLOW_LOOPBACK_HTTP") == "1",
    )


def ca_file() -> Path | None:
    """Return one more certificate authority to trust. Verification cannot be switched off."""
    path = os.environ.get("VODUP_CA_FILE")
    if path and not os.path.isfile(path):
        raise ConfigurationError(f"VODUP_CA_FILE: {path} is not a file.")
    return Path(path) if path else None


def make_options(transfer: Transfer) -> UploadOptions:
    """Return how bytes are carried."""
    require_one_of(transfer.signature, "--signature", ("v4", "v1"))
    require_one_of(transfer.on_target_change, "--on-target-change", ("fail", "restart"))
    return UploadOptions(
        part_size=_part_size(transfer.part_size),
        concurrency=_concurrency(transfer.concurrency),
        bandwidth=parse_bandwidth(transfer.bwlimit) if transfer.bwlimit else None,
        signature=cast('Literal["v4", "v1"]', transfer.signature),
        oss_region=transfer.oss_region or None,
        on_target_change=cast('Literal["fail", "restart"]', transfer.on_target_change),
        retry=_retry(transfer.retry_for),
        ca_file=ca_file(),
        hooks=_hooks(transfer),
    )


def _hooks(transfer: Transfer) -> tuple[Hooks, ...]:
    """Those of installed packages, then the command."""
    hooks = installed_hooks() if transfer.installed_hooks else ()
    if transfer.on_finished:
        hooks = (*hooks, command_hooks(split_command(transfer.on_finished, "--on-finished")))
    return hooks


def _part_size(text: str | None) -> int | None:
    if text is None:
        return None
    part_size = parse_size(text, "--part-size")
    if not MIN_PART_SIZE <= part_size <= MAX_PART_SIZE:
        raise ConfigurationError(
            f"--part-size: {text} is outside of what OSS takes, 100 KiB to 5 GiB."
        )
    return part_size


def _concurrency(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    return parse_number(text, "--concurrency", least=1, most=_MAX_CONCURRENCY)


def _retry(text: str | None) -> RetryPolicy:
    usual = RetryPolicy()
    if text is None:
        return usual
    patience_s = parse_duration_s(text, "--retry-for")
    return RetryPolicy(
        patience_s=patience_s,
        first_contact_patience_s=min(patience_s, usual.first_contact_patience_s),
    )
