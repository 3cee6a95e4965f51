"""`serve`: uploads over HTTP, for programs on this machine."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from pathlib import Path

from uploader.bulk.rows import Root, RowRules
from uploader.cli import run, settings
from uploader.cli.flags import ServeFlags
from uploader.cli.printing import err, out_json, report_notices
from uploader.errors import ConfigurationError
from uploader.private_files import make_private_folder, open_private_file, replace_file
from uploader.redaction import remember
from uploader.serve.http import DEFAULT_PORT, Address, Api, listening
from uploader.serve.jobs import Jobs
from uploader.serve.service import UploadService
from uploader.state.locations import state_directory
from uploader.threads import in_thread
from uploader.uploader import Uploader

_LOOPBACK = {"": "127.0.0.1", "127.0.0.1": "127.0.0.1", "localhost": "127.0.0.1", "::1": "::1"}
_LEAST_TOKEN_SIZE = 16


def serve(flags: ServeFlags) -> int:
    """Serve until stopped; SIGTERM is an orderly end."""
    address = _address_of(flags.listen)
    token = _token_of(Path(flags.token_file or state_directory() / "serve.token"))
    with settings.serve_metrics(flags.metrics_port) as listener:
        options = settings.make_options(flags)
        uploader = settings.make_uploader(flags, options, on_event=listener)
        rules = RowRules(
            root=Root.at(flags.root or os.curdir),
            scope=uploader.scope,
            defaults=settings.make_meta(flags),
        )
        try:
            return run.run_async(_serve(flags, uploader, rules, address, token))
        except run.Interrupted as interrupted:
            if interrupted.code == run.interrupted_code(signal.SIGTERM):
                return run.DONE
            raise


async def _serve(
    flags: ServeFlags, uploader: Uploader, rules: RowRules, address: Address, token: str
) -> int:
    path = Path(flags.jobs or state_directory() / "serve.db")
    urls = settings.make_url_policy(flags)
    with await in_thread(Jobs, path) as jobs:
        try:
            async with uploader:
                service = UploadService(uploader, jobs, rules, urls=urls, files=flags.files)
                api = Api(
                    service,
                    token,
                    origins=frozenset(flags.allow_origin),
                    is_socket=isinstance(address, str),
                )
                async with service.running(), listening(api, address) as where:
                    _print_start(where, flags)
                    await asyncio.get_running_loop().create_future()
        finally:
            report_notices(uploader.state, uploader.notifications)
    return run.DONE


def _print_start(where: str, flags: ServeFlags) -> None:
    token_file = str(flags.token_file or state_directory() / "serve.token")
    if flags.json:
        out_json({"type": "serve.started", "address": where, "token_file": token_file})
    else:
        err(f"vodup: serving at {where}; requests must send the token in {token_file}.")


def _address_of(text: str) -> Address:
    kind, colon, path = text.partition(":")
    if colon and kind == "unix":
        if not path or len(os.fsencode(path)) > 107:  # sockaddr_un
            raise ConfigurationError(
                "--listen: the path of a Unix socket has 1 to 107 bytes.",
                next_step="Choose another path.",
            )
        return os.path.abspath(path)
    host, _, port = text.rpartition(":")
    known = _LOOPBACK.get(host.removeprefix("[").removesuffix("]"))
    if known is None or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigurationError(
            f"--listen: {text!r} is no port of this machine.",
            next_step=f"Use a port such as {DEFAULT_PORT}, 127.0.0.1:{DEFAULT_PORT}, or unix:PATH. "
            "Other machines reach the service through a proxy that checks who they are.",
        )
    return known, int(port)


def _token_of(path: Path) -> str:
    """Read the token, or create one."""
    try:
        make_private_folder(path.absolute().parent)
        with open(open_private_file(path, os.O_RDONLY), encoding="ascii") as file:
            token = file.read(4096).strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        os.close(replace_file(path, [f"{token}\n".encode()]))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise ConfigurationError(
            f"--token-file: {path} cannot be read: {reason}.",
            next_step="Name another file; one that is missing is created.",
        ) from error
    if len(token) < _LEAST_TOKEN_SIZE:
        raise ConfigurationError(
            f"--token-file: {path} has fewer than {_LEAST_TOKEN_SIZE} characters.",
            next_step="Remove it, so that a new token is created.",
        )
    remember(token)
    return token
