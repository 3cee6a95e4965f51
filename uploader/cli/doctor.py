"""`doctor` checks everything that an upload needs; `inspect` shows what a grant holds."""

from __future__ import annotations

import asyncio
import glob
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

import click

from uploader import UploadGrant, decode_answer, decode_grant, units
from uploader.cli import run, settings
from uploader.cli.flag_groups import AccessFlags, ConnectionFlags, StateFlags
from uploader.cli.flags import DoctorFlags, InspectFlags
from uploader.cli.orphans import open_network
from uploader.cli.printing import out, out_json
from uploader.clock import SystemClock
from uploader.credentials import Network, VodProvider, life_s
from uploader.credentials.ims import ImsProvider
from uploader.errors import ConfigurationError, PolicyError, VideoGone, VodupError
from uploader.protocol.failures import IMS, VOD
from uploader.protocol.grants import UploadTarget, mask
from uploader.protocol.trust import ServiceName, oss_host
from uploader.protocol.wire import Response, SignedRequest, web_page
from uploader.session import MAX_CLOCK_OFFSET_S
from uploader.state import Phase, open_state
from uploader.state.files import refuse_network_mount
from uploader.state.locations import SqliteFile, locate
from uploader.transport import AiohttpTransport, may_use_congestion
from uploader.transport.proxies import Proxies

_REQUEST_S: Final = 15.0
_MAX_OFFSET_S: Final = 300.0  # OSS and VOD refuse at 15 minutes
_LOW_SPACE: Final = 100 * 1024 * 1024
_NO_VIDEO: Final = "0" * 32
_NO_BUCKET: Final = "vodup-doctor"

Status = Literal["ok", "warning", "failed"]


_ACTIONS: Final = {
    "VOD": ("CreateUploadVideo", "RefreshUploadVideo", "GetMezzanineInfo"),
    "IMS": ("CreateUploadMedia", "RefreshUploadMedia", "GetMediaInfo"),
}
"""The operations that vodup calls: to create a video, to renew credentials, to read its facts."""
_WITHOUT_FACTS: Final[dict[str, Any]] = {
    "status": "warning",
    "detail": "not allowed: push works; verify, --video-id without --overwrite, clean --orphans, "
    "and resuming a run that died while it completed the object do not",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        code: the exit code if it failed.
        cause: one word for programs, for example "NameNotResolved".
        next_step: what to do about it.
    """

    name: str
    status: Status
    detail: str
    code: int = run.FAILED
    cause: str = ""
    next_step: str = ""

    @classmethod
    def of(cls, name: str, error: VodupError, about: str = "") -> Finding:
        """A check that failed with this error."""
        detail = f"{about}: {error.message}" if about else error.message
        return cls(name, "failed", detail, run.exit_code(error), error.code, error.next_step)


def doctor(flags: DoctorFlags) -> int:
    """Run all checks and return the code of those that failed."""
    findings = _findings(flags)
    for finding in findings:
        if flags.json:
            line = {k: v for k, v in asdict(finding).items() if k != "code"}
            out_json({"type": "doctor.finding", **line})
        else:
            out(f"{finding.status:<8} {finding.name:<12} {finding.detail}")
            if finding.next_step:
                out(f"{'':<8} {'next:':<12} {finding.next_step}")
    return run.common_code(f.code for f in findings if f.status == "failed")


def _findings(flags: DoctorFlags) -> list[Finding]:
    """Run all checks, of the network too."""
    findings: list[Finding] = [*_settings(), *_versions(), _credentials(flags), *_state_path(flags)]
    findings.append(_proxy(flags))

    async def work() -> int:
        findings.append(await _records(flags))
        try:
            async with open_network(flags) as network:
                findings.extend(await _services(flags, network))
                findings.append(_congestion(network))
        except VodupError as error:  # a flag
            findings.append(Finding.of("network", error))
        return run.DONE

    run.run_async(work())
    return findings


# --- this machine ---------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    packages = ("vodup", "aiohttp", "oss2")
    words = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    words += [
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
        ssl.OPENSSL_VERSION,
    ]
    yield Finding("versions", "ok", ", ".join(words))
    yield Finding("system", "ok", f"{platform.system()} {platform.release()}")


def _settings() -> Iterator[Finding]:
    """Say where each setting comes from."""
    if (ctx := click.get_current_context(silent=True)) is None:
        return
    from uploader.cli.config import origins

    words = [f"{flag} from {origin}" for flag, origin, _ in origins(ctx)]
    yield Finding("settings", "ok", ", ".join(words) or "defaults only")


def _credentials(flags: AccessFlags) -> Finding:
    if flags.auth_command or flags.auth_url:
        return Finding("credentials", "ok", "from --auth-command or --auth-url")
    origin = settings.key_origin(flags)
    if origin is None:
        detail = "no AccessKey: set ALIBABA_CLOUD_ACCESS_KEY_ID and _SECRET, or push with a --grant"
        return Finding("credentials", "failed", detail, run.CREDENTIALS)
    return Finding("credentials", "ok", f"AccessKey from {origin}")


def _proxy(flags: DoctorFlags) -> Finding:
    try:
        proxies = Proxies(settings.proxy_of(flags))
    except VodupError as error:
        return Finding.of("proxy", error)
    if variable := proxies.unused_variable(settings.api_origin(flags)):
        detail = f"none; {variable} names one that is used only with --proxy env"
        return Finding("proxy", "ok", detail, cause="ProxyNotUsed")
    return Finding("proxy", "ok", str(proxies))


def _state_path(flags: StateFlags) -> Iterator[Finding]:
    if flags.state == "memory":
        yield Finding("state", "warning", "memory: progress is lost when the process ends")
        return
    location = locate(flags.state or None)
    if not isinstance(location, SqliteFile):
        yield Finding("state", "ok", "a database server")
        return
    folder = next(p for p in (location.path.parent, *location.path.parents) if p.exists())
    yield _state_folder(location.path, folder)
    found = location.path.parent.glob(f"{glob.escape(location.path.name)}.corrupt-*")
    if aside := sorted(path.name for path in found if path.name.rpartition("-")[2].isdecimal()):
        detail = f"was damaged and put aside, with what it recorded: {', '.join(aside)}"
        yield Finding("state", "warning", detail)


def _state_folder(path: Path, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    mode = f"{stat.S_IMODE(path.stat().st_mode):04o}" if path.exists() else "not created yet"
    detail = f"{path} ({mode}), {units.size(free)} free"
    try:
        refuse_network_mount(folder)
    except ConfigurationError as error:
        return Finding("state", "failed", error.message, run.USAGE)
    if not os.access(folder, os.W_OK):
        return Finding("state", "failed", f"{detail}: {folder} is not writable", run.TEMPORARY)
    return Finding("state", "warning" if free < _LOW_SPACE else "ok", detail)


async def _records(flags: StateFlags) -> Finding:
    try:
        async with open_state(flags.state or None) as state:
            phases = [found.record.phase async for found in state.uploads()]
            orphans = await state.orphans()
            notices = getattr(state, "notices", ())
    except VodupError as error:
        return Finding.of("uploads", error)
    open_count = sum(phase not in {Phase.DONE, Phase.ABORTED} for phase in phases)
    detail = f"{units.count(len(phases), 'upload')} recorded, {open_count} unfinished"
    if notices:
        return Finding("uploads", "warning", "; ".join((detail, *notices)))
    if orphans:
        return Finding("uploads", "warning", f"{detail}; run `vodup clean --orphans`")
    return Finding("uploads", "ok", detail)


# --- the network ----------------------------------------------------------------------


async def _services(flags: ConnectionFlags, network: Network) -> list[Finding]:
    service = flags.service.upper()
    try:
        provider = settings.make_provider(flags)
        name: ServiceName = "IMS" if flags.service == "ims" else "VOD"
        endpoint = network.trust.check_endpoint(name, settings.api_origin(flags))
    except VodupError as error:
        return [Finding.of(service, error)]
    findings = [await _reach(service, endpoint, network)]
    if isinstance(provider, VodProvider | ImsProvider) and findings[0].status != "failed":
        findings += await _permissions(provider, network)
    findings.append(await _reach_oss(flags, endpoint, network))
    return findings


async def _reach_oss(flags: ConnectionFlags, origin: str, network: Network) -> Finding:
    if urlsplit(origin).hostname in {"127.0.0.1", "::1"}:
        return Finding("OSS", "ok", "the development server names its endpoint with each upload")
    address = f"https://{oss_host(flags.oss_region or settings.region_of(flags), 'public')}"
    try:
        dialect = await network.dialect_for(UploadTarget(address, _NO_BUCKET, "-"))
    except VodupError as error:
        return Finding.of("OSS", error)
    found = await _reach("OSS", dialect.endpoint or address, network)
    words = [found.detail, f"--oss-endpoint {flags.oss_endpoint or 'not given'}"]
    if network.endpoints and flags.oss_endpoint == "auto":
        region = await network.endpoints.machine_region()
        words.append(f"this machine is in {region}" if region else "this is no ECS instance")
    return replace(found, detail=", ".join(words))


async def _reach(name: str, endpoint: str, network: Network) -> Finding:
    """Send an unsigned request: any answer proves route and TLS, and shows the service's clock."""
    request = SignedRequest("GET", f"{endpoint}/", {}, None)
    began = time.monotonic()
    try:
        async with asyncio.timeout(2 * _REQUEST_S):
            answer = await network.transport.send(request, answer_timeout_s=_REQUEST_S)
    except TimeoutError:
        return Finding(name, "failed", f"{endpoint}: no answer", run.TEMPORARY, "NoAnswer")
    except VodupError as error:
        return Finding.of(name, error, endpoint)
    if answer.is_web_page:
        return Finding.of(name, web_page(f"{endpoint}/", answer.status))
    return _reached(name, endpoint, answer, time.monotonic() - began)


def _reached(name: str, endpoint: str, answer: Response, took_s: float) -> Finding:
    words = [f"{endpoint} answers in {1000 * took_s:.0f} ms"]
    if urlsplit(endpoint).scheme != "https":
        words.append("without TLS")
    offset_s = 0.0
    if (server_s := answer.server_epoch_s) is not None:
        offset_s = server_s - time.time()
        words.append(f"clock offset {offset_s:+.0f} s")
    detail = ", ".join(words)
    if abs(offset_s) <= _MAX_OFFSET_S:
        return Finding(name, "ok", detail)
    status: Status = "warning" if abs(offset_s) <= MAX_CLOCK_OFFSET_S else "failed"
    return Finding(name, status, detail, cause="Clock", next_step="Set this machine's clock.")


async def _permissions(provider: VodProvider | ImsProvider, network: Network) -> list[Finding]:
    """Send signed requests about a video that cannot exist: with permission, it is not found."""
    service = VOD if isinstance(provider, VodProvider) else IMS
    source = provider.connect(network)
    create, renew, facts = (f"{service.ram_prefix}:{name}" for name in _ACTIONS[service.name])
    findings = [Finding(create, "ok", "not checked: it would create a video")]
    for call, name in ((source.renew, renew), (source.facts, facts)):
        try:
            async with asyncio.timeout(2 * _REQUEST_S):
                await call(_NO_VIDEO)
        except VideoGone:
            findings.append(Finding(name, "ok", "allowed"))
        except TimeoutError:
            return [Finding("AccessKey", "failed", "no answer in time", run.TEMPORARY)]
        except VodupError as error:
            if not service.lacks_permission(error):
                return [Finding.of("AccessKey", error)]
            denied = Finding.of(name, error)
            findings.append(denied if name == renew else replace(denied, **_WITHOUT_FACTS))
    return [Finding("AccessKey", "ok", "accepted"), *findings]


def _congestion(network: Network) -> Finding:
    used = cast("AiohttpTransport", network.transport).congestion()
    if not used:
        return Finding("congestion", "warning", "no connection was made")
    if used == "bbr":
        return Finding("congestion", "ok", used)
    if may_use_congestion("bbr"):
        return Finding("congestion", "ok", f"{used}; bbr is available for long distances")
    return Finding(
        "congestion", "warning", f"{used}; bbr is faster on lossy links (modprobe tcp_bbr)"
    )


def inspect(flags: InspectFlags) -> int:
    """Show what a grant holds, secrets masked; the exit code says whether it is trusted."""
    grant = _decoded(settings.read_input(flags.where, "inspect"))
    facts = {**mask(grant), **_remaining(grant), **_trust(grant, flags)}
    if flags.json:
        out_json(facts)
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            out(f"{name:<{width}}  {'-' if value in (None, '') else value}")
    return run.DONE if facts["is_trusted"] else run.POLICY


def _decoded(text: str) -> UploadGrant:
    """Decode a whole answer, or the bare pair: two base64 texts with space between."""
    words = text.split()
    if len(words) == 2 and not text.lstrip().startswith(("{", "<")):
        return decode_grant(words[0], words[1])
    return decode_answer(text)


def _remaining(grant: UploadGrant) -> dict[str, Any]:
    clock = SystemClock()
    left_s = life_s(grant.credentials, clock=clock)
    deadline = clock.utc_now() + timedelta(seconds=left_s)
    return {
        "deadline": deadline.isoformat(timespec="seconds"),
        "remaining_s": round(left_s),
        "remaining": units.duration(left_s) if left_s > 0 else "expired",
    }


def _trust(grant: UploadGrant, flags: AccessFlags) -> dict[str, Any]:
    try:
        settings.make_trust(flags).check_target(grant.target)
    except PolicyError as error:
        return {"is_trusted": False, "trust": error.message}
    return {"is_trusted": True, "trust": "endpoint, bucket and key may receive credentials"}
