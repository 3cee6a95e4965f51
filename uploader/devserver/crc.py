"""CRC-64/XZ (OSS's ``x-oss-hash-crc64ecma``) of joined pieces, by matrices over GF(2)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

_POLYNOMIAL = 0xC96C5795D7870F42  # ECMA-182, reflected
Matrix = tuple[int, ...]


def combine_all(pieces: Iterable[tuple[int, int]]) -> int:
    """The CRC of a concatenation, from the (CRC, length in bytes) of each piece in order."""
    total = 0
    for crc, size in pieces:
        total = combine(total, crc, size)
    return total


def combine(first: int, second: int, second_size: int) -> int:
    """The CRC of ``a + b`` from the CRCs of both and the length of ``b`` in bytes."""
    return _apply(_shift_matrix(second_size), first) ^ second


def _apply(matrix: Matrix, vector: int) -> int:
    result, row = 0, 0
    while vector:
        if vector & 1:
            result ^= matrix[row]
        vector >>= 1
        row += 1
    return result


def _square(matrix: Matrix) -> Matrix:
    return tuple(_apply(matrix, row) for row in matrix)


@lru_cache(maxsize=64)
def _shift_matrix(size: int) -> Matrix:
    """The operator that appends ``size`` zero bytes."""
    result: Matrix = tuple(1 << bit for bit in range(64))
    power = _zero_byte_matrix()
    while size:
        if size & 1:
            result = tuple(_apply(power, row) for row in result)
        power = _square(power)
        size >>= 1
    return result


@lru_cache(maxsize=1)
def _zero_byte_matrix() -> Matrix:
    one_bit: Matrix = (_POLYNOMIAL, *(1 << bit for bit in range(63)))
    return _square(_square(_square(one_bit)))
