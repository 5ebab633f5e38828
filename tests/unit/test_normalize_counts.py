"""The rule of docs/format.md, "Frequency tables", on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from checks import BACKENDS
from flyweight.errors import InvalidArgumentError
from flyweight.kernels import backend, normalize_counts


def normalized(name: str, counts: list[int], prob_bits: int = 8) -> list[int]:
    with backend(name):
        freqs = normalize_counts(np.array(counts, dtype=np.int64), prob_bits=prob_bits)
    assert freqs.dtype == np.uint16
    return freqs.tolist()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([7], [256]),
        ([0, 1, 0], [0, 256, 0]),
        ([1, 1], [128, 128]),
        ([1, 1, 1], [86, 85, 85]),  # one slot over, equal remainders: the lower symbol
        ([1, 2, 4], [37, 73, 146]),  # remainders 4, 1, 2 of 7 for one slot
        ([1000, 1000, 1], [128, 127, 1]),  # 127.9 and 127.9 down, 0.1 up: remainders, tie
        ([10**6, 1, 1, 1], [253, 1, 1, 1]),  # three raised: all taken from the largest
        ([10**6, 10**6, *[1] * 4], [126, 126, 1, 1, 1, 1]),  # two each, in turn
        ([1] * 256, [1] * 256),
        ([(1 << 47) - 1, 1 << 47], [128, 128]),  # the largest sum allowed
    ],
)
def test_worked_cases(name: str, counts: list[int], expected: list[int]) -> None:
    assert normalized(name, counts) == expected


@pytest.mark.parametrize("name", BACKENDS)
def test_a_certain_symbol_at_fifteen_bits(name: str) -> None:
    assert normalized(name, [0, 9], prob_bits=15) == [0, 1 << 15]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([0, 0], "zero|sum to 0"),
        ([3, -1], "symbol 1 is negative: -1"),
        ([1 << 48], r"2\*\*48"),
        ([1 << 47, 1 << 47], r"2\*\*48"),
        ([(1 << 63) - 1] * 4, r"2\*\*48"),
        ([], "expected 1 to 256"),
        ([1] * 257, "expected 1 to 256"),
    ],
)
def test_refused_counts(name: str, counts: list[int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        normalized(name, counts)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("prob_bits", [-1, 0, 7, 16])
def test_refused_prob_bits(name: str, prob_bits: int) -> None:
    with pytest.raises(InvalidArgumentError, match="prob_bits"):
        normalized(name, [1, 2], prob_bits=prob_bits)
