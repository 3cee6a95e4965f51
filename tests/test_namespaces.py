"""Uploads in networks as companies have them, played in network namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.forward_proxy import OSS_HOST, VOD_HOST
from uploader.units import MIB

ROOT = Path(__file__).parents[1]
WHY_NOT = (
    "network namespaces need root"
    if os.geteuid() != 0
    else "`ip` is missing (Debian: apt install iproute2)"
    if shutil.which("ip") is None
    else ""
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@dataclass
class Network:
    """Two namespaces: an office, and the outside that its only cable leads to."""

    folder: Path
    office: str
    outside: str
    hosts: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    def inside(self, namespace: str, *words: str) -> list[str]:
        """The command line that runs there, with names from `hosts` and no name server."""
        names = "".join(f"{address} {name}\n" for name, address in self.hosts.items())
        (self.folder / "hosts").write_text(names)
        (self.folder / "resolv.conf").write_text("nameserver ::1\noptions timeout:1 attempts:1\n")
        binds = "; ".join(
            f"mount --bind {self.folder}/{n} /etc/{n}" for n in ("hosts", "resolv.conf")
        )
        shell = ["unshare", "-m", "sh", "-c", f'{binds}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", namespace, *shell, *words]

    def vodup(self, *words: str) -> list[str]:
        code = "from uploader.cli import main; main()"
        return self.inside(self.office, sys.executable, "-c", code, *words)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.vodup(*words),
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )

    @contextmanager
    def services(self, *words: str) -> Iterator[dict[str, Any]]:
        """VOD, OSS and a proxy in the outside."""
        command = [sys.executable, "-m", "tests.company", str(self.folder), *words]
        with subprocess.Popen(
            self.inside(self.outside, *command),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            inherited = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper()}
            self.env = inherited | ready["env"] | {"VODUP_STATE": str(self.folder / "state.db")}
            yield ready
            process.communicate(timeout=20)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    office, outside = (f"vodup-test-{os.getpid()}-{side}" for side in "ab")
    try:
        ip("netns", "add", office)
        ip("netns", "add", outside)
        peer = ["peer", "name", "cable", "netns", outside]
        ip("link", "add", "cable", "netns", office, "type", "veth", *peer)
        for namespace in (office, outside):
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", namespace, "link", "set", "cable", "up")
        yield Network(tmp_path, office, outside)
    finally:
        for namespace in (office, outside):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def movie(network: Network, size: int) -> Path:
    path = network.folder / "movie.mp4"
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    return path


def finished(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    events = map(json.loads, done.stdout.splitlines())
    return next(event for event in events if event["type"] == "upload.finished")


def test_200_mb_through_the_only_proxy_with_renewals_and_a_kill(network: Network) -> None:
    ip("-n", network.office, "addr", "add", "10.77.0.1/30", "dev", "cable")
    ip("-n", network.outside, "addr", "add", "10.77.0.2/30", "dev", "cable")
    path = movie(network, 200 * MIB)
    words = ["push", str(path), "--json", "--part-size", "2M"]
    with network.services("--proxy", "10.77.0.2", "--ttl", "4") as ready:
        direct = network.run("doctor", "--json")
        assert direct.returncode == 5, direct.stdout + direct.stderr
        assert '"cause": "NameNotResolved"' in direct.stdout

        network.env["VODUP_PROXY"] = ready["proxy"]
        assert network.run("doctor").returncode == 0

        killed = subprocess.Popen(
            network.vodup(*words, "--bwlimit", "30M"),
            env=network.env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(4.5)
        assert killed.poll() is None
        killed.kill()
        killed.wait(timeout=10)

        result = finished(network.run(*words, "--bwlimit", "30M"))

    assert result["size"] == 200 * MIB
    assert 10 < result["resumed_part_count"] < 100
    assert result["renewal_count"] >= 1


def test_a_network_with_ipv6_only(network: Network) -> None:
    for namespace, end in ((network.office, 1), (network.outside, 2), (network.outside, 3)):
        ip("-n", namespace, "addr", "add", f"fd77::{end}/64", "dev", "cable", "nodad")
    ip("-n", network.office, "addr", "flush", "dev", "lo", "scope", "host")
    ip("-n", network.office, "-6", "addr", "add", "::1/128", "dev", "lo")
    with network.services("--fronts", "fd77::2", "fd77::3", "--port", "443") as ready:
        bucket = f"{ready['bucket']}.{OSS_HOST}"
        network.hosts = {VOD_HOST: "fd77::2", OSS_HOST: "fd77::3", bucket: "fd77::3"}

        doctor = network.run("doctor")
        result = finished(network.run("push", str(movie(network, 20 * MIB)), "--json"))

    assert doctor.returncode == 0, doctor.stdout
    assert result["size"] == 20 * MIB


def test_an_address_that_does_not_answer_delays_an_upload_by_moments_only(network: Network) -> None:
    """A name with an IPv6 address that leads nowhere and an IPv4 address that works (RFC 8305)."""
    ip("-n", network.office, "addr", "add", "10.77.0.1/24", "dev", "cable")
    ip("-n", network.office, "addr", "add", "2001:db8::1/64", "dev", "cable", "nodad")
    for end in (2, 3):
        ip("-n", network.outside, "addr", "add", f"10.77.0.{end}/24", "dev", "cable")
    ip(
        "-n",
        network.office,
        "neigh",
        "add",
        "2001:db8::9",
        "lladdr",
        "02:00:00:00:00:09",
        "dev",
        "cable",
    )
    with network.services("--fronts", "10.77.0.2", "10.77.0.3", "--port", "443") as ready:
        bucket = f"{ready['bucket']}.{OSS_HOST}"
        network.hosts = {
            VOD_HOST: f"10.77.0.2 {VOD_HOST}\n2001:db8::9",
            OSS_HOST: f"10.77.0.3 {OSS_HOST}\n2001:db8::9",
            bucket: f"10.77.0.3 {bucket}\n2001:db8::9",
        }
        began = time.monotonic()
        result = finished(network.run("push", str(movie(network, 2 * MIB)), "--json"))

    assert result["size"] == 2 * MIB
    assert time.monotonic() - began < 30  # one address after the other takes over a minute
