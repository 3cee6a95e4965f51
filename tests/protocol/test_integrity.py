"""CRCs joined from parts equal the CRC of the whole; ETags follow OSS's formula."""

from __future__ import annotations

import hashlib
import random
import time

import oss2.utils
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uploader.protocol.integrity import (
    crc64,
    join_crc64,
    multipart_etag,
    plain_etag,
    same_etag,
)

_CRC = st.integers(0, 2**64 - 1)


def test_check_value_of_crc_64_xz() -> None:
    assert crc64(b"123456789") == 0x995DC9BBDF1939FA
    assert crc64(b"") == 0


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1))
def test_crc_is_the_one_oss2_computes(data: bytes, start: int) -> None:
    theirs = oss2.utils.Crc64(start)
    theirs.update(data)
    assert crc64(data, start) == theirs.crc


@given(st.binary(max_size=200), st.integers(0, 200))
def test_crc_continues_where_it_stopped(data: bytes, cut: int) -> None:
    assert crc64(data[cut:], crc64(data[:cut])) == crc64(data)


@given(st.binary(min_size=1, max_size=100))
def test_any_contiguous_buffer_will_do(data: bytes) -> None:
    expected = crc64(data)
    assert crc64(bytearray(data)) == expected
    assert crc64(memoryview(data)) == expected
    assert crc64(memoryview(bytearray(b"x" + data))[1:]) == expected


@settings(max_examples=50, deadline=None)  # oss2 takes 8 ms and more for each
@given(_CRC, _CRC, st.integers(1, 2**40))
def test_joining_two_agrees_with_oss2(crc1: int, crc2: int, size2: int) -> None:
    assert join_crc64([(crc1, 1), (crc2, size2)]) == oss2.utils.Crc64(0).combine(crc1, crc2, size2)


@given(st.lists(st.binary(max_size=60), max_size=12))
def test_joined_pieces_have_the_crc_of_the_whole(pieces: list[bytes]) -> None:
    assert join_crc64((crc64(p), len(p)) for p in pieces) == crc64(b"".join(pieces))


@given(st.lists(st.tuples(_CRC, st.integers(0, 2**43)), min_size=1, max_size=6))
def test_pieces_can_be_joined_step_by_step(pieces: list[tuple[int, int]]) -> None:
    expected = pieces[0][0]
    for crc, size in pieces[1:]:
        expected = join_crc64([(expected, 1), (crc, size)])
    assert join_crc64(pieces) == expected


@given(st.lists(st.tuples(_CRC, st.integers(0, 2**33)), min_size=2, max_size=8), st.data())
def test_joining_does_not_depend_on_grouping(
    pieces: list[tuple[int, int]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(pieces) - 1))
    right = pieces[cut:]
    grouped = [*pieces[:cut], (join_crc64(right), sum(size for _, size in right))]
    assert join_crc64(grouped) == join_crc64(pieces)


def test_nothing_joins_to_the_crc_of_nothing() -> None:
    assert join_crc64([]) == crc64(b"")


def test_swapped_pieces_are_noticed() -> None:
    a, b = (crc64(b"a" * 100), 100), (crc64(b"b" * 100), 100)
    assert join_crc64([a, b]) != join_crc64([b, a])


@pytest.mark.parametrize("size", [-1, 2**63])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        join_crc64([(1, size)])


def test_ten_thousand_parts_join_without_stalling_the_loop() -> None:
    rng = random.Random(1)
    pieces = [(rng.getrandbits(64), (8 << 20) + i % 40 * 131072) for i in range(10_000)]
    join_crc64(pieces)
    started = time.process_time()
    join_crc64(pieces)
    assert time.process_time() - started < 0.25  # 25 ms when nothing else runs


# --- ETags ----------------------------------------------------------------------------


def test_multipart_etag_hashes_upper_case_text() -> None:
    md5s = [hashlib.md5(bytes([i]) * 9, usedforsecurity=False).hexdigest() for i in range(3)]
    text = "".join(md5s).upper()
    expected = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest().upper() + "-3"
    assert multipart_etag(md5s) == expected
    assert multipart_etag(f'"{md5.upper()}"' for md5 in md5s) == expected


def test_multipart_etag_is_the_one_a_live_oss_returned() -> None:
    # Recorded from the service in aliyun-oss-python-sdk, unittests/test_multipart.py.
    md5s = ["4DE8075FB607DF4D13FBC480EA488EFA", "AF947EC157726CEA88ED83B3C989063B"]
    assert multipart_etag(md5s) == "1C787C506EABFB9B45EAAA8DB039F4B2-2"
    assert multipart_etag(reversed(md5s)) != multipart_etag(md5s)


def test_multipart_etag_is_not_the_one_of_s3() -> None:
    digest = hashlib.md5(b"part", usedforsecurity=False)
    s3 = hashlib.md5(digest.digest(), usedforsecurity=False).hexdigest().upper() + "-1"
    assert multipart_etag([digest.hexdigest()]) != s3


@pytest.mark.parametrize("md5s", [[], [""], ["0" * 31], ["0" * 33], ["g" * 32], ["0" * 32 + "-1"]])
def test_multipart_etag_needs_md5s(md5s: list[str]) -> None:
    with pytest.raises(ValueError, match="MD5"):
        multipart_etag(md5s)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ('"ABC-2"', "abc-2", True),
        ('W/"abc"', "ABC", True),
        (' "abc" ', '"abc"', True),
        ("abc-1", "abc-2", False),
        ("", "", False),
        ('""', "", False),
        ("", "abc", False),
    ],
)
def test_etags_are_compared_by_content(a: str, b: str, same: bool) -> None:
    assert same_etag(a, b) is same
    assert same_etag(b, a) is same


@given(st.text("abcABC0123-", max_size=40))
def test_plain_etag_undoes_quoting(text: str) -> None:
    assert plain_etag(f'"{text}"') == plain_etag(f' W/"{text}"') == plain_etag(text) == text
