"""The checksums that prove which bytes OSS stores: CRC-64/XZ, and OSS's ETag formula.

OSS returns the CRC-64 of a part or an object in `x-oss-hash-crc64ecma` (OSS doc
"Verify data consistency with CRC-64"). The CRC of the whole follows from the CRCs of its
parts and their sizes, so nothing has to be read twice.

Joining is arithmetic on polynomials over GF(2): a CRC is a remainder modulo P, and
appending n bytes multiplies what came before by x^(8n). Bits are reflected: the most
significant bit of a 64-bit number is the coefficient of x^0.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from fastcrc.crc64 import xz

if TYPE_CHECKING:
    from collections.abc import Iterable

# ECMA-182's polynomial 0x42F0E1EBA9EA3693 with its bits reversed.
_POLYNOMIAL = 0xC96C5795D7870F42
_ONE = 1 << 63
_MD5_HEX = re.compile(r"[0-9A-Fa-f]{32}")

_Tables = tuple[tuple[int, ...], ...]


def crc64(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Return the CRC-64/XZ of `data`, continuing from the `crc` of what came before it.

    Any contiguous buffer is read in place (fastcrc from 0.4 on). crc64(b"") is 0.
    """
    return xz(data, crc)


def join_crc64(pieces: Iterable[tuple[int, int]]) -> int:
    """Return the CRC of adjoining pieces, given as (crc, size) in order; 0 for none.

    Multiplying by a fixed x^(8n) is linear, so each distinct size gets a set of tables
    once and every piece costs 16 look-ups: 10,000 parts take about 20 ms.
    """
    joined = 0
    for crc, size in pieces:
        if not 0 <= size < 1 << 63:
            raise ValueError("a size must be between 0 and 2^63 - 1")
        # Nothing before it: a single piece, and the first of many, need no tables.
        joined = _look_up(_tables_of(size), joined) ^ crc if joined else crc
    return joined


def _multiply(a: int, b: int) -> int:
    """Return a × b modulo P."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFFFFFFFFFF
        b = _times_x(b)
    return product


def _times_x(a: int) -> int:
    return (a >> 1) ^ _POLYNOMIAL if a & 1 else a >> 1


@lru_cache(maxsize=64)
def _power_of_two_bytes(k: int) -> int:
    """Return x^(8 × 2^k) modulo P, by repeated squaring from x^8."""
    if k == 0:
        return _ONE >> 8
    root = _power_of_two_bytes(k - 1)
    return _multiply(root, root)


@lru_cache(maxsize=256)
def _tables_of(size: int) -> _Tables:
    """Return, for each 4 bits of a number from the lowest up, its products with x^(8 × size).

    Uploads of a process share most sizes. 4 bits rather than 8: a tapered plan has dozens of
    distinct sizes, and building the tables would then cost more than the shorter look-up saves.
    """
    factor = _ONE
    for k in range(size.bit_length()):
        if size >> k & 1:
            factor = _multiply(factor, _power_of_two_bytes(k))
    columns = [factor]
    for _ in range(63):
        columns.append(_times_x(columns[-1]))
    columns.reverse()  # the lowest bit stands for x^63
    return tuple(_sums(columns[i : i + 4]) for i in range(0, 64, 4))


def _sums(columns: list[int]) -> tuple[int, ...]:
    sums = [0]
    for column in columns:
        sums += [known ^ column for known in sums]
    return tuple(sums)


def _look_up(tables: _Tables, number: int) -> int:
    product = 0
    for table in tables:
        product ^= table[number & 15]
        number >>= 4
    return product


def multipart_etag(part_md5s: Iterable[str]) -> str:
    """Return the ETag that OSS gives an object made of parts with these MD5s.

    It is the MD5 of the parts' MD5s written as upper-case hexadecimal text, then "-" and
    their number. S3 hashes the binary digests instead. OSS does not document it; it follows
    from answers of the service that are recorded in the tests of its SDKs.

    Raises:
        ValueError: no part, or something that is not 32 hexadecimal digits.
    """
    digests = [plain_etag(md5).upper() for md5 in part_md5s]
    if not digests or not all(map(_MD5_HEX.fullmatch, digests)):
        raise ValueError("an ETag of parts needs the MD5 of each part in hexadecimal")
    joined = hashlib.md5("".join(digests).encode(), usedforsecurity=False)
    return f"{joined.hexdigest().upper()}-{len(digests)}"


def plain_etag(text: str) -> str:
    """Return an ETag without quotes, weakness mark and surrounding space."""
    return text.strip().removeprefix("W/").strip('"')


def same_etag(a: str, b: str) -> bool:
    """Whether two ETags name the same content; an empty one proves nothing."""
    plain = plain_etag(a).upper()
    return bool(plain) and plain == plain_etag(b).upper()
