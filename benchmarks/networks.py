"""Long, lossy and changing links, in network namespaces of the benchmark's own.

Two namespaces are joined by `native/link.c`. Inside them the loopback device has no address
and 127.0.0.1 lies at the far end of the link, so that everybody is started as on loopback.

The system's default congestion control is CUBIC for everybody, as on most machines, whatever
this one's default is: through an attribute of the route, which also binds those who select
another ("vodup N, cubic"). Only "vodup auto" and "vodup N" have a route without it; the
namespace's own default is then Reno, so that they get BBR only by selecting it. "NAME, bbr"
is a peer on a machine whose administrator has made BBR the default.

`python -m benchmarks.networks CASE...` measures single cases and keeps the results so far.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from benchmarks.bench import ALL, MB, SHORT, Bench, Scale, Section, Table
from benchmarks.contenders import Contender, Task, Track, by_name
from benchmarks.measure import ROOT, Failed, end_on_sigterm
from benchmarks.native import Toolbox, running
from benchmarks.peers import peers_python
from benchmarks.plots import bars
from benchmarks.targets import check

__all__ = ["NETWORKS", "Link", "Network", "measure", "present", "self_test", "sweep", "why_not"]

_PREFIX: Final = "vodup-bench-"
_FAR, _NEAR = "127.0.0.1", "127.0.0.2"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Network:
    """A link.

    Attributes:
        size_mb: what is sent over it; 0: as much as the scale says.
        changes: what it becomes a third of the way through, for another third.
    """

    name: str
    rate_mbit: int
    rtt_ms: float
    loss_percent: float = 0.0
    size_mb: int = 0
    changes: tuple[int, float] | None = None

    @property
    def mtu(self) -> int:
        """Jumbo frames where the emulator would otherwise be the bottleneck."""
        return 9000 if self.rate_mbit > 1000 else 1500

    @property
    def queue_bytes(self) -> int:
        """One bandwidth-delay product, as a well-kept router has."""
        return max(100_000, int(self.rate_mbit * 125 * self.rtt_ms))

    def full_s(self, scale: Scale) -> float:
        """How long the file would take at the link's full rate."""
        return scale.network_scale * (self.size_mb * 8 / self.rate_mbit or scale.network_s)

    @property
    def lane_count(self) -> int:
        """How many links of this kind the machine can emulate at once."""
        return 3 if self.rate_mbit <= 200 else 1

    @property
    def title(self) -> str:
        """For tables and plots."""
        title = f"{self.name}: {self.rate_mbit} Mbit/s, {self.rtt_ms:g} ms"
        title += f", {self.loss_percent:g} % loss"
        if self.changes:
            rate, loss = self.changes
            title += f"; in the middle third {rate} Mbit/s and {loss:g} %"
        return title


_LOSSY = Network("lossy", 200, 50, 0.5, 125)
_CLEAN = Network("clean", 200, 50)
_TYPICAL = (
    _LOSSY,
    Network("fast", 1000, 100, 0.1, 500),
    Network("slow", 20, 200, 2.0, 20),
    Network("home", 50, 30, 0.0, 50),
)
NETWORKS: Final = (
    *_TYPICAL,
    _CLEAN,
    Network("near", 200, 20),
    Network("near and lossy", 200, 20, 0.5),
    Network("far", 200, 200),
    Network("far and lossy", 200, 200, 0.5),
    Network("a little lossy", 200, 50, 0.1),
    Network("very lossy", 200, 50, 2.0),
    Network("narrow", 50, 50),
    Network("narrow and lossy", 50, 50, 0.5),
    Network("wide", 2000, 50),
    Network("wide and lossy", 2000, 50, 0.1),
    Network("wide and far", 2000, 200),
    Network("changing", 200, 50, 0.0, changes=(40, 0.5)),
)
_CASES: Final[Mapping[str, tuple[Network, ...]]] = {
    "lossy": (_LOSSY,),
    "short": _TYPICAL,
    "all": NETWORKS,
}


@dataclass(frozen=True, slots=True)
class _Sender:
    """A contender with its number of connections and the congestion control it may have.

    `route` is the control the route to the sink dictates; "" leaves the choice to the sender.
    """

    label: str
    contender: Contender
    connections: int = 0
    route: str = "cubic"

    @property
    def is_auto(self) -> bool:
        """Whether it chooses its number of connections itself, and is ours."""
        return self.label.startswith("vodup auto")

    @property
    def group(self) -> str:
        """Those that may be compared with each other: ours by congestion control."""
        return self.route if self.label.startswith("vodup") else "peers"


def why_not() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "`ip` is missing (Debian: apt install iproute2)"
    if not Path("/dev/net/tun").exists():
        return "the kernel has no /dev/net/tun"
    return None


# --- the link -------------------------------------------------------------------------


@dataclass
class Link:
    """Two namespaces and what joins them."""

    near: str
    far: str
    process: subprocess.Popen[str]

    def inside(self, namespace: str) -> tuple[str, ...]:
        """The prefix that runs a command in a namespace."""
        return ("ip", "netns", "exec", namespace)

    def become(self, rate_mbit: float, rtt_ms: float, loss_percent: float) -> None:
        """Change the link, also while it is in use."""
        if self.process.stdin is None:
            raise RuntimeError("the link was started without its standard input")
        delay_us, loss_ppm = rtt_ms * 500, loss_percent * 10_000
        self.process.stdin.write(f"{rate_mbit * 1e6:.0f} {delay_us:.0f} {loss_ppm:.0f}\n")
        self.process.stdin.flush()

    def counts(self) -> dict[str, dict[str, int]]:
        """Packets passed, dropped by the queue and lost, in each direction."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the link was started without its pipes")
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        found: dict[str, dict[str, int]] = json.loads(self.process.stdout.readline())
        return found

    def use_congestion(self, name: str) -> None:
        """Let new connections use this congestion control; "" for what they choose."""
        control = ["congctl", "lock", name] if name else []
        route = [f"{_FAR}/32", "dev", "link0", "src", _NEAR]
        _ip("-n", self.near, "route", "replace", *route, *control)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"ip {arguments[0]} {arguments[1]}: {done.stderr.strip()[:100]}")


@contextmanager
def linked(tools: Toolbox, network: Network, *, seed: int = 1) -> Iterator[Link]:
    """Two namespaces joined by that link, for as long as the block runs."""
    sweep()
    number = next(_numbers)
    near, far = (f"{_PREFIX}{os.getpid()}-{number}{side}" for side in "ab")
    with ExitStack() as stack:
        for namespace in (near, far):
            _ip("netns", "add", namespace)
            stack.callback(subprocess.run, ["ip", "netns", "del", namespace], check=False)
        program = [str(tools.program("link")), near, far]
        numbers = [str(network.mtu), str(network.queue_bytes), str(seed)]
        process = stack.enter_context(running([*program, *numbers]))
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise Failed("the link did not start")
        _address(near, _NEAR, _FAR)
        _address(far, _FAR, _NEAR)
        link = Link(near, far, process)
        link.become(network.rate_mbit, network.rtt_ms, network.loss_percent)
        yield link


def sweep() -> None:
    """Remove namespaces of runs that were killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        name = line.partition(" ")[0]
        pid = name.removeprefix(_PREFIX).partition("-")[0]
        if name.startswith(_PREFIX) and not Path("/proc", pid).exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _address(namespace: str, here: str, there: str) -> None:
    settings = " ".join(
        f"net.ipv4.{name}"
        for name in (
            "conf.link0.route_localnet=1",  # else 127.0.0.0/8 never leaves by a real device
            "conf.all.rp_filter=0",
            "conf.link0.rp_filter=0",
            "tcp_no_metrics_save=1",  # no run learns from the one before
            "tcp_congestion_control=reno",  # what nobody here selects
        )
    )
    _ip("netns", "exec", namespace, "sysctl", "-qw", *settings.split())
    # Up, for what a namespace sends to itself; but 127.0.0.0/8 is not to lie behind it.
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "addr", "flush", "dev", "lo", "scope", "host")
    _ip("-n", namespace, "link", "set", "link0", "up")
    _ip("-n", namespace, "addr", "add", f"{here}/32", "dev", "link0")
    _ip("-n", namespace, "route", "add", f"{there}/32", "dev", "link0", "src", here)


# --- is the link what it says it is? --------------------------------------------------


def self_test(tools: Toolbox, network: Network) -> dict[str, float]:
    """Measure round trip, rate and loss of the emulated link."""
    with linked(tools, network) as link, tools.sink(prefix=link.inside(link.far)) as sink:
        track = Track(tools, sink, None, prefix=link.inside(link.near))
        path = tools.folder / "self-test"
        with path.open("wb") as file:
            file.truncate(max(MB, int(network.rate_mbit / 8 * MB * 2)))
        link.become(network.rate_mbit, network.rtt_ms, 0)
        rtt_ms = _connect_ms(track)
        rate_mbit = _goodput(track, path)
        link.become(network.rate_mbit, network.rtt_ms, network.loss_percent)
        before = link.counts()["up"]
        _goodput(track, path)
        after = link.counts()["up"]
    lost, passed = (after[name] - before[name] for name in ("lost", "passed"))
    loss_percent = 100 * lost / max(1, lost + passed)
    return {"rtt_ms": rtt_ms, "rate_mbit": rate_mbit, "loss_percent": loss_percent}


def _connect_ms(track: Track) -> float:
    url = f"http://{_FAR}:{track.sink.http_port}/-/stats"
    argv = [*track.prefix, "curl", "-sS", "-o", os.devnull, "-w", "%{time_connect}", url]
    times = [subprocess.run(argv, capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(done.stdout) for done in times) * 1000


def _goodput(track: Track, path: Path) -> float:
    """Mbit/s that a plain sender gets through, judged by when bytes arrived."""
    track.sink.reset(crc=0)
    task = Task((path,), timeout_s=8, may_be_cut=True)
    track.run(by_name("floor: pread, send"), task)
    return _arrival_rate(track.sink.stats())


def _arrival_rate(stats: Mapping[str, Any]) -> float:
    seconds = stats["last_body_s"] - stats["first_body_s"]
    return stats["body_bytes"] * 8 / seconds / 1e6 if seconds > 0 else 0.0


def _tail_s(timeline: Sequence[int]) -> float:
    """Seconds from the last 100 ms that carried 70 % of the usual rate to the end.

    The usual rate is the mean until nine tenths of the bytes had arrived.
    """
    arrived = list(itertools.accumulate(timeline))
    if not arrived:
        return 0.0
    count = next(i for i, size in enumerate(arrived, 1) if size >= 0.9 * arrived[-1])
    enough = 0.7 * arrived[count - 1] / count
    return next(i for i, size in enumerate(reversed(timeline)) if size >= enough) / 10


# --- measuring ------------------------------------------------------------------------


def measure(bench: Bench, section: Section) -> None:
    """Send over every link of the scale."""
    if reason := why_not():
        section.notes = [f"Not measured: {reason}."]
        return
    kits = _kits(bench)
    for network in _CASES[bench.scale.networks]:
        if not bench.wants(section.name, network.name):
            continue
        bench.say(f"networks: {network.name}")
        try:
            present(section, network, _measure_network(bench, kits, network))
        except Failed as error:
            section.add(network.name, Table(network.name, [""], notes=[f"Not measured: {error}."]))


def present(section: Section, network: Network, found: Mapping[str, Any]) -> None:
    """Make a table and a plot of the figures of one network."""
    rows = [
        [
            label,
            _mbit_text(one),
            "–" if one["is_cut"] else f"{one['tail_s']:.1f}",
            f"{one['cpu_s']:.2f}",
            str(len(one["runs"])),
        ]
        for label, one in found["senders"].items()
    ]
    notes = [_note_on(found), *found["failures"]]
    plot = bars(
        f"Mbit/s: {network.title}",
        [(label, one["mbit"]) for label, one in found["senders"].items()],
    )
    section.add(
        network.name,
        Table(network.title, ["", "Mbit/s", "tail s", "CPU s", "runs"], rows, notes),
        found,
        {f"network-{network.name.replace(' ', '-')}.svg": plot},
    )


def _mbit_text(one: Mapping[str, Any]) -> str:
    text = f"{one['mbit']:.1f}"
    if len(one["runs"]) > 1:
        text += f" ({min(one['runs']):.1f} to {max(one['runs']):.1f})"
    return text + (" (cut)" if one["is_cut"] else "")


def _note_on(found: Mapping[str, Any]) -> str:
    tested = found["self_test"]
    return (
        f"{found['size'] / MB:.0f} MB; medians and ranges of those with several runs. Mbit/s from "
        "the first byte that arrived to the last. "
        f"The link, measured: {tested['rtt_ms']:.1f} ms, {tested['rate_mbit']:.0f} Mbit/s by a "
        f"plain sender without loss, {tested['loss_percent']:.2f} % of packets lost."
    )


def _kits(bench: Bench) -> list[Toolbox]:
    """One for each link that runs at a time: what they write must not be shared."""
    kits = []
    for number in range(max(network.lane_count for network in NETWORKS)):
        folder = bench.folder / f"lane-{number}"
        folder.mkdir(exist_ok=True)
        kits.append(Toolbox(folder))
    return kits


def _measure_network(
    bench: Bench,
    kits: Sequence[Toolbox],
    network: Network,
    only: re.Pattern[str] = re.compile(""),
) -> dict[str, Any]:
    size = int(network.rate_mbit / 8 * MB * network.full_s(bench.scale))
    path = bench.make_sparse_file(size)
    tested = self_test(kits[0], network)
    senders = [one for one in _senders(bench, network) if only.search(one.label)]
    with ExitStack() as stack:
        lanes = [stack.enter_context(_lane(bench, kit, network)) for kit in kits]
        race = _Race(bench, network, path, lanes[: network.lane_count])
        race.run_all(senders)
        for _ in range(bench.scale.rounds // 2):  # in the order of the others, so they alternate
            race.run_all(race.finalists(senders))
    path.unlink()
    return {
        "size": size,
        "self_test": tested,
        "senders": {sender.label: race.summary(sender) for sender in senders if race.runs[sender]},
        "failures": race.failures,
    }


def _senders(bench: Bench, network: Network) -> list[_Sender]:
    library = by_name("vodup (library)")
    is_full = bench.scale.networks == "all"
    senders = []
    for kind, route in (("", ""), (", cubic", "cubic")):
        senders.append(_Sender(f"vodup auto{kind}", library, 0, route))
        if is_full or not route:
            counts = bench.scale.static_connections
            senders += [_Sender(f"vodup {n}{kind}", library, n, route) for n in counts]
    peers = ["curl -T", "obstore", "boto3", "awscrt"]
    if is_full:
        peers += ["oss2.resumable_upload", "alibabacloud-oss-v2", "rclone"]
    senders += [_Sender(name, by_name(name)) for name in peers]
    if network is _LOSSY:
        senders += [_Sender(f"{name}, bbr", by_name(name), 0, "bbr") for name in peers]
    return senders


@dataclass
class _Lane:
    """A link, and how to send over it."""

    link: Link
    track: Track


@contextmanager
def _lane(bench: Bench, kit: Toolbox, network: Network) -> Iterator[_Lane]:
    with linked(kit, network) as link, kit.sink(prefix=link.inside(link.far)) as sink:
        yield _Lane(link, replace(bench.track, tools=kit, sink=sink, prefix=link.inside(link.near)))


class _Race:
    """Lets senders run, as many at a time as there are links. Mutable: their runs."""

    def __init__(self, bench: Bench, network: Network, path: Path, lanes: Sequence[_Lane]) -> None:
        self._bench, self._network, self._path, self._lanes = bench, network, path, lanes
        self.runs: dict[_Sender, list[dict[str, Any]]] = defaultdict(list)
        self.failures: list[str] = []

    def run_all(self, senders: Iterable[_Sender]) -> None:
        """Each once."""
        waiting = deque(senders)

        def drive(lane: _Lane) -> None:
            with suppress(IndexError):
                while True:
                    self._run(lane, waiting.popleft())

        with ThreadPoolExecutor(len(self._lanes)) as threads:
            for _ in threads.map(drive, self._lanes):
                pass

    def _run(self, lane: _Lane, sender: _Sender) -> None:
        try:
            self.runs[sender].append(_send(self._bench, lane, self._network, sender, self._path))
        except Failed as error:
            self.failures.append(f"{sender.label}: {error}.")

    def finalists(self, senders: Sequence[_Sender]) -> list[_Sender]:
        """Those that a target depends on: auto, the two best fixed ones, the two best peers."""
        ran = [sender for sender in senders if self.runs[sender]]
        chosen = [sender for sender in ran if sender.is_auto]
        for group in dict.fromkeys(sender.group for sender in ran):
            rivals = [one for one in ran if one.group == group and not one.is_auto]
            chosen += sorted(rivals, key=self._mbit, reverse=True)[:2]
        return chosen

    def _mbit(self, sender: _Sender) -> float:
        return statistics.median(run["mbit"] for run in self.runs[sender])

    def summary(self, sender: _Sender) -> dict[str, Any]:
        """Medians, and the single figures."""
        runs = self.runs[sender]
        return {
            "mbit": self._mbit(sender),
            "cpu_s": statistics.median(run["cpu_s"] for run in runs),
            "tail_s": statistics.median(run["tail_s"] for run in runs),
            "is_cut": any(run["is_cut"] for run in runs),
            "runs": [round(run["mbit"], 1) for run in runs],
        }


def _send(
    bench: Bench, lane: _Lane, network: Network, sender: _Sender, path: Path
) -> dict[str, Any]:
    lane.link.become(network.rate_mbit, network.rtt_ms, network.loss_percent)
    lane.link.use_congestion(sender.route)
    lane.track.sink.reset()
    full_s = network.full_s(bench.scale)
    limit_s = full_s * bench.scale.network_patience + 3  # for the interpreter and imports
    task = Task(
        (path,),
        connections=sender.connections,
        part_size=0,
        timeout_s=limit_s,
        may_be_cut=True,
        is_cold=True,
    )
    with _changing(lane.link, network, full_s):
        run = lane.track.run(sender.contender, task)
    stats = lane.track.sink.stats()
    return {
        "mbit": _arrival_rate(stats),
        "tail_s": _tail_s(stats["timeline"]),
        "cpu_s": run.cpu_s,
        "is_cut": run.is_cut,
    }


@contextmanager
def _changing(link: Link, network: Network, expected_s: float) -> Iterator[None]:
    """Make the link worse for a while, if it is one that changes."""
    if network.changes is None:
        yield
        return
    rate, loss = network.changes
    over = threading.Event()

    def change() -> None:
        if not over.wait(expected_s / 3 + 1):
            link.become(rate, network.rtt_ms, loss)
        if not over.wait(expected_s):
            link.become(network.rate_mbit, network.rtt_ms, network.loss_percent)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- single cases ---------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the cases named; each is written as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("case", nargs="*", metavar="CASE")
    parser.add_argument("--only", default="", help="regular expression of the senders' names")
    parser.add_argument("--short", action="store_true", help="fewer contenders, less data")
    parser.add_argument("--times", type=int, default=1, help="send so many times as much")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "networks")
    parser.add_argument("--show", action="store_true", help="only print what is known")
    arguments = parser.parse_args(argv)
    if reason := why_not():
        parser.error(reason)
    if not arguments.show:
        end_on_sigterm()
        scale = replace(SHORT if arguments.short else ALL, network_scale=arguments.times)
        networks = NETWORKS if arguments.case else _CASES[scale.networks]
        wanted = [n for n in networks if n.name in arguments.case or not arguments.case]
        _measure_cases(arguments.out, scale, wanted, re.compile(arguments.only))
    print(_known_cases(arguments.out))
    return 0


def _measure_cases(
    out: Path, scale: Scale, networks: Sequence[Network], only: re.Pattern[str]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    python, why_none = peers_python()
    with tempfile.TemporaryDirectory(prefix="vodup-bench-") as folder:
        tools = Toolbox(Path(folder))
        with tools.sink() as sink:
            track = Track(tools, sink, python, why_none)
            bench = Bench(track, scale, Path(folder))
            kits = _kits(bench)
            for network in networks:
                bench.say(f"networks: {network.name}")
                found = _measure_network(bench, kits, network, only)
                facts = {"facts": report.machine(), "found": found}
                (out / f"{network.name.replace(' ', '-')}.json").write_text(json.dumps(facts))


def _known_cases(out: Path) -> str:
    section = Section("networks", "")
    for network in NETWORKS:
        path = out / f"{network.name.replace(' ', '-')}.json"
        if path.exists():
            present(section, network, json.loads(path.read_text())["found"])
    pieces = section.pieces.items()
    tables = [*(piece.table for _, piece in pieces)]
    tables.append(check({"networks": {key: piece.data for key, piece in pieces}}))
    return "\n".join(line for table in tables for line in ["", *report.markdown_table(table)])


if __name__ == "__main__":
    sys.exit(main())
