"""How texts of flags are read."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Literal

import pytest

from uploader import parse_bandwidth, units
from uploader.cli.cluster import make_worker_options
from uploader.cli.flag_groups import AccessFlags, OutputFlags, TransferFlags
from uploader.cli.flags import WorkerFlags
from uploader.cli.options import (
    BANDWIDTH,
    COMMAND,
    CONCURRENCY,
    DURATION,
    PART_SIZE,
    SIZE,
    Kind,
    number,
    one_of,
    parameters_of,
)
from uploader.cli.printing import printable
from uploader.cli.settings import make_options, make_provider
from uploader.errors import ConfigurationError


def read(kind: Kind, text: str) -> object:
    return kind.parser("--flag", "VODUP_FLAG")(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8MiB", 8388608),
        ("8M", 8388608),
        ("8mb", 8388608),
        ("8388608", 8388608),
        ("1.5k", 1536),
        ("2 GiB", 2 << 30),
        ("10B", 10),
    ],
)
def test_sizes_are_powers_of_1024(text: str, expected: int) -> None:
    assert read(SIZE, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("30d", 2592000), ("1w", 604800)]
)
def test_durations(text: str, expected: float) -> None:
    assert read(DURATION, text) == expected


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (SIZE, ["", "M", "8X", "-8M", "8MiBs", "1e9", "8,5M"]),
        (PART_SIZE, ["1K", "6G", "big"]),
        (DURATION, ["", "soon", "1y", "-3"]),
        (number(1, 256), ["0", "257", "-1", "four", "1.5", "1_0", "9" * 30, "\u0663"]),
        (CONCURRENCY, ["0", "257", "many", ""]),
        (BANDWIDTH, ["100", "fast", "25:00,1M"]),
        (COMMAND, ["'", "", " "]),
        (one_of("v4", "v1"), ["v2", ""]),
    ],
)
def test_a_wrong_text_is_refused_with_what_to_write(kind: Kind, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(ConfigurationError) as caught:
            read(kind, text)
        assert caught.value.message == f"--flag: expected {kind.expected}, got {text!r}."
        assert "VODUP_FLAG" in caught.value.next_step


def test_texts_become_values() -> None:
    assert read(CONCURRENCY, "auto") == "auto"
    assert read(CONCURRENCY, "3") == 3
    assert read(number(-100, 100), "-5") == -5
    assert read(one_of("debug", "info"), "INFO") == "info"
    assert read(COMMAND, "sh -c 'exit 1'") == ["sh", "-c", "exit 1"]
    assert read(number(0, 20), 5) == 5, "a default is a value already"  # type: ignore[arg-type]


def test_the_flags_of_a_command_come_before_those_it_shares() -> None:
    names = [parameter.name for parameter in parameters_of(AccessFlags)]
    assert names[:2] == ["region", "service"]
    assert len(names) == len(set(names))


def test_values_become_the_flags_and_what_is_not_given_is_the_default() -> None:
    flags = AccessFlags(allow_host=("a.example", "b.example"), region="cn-beijing")
    assert (flags.allow_host, flags.region) == (("a.example", "b.example"), "cn-beijing")
    assert (AccessFlags().allow_host, AccessFlags().service) == ((), "vod")
    assert OutputFlags().log_level == "critical"


def test_flags_become_options() -> None:
    options = make_options(
        TransferFlags(
            part_size=4 << 20,
            concurrency=3,
            bwlimit=parse_bandwidth("1M"),
            signature="v1",
            retry_for=10,
        )
    )

    assert (options.part_size, options.concurrency, options.signature) == (4 << 20, 3, "v1")
    assert options.bandwidth is not None
    assert (options.retry.patience_s, options.retry.first_contact_patience_s) == (10, 10)


@pytest.mark.parametrize(
    ("concurrency", "memory", "expected"),
    [("auto", 40 << 20, 40), ("auto", 1 << 30, "auto"), (8, 4 << 20, 4), (8, None, 8)],
)
def test_a_worker_opens_no_more_connections_than_its_memory_holds(
    concurrency: int | Literal["auto"], memory: int | None, expected: int | str
) -> None:
    flags = WorkerFlags(concurrency=concurrency, memory=memory)
    assert make_worker_options(flags).concurrency == expected


@pytest.mark.parametrize("service", ["vod", "ims"])
@pytest.mark.parametrize(
    ("flags", "signature"), [({}, "acs3"), ({"api_signature": "v2"}, "v2")], ids=["default", "v2"]
)
def test_the_signature_of_calls_is_a_flag(
    service: str, flags: dict[str, Any], signature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret")
    provider = make_provider(AccessFlags(service=service, **flags))
    assert getattr(provider, "signature", None) == signature


def test_two_sources_of_grants_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="cannot be used together"):
        make_provider(AccessFlags(auth_command="x", auth_url="https://x"))


def test_figures_for_people() -> None:
    assert [units.size(n) for n in (0, 1023, 1536, 200 << 20)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "200 MiB",
    ]
    assert [units.duration(s) for s in (0, 0.012, 1.25, 250, 12000, 5 * 86400)] == [
        "0.0 s",
        "12 ms",
        "1.2 s",
        "4 min 10 s",
        "3 h 20 min",
        "5 days",
    ]
    assert units.share(12 << 20, 30 << 20) == "12.0 of 30.0 MiB"
    assert units.share(1000, 30 << 20) == "1000 bytes of 30.0 MiB"
    assert [units.count(n, "part") for n in (1, 1200)] == ["1 part", "1,200 parts"]


def test_printed_text_cannot_control_the_terminal_nor_show_a_token() -> None:
    text = printable("a\x1b[2Jb\u202ec CAIS" + "x" * 30)

    assert text == "a\ufffd[2Jb\ufffdc [redacted]"


def test_a_shell_completes_flags_and_prints_its_script() -> None:
    def run(*words: str, **variables: str) -> str:
        code = (
            f"import sys; sys.argv = ['vodup', *{words!r}]; from uploader.cli import main; main()"
        )
        environment = {**os.environ, **variables}
        return subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)

    assert "_VODUP_COMPLETE=bash_complete" in run("--show-completion", "bash")
    words = {"COMP_WORDS": "vodup status --w", "COMP_CWORD": "2"}
    assert run(_VODUP_COMPLETE="bash_complete", **words) == "plain,--watch\n"
