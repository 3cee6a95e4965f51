"""The matrix as a table: where a run is hit, by what, how often, and which cells cannot be.

A cell is a site and a failure; a run is a cell and a persistence. T are failures of the
transport, A answers of the services, E the environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Literal

from uploader.devserver import Fault

from .proxy import Toxic

Persistence = Literal["once", "twice", "for ever"]
PERSISTENCES: tuple[Persistence, ...] = ("once", "twice", "for ever")

PART_COUNT = 8
MIDDLE, LAST = 6, PART_COUNT
"""With four connections parts 5 to 8 travel on connections that were used before."""


# --- sites ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A request of an upload, or a step on this machine.

    Attributes:
        operation, part, attempt: how the devserver's faults find it.
        pattern: how the proxy finds it, in the head of the request.
        service: "" for a step on this machine.
        body: "part" if the request carries one.
        leads: faults that bring an upload here; without a subject.
        is_later: an earlier run has sent some parts.
        verb: what the caller requests.
    """

    name: str
    operation: str = ""
    part: int | None = None
    attempt: tuple[int, int] | None = None
    pattern: bytes = b""
    service: Literal["vod", "oss", ""] = ""
    body: Literal["part", ""] = ""
    leads: tuple[Fault, ...] = ()
    is_later: bool = False
    verb: Literal["upload", "abort"] = "upload"
    part_count: int = PART_COUNT
    knows_video: bool = False


def _vod(name: str, operation: str, **more: Any) -> Site:
    pattern = b"x-acs-action: " + operation.encode()
    return Site(name=name, operation=operation, pattern=pattern, service="vod", **more)


def _part(name: str, number: int) -> Site:
    pattern = b"^PUT .*[?&]partNumber=%d&" % number
    return Site(
        name=name, operation="UploadPart", part=number, pattern=pattern, service="oss", body="part"
    )


def _head(name: str, lead: Fault) -> Site:
    """HeadObject is sent only when the answer of Complete leaves a question."""
    return Site(name=name, operation="HeadObject", pattern=b"^HEAD ", service="oss", leads=(lead,))


_LOST_CREATE = Fault(action="drop_answer", operation="CreateUploadVideo", name="lead")
_EXPIRY = Fault(action="expire_credentials", operation="UploadPart", part=2, name="lead")
_LOST_COMPLETE = Fault(action="drop_answer", operation="CompleteMultipartUpload", name="lead")
_NO_CRC = Fault(action="missing_crc", operation="CompleteMultipartUpload", count=None, name="lead")

NETWORK_SITES = (
    _vod("create", "CreateUploadVideo"),
    _vod("find", "RefreshUploadVideo", leads=(_LOST_CREATE,)),
    _vod("refresh", "RefreshUploadVideo", leads=(_EXPIRY,)),
    _vod("facts", "GetMezzanineInfo", knows_video=True),
    Site(
        name="init", operation="InitiateMultipartUpload", pattern=rb"^POST \S*\?uploads",
        service="oss",
    ),
    _part("part-first", 1),
    _part("part-middle", MIDDLE),
    _part("part-last", LAST),
    Site(
        name="list-page-1", operation="ListParts", pattern=rb"part-number-marker=0\b",
        service="oss", is_later=True,
    ),
    Site(
        name="list-page-2", operation="ListParts", attempt=(2, 10**6),
        pattern=rb"part-number-marker=[1-9]", service="oss", is_later=True,
    ),
    Site(
        name="complete", operation="CompleteMultipartUpload", pattern=rb"^POST \S*\?uploadId=",
        service="oss",
    ),
    _head("settle", _LOST_COMPLETE),
    _head("verify", _NO_CRC),
    Site(
        name="put", operation="PutObject", pattern=b"^PUT ", service="oss", body="part",
        part_count=1,
    ),
    Site(
        name="abort", operation="AbortMultipartUpload", pattern=b"^DELETE ", service="oss",
        is_later=True, verb="abort",
    ),
)  # fmt: skip

STATE_STEPS = ("claim", "create", "target", "upload-id", "ack", "completing", "done")
LOCAL_SITES = (
    Site(name="source-open", is_later=True),
    *(Site(name=f"state-{step}") for step in STATE_STEPS),
)
SITES = (*NETWORK_SITES, *LOCAL_SITES)


# --- failures ---------------------------------------------------------------------------

Detour = Literal["", "closed", "no-name", "silent", "wrong-certificate", "tls-abort", "slow"]
Hook = Literal[
    "", "cancel", "clock ahead", "clock behind", "block", "truncate", "grow", "replace", "edit",
    "unlink", "unreadable", "kill", "terminate", "interrupt", "write fails",
    "write is not reported", "taken over",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ByService:
    """The fault that each service injects; the run fills in the place."""

    oss: Fault | None = None
    vod: Fault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One kind of failure.

    Attributes:
        toxic: played by a proxy all requests to the site's service go through.
        detour: the site's requests are sent to another address, where this happens.
        faults: played by the devserver.
        hook: played on this machine as the site's request is about to be sent.
        recovers: hit once, the first run still ends verified, but for the sites in `except_at`.
    """

    name: str
    what: str
    toxic: Toxic | None = None
    detour: Detour = ""
    faults: ByService = field(default_factory=lambda: ByService())
    hook: Hook = ""
    receive_buffer: int | None = None
    recovers: bool = True
    except_at: tuple[str, ...] = ()

    @property
    def ends_a_run(self) -> bool:
        """Whether persistence means several runs in a row, each injected once."""
        return bool(self.hook) and not self.hook.startswith(("clock", "block"))

    def fault(self, site: Site) -> Fault | None:
        """What the devserver injects, with the place still to be filled in."""
        return self.faults.vod if site.service == "vod" else self.faults.oss


def _both(action: str, **how: Any) -> ByService:
    fault = Fault(action=action, **how)
    return ByService(fault, fault)


def _oss(action: str, **how: Any) -> ByService:
    return ByService(oss=Fault(action=action, **how))


def _error(oss: str = "", vod: str = "", **how: Any) -> ByService:
    return ByService(
        Fault(action="error", code=oss, **how) if oss else None,
        Fault(action="error", code=vod, **how) if vod else None,
    )


_DENIED = b"<Error><Code>AccessDenied</Code><RequestId>5C3D8D</RequestId></Error>"
_EARLY_403 = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(_DENIED), _DENIED)
_EARLY_200 = (
    b'HTTP/1.1 200 OK\r\nETag: "00000000000000000000000000000000"\r\nContent-Length: 0\r\n\r\n'
)

_USED_IN_AN_ANSWER = (
    rb"crc64ecma: \d|<UploadId>\w|<HashCrc64ecma>\d|\"UploadAuth\": \"\w|\"Mezzanin\w"
    rb"|^HTTP/1\.1 2(?=04)"
)

TRANSPORT = (
    Failure(name="T01", what="the port is closed", detour="closed"),
    Failure(name="T02", what="the host has no address", detour="no-name"),
    Failure(name="T03", what="the SYN is not answered", detour="silent"),
    Failure(
        name="T04", what="another certificate", recovers=False,  # waiting does not change it
        detour="wrong-certificate",
    ),
    Failure(name="T05", what="the TLS handshake is aborted", detour="tls-abort"),
    Failure(name="T06", what="RST before it is read", toxic=Toxic(action="limit", close="rst")),
    Failure(
        name="T07", what="RST inside the request",
        toxic=Toxic(action="limit", close="rst", after=30_000),
    ),
    Failure(
        name="T08", what="FIN inside the request",
        toxic=Toxic(action="limit", close="fin", after=30_000),
    ),
    Failure(
        name="T09", what="the peer stops reading", toxic=Toxic(action="half_open", after=4000),
        receive_buffer=4096,
    ),
    Failure(
        name="T10", what="applied, no answer, RST",
        toxic=Toxic(action="limit", direction="down", close="rst"),
    ),
    Failure(
        name="T11", what="not applied, no answer, FIN",
        toxic=Toxic(action="swallow", close="fin"),
    ),
    Failure(
        name="T12", what="applied, never answered",
        toxic=Toxic(action="limit", direction="down", close="hang"),
    ),
    Failure(
        name="T13-403", what="refused before the body is read", recovers=False,
        toxic=Toxic(action="answer", answer=_EARLY_403, close="fin"),
    ),
    Failure(
        name="T13-200", what="success before the body is read",
        toxic=Toxic(action="answer", answer=_EARLY_200, close="fin"),
    ),
    Failure(
        name="T14", what="the answer ends in its head",
        toxic=Toxic(action="limit", direction="down", after=20),
    ),
    Failure(
        name="T15", what="the answer ends in its body",
        toxic=Toxic(action="limit", direction="down", after=20, in_body=True),
    ),
    Failure(
        name="T16", what="the answer drips for ever",
        toxic=Toxic(action="slicer", direction="down", delay_s=0.05),
    ),
    Failure(
        name="T17", what="an idle connection is closed as it is used again",
        toxic=Toxic(action="limit", close="rst", request=2),
    ),
    Failure(
        name="T18", what="latency",
        toxic=Toxic(action="latency", direction="down", delay_s=0.1, jitter_s=0.05),
    ),
    Failure(
        name="T19", what="a slow line", toxic=Toxic(action="bandwidth", rate=256 * 1024),
        receive_buffer=16 * 1024,
    ),
    Failure(
        name="T20", what="a byte of the request flips", toxic=Toxic(action="corrupt"),
        # In a head it looks like a wrong key, which a repetition does not change.
        except_at=("create", "find", "refresh", "facts", "init", "complete", "abort"),
    ),
    Failure(
        name="T21", what="a byte of the answer flips",
        # At verify it is the second opinion already; an abort's 204 becomes a redirect.
        except_at=("verify", "abort"),
        toxic=Toxic(action="corrupt", direction="down", find=_USED_IN_AN_ANSWER),
    ),
    Failure(
        name="T22", what="a zombie: carried out after its own repetition",
        toxic=Toxic(action="duplicate", delay_s=0.25, close="rst"),
    ),
    Failure(name="T23", what="a slow accept", detour="slow"),
    Failure(name="T24-200", what="a captive portal", faults=_both("html", status=200)),
    Failure(
        name="T24-302", what="a redirecting portal", recovers=False,
        faults=_both("redirect", status=302, location="/login"),
    ),
)  # fmt: skip

SERVICE = (
    Failure(name="A01", what="InternalError", faults=_error("InternalError", "InternalError")),
    Failure(
        name="A02", what="unavailable, come back in a second",
        faults=_error("ServiceUnavailable", "ServiceUnAvailable", headers={"Retry-After": "1"}),
    ),
    Failure(name="A03", what="throttled with a 400", faults=_error(vod="Throttling.User")),
    Failure(
        name="A04", what="expired credentials", except_at=("create", "find", "refresh", "facts"),
        faults=_error("SecurityTokenExpired", "InvalidSecurityToken.Expired"),
    ),
    Failure(
        name="A05", what="a forgotten key", except_at=("create", "find", "refresh", "facts"),
        faults=_error("InvalidAccessKeyId", "InvalidAccessKeyId.NotFound"),
    ),
    Failure(
        name="A06", what="not allowed",
        recovers=False, faults=_error("AccessDenied", "Forbidden.RAM"),
    ),
    Failure(
        name="A07", what="a bad signature", recovers=False,
        faults=_error("SignatureDoesNotMatch", "SignatureDoesNotMatch"),
    ),
    Failure(
        name="A08", what="a skewed clock",
        faults=_error("RequestTimeTooSkewed", "InvalidTimeStamp.Expired"),
    ),
    Failure(name="A09", what="the multipart upload is gone", faults=_oss("vanish")),
    Failure(name="A10", what="the bucket is gone", recovers=False, faults=_error("NoSuchBucket")),
    Failure(
        name="A11", what="a read timeout reported as 400",
        faults=_error("RequestTimeout", status=400),
    ),
    Failure(name="A12", what="200 with an error document", faults=_both("error_body")),
    Failure(name="A13", what="no ETag", faults=_oss("missing_etag")),
    Failure(name="A14-etag", what="a wrong ETag", faults=_oss("wrong_etag")),
    Failure(
        name="A14-crc", what="a wrong CRC-64", faults=_oss("wrong_crc"),
        except_at=("verify",),
    ),
    Failure(
        name="A14-rot", what="stored damaged, reported intact",
        recovers=False, faults=_oss("rot"),
    ),
    Failure(name="A15-part", what="InvalidPart", faults=_error("InvalidPart")),
    Failure(name="A15-order", what="InvalidPartOrder", faults=_error("InvalidPartOrder")),
    Failure(name="A15-small", what="EntityTooSmall", faults=_error("EntityTooSmall")),
    Failure(name="A16", what="an error in a header", faults=_error("QpsLimitExceeded", status=503)),
    Failure(name="A17", what="half a document", faults=_both("malformed")),
    Failure(
        name="A18-long", what="an endless document",
        faults=_both("oversize", value=2 * 1024**2),
    ),
    Failure(name="A18-gzip", what="a gzip bomb", faults=_both("gzip_bomb", value=64 * 1024**2)),
    Failure(
        name="A19", what="307 to another host", recovers=False,
        faults=_both("redirect", status=307, location="elsewhere"),
    ),
    Failure(
        name="A20-gone", what="the video is not found", recovers=False,
        faults=_error(vod="InvalidVideo.NotFound"),
    ),
    Failure(
        name="A20-damaged", what="the video is damaged", recovers=False,
        faults=_error(vod="InvalidVideo.Damaged"),
    ),
    Failure(name="A21", what="stored, but its callback failed", faults=_oss("callback_failed")),
    Failure(name="A22-lag", what="the list lags", faults=_oss("list_lag", value=2)),
    Failure(name="A22-repeat", what="the list repeats", faults=_oss("list_repeat_page")),
    Failure(name="A22-stuck", what="the list is stuck", faults=_oss("list_stuck_marker")),
)  # fmt: skip

ENVIRONMENT = (
    Failure(name="E01", what="no space: a write fails", hook="write fails", recovers=False),
    Failure(name="E02", what="a write is done and reported as failed", hook="write is not reported",
        recovers=False),
    Failure(name="E03", what="no permission", recovers=False),
    Failure(name="E04", what="no file descriptor left", recovers=False),
    Failure(name="E05", what="the source is truncated", hook="truncate", recovers=False),
    Failure(name="E06", what="the source grows", hook="grow", recovers=False),
    Failure(name="E07", what="the source is replaced", hook="replace", recovers=False),
    Failure(
        name="E08", what="the source is edited, its times put back",
        hook="edit", recovers=False,
    ),
    Failure(name="E09", what="the source's disk fails", hook="unreadable", recovers=False),
    Failure(name="E10", what="the source is unlinked", hook="unlink", recovers=False),
    Failure(name="E11", what="SIGINT", hook="interrupt", recovers=False),
    Failure(name="E12", what="SIGTERM", hook="terminate", recovers=False),
    Failure(name="E13", what="SIGKILL", hook="kill", recovers=False),
    Failure(name="E14", what="the task is cancelled", hook="cancel", recovers=False),
    Failure(name="E15-ahead", what="the clock jumps an hour ahead", hook="clock ahead"),
    Failure(name="E15-behind", what="the clock jumps an hour back", hook="clock behind"),
    Failure(name="E16", what="the event loop is blocked", hook="block"),
    Failure(name="E17", what="no memory left", recovers=False),
    Failure(name="E18", what="another worker has taken over", hook="taken over", recovers=False),
)  # fmt: skip

FAILURES = (*TRANSPORT, *SERVICE, *ENVIRONMENT)


# --- what cannot be ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NotApplicable:
    """Cells that do not exist, by name or pattern, and why. `but` are sites that do."""

    failures: str
    sites: str
    why: str
    but: str = ""

    def covers(self, site: Site, failure: Failure) -> bool:
        """Whether the cell is one of these."""
        return (
            _is_one_of(failure.name, self.failures)
            and _is_one_of(site.name, self.sites)
            and not (self.but and _is_one_of(site.name, self.but))
        )


def _is_one_of(name: str, patterns: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns.split())


_VOD = "create find refresh facts"
_PARTS = "part-*"
_LISTS = "list-*"
_HEADS = "settle verify"
_LOCAL = "state-* source-open"

NOT_APPLICABLE = (
    NotApplicable("T* A*", _LOCAL, "nothing is sent at a step on this machine"),
    NotApplicable("T09 T19", "*", "a request without a part fits into one packet: T12, T18",
                  but=f"{_PARTS} put"),
    NotApplicable("T15", f"{_PARTS} put {_HEADS} abort", "the answer has no body"),
    NotApplicable("T17", "create find facts init list-page-1 put abort",
                  "it is the first request of its connection"),
    NotApplicable("A03", "*", "OSS throttles with 503: A02", but=_VOD),
    NotApplicable("A09", "*", "the request names no multipart upload",
                  but=f"{_PARTS} {_LISTS} complete abort"),
    NotApplicable("A10 A11", _VOD, "an error of OSS"),
    NotApplicable("A12", f"{_HEADS} abort", "the answer has no body"),
    NotApplicable("A13", "*", "the answer names no ETag", but=f"{_PARTS} put complete {_HEADS}"),
    NotApplicable("A14-etag", "*", "the answer names no ETag",
                  but=f"{_PARTS} put complete {_HEADS} {_LISTS}"),
    NotApplicable("A14-crc", "*", "the answer names no CRC-64",
                  but=f"{_PARTS} put complete {_HEADS}"),
    NotApplicable("A14-rot", "*", "only parts are stored to be joined later", but=_PARTS),
    NotApplicable("A15-*", "*", "an error of Complete", but="complete"),
    NotApplicable("A16", "*", "other answers have a body", but=_HEADS),
    NotApplicable("A17", f"{_PARTS} put {_HEADS} abort", "the answer has no document"),
    NotApplicable("A18-*", f"{_HEADS} abort", "an answer without a body cannot be long"),
    NotApplicable("A20-*", "*", "an error about an existing video", but="find refresh facts"),
    NotApplicable("A21", "*", "only finished objects call back", but="complete put"),
    NotApplicable("A22-*", "*", "only a list lags", but=_LISTS),
    NotApplicable("E01 E02 E18", "*", "nothing is written down at that moment", but="state-*"),
    NotApplicable("E02", "state-claim", "a claim that is not reported is released at once"),
    NotApplicable("E18", "state-claim", "that is a lock, not a takeover"),
    NotApplicable("E03", "*", "tests may run as root, who may read and write everything"),
    NotApplicable("E04 E17", "*", "a limit of the process would hit every run beside this one"),
    NotApplicable("E05 E06 E07 E08 E10", f"{_LOCAL} abort {_HEADS}",
                  "the source is not read at or after that moment", but="source-open"),
    NotApplicable("E05 E06 E08 E09", "source-open", "a source is what it is when it is opened"),
    NotApplicable("E09", "*", "the source is not read at that moment", but=f"{_PARTS} put"),
    NotApplicable("E11 E12 E13 E14 E15-* E16", _LOCAL, "played at every request instead"),
)  # fmt: skip


# --- cells and runs ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the matrix."""

    site: Site
    failure: Failure

    @property
    def name(self) -> str:
        """Site and failure."""
        return f"{self.site.name}/{self.failure.name}"

    @property
    def is_doubt_allowed(self) -> bool:
        """Whether the object may be completed once more: OSS denies that it is ours."""
        return self.site.name == "settle" and self.failure.name in ("T21", "A14-crc")


@dataclass(frozen=True, slots=True)
class Run:
    """One cell, played with one persistence."""

    cell: Cell
    persistence: Persistence

    @property
    def name(self) -> str:
        """Cell and persistence."""
        return f"{self.cell.name}/{self.persistence}"

    @property
    def hit_count(self) -> int | None:
        """How often the failure is injected; None for ever."""
        return {"once": 1, "twice": 2, "for ever": None}[self.persistence]


def reason_against(site: Site, failure: Failure) -> str | None:
    """Why there is no such cell; None if there is."""
    return next((row.why for row in NOT_APPLICABLE if row.covers(site, failure)), None)


def cells() -> Iterator[Cell]:
    """All cells there are."""
    for site in SITES:
        for failure in FAILURES:
            if reason_against(site, failure) is None:
                yield Cell(site, failure)


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that are played side by side in one test."""

    name: str
    runs: tuple[Run, ...] = field(repr=False)


_LIKE_OTHERS = ("facts", "part-first", "part-last", "list-page-1", "verify")
"""Sites that differ from refresh, part-middle, list-page-2 and settle in little."""


def brief_runs() -> Iterator[Run]:
    """One hit for each cell, but for sites and signals that are much like another."""
    for cell in cells():
        if cell.site.name not in _LIKE_OTHERS and cell.failure.name not in ("E11", "E12"):
            yield Run(cell, "once")


def other_runs() -> Iterator[Run]:
    """All runs that are not brief."""
    brief = {run.name for run in brief_runs()}
    for cell in cells():
        for persistence in PERSISTENCES:
            if (run := Run(cell, persistence)).name not in brief:
                yield run


def groups(runs: Iterable[Run]) -> list[Group]:
    """The runs by site and family of failures."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        family = {"T": "transport", "A": "service", "E": "environment"}[run.cell.failure.name[0]]
        found.setdefault(f"{run.cell.site.name} {family}", []).append(run)
    return [Group(name, tuple(runs)) for name, runs in found.items()]
