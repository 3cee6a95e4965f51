"""Long, lossy and changing links, in network namespaces of the benchmark's own.

Two namespaces are joined by `native/link.c`. Inside them the loopback device has no address
and 127.0.0.1 lies at the far end of the link, so that everybody is started as on loopback.
The sending side uses CUBIC, as most machines do, through an attribute of the route; only
"vodup auto" and "vodup N" are given a route without it, and ask for BBR by themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.bench import MB, Bench, Section, Table
from benchmarks.contenders import Contender, Task, Track, by_name
from benchmarks.measure import Failed
from benchmarks.native import Toolbox, running
from benchmarks.plots import bars

__all__ = ["Link", "Network", "measure", "self_test", "why_not"]

_FAR, _NEAR = "127.0.0.1", "127.0.0.2"


@dataclass(frozen=True, slots=True)
class Network:
    """A link. `changes`: what it becomes a third of the way through, for another third."""

    name: str
    rate_mbit: int
    rtt_ms: float
    loss_percent: float = 0.0
    changes: tuple[int, float] | None = None

    @property
    def mtu(self) -> int:
        """Jumbo frames where the emulator would otherwise be the bottleneck."""
        return 9000 if self.rate_mbit > 500 else 1500

    @property
    def queue_bytes(self) -> int:
        """One bandwidth-delay product, as a well-kept router has."""
        return max(100_000, int(self.rate_mbit * 125 * self.rtt_ms))


_LOSSY = Network("lossy", 200, 50, 0.5)
_CLEAN = Network("clean", 200, 50)
_CASES: Final[Mapping[str, tuple[Network, ...]]] = {
    "lossy": (_LOSSY,),
    "short": (_CLEAN, _LOSSY),
    "all": (
        _CLEAN,
        _LOSSY,
        Network("near", 200, 20),
        Network("far", 200, 200),
        Network("far and lossy", 200, 200, 0.5),
        Network("a little lossy", 200, 50, 0.1),
        Network("very lossy", 200, 50, 2.0),
        Network("narrow", 50, 50),
        Network("narrow and lossy", 50, 50, 0.5),
        Network("wide", 2000, 50),
        Network("wide and far", 2000, 200),
        Network("changing", 200, 50, 0.0, changes=(40, 0.5)),
    ),
}


@dataclass(frozen=True, slots=True)
class _Sender:
    """A contender with its number of connections and the congestion control it may have."""

    label: str
    contender: Contender
    connections: int = 0
    congestion: str = "cubic"


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
        control = ["congctl", name] if name else []
        route = [f"{_FAR}/32", "dev", "link0", "src", _NEAR]
        _ip("-n", self.near, "route", "replace", *route, *control)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"ip {arguments[0]} {arguments[1]}: {done.stderr.strip()[:100]}")


@contextmanager
def linked(tools: Toolbox, network: Network, *, seed: int = 1) -> Iterator[Link]:
    """Two namespaces joined by that link, for as long as the block runs."""
    near, far = (f"vodup-bench-{os.getpid()}-{side}" for side in "ab")
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


def _address(namespace: str, here: str, there: str) -> None:
    settings = " ".join(
        f"net.ipv4.{name}"
        for name in (
            "conf.link0.route_localnet=1",  # else 127.0.0.0/8 never leaves by a real device
            "conf.all.rp_filter=0",
            "conf.link0.rp_filter=0",
            "tcp_no_metrics_save=1",  # no run learns from the one before
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
    return _arrival_rate(track)


def _arrival_rate(track: Track) -> float:
    stats = track.sink.stats()
    seconds = stats["last_body_s"] - stats["first_body_s"]
    return stats["body_bytes"] * 8 / seconds / 1e6 if seconds > 0 else 0.0


# --- measuring ------------------------------------------------------------------------


def measure(bench: Bench) -> Section:
    """Send over every link of the scale."""
    section = Section("networks", "Long, lossy and changing links")
    if reason := why_not():
        section.tables.append(Table("Not measured", [""], notes=[f"{reason}."]))
        return section
    for network in _CASES[bench.scale.networks]:
        bench.say(f"networks: {network.name}")
        try:
            _measure_network(bench, network, section)
        except Failed as error:
            section.tables.append(Table(network.name, [""], notes=[f"Not measured: {error}."]))
    return section


def _measure_network(bench: Bench, network: Network, section: Section) -> None:
    size = int(network.rate_mbit / 8 * MB * bench.scale.network_s)
    path = bench.make_sparse_file(size)
    tested = self_test(bench.track.tools, network)
    table = _table_of(network, size, tested)
    figures: dict[str, Any] = {}
    tools = bench.track.tools
    with linked(tools, network) as link, tools.sink(prefix=link.inside(link.far)) as sink:
        track = replace(bench.track, sink=sink, prefix=link.inside(link.near))
        for sender in _senders(bench, network):
            try:
                figures[sender.label] = _send(bench, track, link, network, sender, path)
            except Failed as error:
                table.notes.append(f"{sender.label}: {error}.")
    path.unlink()
    for label, found in figures.items():
        cut = " (cut)" if found["is_cut"] else ""
        table.rows.append([label, f"{found['mbit']:.1f}{cut}", f"{found['cpu_s']:.2f}"])
    section.tables.append(table)
    section.data[network.name] = {"self_test": tested, "senders": figures}
    section.plots[f"network-{network.name.replace(' ', '-')}.svg"] = bars(
        f"Mbit/s: {table.title}", [(label, found["mbit"]) for label, found in figures.items()]
    )


def _table_of(network: Network, size: int, tested: Mapping[str, float]) -> Table:
    title = f"{network.name}: {network.rate_mbit} Mbit/s, {network.rtt_ms:g} ms"
    title += f", {network.loss_percent:g} % loss"
    if network.changes:
        rate, loss = network.changes
        title += f"; in the middle third {rate} Mbit/s and {loss:g} %"
    note = (
        f"{size / MB:.0f} MB; single runs. Mbit/s from the first byte that arrived to the last. "
        f"The link, measured: {tested['rtt_ms']:.1f} ms, {tested['rate_mbit']:.0f} Mbit/s by a "
        f"plain sender without loss, {tested['loss_percent']:.2f} % of packets lost."
    )
    return Table(title, ["", "Mbit/s", "CPU s"], notes=[note])


def _senders(bench: Bench, network: Network) -> list[_Sender]:
    library = by_name("vodup (library)")
    counts = bench.scale.static_connections
    senders = [_Sender("vodup auto", library, 0, "")]
    senders += [_Sender(f"vodup {count}", library, count, "") for count in counts]
    senders += [_Sender("vodup auto, cubic", library, 0)]
    if bench.scale.networks == "all":
        senders += [_Sender(f"vodup {count}, cubic", library, count) for count in counts]
    peers = ["curl -T", "obstore", "boto3", "awscrt"]
    if bench.scale.networks == "all":
        peers += ["oss2.resumable_upload", "alibabacloud-oss-v2", "rclone"]
    return [*senders, *(_Sender(name, by_name(name)) for name in peers)]


def _send(
    bench: Bench, track: Track, link: Link, network: Network, sender: _Sender, path: Path
) -> dict[str, Any]:
    link.become(network.rate_mbit, network.rtt_ms, network.loss_percent)
    link.use_congestion(sender.congestion)
    track.sink.reset()
    limit_s = bench.scale.network_limit_s + 3  # for the interpreter and imports
    task = Task(
        (path,), connections=sender.connections, part_size=0, timeout_s=limit_s, may_be_cut=True
    )
    with _changing(link, network, bench.scale.network_s):
        run = track.run(sender.contender, task)
    return {"mbit": _arrival_rate(track), "cpu_s": run.cpu_s, "is_cut": run.is_cut}


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
