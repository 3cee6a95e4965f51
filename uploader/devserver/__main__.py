"""``python -m uploader.devserver``: run the server until it receives a signal."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .json_fields import from_json
from .options import DevServerOptions
from .server import serve

STDIN = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and serve."""
    return run_server(**vars(_parser().parse_args(argv)))


def run_server(*, faults: str | None, until_stdin_ends: bool, **given: Any) -> int:
    """Serve until a signal, with the flags as they were given; prints one JSON line when ready."""
    try:
        options = _options(**given)
        script = json.loads(Path(faults).read_text()) if faults is not None else []
        if not isinstance(script, list):
            raise ValueError("--faults is no list of faults")
        lifeline = _pipe_at_stdin() if until_stdin_ends else None
        asyncio.run(serve(options, announce=_print_line, faults=script, lifeline=lifeline))
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        print(f"devserver: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vodup devserver", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="port of the VOD API (0: any)")
    parser.add_argument("--oss-port", type=int, default=0, help="port of OSS (0: any)")
    parser.add_argument("--data", help="folder that keeps everything (default: none)")
    parser.add_argument("--credential-ttl", type=float, help="life of an UploadAuth in seconds")
    parser.add_argument("--bandwidth", type=float, help="bytes a second over all connections")
    parser.add_argument("--faults", help="JSON file with a fault script")
    parser.add_argument("--record", help="file for a line of JSON per request")
    parser.add_argument("--callback-url", default="", help="where VOD's events are posted")
    parser.add_argument("--seed", help="the same ids and keys in every run")
    parser.add_argument("--clock", default="", help="instant at which the server's clock stands")
    parser.add_argument("--options", default="{}", help="JSON object with further options")
    parser.add_argument("--tls", action="store_true", help="https with a certificate of its own")
    parser.add_argument(
        "--until-stdin-ends",
        action="store_true",
        help="stop when stdin, a pipe, is closed: with the process that started the server",
    )
    return parser


def _options(
    *,
    options: str,
    data: str | None,
    record: str | None,
    credential_ttl: float | None,
    **given: Any,
) -> DevServerOptions:
    paths = {"data_dir": data, "record": record}
    given |= {name: Path(path) if path is not None else None for name, path in paths.items()}
    if credential_ttl is not None:
        given["credential_ttl_s"] = credential_ttl
    defaults = {field.name: field.default for field in dataclasses.fields(DevServerOptions)}
    explicit = {name: value for name, value in given.items() if value not in (None, defaults[name])}
    further = json.loads(options)
    if not isinstance(further, dict):
        raise ValueError("--options is no JSON object")
    return from_json(DevServerOptions, {**further, **explicit}, "option")


def _pipe_at_stdin() -> int:
    """What `--until-stdin-ends` watches; a file or a closed descriptor has no other end."""
    if not any(check(os.fstat(STDIN).st_mode) for check in (stat.S_ISFIFO, stat.S_ISSOCK)):
        raise ValueError("--until-stdin-ends needs a pipe as standard input")
    return STDIN


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
