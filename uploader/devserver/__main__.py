"""``python -m uploader.devserver``: run the server until it receives a signal."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import DevServerOptions, options_from_json
from .server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and serve; prints one JSON line when ready."""
    arguments = _parser().parse_args(argv)
    try:
        options = _options(arguments)
        faults = json.loads(arguments.faults.read_text()) if arguments.faults else []
        lifeline = sys.stdin.fileno() if arguments.until_stdin_ends else None
        asyncio.run(serve(options, announce=_print_line, faults=faults, lifeline=lifeline))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"devserver: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vodup devserver", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="port of the VOD API (0: any)")
    parser.add_argument("--oss-port", type=int, default=0, help="port of OSS (0: any)")
    parser.add_argument("--data", type=Path, help="folder that keeps everything (default: none)")
    parser.add_argument("--credential-ttl", type=float, help="life of an UploadAuth in seconds")
    parser.add_argument("--bandwidth", type=float, help="bytes a second over all connections")
    parser.add_argument("--faults", type=Path, help="JSON file with a fault script")
    parser.add_argument("--record", type=Path, help="file for a line of JSON per request")
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


def _options(arguments: argparse.Namespace) -> DevServerOptions:
    given: dict[str, Any] = {
        "host": arguments.host,
        "port": arguments.port,
        "oss_port": arguments.oss_port,
        "data_dir": arguments.data,
        "tls": arguments.tls,
        "bandwidth": arguments.bandwidth,
        "record": arguments.record,
        "callback_url": arguments.callback_url,
        "seed": arguments.seed,
        "clock": arguments.clock,
    }
    if arguments.credential_ttl is not None:
        given["credential_ttl_s"] = arguments.credential_ttl
    defaults = {field.name: field.default for field in dataclasses.fields(DevServerOptions)}
    explicit = {name: value for name, value in given.items() if value != defaults[name]}
    return options_from_json({**json.loads(arguments.options), **explicit})


def _print_line(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
