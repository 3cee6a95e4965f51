"""Random command lines, files and environments, each made from a seed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from uploader.cli.app import app

DOCUMENTED: Final = {*range(10), 74, 130, 143}
"""Exit codes, as `uploader/cli/run.py` lists them."""

TEXTS: Final = (
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "1",
        "7",
        "1e309",
        "nan",
        "inf",
        "NaN",
        "9" * 18,
        "9" * 30,
        "9" * 5000,
    ),
    *("\udcff", "é电影.mp4", "\x1b[2J", "\n", "a\nb", "x" * 300, "y" * 70_000, "٣"),
    *("..", ".", "/", "/dev/null", "/dev/full", "/dev/zero", "~", "~nobody-here/y", "../../x"),
    *(
        "file:///etc/passwd",
        "http://",
        "http://[::1",
        "http://127.0.0.1:99999/x.mp4",
        "https://\udcff",
    ),
    *(
        "http://127.0.0.1:1/x.mp4",
        "s3://bucket/key",
        "//host/path",
        "http://a b/",
        "::",
        "[",
        "]:1",
    ),
    *("postgresql://", "postgresql://127.0.0.1:1/x", "postgresql://[", "sqlite:///", "memory"),
    *("{}", "[]", "null", '{"a":', "[" * 5000, '{"Title": 1e999}', "{stem}{0}{x.y}", "{", "%00%ff"),
    *(
        "a=b",
        "=",
        "a.b.c=1",
        "8MiB",
        "5m",
        "-5m",
        "1h",
        "100KiB",
        "true",
        "'",
        '"',
        "\\",
        "*",
        "[!",
    ),
    *(
        "08:00,10M 20:00,off",
        "25:00,1",
        "off",
        "auto",
        "localhost:0",
        "\udcff:0",
        "99999",
        "0.0.0.1",
    ),
    *("movie.mp4", "empty.mp4", "m.csv", "m.jsonl", "folder", "loop", "dangling", "none.mp4"),
    *("state.db", "r.jsonl", "grant.json", "list.txt", "playlist.m3u8", "unreadable.mp4"),
)
ENCODINGS: Final = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "gbk", "cp1252", "cp037")
COLUMNS: Final = "path title tags cate_id video_id file_name key user_data \udcff nonsense".split()

WAITS: Final = {"follow", "watch", "embedded", "dashboard", "metrics_port", "wait"}
"""Flags that wait for something, listen, or start servers."""
GOOD: Final = {
    **{
        "part_size": "100KiB",
        "concurrency": "2",
        "bwlimit": "50M",
        "retry_for": "0.2",
        "files": "2",
    },
    **{"log_level": "debug", "cate_id": "7", "tags": "a,b", "title": "A title", "key": "a-key"},
    **{
        "service": "vod",
        "signature": "v1",
        "memory": "5M",
        "spool": "spool",
        "root": ".",
        "retries": "0",
    },
    **{"report": "new.jsonl", "failed": "failed.csv", "html": "new.html", "recursive": "folder"},
    **{
        "include": "*",
        "title_template": "{stem} {row}",
        "files_from": "list.txt",
        "api_rate": "500",
    },
    **{"state": "state.db", "older_than": "0", "changed": "new-video", "max_duration": "1"},
    **{
        "region": "cn-beijing",
        "on_finished": "true",
        "grant": "grant.json",
        "pipe_command": "echo x",
    },
    **{"generate_thumbnail": "true", "manifest_encoding": "gbk", "auth_command": "cat grant.json"},
}
"""Values that the flags with these names take."""
READS_UNTIL_THE_END: Final = {"/dev/zero"}
COMMANDS: Final = (
    "push ingest resume status abort clean verify inspect doctor version enqueue results".split()
)
VARIABLES: Final = (
    *("COLUMNS", "LINES", "LANG", "LC_ALL", "HOME", "TERM", "TZ", "TMPDIR", "XDG_STATE_HOME"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "NO_COLOR", "FORCE_COLOR", "PATH"),
    *("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "VODUP_REGION"),
    *("ALIBABA_CLOUD_SECURITY_TOKEN", "VODUP_CA_FILE", "VODUP_AUTH_URL_TOKEN", "VODUP_STATE"),
    *("ALIBABA_CLOUD_CREDENTIALS_FILE", "ALIBABA_CLOUD_PROFILE", "SSL_CERT_FILE", "USER"),
)


@dataclass(frozen=True)
class Case:
    """A command line and the variables that it gets."""

    words: tuple[str, ...]
    env: dict[str, str]

    def problem(self, code: int, out: str, err: str, *, is_mixed: bool = False) -> str:
        """What is wrong with how it ended; "" if nothing is."""
        if code not in DOCUMENTED:
            return f"exit code {code}"
        for words in ("Traceback", "bug in vodup", "Internal error", "Exception ignored"):
            if words in out + err:
                return f"it prints {words!r}"
        if "--json" in self.words and not is_mixed and not {"--help", "-h"} & set(self.words):
            for line in out.splitlines():
                if not line.isascii():
                    return f"not ASCII: {line[:200]!r}"
                try:
                    json.loads(line)
                except ValueError:
                    return f"not JSON: {line[:200]!r}"
        return ""


def parameters(command: str) -> list[click.Parameter]:
    """Its options and arguments."""
    found = app.commands[command]
    return found.get_params(click.Context(found))


def make_case(rnd: random.Random, commands: Sequence[str] = COMMANDS) -> Case:
    """Make a command line. Half of what it gets would be valid."""
    command = rnd.choice(commands)
    words = [command]
    options = [each for each in parameters(command) if isinstance(each, click.Option)]
    options = [each for each in options if each.name not in WAITS]
    for option in rnd.sample(options, rnd.choice((0, 0, 1, 1, 2, 3))):
        name = rnd.choice([*option.opts, *option.secondary_opts])
        value = rnd.choice((GOOD.get(str(option.name)), text(rnd)))
        words += [name] if option.is_flag else [name, text(rnd) if value is None else value]
    words += {
        "push": [rnd.choice(("movie.mp4", text(rnd)))],
        "ingest": [rnd.choice(("m.csv", "m.jsonl", text(rnd)))],
        "enqueue": [rnd.choice(("m.csv", text(rnd))), "--state", "postgresql://127.0.0.1:1/x"],
        "results": ["--state", "postgresql://127.0.0.1:1/x"],
        "verify": [rnd.choice(("movie.mp4", text(rnd)))],
        "inspect": [rnd.choice(("grant.json", text(rnd)))],
    }.get(command, [text(rnd)] if rnd.random() < 0.6 else [])
    if rnd.random() < 0.5:
        words.append("--json")
    variables = [*VARIABLES, *(f"VODUP_{each.name}".upper() for each in options)]
    env = {name: text(rnd) for name in rnd.sample(variables, rnd.choice((0, 0, 1, 2)))}
    return Case(tuple(words), env)


def text(rnd: random.Random) -> str:
    """Make an argument; no operating system passes a NUL."""
    if rnd.random() < 0.9:
        return rnd.choice([each for each in TEXTS if each not in READS_UNTIL_THE_END])
    codes = (
        rnd.choice((rnd.randrange(1, 128), rnd.randrange(1, 0xD7FF)))
        for _ in range(rnd.randrange(20))
    )
    return "".join(map(chr, codes))


# --- files ------------------------------------------------------------------------------


def make_files(rnd: random.Random, folder: Path) -> None:
    """Fill a folder with good and bad files, always under the same names."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / "movie.mp4").write_bytes(b"movie" * 200)
    (folder / "empty.mp4").touch()
    (folder / "unreadable.mp4").mkdir()
    (folder / "folder").mkdir()
    (folder / "folder" / "inside.mp4").write_bytes(rnd.randbytes(500))
    os.symlink("loop", folder / "loop")
    os.symlink("nowhere", folder / "dangling")
    makers: dict[str, Callable[[random.Random], bytes]] = {
        "m.csv": csv_text,
        "m.jsonl": json_text,
        "list.txt": csv_text,
        "grant.json": grant_text,
        "r.jsonl": json_text,
        "playlist.m3u8": playlist_text,
    }
    for name, maker in makers.items():
        (folder / name).write_bytes(spoiled(rnd, maker(rnd)))
    state = folder / "state.db"
    match rnd.randrange(8):
        case 0:
            state.write_bytes(rnd.randbytes(rnd.randrange(1, 9000)))
        case 1:
            state.write_bytes(b"SQLite format 3\0" + rnd.randbytes(5000))
        case 2:
            state.mkdir()
        case 3:
            os.symlink(rnd.choice(("loop", "nowhere", "/dev/full", "/dev/null")), state)
        case 4:
            os.mkfifo(state)


def csv_text(rnd: random.Random) -> bytes:
    """Rows of a manifest, some of them good."""
    columns = rnd.sample(COLUMNS, rnd.randrange(1, 6))
    quote = rnd.choice(("", "", '"'))
    end = rnd.choice(("\n", "\r\n", "\r"))
    rows = [columns, *([cell(rnd) for _ in columns] for _ in range(rnd.randrange(5)))]
    lines = [rnd.choice(",,,;\t").join(f"{quote}{each}{quote}" for each in row) for row in rows]
    return _encoded(
        rnd, end.join(["path,title", "movie.mp4,good", *lines] if rnd.random() < 0.5 else lines)
    )


def json_text(rnd: random.Random) -> bytes:
    """Lines of a manifest or ledger."""
    values: tuple[object, ...] = (
        1,
        -1,
        1e308,
        float("nan"),
        None,
        True,
        [],
        {},
        [[]],
        {"a": {}},
        10**40,
        "x" * 9000,
        "\ud800",
    )
    lines = []
    for _ in range(rnd.randrange(6)):
        row = {rnd.choice(COLUMNS): rnd.choice((cell(rnd), rnd.choice(values))) for _ in range(4)}
        lines.append(json.dumps(row, ensure_ascii=rnd.random() < 0.5))
    return _encoded(rnd, "\n".join(lines))


def grant_text(rnd: random.Random) -> bytes:
    """Something like an answer of VOD."""
    fields: dict[str, object] = {
        name: rnd.choice((text(rnd), None, 5, [], "e30=", "bnVsbA=="))
        for name in ("VideoId", "UploadAddress", "UploadAuth", "RequestId")
    }
    return _encoded(rnd, json.dumps(fields))


def playlist_text(rnd: random.Random) -> bytes:
    """Something like an HLS playlist."""
    lines = ["#EXTM3U", *(f"#EXTINF:{cell(rnd)},\n{cell(rnd)}" for _ in range(rnd.randrange(4)))]
    return _encoded(rnd, "\n".join(lines))


def cell(rnd: random.Random) -> str:
    """A value of a row."""
    return rnd.choice(("movie.mp4", "folder/inside.mp4", text(rnd), text(rnd)[:40]))


def _encoded(rnd: random.Random, content: str) -> bytes:
    return content.encode(rnd.choice(("utf-8", "utf-8", "utf-8", *ENCODINGS)), "replace")


def spoiled(rnd: random.Random, content: bytes) -> bytes:
    """Now and then truncated, or with bytes that do not belong there."""
    match rnd.randrange(8):
        case 0:
            return content[: rnd.randrange(len(content) + 1)]
        case 1:
            at = rnd.randrange(len(content) + 1)
            return content[:at] + rnd.randbytes(rnd.randrange(20)) + content[at:]
        case 2:
            magic = rnd.choice(
                (b"PK\3\4", b"PAR1", b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\x1f\x8b")
            )
            return magic + content
        case 3:
            return rnd.randbytes(rnd.randrange(3000))
    return content
