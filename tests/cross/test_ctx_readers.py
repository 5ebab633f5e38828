"""Both readers of .fly files on tensors coded by classes of rows and columns."""

from __future__ import annotations

import numpy as np
import pytest

import flyweight
from ctx_samples import class_plane
from flyweight.codecs.codec import PlaneSpec
from flyweight.codecs.ctx import CtxCodec
from flyweight.format.container import write_container
from flyweight.format.inspect import inspect
from flyweight.format.stored import Stored
from flyweight.quant.grid import Grid, QuantizedTensor
from flyweight.submission.decode_streams import FlyError, decode_planes
from flyweight.submission.decoder import decode_fly


def tensor(rows: int, cols: int, *, bits: int, spread: float, seed: int) -> QuantizedTensor:
    """Codes with classes, and scales that are all one."""
    grid = Grid.symmetric(bits)
    symbols, _ = class_plane(rows, cols, alphabet_size=grid.alphabet_size, spread=spread, seed=seed)
    codes = (symbols.astype(np.int16) + grid.lo).astype(np.int8).reshape(rows, cols)
    scales = np.ones((rows, 1), dtype=np.float16)
    shape = (rows, cols)
    return QuantizedTensor(
        shape=shape, dtype=np.dtype(np.float32), grid=grid, codes=codes, scales=scales
    )


@pytest.fixture(scope="module")
def tensors() -> dict[str, Stored]:
    """Several with classes, of different ways and alphabets, and one without."""
    found: dict[str, Stored] = {
        f"{bits} bits": tensor(150, 120 + 40 * bits, bits=bits, spread=1.0, seed=bits)
        for bits in (3, 4, 6, 8)
    }
    return {**found, "alike": tensor(100, 100, bits=6, spread=0.0, seed=1)}


def test_both_readers_agree(tensors: dict[str, Stored]) -> None:
    data, _ = write_container(tensors, codec="auto")
    file = flyweight.open(data)
    decoded, _ = decode_fly(data)
    parts = {s.name: s.parts[0] for s in inspect(file).sections}
    assert {name for name, part in parts.items() if part.codecs == "ctx"} == {*parts} - {"alike"}
    assert all(0 < part.table_bytes < part.stored_bytes for part in parts.values())
    for name, stored in tensors.items():
        assert isinstance(stored, QuantizedTensor)
        assert np.array_equal(file[name], stored.dequantize())
        assert np.array_equal(decoded[name], stored.dequantize())


def test_transposed_and_forced(tensors: dict[str, Stored]) -> None:
    data, _ = write_container(tensors, codec="ctx")
    decoded, _ = decode_fly(data)
    for name, stored in tensors.items():
        assert isinstance(stored, QuantizedTensor)
        assert np.array_equal(decoded[name], stored.dequantize())


def test_what_the_package_accepts_the_shipped_decoder_reads_alike() -> None:
    symbols, spec = class_plane(64, 64, alphabet_size=15, seed=5)
    stream = CtxCodec().encode(symbols, spec)
    rng = np.random.default_rng(0)
    for position in [*range(80), *rng.integers(80, len(stream), size=20).tolist()]:
        damaged = bytearray(stream)
        damaged[position] ^= 1 << int(rng.integers(8))
        accepted = outcome_of_package(bytes(damaged), spec)
        read = outcome_of_decoder(bytes(damaged), spec)
        assert accepted is None or accepted == read


def outcome_of_package(stream: bytes, spec: PlaneSpec) -> bytes | None:
    """Symbols, or None for an error."""
    try:
        return CtxCodec().decode(stream, spec).tobytes()
    except ValueError:
        return None


def outcome_of_decoder(stream: bytes, spec: PlaneSpec) -> bytes | None:
    """Symbols, or None for one of the errors that decode_fly turns into its own."""
    plane = (4, stream, spec.count, spec.alphabet_size, spec.columns)
    try:
        return decode_planes([plane])[0].tobytes()
    except (FlyError, ArithmeticError, LookupError, StopIteration, ValueError):
        return None
