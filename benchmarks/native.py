"""The C programs of the benchmark: compiled when they are needed, ended with it."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import trustme

__all__ = ["Sink", "Toolbox", "has_compiler"]

_SOURCES = Path(__file__).parent / "native"
_WHY_NO_TLS = "OpenSSL's headers are missing (Debian: apt install libssl-dev)"


def has_compiler() -> bool:
    """Whether there is a C compiler."""
    return shutil.which("cc") is not None


@dataclass
class Toolbox:
    """Compiles the programs into `folder`, and makes the certificates. Caches both."""

    folder: Path

    @cached_property
    def has_tls(self) -> bool:
        """Whether the programs can be built with OpenSSL."""
        probe = self.folder / "probe.c"
        probe.write_text("#include <openssl/ssl.h>\nint main(void) { return !SSL_CTX_new; }\n")
        argv = ["cc", "-o", str(self.folder / "probe"), str(probe), "-lssl", "-lcrypto"]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    @property
    def why_no_https(self) -> str | None:
        """What is missing for https; None if nothing is."""
        return None if self.has_tls else _WHY_NO_TLS

    def program(self, name: str) -> Path:
        """The compiled program; compiled at the first call."""
        path = self.folder / name
        if not path.exists():
            tls = ["-DWITH_TLS", "-lssl", "-lcrypto"] if self.has_tls else []
            source = str(_SOURCES / f"{name}.c")
            subprocess.run(["cc", "-O3", "-o", str(path), source, "-lpthread", *tls], check=True)
        return path

    @cached_property
    def ca_file(self) -> Path:
        """The authority that signed the sink's certificate."""
        return self._certificates[0]

    @cached_property
    def _certificates(self) -> tuple[Path, Path, Path]:
        authority, paths = trustme.CA(), [self.folder / f"{n}.pem" for n in ("ca", "chain", "key")]
        issued = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(str(paths[0]))
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(paths[1]), append=True)
        issued.private_key_pem.write_to_path(str(paths[2]))
        return paths[0], paths[1], paths[2]

    @contextmanager
    def sink(self, *, prefix: Sequence[str] = ()) -> Iterator[Sink]:
        """A sink that runs while the block does; `prefix` puts it into a namespace."""
        argv = [*prefix, str(self.program("sink")), "0"]
        if self.has_tls:
            _, chain, key = self._certificates
            argv += ["0", str(chain), str(key)]
        with running(argv) as process:
            ports = json.loads(_first_line(process))
            yield Sink(ports["http"], ports["https"], tuple(prefix))


@contextmanager
def running(argv: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A program that ends when its standard input does."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.stdin:
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _first_line(process: subprocess.Popen[str]) -> str:
    if process.stdout is None or not (line := process.stdout.readline()):
        raise RuntimeError("a program of the benchmark did not start")
    return line


@dataclass(frozen=True, slots=True)
class Sink:
    """A running sink: where it listens, and its own questions."""

    http_port: int
    https_port: int
    prefix: tuple[str, ...] = ()

    def port(self, scheme: str) -> int:
        """The port for "http" or "https"."""
        return self.https_port if scheme == "https" else self.http_port

    def stats(self) -> dict[str, Any]:
        """What it has seen since the last reset, and its own cost since it was started."""
        return self._ask("GET", "/-/stats")

    def reset(self, **settings: int) -> None:
        """Forget everything, then change settings (see `native/sink.c`)."""
        self._ask("POST", "/-/reset")
        if settings:
            self.change(**settings)

    def reset_clock(self) -> None:
        """Let the next body be the first one, and no part be refused."""
        self._ask("POST", "/-/clock")
        self.change(fail_part=0)

    def change(self, **settings: int) -> None:
        """Change settings."""
        query = "&".join(f"{name}={value}" for name, value in settings.items())
        self._ask("POST", f"/-/set?{query}")

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        if self.prefix:
            return self._ask_from_inside(method, path)
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        try:
            connection.request(method, path)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return answer

    def _ask_from_inside(self, method: str, path: str) -> dict[str, Any]:
        """The same from within the sink's namespace, so as not to load the link."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        argv = [*self.prefix, "curl", "-sS", "-m", "10", "-X", method, url]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
