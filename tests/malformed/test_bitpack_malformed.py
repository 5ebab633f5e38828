from __future__ import annotations

import numpy as np
import pytest

from checks import BACKENDS
from flyweight.errors import CorruptStreamError
from flyweight.kernels import backend, pack_bits, unpack_bits


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
