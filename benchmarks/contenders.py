"""Who is measured, and how each is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from benchmarks.measure import Failed, Run, execute
from benchmarks.native import Sink, Toolbox

__all__ = [
    "CONTENDERS",
    "Contender",
    "Task",
    "Track",
    "by_name",
    "versions",
    "vodup_command",
    "vodup_environment",
]

PART_SIZE: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to upload a file.

    Attributes:
        name: as it stands in the tables.
        kind: "driver" (a module of `drivers`), or the command that is run.
        module: of the driver.
        is_ours: runs in the project's environment.
        is_sliced: is given one file for each connection, for it can send no part of one.
        schemes: what it speaks.
        is_checked: whether it compares a checksum of the bytes it sent with the server's.
        is_slow: costs several CPU seconds a gigabyte, so large files are left out.
    """

    name: str
    kind: str
    module: str = ""
    is_ours: bool = False
    is_sliced: bool = False
    schemes: tuple[str, ...] = ("http", "https")
    is_checked: bool = False
    is_slow: bool = False


CONTENDERS: Final = (
    Contender("vodup (library)", "driver", "vodup_library", is_ours=True, is_checked=True),
    Contender("vodup (command)", "vodup", is_ours=True, is_checked=True),
    Contender("curl -T", "curl"),
    Contender("curl --parallel", "curl", is_sliced=True),
    Contender("obstore", "driver", "obstore_put"),
    Contender("boto3", "driver", "boto3_upload"),
    Contender("awscrt", "driver", "awscrt_upload"),
    Contender("oss2.resumable_upload", "driver", "oss2_resumable", is_checked=True, is_slow=True),
    Contender("alibabacloud-oss-v2", "driver", "oss_v2_uploader", is_checked=True, is_slow=True),
    Contender("alibabacloud-oss-v2 aio", "driver", "oss_v2_aio", is_checked=True, is_slow=True),
    Contender("rclone", "rclone", is_slow=True),
    Contender("floor: sendfile", "floor", "sendfile", schemes=("http",)),
    Contender("floor: pread, send", "floor", "copy", schemes=("http",)),
    Contender("floor: pread, TLS", "floor", "tls", schemes=("https",)),
)


def by_name(name: str) -> Contender:
    """The contender with this name."""
    return next(contender for contender in CONTENDERS if contender.name == name)


@dataclass(frozen=True, slots=True)
class Task:
    """What is uploaded, and how. 0 leaves a number to the contender's default.

    `is_cold`: nothing is sent before, so that the path is not known yet.
    """

    paths: tuple[Path, ...]
    scheme: str = "http"
    connections: int = 8
    part_size: int = PART_SIZE
    timeout_s: float = 300.0
    may_be_cut: bool = False
    is_cold: bool = False
    options: dict[str, str] = field(default_factory=dict)

    def to(self, **changes: object) -> Task:
        """The same with changes."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Track:
    """Where contenders run: the sink they upload to, and the environment of the peers.

    Attributes:
        prefix: put before every command, to run it in a network namespace.
        why_no_peers: why `peers_python` is None.
    """

    tools: Toolbox
    sink: Sink
    peers_python: str | None
    why_no_peers: str = ""
    prefix: tuple[str, ...] = ()

    def run(self, contender: Contender, task: Task) -> Run:
        """Upload with this contender, and see that everything arrived.

        Raises:
            Failed: it could not, or did not.
        """
        self._require(contender, task)
        before = self.sink.stats()["body_bytes"]
        run = execute(
            [*self.prefix, *self._argv(contender, task)],
            env=self._environment(contender),
            timeout_s=task.timeout_s,
            may_be_cut=task.may_be_cut,
        )
        arrived = self.sink.stats()["body_bytes"] - before
        if not run.is_cut and arrived < sum(path.stat().st_size for path in task.paths):
            raise Failed(f"only {arrived} bytes arrived")
        return run

    def _require(self, contender: Contender, task: Task) -> None:
        if task.scheme not in contender.schemes:
            raise Failed(f"does not speak {task.scheme}")
        if task.scheme == "https" and not self.tools.has_tls:
            raise Failed(self.tools.why_no_https or "")
        if contender.kind == "driver" and not contender.is_ours and self.peers_python is None:
            raise Failed(f"not available: {self.why_no_peers}")
        if contender.kind in {"curl", "rclone"} and shutil.which(contender.kind) is None:
            raise Failed(f"not available: apt install {contender.kind}")

    def _argv(self, contender: Contender, task: Task) -> Sequence[str]:
        if contender.kind == "driver":
            python = sys.executable if contender.is_ours else str(self.peers_python)
            module = f"benchmarks.drivers.{contender.module}"
            return [python, "-m", module, self._job(task)]
        if contender.kind == "curl":
            return self._curl(contender, task)
        (path,) = task.paths
        if contender.kind == "vodup":
            return self._vodup(task, path)
        if contender.kind == "rclone":
            return self._rclone(task, path)
        floor, port = str(self.tools.program("floor")), self.sink.port(task.scheme)
        return [floor, contender.module, str(port), str(path)]

    def _job(self, task: Task) -> str:
        warm_path = self.tools.folder / "warm-up"
        warm_path.write_bytes(b"warm-up " * 128)
        return json.dumps(
            {
                "scheme": task.scheme,
                "port": self.sink.port(task.scheme),
                "ca_file": str(self.tools.ca_file) if self.tools.has_tls else "",
                "paths": [str(path) for path in task.paths],
                "warm_path": "" if task.is_cold else str(warm_path),
                "connections": task.connections,
                "part_size": task.part_size,
                "folder": str(self.tools.folder),
                "options": task.options,
            }
        )

    def _vodup(self, task: Task, path: Path) -> Sequence[str]:
        # A state of its own: otherwise the second run returns the result of the first.
        state = task.options.get("state", str(self.tools.folder / f"{uuid.uuid4().hex}.sqlite3"))
        argv = [*vodup_command(), "push", str(path), "--quiet", "--state", state]
        argv += ["--vod-endpoint", self._endpoint(task), "--oss-region", "cn-shanghai"]
        argv += ["--concurrency", str(task.connections or "auto")]
        return [*argv, "--part-size", str(task.part_size)] if task.part_size else argv

    def _curl(self, contender: Contender, task: Task) -> Sequence[str]:
        """One PUT of one file on one connection; sliced: a PUT and a connection for each."""
        argv = ["curl", "-sS", "--fail", "-o", os.devnull]
        if task.scheme == "https":
            argv += ["--cacert", str(self.tools.ca_file)]
        if contender.is_sliced:
            argv += ["--parallel", "--parallel-immediate", "--parallel-max", str(len(task.paths))]
        names = ",".join(str(path) for path in task.paths)
        return [*argv, "-T", f"{{{names}}}", f"{self._endpoint(task)}/bench/"]

    def _rclone(self, task: Task, path: Path) -> Sequence[str]:
        argv = ["rclone", "copyto", str(path), f"sink:bench/rclone-{path.name}"]
        argv += ["--config", os.devnull, "--s3-no-check-bucket", "--s3-no-head", "--retries", "1"]
        argv += ["--ignore-times", "--ignore-checksum", "--s3-disable-checksum"]
        argv += ["--s3-endpoint", self._endpoint(task)]
        if task.connections:
            argv += ["--s3-upload-concurrency", str(task.connections)]
        if task.part_size:
            argv += ["--s3-chunk-size", f"{task.part_size}B", "--s3-upload-cutoff", "0"]
        return [*argv, "--ca-cert", str(self.tools.ca_file)] if task.scheme == "https" else argv

    def _endpoint(self, task: Task) -> str:
        return f"{task.scheme}://127.0.0.1:{self.sink.port(task.scheme)}"

    def _environment(self, contender: Contender) -> dict[str, str]:
        if contender.kind == "rclone":
            names = {"TYPE": "s3", "PROVIDER": "Other", "ACCESS_KEY_ID": "bench"}
            names |= {"SECRET_ACCESS_KEY": "bench", "REGION": "us-east-1"}
            return {f"RCLONE_CONFIG_SINK_{name}": value for name, value in names.items()}
        if contender.is_ours:
            return vodup_environment(self.tools)
        return {"SSL_CERT_FILE": str(self.tools.ca_file)} if self.tools.has_tls else {}


def vodup_command() -> list[str]:
    """The command line of vodup, whether or not its script is on PATH."""
    return [sys.executable, "-c", "from uploader.cli import main; main()"]


def vodup_environment(tools: Toolbox) -> dict[str, str]:
    """What vodup needs to talk to a sink; the sink accepts any key."""
    return {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": "bench",
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "bench",
        "VODUP_ALLOW_LOOPBACK_HTTP": "1",
        "VODUP_CA_FILE": str(tools.ca_file) if tools.has_tls else "",
    }


def versions(peers_python: str | None) -> dict[str, str]:
    """Versions of what is compared, as each tells it."""
    names = "obstore boto3 s3transfer awscrt oss2 alibabacloud-oss-v2 aiohttp".split()
    ask = "import importlib.metadata as m, sys, json; print(json.dumps({n: m.version(n) for n in "
    found: dict[str, str] = {}
    if peers_python:
        argv = [peers_python, "-c", f"{ask}{names!r}}}))"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        found = json.loads(done.stdout) if done.returncode == 0 else {}
    for name, argv in (("curl", ["curl", "--version"]), ("rclone", ["rclone", "version"])):
        if shutil.which(name):
            text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
            found[name] = text.split()[1] if text else "?"
    return found
