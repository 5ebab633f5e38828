"""Codecs side by side on one's own tensors: bytes, overhead, and speed.

The clock comes in as an argument, so that everything here but the times is a function of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

import flyweight.codecs.select  # noqa: F401 (registers the codecs)
from flyweight.codecs.brotli import BrotliCodec
from flyweight.codecs.codec import Codec, codec_by_name, codec_names
from flyweight.codecs.layout import BYTE_PLANES, PLAIN, Plane, split_planes
from flyweight.codecs.zstd import ZstdCodec
from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.format.inspect import information_bits
from flyweight.format.stored import Stored
from flyweight.quant.grid import QuantizedTensor, matrix_shape

__all__ = ["BakeOff", "CodecTotal", "TensorResult", "bake_off", "default_codecs"]

MAX_REPEATS = 3
REPEAT_BELOW_SECONDS = 0.1
"""Calls are repeated, and the fastest taken, while they have not taken so long together."""

Clock = Callable[[], float]
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorResult:
    """One tensor, coded by every codec."""

    name: str
    """Tensor name."""
    role: str
    """``codes``, or ``data`` for a tensor that is kept: one plane per byte of its dtype."""
    symbols: int
    """What the codecs saw: codes, or bytes of the kept tensor."""
    information_bits: float
    """Order-0 information content, of each plane under its own histogram."""
    sizes: dict[str, int]
    """Bytes by codec."""
    winner: str
    """The codec with the fewest bytes, the faster decoder among equals."""

    @property
    def overhead(self) -> float:
        """The winner's bytes over the information content, minus 1."""
        return _overhead(self.sizes[self.winner], self.information_bits)


@dataclass(slots=True, kw_only=True)
class CodecTotal:
    """One codec on all tensors."""

    codec: str
    """Name, with its level where it has one."""
    size: int = 0
    """Bytes of all streams."""
    encode_seconds: float = 0.0
    """To encode everything once, one call after the other."""
    decode_seconds: float = 0.0
    """To decode it."""
    wins: int = 0
    """Tensors that it codes smallest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeOff:
    """All tensors and all codecs."""

    tensors: list[TensorResult] = field(default_factory=list)
    """In the order of the input; tensors without elements are left out."""
    codecs: list[CodecTotal] = field(default_factory=list)
    """In the order asked for."""

    @property
    def symbols(self) -> int:
        """Symbols of all tensors; one byte each before coding."""
        return sum(tensor.symbols for tensor in self.tensors)

    @property
    def information_bits(self) -> float:
        """Order-0 information content of all tensors."""
        return sum(tensor.information_bits for tensor in self.tensors)

    @property
    def smallest_size(self) -> int:
        """Bytes with the winner of each tensor."""
        return sum(tensor.sizes[tensor.winner] for tensor in self.tensors)

    def overhead(self, size: int) -> float:
        """A size of all tensors over their information content, minus 1."""
        return _overhead(size, self.information_bits)


def default_codecs() -> list[str]:
    """flyweight's own entropy coders, and the fast and the strong end of zstd and brotli."""
    own = [name for name in codec_names() if name not in ("store", "zstd", "brotli")]
    return [*own, "zstd-1", "zstd-22", "brotli-11"]


def bake_off(
    tensors: Mapping[str, Stored],
    codecs: Sequence[str],
    *,
    clock: Clock,
    progress: Callable[[int], object] = lambda symbols: None,
) -> BakeOff:
    """Code every tensor with every codec and back.

    Parameters
    ----------
    tensors : name to stored tensor; codes and kept tensors are coded, scales are not
    codecs : names, with a level for zstd (1 to 22) and brotli (0 to 11), such as ``zstd-19``
    clock : seconds since some moment; speeds come from its differences
    progress : told the symbols that each codec has finished with

    Raises
    ------
    InvalidArgumentError
        No codec, one twice, or one that there is not.
    CorruptStreamError
        A codec does not give back what it was given; the message names it and the tensor.
    """
    chosen = {name: _codec(name) for name in codecs}
    if not chosen or len(chosen) != len(codecs):
        raise InvalidArgumentError(f"codecs must be different ones, at least one, got {codecs}")
    totals = {name: CodecTotal(codec=name) for name in chosen}
    result = BakeOff(codecs=list(totals.values()))
    for name, stored in tensors.items():
        role, planes = _planes(stored)
        symbols = sum(plane.spec.count for plane in planes)
        if not symbols:
            continue
        sizes = {}
        for label, codec in chosen.items():
            try:
                sizes[label] = _measure(codec, planes, totals[label], clock)
            except CorruptStreamError as error:
                raise CorruptStreamError(f"{label} on tensor {name!r}: {error}") from error
            progress(symbols)
        winner = min(sizes, key=lambda label: (sizes[label], chosen[label].decode_rank))
        totals[winner].wins += 1
        result.tensors.append(
            TensorResult(
                name=name,
                role=role,
                symbols=symbols,
                information_bits=sum(information_bits(plane.symbols) for plane in planes),
                sizes=sizes,
                winner=winner,
            )
        )
    return result


def _measure(codec: Codec, planes: Sequence[Plane], total: CodecTotal, clock: Clock) -> int:
    """Bytes of a tensor's streams; bytes and times are added to the codec's total."""
    size = 0
    for plane in planes:
        seconds, stream = _fastest(partial(codec.encode, plane.symbols, plane.spec), clock)
        total.encode_seconds += seconds
        seconds, symbols = _fastest(partial(codec.decode, stream, plane.spec), clock)
        total.decode_seconds += seconds
        if not np.array_equal(symbols, plane.symbols):
            raise CorruptStreamError("decoding gives other symbols than were encoded")
        size += len(stream)
    total.size += size
    return size


def _fastest(call: Callable[[], R], clock: Clock) -> tuple[float, R]:
    """Seconds of the fastest of a few calls, and what the last gave."""
    seconds: list[float] = []
    while True:
        start = clock()
        made = call()
        seconds.append(clock() - start)
        if len(seconds) == MAX_REPEATS or sum(seconds) >= REPEAT_BELOW_SECONDS:
            return min(seconds), made


def _codec(name: str) -> Codec:
    """A codec by name and level."""
    family, dash, level = name.partition("-")
    if not dash:
        return codec_by_name(name)
    levels = {"zstd": range(1, 23), "brotli": range(12)}
    if family not in levels or not level.isascii() or not level.isdigit():
        raise InvalidArgumentError(
            f"no codec {name!r}; there are {', '.join(codec_names())}, and zstd-LEVEL, brotli-LEVEL"
        )
    if int(level) not in levels[family]:
        lowest, highest = levels[family][0], levels[family][-1]
        raise InvalidArgumentError(f"{name}: the level must be {lowest} to {highest}")
    return ZstdCodec(int(level)) if family == "zstd" else BrotliCodec(int(level))


def _planes(stored: Stored) -> tuple[str, list[Plane]]:
    if isinstance(stored, QuantizedTensor):
        symbols = (stored.codes.astype(np.int16) - stored.grid.lo).astype(np.uint8)
        return "codes", split_planes(PLAIN, symbols, stored.grid.alphabet_size)
    values = stored.values.reshape(matrix_shape(stored.values.shape or (1,)))
    layout = BYTE_PLANES if values.itemsize > 1 else PLAIN
    return "data", split_planes(layout, values, 256)


def _overhead(size: int, information_bits: float) -> float:
    return 8 * size / information_bits - 1 if information_bits else 0.0
