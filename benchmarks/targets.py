"""What the benchmarks are to show, and by how much they do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.bench import Table

__all__ = ["check"]

_OURS = "vodup (library)"

_WITHOUT_BBR = {"lossy": (200, 0.6, 1.5), "fast": (1000, 0.45, 1.5), "slow": (20, 0.45, 3.0)}
"""Of these links: Mbit/s, the share of them that "auto" reaches with CUBIC, its tail in seconds."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """`limit` is a ceiling, or a floor where more is better. `value` None: not measured."""

    what: str
    value: float | None
    limit: float
    is_floor: bool = False

    @property
    def is_met(self) -> bool | None:
        """None when it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.is_floor else self.value <= self.limit


def check(data: Mapping[str, Any]) -> Table:
    """Compare the figures of a run with the targets."""
    table = Table("Targets", ["figure", "target", "measured", "", "by"])
    for outcome in _outcomes(data):
        table.rows.append(_row(outcome))
    return table


def _row(outcome: _Outcome) -> list[str]:
    sign = "≥" if outcome.is_floor else "≤"
    if outcome.value is None:
        return [outcome.what, f"{sign} {outcome.limit:g}", "–", "not measured", ""]
    word = "met" if outcome.is_met else "MISSED"
    distance = abs(outcome.value / outcome.limit - 1) * 100
    return [
        outcome.what,
        f"{sign} {outcome.limit:g}",
        f"{outcome.value:.3g}",
        word,
        f"{distance:.0f} %",
    ]


def _outcomes(data: Mapping[str, Any]) -> Iterator[_Outcome]:
    http, https = _cell(data, "http"), _cell(data, "https")
    for curl in ("curl -T", "curl --parallel"):
        yield _Outcome(f"CPU per byte against {curl}, http", _ratio(http, curl), 1.0)
        yield _Outcome(f"CPU per byte against {curl}, https", _ratio(https, curl), 0.85)
    yield _Outcome("CPU per byte against obstore, https", _ratio(https, "obstore"), 1.0)
    oss2 = "oss2.resumable_upload"
    yield _Outcome("CPU per byte against oss2, http", _ratio(http, oss2), 1 / 10)
    yield _Outcome("CPU per byte against oss2, https", _ratio(https, oss2), 1 / 7)
    yield _Outcome("wall against the fastest Python peer, https", _speed(https), 1.0, True)
    yield _Outcome("peak RSS above import, MiB", _largest_above_import(data), 64.0)
    yield from _network_outcomes(data.get("networks", {}))
    resume = data.get("resume", {})
    first_s = resume.get("resume", {}).get("first_byte_s")
    yield _Outcome("resume to the first new byte, s", first_s, 1.0)
    share = resume.get("state", {}).get("core_share")
    yield _Outcome("state at 125 parts/s, % of a core", None if share is None else share * 100, 3)


def _cell(data: Mapping[str, Any], scheme: str) -> Mapping[str, Any]:
    """The contenders at 8 connections, warm, with the file nearest to 1 GB."""
    cells = [
        cell
        for cell in data.get("transfer", {}).values()
        if cell["scheme"] == scheme and cell["temperature"] == "warm"
    ]
    cells.sort(key=lambda cell: (cell["connections"] != 8, abs(cell["size"] - 10**9)))
    found: Mapping[str, Any] = cells[0]["contenders"] if cells else {}
    return found


def _ratio(cell: Mapping[str, Any], peer: str) -> float | None:
    ours, theirs = (cell.get(name, {}).get("cpu_s_per_gb") for name in (_OURS, peer))
    return ours / theirs if ours and theirs else None


def _speed(cell: Mapping[str, Any]) -> float | None:
    """boto3 and Alibaba Cloud's clients; obstore and awscrt are not written in Python."""
    names = ("boto3", "oss2.resumable_upload", "alibabacloud-oss-v2", "alibabacloud-oss-v2 aio")
    peers = [cell[name]["gb_per_s"] for name in names if cell.get(name, {}).get("gb_per_s")]
    ours = cell.get(_OURS, {}).get("gb_per_s")
    return ours / max(peers) if ours and peers else None


def _largest_above_import(data: Mapping[str, Any]) -> float | None:
    cells = data.get("transfer", {}).values()
    found = [cell["contenders"].get(_OURS, {}).get("above_import_mib") for cell in cells]
    growth = data.get("growth", {}).get("size", {}).get("above_import_mib", ())
    return max([*(f for f in found if f is not None), *(y for _, y in growth)], default=None)


def _network_outcomes(networks: Mapping[str, Any]) -> Iterator[_Outcome]:
    for name, found in networks.items():
        senders = {label: figures["mbit"] for label, figures in found["senders"].items()}
        for kind in ("", ", cubic"):
            fixed = [v for n, v in senders.items() if _is_fixed(n, kind)]
            if fixed and senders.get(f"vodup auto{kind}"):
                share = senders[f"vodup auto{kind}"] / max(fixed)
                yield _Outcome(f"auto against the best fixed, {name}{kind}", share, 0.9, True)
        yield from _without_bbr(name, found["senders"])


def _without_bbr(name: str, senders: Mapping[str, Any]) -> Iterator[_Outcome]:
    """A user whose kernel offers CUBIC alone, against peers on the same machine."""
    ours = senders.get("vodup auto, cubic")
    is_peer = re.compile(r"(?!vodup).*(?<!, bbr)").fullmatch
    peers = [figures["mbit"] for label, figures in senders.items() if is_peer(label)]
    if ours is None or "tail_s" not in ours:  # earlier results are of paths that were known
        return
    if name in _WITHOUT_BBR:
        rate, share, tail_s = _WITHOUT_BBR[name]
        yield _Outcome(f"share of the link, {name}, cubic", ours["mbit"] / rate, share, True)
        yield _Outcome(f"tail, {name}, cubic, s", ours.get("tail_s"), tail_s)
    if peers and name in {*_WITHOUT_BBR, "home"}:
        factor = 0.95 if name == "home" else 2.5
        ratio = ours["mbit"] / max(peers)
        yield _Outcome(f"auto against the best peer, {name}, cubic", ratio, factor, True)


def _is_fixed(label: str, kind: str) -> bool:
    plain = label.removesuffix(", cubic")
    is_same_kind = label.endswith(", cubic") == bool(kind)
    return is_same_kind and plain.startswith("vodup ") and plain.split()[1].isdigit()
