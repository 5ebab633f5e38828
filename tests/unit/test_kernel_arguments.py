"""What kernels refuse, with which error, on both backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from checks import BACKENDS
from flyweight.errors import InvalidArgumentError
from flyweight.kernels import (
    backend,
    gptq_quantize,
    histogram,
    normalize_counts,
    pack_bits,
    packed_size,
    rans_bound,
    rans_decode,
    rans_encode,
    unpack_bits,
)

SYMBOLS = np.array([0, 1, 2, 1], dtype=np.uint8)
FREQS = np.array([64, 128, 64], dtype=np.uint16)


@pytest.fixture(params=BACKENDS, autouse=True)
def on_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backend(request.param):
        yield


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (SYMBOLS.astype(np.int64), ""),
        (SYMBOLS.astype(np.int8), ""),
        (SYMBOLS.astype(ml_dtypes.bfloat16), ""),
        (SYMBOLS[::2], "not C-contiguous"),
        (SYMBOLS.reshape(2, 2), "2 dimensions"),
        ([0, 1, 2], "got list"),
        (None, "got NoneType"),
    ],
)
def test_symbols_of_another_kind(wrong: Any, got: str) -> None:
    remedy = r"convert it with np\.ascontiguousarray\(symbols, dtype=np\.uint8\)"
    for call in (
        lambda: pack_bits(wrong, bits=4),
        lambda: histogram(wrong, alphabet_size=4),
        lambda: rans_encode(wrong, FREQS, prob_bits=8, ways=1),
    ):
        with pytest.raises(TypeError, match=f"symbols: expected .*{got}.*{remedy}"):
            call()


def test_other_arrays_of_another_kind() -> None:
    with pytest.raises(TypeError, match="freqs: expected a C-contiguous uint16"):
        rans_encode(SYMBOLS, FREQS.astype(np.int32), prob_bits=8, ways=1)  # type: ignore[arg-type]
    unaligned: Any = memoryview(b"\0" + FREQS.tobytes())[1:].cast("H")
    with pytest.raises(TypeError, match=r"freqs: .*not aligned"):
        rans_encode(SYMBOLS, unaligned, prob_bits=8, ways=1)
    with pytest.raises(TypeError, match="counts: expected a C-contiguous int64"):
        normalize_counts(np.ones(3), prob_bits=8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="counts: expected a C-contiguous int64"):
        normalize_counts(np.ones(3, dtype=">i8"), prob_bits=8)
    with pytest.raises(TypeError, match="packed: expected"):
        unpack_bits("text", bits=8, count=4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="stream: expected"):
        rans_decode(memoryview(b"12345678")[::2], FREQS, count=1, prob_bits=8, ways=1)


def test_symbols_that_do_not_fit() -> None:
    with pytest.raises(InvalidArgumentError, match="symbol 2 at position 2 does not fit into 1 "):
        pack_bits(SYMBOLS, bits=1)
    with pytest.raises(InvalidArgumentError, match="symbol 2 at position 2 is outside the alphabe"):
        histogram(SYMBOLS, alphabet_size=2)
    for freqs in ([128, 128, 0], [128, 128]):
        table = np.array(freqs, dtype=np.uint16)
        with pytest.raises(InvalidArgumentError, match="symbol 2 at position 2 has no frequency"):
            rans_encode(SYMBOLS, table, prob_bits=8, ways=2)


@pytest.mark.parametrize("bits", [-1, 0, 9])
def test_bits_out_of_range(bits: int) -> None:
    for call in (
        lambda: packed_size(4, bits=bits),
        lambda: pack_bits(SYMBOLS, bits=bits),
        lambda: unpack_bits(b"1234", bits=bits, count=4),
    ):
        with pytest.raises(InvalidArgumentError, match=f"bits={bits}"):
            call()


@pytest.mark.parametrize("ways", [-1, 0, 3, 128])
def test_ways_out_of_range(ways: int) -> None:
    for call in (
        lambda: rans_bound(4, ways=ways),
        lambda: rans_encode(SYMBOLS, FREQS, prob_bits=8, ways=ways),
        lambda: rans_decode(b"1234", FREQS, count=4, prob_bits=8, ways=ways),
    ):
        with pytest.raises(InvalidArgumentError, match=f"ways={ways}"):
            call()


@pytest.mark.parametrize("prob_bits", [7, 9, 16])
def test_prob_bits_and_sum(prob_bits: int) -> None:
    message = "prob_bits" if prob_bits != 9 else r"sum to 256, expected 2\*\*9"
    for call in (
        lambda: rans_encode(SYMBOLS, FREQS, prob_bits=prob_bits, ways=1),
        lambda: rans_decode(b"1234", FREQS, count=4, prob_bits=prob_bits, ways=1),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            call()


@pytest.mark.parametrize("size", [0, 257])
def test_alphabet_sizes(size: int) -> None:
    with pytest.raises(InvalidArgumentError, match="1 to 256"):
        histogram(SYMBOLS, alphabet_size=size)
    with pytest.raises(InvalidArgumentError, match="1 to 256"):
        rans_encode(SYMBOLS, np.ones(size, dtype=np.uint16), prob_bits=8, ways=1)


def test_negative_counts() -> None:
    for call in (
        lambda: packed_size(-1, bits=8),
        lambda: unpack_bits(b"", bits=8, count=-1),
        lambda: rans_bound(-1, ways=1),
        lambda: rans_decode(b"1234", FREQS, count=-1, prob_bits=8, ways=1),
    ):
        with pytest.raises(InvalidArgumentError, match="count=-1"):
            call()


def problem() -> dict[str, Any]:
    return {
        "weights": np.ones((3, 4), np.float32),
        "inverse_factor": np.eye(4, dtype=np.float32),
        "scales": np.ones((3, 2), np.float32),
        "zero_points": np.ones((3, 2), np.float32),
        "column_groups": np.array([0, 1, 0, 1], np.int32),
        "lo": -8,
        "hi": 7,
    }


@pytest.mark.parametrize("name", ["weights", "inverse_factor", "scales", "zero_points"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_gptq_refuses_what_is_not_finite(name: str, value: float) -> None:
    arguments = problem()
    arguments[name][1, 0] = value
    with pytest.raises(InvalidArgumentError, match=rf"{name} has {value} at row 1, column 0"):
        gptq_quantize(**arguments)


@pytest.mark.parametrize("name", ["weights", "inverse_factor", "scales", "zero_points"])
def test_gptq_array_kinds(name: str) -> None:
    for change in (
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.float16),
        lambda a: np.asfortranarray(a) if name != "zero_points" else a[:, :1],
        lambda a: a.ravel(),
    ):
        arguments = problem()
        arguments[name] = change(arguments[name])
        with pytest.raises(TypeError, match=rf"{name}: .*ascontiguousarray\({name}"):
            gptq_quantize(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inverse_factor": np.eye(3, dtype=np.float32)}, "inverse_factor has shape"),
        ({"scales": np.ones((2, 2), np.float32)}, r"scales has shape \(2, 2\), expected \(3, 2\)"),
        ({"zero_points": np.ones((3, 1), np.float32)}, "zero_points has shape"),
        ({"column_groups": None}, "2 scales per row need column_groups"),
        ({"column_groups": np.zeros(3, np.int32)}, "column_groups has 3 entries, expected"),
        ({"column_groups": np.array([0, 0, 2, 0], np.int32)}, "2.*column 2|column_groups.2.=2"),
        ({"column_groups": np.array([0, -1, 0, 0], np.int32)}, "-1.*column 1|column_groups.1.=-1"),
        ({"inverse_factor": np.diag([1, 1, 0, 1]).astype(np.float32)}, "diagonal at column 2"),
        ({"inverse_factor": -np.eye(4, dtype=np.float32)}, "diagonal at column 0"),
        ({"lo": -129}, "lo=-129"),
        ({"hi": 128}, "hi=128"),
        ({"lo": 3, "hi": 2}, "lo=3, hi=2"),
        ({"block_cols": 0}, "block_cols=0"),
        ({"block_cols": -5}, "block_cols=-5"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_gptq_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        gptq_quantize(**problem() | changes)
