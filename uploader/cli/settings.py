"""What an `Uploader` is made of, from flags and environment: credentials, state, trust, options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from uploader import (
    GrantProvider,
    RetryPolicy,
    TrustPolicy,
    Uploader,
    UploadOptions,
    VideoMeta,
    VodProvider,
    command_hooks,
    installed_hooks,
)
from uploader.cli.flag_groups import (
    AccessFlags,
    ConnectionFlags,
    NetworkFlags,
    TransferFlags,
    UrlFlags,
    VideoFlags,
)
from uploader.cli.printing import err
from uploader.errors import CallerNotAuthenticated, ConfigurationError
from uploader.events import Listener
from uploader.protocol.vod import problem_of
from uploader.sources import UrlPolicy
from uploader.sources.readers import stdin_descriptor
from uploader.state import open_state

if TYPE_CHECKING:
    from uploader import Webhook
    from uploader.metrics import Metrics

_MAX_INPUT: Final = 1024 * 1024
_CHAIN_VARIABLES: Final = (
    # What the default chain of alibabacloud-credentials looks at.
    "ALIBABA_CLOUD_CREDENTIALS_URI",
    "ALIBABA_CLOUD_CREDENTIALS_FILE",
    "ALIBABA_CLOUD_ECS_METADATA",
    "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
    "ALIBABA_CLOUD_PROFILE",
)
_CHAIN_FILES: Final = ("~/.aliyun/config.json", "~/.alibabacloud/credentials.ini")


def make_uploader(
    flags: ConnectionFlags,
    options: UploadOptions | None = None,
    *,
    has_grant: bool = False,
    on_event: Listener | None = None,
) -> Uploader:
    """Make the uploader that the flags describe; nothing is opened yet.

    Raises:
        ConfigurationError, CallerNotAuthenticated: a flag is wrong, or there is no AccessKey.
    """
    return Uploader(
        make_provider(flags) if has_grant else require_provider(flags),
        state=open_state(flags.state or None),
        options=options or network_options(flags),
        trust=make_trust(flags),
        on_event=on_event,
    )


# --- credentials and trust --------------------------------------------------------------


def require_provider(flags: AccessFlags) -> GrantProvider:
    """Return where credentials for uploads come from.

    Raises:
        ConfigurationError, CallerNotAuthenticated: a flag is wrong, or there is no AccessKey.
    """
    if flags.auth_command and flags.auth_url:
        raise ConfigurationError(
            "--auth-command and --auth-url cannot be used together.",
            next_step="Leave one of them out.",
        )
    if flags.auth_command:
        from uploader import CommandProvider

        return CommandProvider(flags.auth_command)
    if flags.auth_url:
        from uploader import UrlProvider

        return UrlProvider(flags.auth_url, os.environ.get("VODUP_AUTH_URL_TOKEN") or None)
    given: dict[str, Any] = {
        "region": flags.region,
        "signature": flags.api_signature,
        "credentials": flags.credentials,
    }
    if flags.service == "ims":
        from uploader import ImsProvider

        return ImsProvider.from_env(endpoint=flags.ims_endpoint, **given)
    return VodProvider.from_env(endpoint=flags.vod_endpoint, **given)


def make_provider(flags: AccessFlags) -> GrantProvider | None:
    """Return the same, or None where nothing says where credentials would come from."""
    if flags.auth_command or flags.auth_url or key_origin(flags) is not None:
        return require_provider(flags)
    return None


def scope_of(flags: AccessFlags) -> str:
    """Return the scope of this account's videos, also without an AccessKey."""
    try:
        provider = make_provider(flags)
    except CallerNotAuthenticated:
        provider = None
    return provider.scope if provider else api_origin(flags)


def key_origin(flags: AccessFlags) -> str | None:
    """Return what names the caller's AccessKey: a source, a variable, a file; None: nothing."""
    if flags.credentials:
        return flags.credentials
    if os.environ.get("ALIBABA_CLOUD_ACCESS_KEY_ID", "").strip():
        return "ALIBABA_CLOUD_ACCESS_KEY_ID"
    variables = [name for name in _CHAIN_VARIABLES if os.environ.get(name)]
    files = [name for name in _CHAIN_FILES if os.path.exists(os.path.expanduser(name))]
    return next(iter(variables + files), None)


def region_of(flags: AccessFlags) -> str:
    """Return the region of VOD or IMS."""
    from uploader.credentials.caller import default_region

    return flags.region or default_region(flags.credentials)


def api_origin(flags: AccessFlags) -> str:
    """Return the endpoint of the service that creates the videos."""
    if flags.service == "ims":
        return flags.ims_endpoint or f"https://ice.{region_of(flags)}.aliyuncs.com"
    return flags.vod_endpoint or f"https://vod.{region_of(flags)}.aliyuncs.com"


def issuer_of(flags: AccessFlags) -> str:
    """Return what issues credentials for uploads, for people: "VOD (vod.example.com)"."""
    if flags.auth_command:
        return "the --auth-command"
    if flags.auth_url:
        return f"the app server ({urlsplit(flags.auth_url).hostname})"
    return f"{flags.service.upper()} ({urlsplit(api_origin(flags)).netloc})"


def make_trust(flags: AccessFlags) -> TrustPolicy:
    """Return which hosts may receive credentials."""
    return TrustPolicy(
        allowed_hosts=frozenset(flags.allow_host),
        allow_loopback=os.environ.get("VODUP_ALLOW_LOOPBACK_HTTP") == "1",
    )


def ca_file(flags: NetworkFlags) -> Path | None:
    """Return one more certificate authority to trust. Verification cannot be switched off."""
    if flags.ca_file and not os.path.isfile(flags.ca_file):
        raise ConfigurationError(
            f"--ca-file (VODUP_CA_FILE): no such file: {flags.ca_file}",
            next_step="Pass a file of certificates in PEM format, or leave it out.",
        )
    return Path(flags.ca_file) if flags.ca_file else None


def proxy_of(flags: NetworkFlags) -> str | None:
    """Return `UploadOptions.proxy`, with the login that is not on the command line.

    Raises:
        ConfigurationError: the login is incomplete.
    """
    proxy = flags.proxy or None
    if proxy in (None, "env", "none") or "@" in str(proxy):
        return proxy
    user = os.environ.get("VODUP_PROXY_USER", "")
    password = os.environ.get("VODUP_PROXY_PASSWORD", "")
    if flags.proxy_login_file:
        login = read_input(flags.proxy_login_file, "--proxy-login-file").strip()
        user, _, password = login.partition(":")
    if not user and not password:
        return proxy
    if not user or not password:
        raise ConfigurationError(
            "The login for --proxy needs a user name and a password.",
            next_step="Set VODUP_PROXY_USER and VODUP_PROXY_PASSWORD, or write USER:PASSWORD into "
            "--proxy-login-file.",
        )
    scheme, _, rest = f"{'' if '://' in proxy else 'http://'}{proxy}".partition("://")
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest}"


# --- sending ----------------------------------------------------------------------------


def make_options(flags: TransferFlags) -> UploadOptions:
    """Return how data is sent. The hooks of installed packages come before the command."""
    hooks = installed_hooks() if flags.installed_hooks else ()
    if flags.on_finished:
        hooks = (*hooks, command_hooks(flags.on_finished))
    options = network_options(flags)
    return replace(
        options,
        part_size=flags.part_size,
        concurrency=flags.concurrency,
        bandwidth=flags.bwlimit,
        signature=flags.signature,
        on_target_change=flags.on_target_change,
        retry=_retry(flags.retry_for),
        stall_timeout_s=flags.timeout or options.stall_timeout_s,
        hooks=hooks,
        webhooks=_webhooks(flags.notify),
    )


def _webhooks(url: str | None) -> tuple[Webhook, ...]:
    if not url:
        return ()
    from uploader import Webhook

    return (Webhook(url=url, secret=os.environ.get("VODUP_NOTIFY_SECRET", "")),)


def network_options(flags: NetworkFlags) -> UploadOptions:
    """Return how services are reached, for commands that send no data."""
    return UploadOptions(
        oss_region=flags.oss_region or None,
        oss_endpoint=flags.oss_endpoint or None,
        metadata_url=os.environ.get("VODUP_METADATA_URL") or None,
        ca_file=ca_file(flags),
        proxy=proxy_of(flags),
    )


def _retry(patience_s: float | None) -> RetryPolicy:
    if patience_s is None:
        return RetryPolicy()
    return RetryPolicy(patience_s=patience_s, first_contact_patience_s=patience_s)


def make_meta(flags: VideoFlags) -> VideoMeta:
    """Return the fields of CreateUploadVideo.

    Raises:
        ConfigurationError: VOD would refuse them.
    """
    names = set(VideoMeta.__slots__) - {"tags", "extra"}
    given: dict[str, Any] = {name: getattr(flags, name, None) for name in names}
    tags = tuple(filter(None, map(str.strip, (flags.tags or "").split(","))))
    meta = VideoMeta(**given, tags=tags, extra=dict(map(_parameter, flags.set)))
    if (problem := problem_of(meta)) is not None:
        raise ConfigurationError(f"{problem[0].upper()}{problem[1:]}.")
    return meta


def _parameter(text: str) -> tuple[str, str]:
    name, is_given, value = text.partition("=")
    if not is_given or not value:
        raise ConfigurationError(
            f"--set: expected NAME=VALUE, got {text!r}.",
            next_step="Correct --set (or VODUP_SET), then run again.",
        )
    return name, value


def make_url_policy(flags: UrlFlags) -> UrlPolicy:
    """Return where source URLs may lead."""
    return UrlPolicy(
        allow_private=flags.allow_private_sources,
        max_redirects=flags.max_redirects,
        any_content_type=flags.any_content_type,
        proxy=proxy_of(flags),
        ca_file=ca_file(flags),
    )


@contextmanager
def serve_metrics(address: str | None) -> Iterator[Metrics | None]:
    """Serve metrics for Prometheus while the block runs; yields what takes the events."""
    if address is None:
        yield None
        return
    from uploader.metrics import Metrics

    metrics = Metrics()
    with metrics.served(address) as url:
        err(f"vodup: metrics are at {url}")
        yield metrics


def read_input(where: str, name: str) -> str:
    """Read a small file, or standard input for "-".

    Raises:
        ConfigurationError: it cannot be read, naming the flag or command `name`.
    """
    try:
        file_or_stdin = stdin_descriptor() if where == "-" else where
        with open(file_or_stdin, encoding="utf-8", closefd=where != "-") as file:
            return file.read(_MAX_INPUT)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(
            f"{name}: cannot read {where}: {reason}.", next_step="Check the path."
        ) from error
