"""The codec protocol: symbols to bytes and back, under a stable id.

A codec sees a run of symbols ``0 .. alphabet_size - 1`` and knows nothing of tensors but how long
their rows are. It does not store its :class:`PlaneSpec`; the directory of the file implies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from flyweight.errors import CorruptStreamError, InvalidArgumentError, UnsupportedError
from flyweight.typing import Symbols

__all__ = ["Codec", "PlaneSpec", "codec_by_id", "codec_by_name", "codec_names", "register"]


@dataclass(frozen=True, slots=True)
class PlaneSpec:
    """What a codec must know of a run of symbols and its stream does not store."""

    count: int
    """Symbols in the run: whole rows of them."""
    alphabet_size: int
    """1 to 256; symbols are less."""
    columns: int
    """Symbols in a row, for codecs that look at rows and columns; the count if there are none."""


@runtime_checkable
class Codec(Protocol):
    """What turns symbols into bytes.

    Notes
    -----
    ``decode(encode(symbols)) == symbols`` for every input; the same input gives the same bytes.
    ``decode`` gets hostile bytes: it raises a typed error or returns exactly ``count`` symbols.
    """

    codec_id: int
    """Number in the file; never reused."""
    name: str
    """What users call it."""
    decode_rank: int
    """Order of decoding speed, 0 is the fastest; breaks ties of size."""

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> bytes:
        """Bytes of the ``(spec.count,)`` uint8 symbols, each less than ``spec.alphabet_size``.

        Raises
        ------
        InvalidArgumentError
            The symbols are not what ``spec`` says.
        """

    def decode(self, stream: bytes | memoryview, spec: PlaneSpec) -> Symbols:
        """The ``(spec.count,)`` uint8 symbols of a stream.

        Raises
        ------
        CorruptStreamError
            The stream is damaged, or does not hold exactly the symbols that ``spec`` says.
        """


FREE_SYMBOLS = 1 << 16
MAX_SYMBOLS_PER_BYTE = 1 << 14
"""Symbols that a stream may stand for: so many, and so many more per byte. Bounds the memory that a
small file can ask for."""

_BY_ID: dict[int, Codec] = {}


def register(codec: Codec) -> Codec:
    """Add a codec; its id and name must be free."""
    for other in _BY_ID.values():
        if codec.codec_id == other.codec_id or codec.name == other.name:
            raise InvalidArgumentError(
                f"codec {codec.name!r} (id {codec.codec_id}) clashes with {other.name!r} "
                f"(id {other.codec_id})"
            )
    _BY_ID[codec.codec_id] = codec
    return codec


def codec_by_id(codec_id: int) -> Codec:
    """The codec that a file names by number."""
    if codec_id not in _BY_ID:
        known = ", ".join(f"{c.codec_id} ({c.name})" for c in _BY_ID.values())
        raise UnsupportedError(f"codec id {codec_id} is not known here; known are {known}")
    return _BY_ID[codec_id]


def codec_by_name(name: str) -> Codec:
    """The codec that a user names."""
    for codec in _BY_ID.values():
        if codec.name == name:
            return codec
    raise InvalidArgumentError(f"no codec {name!r}; there are {', '.join(codec_names())}")


def codec_names() -> list[str]:
    """Names of all codecs, by id."""
    return [_BY_ID[codec_id].name for codec_id in sorted(_BY_ID)]


def is_credible(count: int, length: int) -> bool:
    """Whether readers accept ``count`` symbols in a stream of ``length`` bytes."""
    return count <= FREE_SYMBOLS + length * MAX_SYMBOLS_PER_BYTE


def check_symbols(symbols: Symbols, spec: PlaneSpec) -> None:
    """Refuse symbols that are not the flat uint8 run that ``spec`` says."""
    check_run(symbols, spec)
    if symbols.size and int(symbols.max()) >= spec.alphabet_size:
        position = int(np.argmax(symbols >= spec.alphabet_size))
        raise InvalidArgumentError(
            f"symbol {int(symbols[position])} at position {position} is outside the alphabet "
            f"of {spec.alphabet_size}"
        )


def check_run(symbols: Symbols, spec: PlaneSpec) -> None:
    """Refuse what is not a flat uint8 array of the right size."""
    if symbols.dtype != np.uint8 or symbols.ndim != 1:
        raise InvalidArgumentError(
            f"symbols must be a flat uint8 array, got {symbols.dtype} of shape {symbols.shape}"
        )
    if symbols.size != spec.count:
        raise InvalidArgumentError(f"got {symbols.size} symbols, expected {spec.count}")


def checked_decoded(raw: bytes, spec: PlaneSpec, *, name: str) -> Symbols:
    """Symbols of a byte codec's output, held to the declared count and alphabet."""
    if len(raw) != spec.count:
        raise CorruptStreamError(f"{name}: stream holds {len(raw)} symbols, expected {spec.count}")
    symbols = np.frombuffer(raw, dtype=np.uint8)
    check_alphabet(symbols, alphabet_size=spec.alphabet_size, name=name)
    return symbols


def check_alphabet(symbols: Symbols, *, alphabet_size: int, name: str) -> None:
    """Refuse decoded symbols outside of the declared alphabet."""
    if symbols.size and int(symbols.max()) >= alphabet_size:
        position = int(np.argmax(symbols >= alphabet_size))
        raise CorruptStreamError(
            f"{name}: symbol {int(symbols[position])} at {position} is outside the alphabet "
            f"of {alphabet_size}"
        )
