"""Damaged ctx streams: a typed error or other symbols, within bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctx_samples import class_plane
from flyweight.codecs.codec import PlaneSpec
from flyweight.codecs.ctx import MODE_CLASSES, CtxCodec
from flyweight.errors import CorruptStreamError
from flyweight.kernels.dispatch import Backend, backend


@pytest.fixture(scope="module")
def good() -> tuple[bytes, PlaneSpec]:
    """A small stream with classes, means and escapes."""
    symbols, spec = class_plane(70, 70, alphabet_size=31, seed=3)
    symbols[::601] = 0
    stream = CtxCodec().encode(symbols, spec)
    assert stream[0] >> 6 == MODE_CLASSES
    assert np.array_equal(CtxCodec().decode(stream, spec), symbols)
    return stream, spec


def check(stream: bytes, spec: PlaneSpec) -> None:
    """An error, or as many symbols of the alphabet as there should be."""
    try:
        decoded = CtxCodec().decode(stream, spec)
    except CorruptStreamError:
        return
    assert decoded.shape == (spec.count,)
    assert decoded.max() < spec.alphabet_size


def test_every_truncation(good: tuple[bytes, PlaneSpec]) -> None:
    stream, spec = good
    for length in range(len(stream)):
        with pytest.raises(CorruptStreamError):
            CtxCodec().decode(stream[:length], spec)
    with pytest.raises(CorruptStreamError):
        CtxCodec().decode(stream + b"\0", spec)


def test_every_flipped_byte(good: tuple[bytes, PlaneSpec]) -> None:
    stream, spec = good
    for position in range(len(stream)):
        bits = range(8) if position < 200 else [position % 8]
        for flips in [0xFF, *(1 << bit for bit in bits)]:
            damaged = bytearray(stream)
            damaged[position] ^= flips
            check(bytes(damaged), spec)


@pytest.mark.parametrize("value", [0, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_every_byte_of_the_head_replaced(
    good: tuple[bytes, PlaneSpec], value: int, kernels: Backend
) -> None:
    stream, spec = good
    with backend(kernels):
        for position in range(24 if kernels == "reference" else 120):
            damaged = bytearray(stream)
            damaged[position] = value
            check(bytes(damaged), spec)


@pytest.mark.parametrize(
    ("count", "columns"), [(4900, 4900), (4900, 1), (4900, 35), (0, 0), (70, 70), (490_000, 70)]
)
def test_other_shapes(good: tuple[bytes, PlaneSpec], count: int, columns: int) -> None:
    with pytest.raises(CorruptStreamError):
        CtxCodec().decode(good[0], PlaneSpec(count, 31, columns))


@pytest.mark.parametrize("alphabet", [1, 2, 30, 255, 256])
def test_other_alphabets(good: tuple[bytes, PlaneSpec], alphabet: int) -> None:
    check(good[0], PlaneSpec(4900, alphabet, 70))


def field(at: int, value: int) -> Callable[[bytearray], None]:
    """Replace one byte."""

    def replace(stream: bytearray) -> None:
        stream[at] = value

    return replace


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (field(0, MODE_CLASSES << 6), "header 0xc0 is not defined"),
        (field(0, MODE_CLASSES << 6 | 7 << 3 | 4), "header 0xfc is not defined"),
        (field(1, 0), "0 deviations"),
        (field(1, 65), "expected 1 to 64 tables"),
        (field(2, 0), "0 means"),
        (field(4, 0xFF), "is outside the alphabet of 31"),
        (field(6, 2), "expected at most 384"),
    ],
)
def test_fields_that_are_out_of_range(
    good: tuple[bytes, PlaneSpec], damage: Callable[[bytearray], None], match: str
) -> None:
    stream = bytearray(good[0])
    damage(stream)
    with pytest.raises(CorruptStreamError, match=match):
        CtxCodec().decode(bytes(stream), good[1])


def test_sizes_that_lie(good: tuple[bytes, PlaneSpec]) -> None:
    stream, spec = good
    at = 9 + stream[2]  # behind the header, the fixed fields and the levels
    for size in (b"\xff" * 8 + b"\x7f", b"\xff" * 10, b"\x80\x00", b"\xff\x7f"):
        with pytest.raises(CorruptStreamError):
            CtxCodec().decode(stream[:at] + size + stream[at + 1 :], spec)


@given(data=st.binary(max_size=120), rows=st.integers(1, 40), cols=st.integers(1, 40))
def test_any_bytes(data: bytes, rows: int, cols: int) -> None:
    check(bytes([MODE_CLASSES << 6 | 4, *data]), PlaneSpec(rows * cols, 15, cols))
