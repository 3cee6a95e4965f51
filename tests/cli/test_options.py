"""How texts of flags are read."""

from __future__ import annotations

import pytest

from uploader.cli.opening import make_options, make_provider
from uploader.cli.options import Access, Transfer, parse_duration_s, parse_number, parse_size
from uploader.cli.text import printable
from uploader.errors import ConfigurationError
from uploader.units import count, duration, size


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
    assert parse_size(text, "--part-size") == expected


@pytest.mark.parametrize("text", ["", "M", "8X", "-8M", "8MiBs", "1e9", "8,5M"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--part-size"):
        parse_size(text, "--part-size")


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("1.5m", 90), ("2h", 7200), ("30d", 2592000), ("1w", 604800)]
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration_s(text, "--older-than") == expected


@pytest.mark.parametrize("text", ["0", "257", "-1", "four", "1.5", "9" * 30])
def test_a_number_out_of_range_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(ConfigurationError, match="from 1 to 256"):
        parse_number(text, "--concurrency", least=1, most=256)


@pytest.mark.parametrize(
    "transfer",
    [
        Transfer(part_size="1K"),
        Transfer(part_size="6G"),
        Transfer(concurrency="0"),
        Transfer(concurrency="many"),
        Transfer(bwlimit="100"),
        Transfer(signature="v2"),
        Transfer(on_target_change="maybe"),
        Transfer(retry_for="soon"),
    ],
)
def test_flags_that_make_no_sense_are_usage_errors(transfer: Transfer) -> None:
    with pytest.raises(ConfigurationError):
        make_options(transfer)


def test_flags_become_options() -> None:
    options = make_options(
        Transfer(part_size="4M", concurrency="3", bwlimit="1M", signature="v1", retry_for="10")
    )

    assert (options.part_size, options.concurrency, options.signature) == (4 << 20, 3, "v1")
    assert options.bandwidth is not None
    assert (options.retry.patience_s, options.retry.first_contact_patience_s) == (10, 10)


def test_two_ways_of_getting_grants_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="exclude"):
        make_provider(Access(auth_command="x", auth_url="https://x"), is_optional=True)


def test_figures_for_people() -> None:
    assert [size(0), size(1023), size(1536), size(200 << 20)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "200 MiB",
    ]
    assert [duration(s) for s in (0, 0.012, 1.25, 250, 12000, 5 * 86400)] == [
        "0.0 s",
        "12 ms",
        "1.2 s",
        "4 min 10 s",
        "3 h 20 min",
        "5 days",
    ]
    assert [count(1, "part"), count(1200, "part")] == ["1 part", "1,200 parts"]


def test_what_is_printed_cannot_steer_a_terminal_nor_show_a_token() -> None:
    text = printable("a\x1b[2Jb\u202ec CAIS" + "x" * 30)

    assert text == "a\ufffd[2Jb\ufffdc [redacted]"
