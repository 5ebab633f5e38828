from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from checks import BACKENDS
from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.kernels import backend, pack_bits, unpack_bits, unpack_dequantize


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_wrong_sizes(name: str, bits: int) -> None:
    packed = pack_bits(np.zeros(13, dtype=np.uint8), bits=bits)
    with backend(name):
        for wrong in (packed[:-1], np.append(packed, np.uint8(0)), packed[:0]):
            with pytest.raises(CorruptStreamError, match=f"got {wrong.size}"):
                unpack_bits(wrong, bits=bits, count=13)


@pytest.mark.parametrize("name", BACKENDS)
def test_lying_counts_allocate_nothing(name: str) -> None:
    with backend(name), pytest.raises(CorruptStreamError, match="got 1"):
        unpack_bits(b"\0", bits=8, count=1 << 60)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("bits", "count"), [(1, 1), (1, 15), (3, 1), (5, 9), (7, 7)])
def test_every_padding_bit(name: str, bits: int, count: int) -> None:
    packed = pack_bits(np.zeros(count, dtype=np.uint8), bits=bits)
    with backend(name):
        for bit in range(count * bits % 8, 8):
            dirty = packed.copy()
            dirty[-1] |= 1 << bit
            with pytest.raises(CorruptStreamError, match="padding bits of the last byte"):
                unpack_bits(dirty, bits=bits, count=count)


@pytest.mark.parametrize("name", BACKENDS)
def test_lying_shapes(name: str) -> None:
    packed = pack_bits(np.zeros(12, dtype=np.uint8), bits=5)
    scales = np.ones((3, 1), np.float32)
    with backend(name):
        with pytest.raises(CorruptStreamError, match="15 symbols of 5 bits take 10 bytes, got 8"):
            unpack_dequantize(packed, scales, bits=5, lo=0, shape=(3, 5))
        with pytest.raises(CorruptStreamError, match="got 8"):
            unpack_dequantize(packed, scales, bits=5, lo=0, shape=(1 << 30, 1 << 30))
        dirty = packed.copy()
        dirty[-1] |= 0x80
        with pytest.raises(CorruptStreamError, match="padding bits of the last byte, 7"):
            unpack_dequantize(dirty, scales, bits=5, lo=0, shape=(3, 4))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 9}, "bits=9"),
        ({"bits": 0}, "bits=0"),
        ({"lo": 97}, "lo=97 with bits=5, expected -128 to 96"),
        ({"lo": -129}, "lo=-129"),
        ({"lo": 1 << 30}, f"lo={1 << 30}"),
        ({"shape": (-3, 4)}, "rows=-3"),
        ({"shape": (3, -4)}, "cols=-4"),
        ({"group_size": -1}, "group_size=-1"),
        ({"group_size": 3}, r"scales has shape \(3, 1\), expected \(3, 2\)"),
        ({"shape": (4, 3)}, r"scales has shape \(3, 1\), expected \(4, 1\)"),
        ({"dtype": "float64"}, "dtype='float64', expected 'float32' or 'bfloat16'"),
    ],
)
def test_values_out_of_range(name: str, changes: dict[str, Any], message: str) -> None:
    packed = pack_bits(np.zeros(12, dtype=np.uint8), bits=5)
    arguments: dict[str, Any] = {"bits": 5, "lo": -16, "shape": (3, 4)} | changes
    with backend(name), pytest.raises(InvalidArgumentError, match=message):
        unpack_dequantize(packed, np.ones((3, 1), np.float32), **arguments)


@pytest.mark.parametrize("name", BACKENDS)
def test_arrays_of_another_kind(name: str) -> None:
    codes, scales = np.zeros(12, np.int8), np.ones((3, 1), np.float32)
    packed = pack_bits(codes, bits=5, lo=-16)
    how: Any = {"bits": 5, "lo": -16, "shape": (3, 4)}
    with backend(name):
        for wrong in (codes.view(np.uint8), codes[::2], codes.reshape(3, 4), [1, 2]):
            with pytest.raises(TypeError, match=r"symbols, dtype=np\.int8\)"):
                pack_bits(wrong, bits=5, lo=-16)
        for wrong in (scales.astype(np.float64), scales.ravel(), np.ones((6, 1), np.float32)[::2]):
            with pytest.raises(TypeError, match=r"scales, dtype=np\.float32\)"):
                unpack_dequantize(packed, wrong, **how)
        for wrong in (np.ones(3, np.float16), np.ones((6, 1), np.float16)[::2]):
            with pytest.raises(TypeError, match=r"scales, dtype=np\.float16\)"):
                unpack_dequantize(packed, wrong, **how)


@pytest.mark.parametrize("name", BACKENDS)
def test_outputs_of_another_kind(name: str) -> None:
    codes = np.zeros(12, np.int8)
    packed = pack_bits(codes, bits=5, lo=-16)
    scales = np.ones((3, 1), np.float32)
    read_only = np.empty(12, np.int8)
    read_only.flags.writeable = False
    how: Any = {"bits": 5, "lo": -16, "shape": (3, 4)}
    with backend(name):
        for wrong in (
            np.empty(12, np.uint8),
            np.empty(13, np.int8),
            np.empty((12, 1), np.int8),
            np.empty(24, np.int8)[::2],
            read_only,
            bytearray(12),
        ):
            with pytest.raises(TypeError, match=r"out: .*np\.empty\(\(12,\), dtype=np\.int8\)"):
                unpack_bits(packed, bits=5, count=12, lo=-16, out=wrong)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"out: .*np\.empty\(\(8,\), dtype=np\.uint8\)"):
            pack_bits(codes, bits=5, lo=-16, out=np.empty(9, np.uint8))
        for dtype, wrong_dtype in (("float32", np.uint16), ("bfloat16", np.float32)):
            with pytest.raises(TypeError, match=r"out: .*np\.empty\(\(3, 4\), dtype=np\."):
                unpack_dequantize(
                    packed, scales, **how, dtype=dtype, out=np.empty((3, 4), wrong_dtype)
                )
        unaligned = np.zeros(49, np.uint8)[1:].view(np.float32).reshape(3, 4)
        with pytest.raises(TypeError, match="got one that is not aligned"):
            unpack_dequantize(packed, scales, **how, out=unaligned)


@pytest.mark.parametrize("name", BACKENDS)
def test_outputs_that_overlap_an_input(name: str) -> None:
    memory = np.zeros(40, np.uint8)
    with backend(name):
        with pytest.raises(InvalidArgumentError, match="out overlaps symbols"):
            pack_bits(memory[:16], bits=4, out=memory[15:23])
        with pytest.raises(InvalidArgumentError, match="out overlaps packed"):
            unpack_bits(memory[:8], bits=4, count=16, out=memory[:16])
        values = np.zeros((2, 8), np.float32)
        with pytest.raises(InvalidArgumentError, match="out overlaps scales"):
            unpack_dequantize(
                memory[:8], values[:1, :2].reshape(2, 1), bits=4, lo=0, shape=(2, 8), out=values
            )
        pack_bits(memory[:16], bits=4, out=memory[16:24])
