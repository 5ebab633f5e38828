"""Coders that Python can call: flyweight's own, memcpy, and compressors from the package index.

Every contender makes new output for each call, as flyweight's functions do: ``encode`` gets symbols
and gives a stream, ``decode`` gets the stream and gives the symbols; neither is handed a buffer.
"""

from __future__ import annotations

import importlib
import lzma
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import brotli
import numpy as np
import zstandard
from numpy.typing import NDArray

import flyweight.codecs.select  # noqa: F401 (registers the codecs)
from flyweight.codecs.codec import Codec, PlaneSpec, codec_by_name, codec_names
from flyweight.kernels import backend, cpu_tiers

__all__ = [
    "AbsentError",
    "Contender",
    "FlyweightContender",
    "MemcpyContender",
    "fast_contenders",
    "general_contender",
    "slow_contenders",
]

Symbols = NDArray[np.uint8]


class AbsentError(Exception):
    """A peer cannot be run here; the message says why."""


class Contender(Protocol):
    """What is measured."""

    name: str
    """As in the record."""

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> Any:
        """Anything that :meth:`decode` and :meth:`size` take."""

    def decode(self, stream: Any, spec: PlaneSpec) -> Symbols:
        """The symbols again."""

    def size(self, stream: Any) -> int:
        """Bytes that a file would have to hold; count and alphabet are known to the reader."""


class BytesContender:
    """A pair of functions from bytes to bytes."""

    def __init__(
        self, name: str, compress: Callable[..., bytes], decompress: Callable[..., bytes]
    ) -> None:
        self.name = name
        self._compress = compress
        self._decompress = decompress

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> bytes:
        return self._compress(symbols)

    def decode(self, stream: bytes, spec: PlaneSpec) -> Symbols:
        return np.frombuffer(self._decompress(stream, spec.count), dtype=np.uint8)

    def size(self, stream: bytes) -> int:
        return len(stream)


class FlyweightContender:
    """One codec on one instruction set; without a tier on the best, also in other threads."""

    def __init__(self, codec: str, tier: str | None = None) -> None:
        self.name = f"flyweight {codec}" + (f" {tier}" if tier else "")
        self._codec: Codec = codec_by_name(codec)
        self._tier = tier

    def _backend(self) -> AbstractContextManager[None]:
        return backend(self._tier) if self._tier else nullcontext()  # type: ignore[arg-type]

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> bytes:
        with self._backend():
            return self._codec.encode(symbols, spec)

    def decode(self, stream: bytes, spec: PlaneSpec) -> Symbols:
        with self._backend():
            return self._codec.decode(stream, spec)

    def size(self, stream: bytes) -> int:
        return len(stream)


class MemcpyContender:
    """The limit: one copy, to new memory as for the others."""

    name = "memcpy"

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> Symbols:
        return symbols.copy()

    def decode(self, stream: Symbols, spec: PlaneSpec) -> Symbols:
        return stream.copy()

    def size(self, stream: Symbols) -> int:
        return stream.nbytes


class ConstrictionContender:
    """constriction's ANS with one categorical model per tensor; 2 bytes a symbol of table.

    Symbols are made int32, which it wants, inside of the clock.
    """

    name = "constriction ANS"

    def __init__(self) -> None:
        try:
            self._stream = importlib.import_module("constriction").stream
        except ImportError as error:
            raise AbsentError(f"cannot be imported: {error}") from error

    def _model(self, shares: NDArray[np.float32]) -> Any:
        return self._stream.model.Categorical(shares, perfect=False)

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> tuple[Any, NDArray[np.float32]]:
        counts = np.bincount(symbols, minlength=spec.alphabet_size)
        shares = (counts / symbols.size).astype(np.float32)
        coder = self._stream.stack.AnsCoder()
        coder.encode_reverse(symbols.astype(np.int32), self._model(shares))
        return coder.get_compressed(), shares

    def decode(self, stream: tuple[Any, NDArray[np.float32]], spec: PlaneSpec) -> Symbols:
        words, shares = stream
        coder = self._stream.stack.AnsCoder(words)
        decoded: Symbols = coder.decode(self._model(shares), spec.count).astype(np.uint8)
        return decoded

    def size(self, stream: tuple[Any, NDArray[np.float32]]) -> int:
        words, shares = stream
        return int(words.nbytes) + 2 * shares.size


def fast_contenders() -> tuple[list[Contender], list[tuple[str, str]]]:
    """Those that code all of every stream in every round; and what is missing, with the reason."""
    found: list[Contender] = [MemcpyContender()]
    for codec in ("ans", "ctx"):
        if codec in codec_names():
            found += [FlyweightContender(codec, tier) for tier in cpu_tiers()]
    absent = [] if "ctx" in codec_names() else [("flyweight ctx", "not in this build")]
    found += [general_contender(name) for name in ("zstd-1", "zstd-3")]
    return found, absent


def slow_contenders() -> tuple[list[Contender], list[tuple[str, str]]]:
    """Those that are timed once, on a part of the stream; and what is missing, with the reason."""
    found = [general_contender(name) for name in ("zstd-22", "brotli-11", "xz-9e")]
    absent = []
    try:
        found.append(ConstrictionContender())
    except AbsentError as error:
        absent.append((ConstrictionContender.name, str(error)))
    return found, absent


def general_contender(name: str) -> Contender:
    """zstd, brotli or xz with a level, such as ``zstd-22``."""
    family, _, level = name.partition("-")
    return {"zstd": _zstd, "brotli": _brotli, "xz": _xz}[family](name, int(level.rstrip("e")))


def _zstd(name: str, level: int) -> Contender:
    return BytesContender(
        name,
        lambda symbols: zstandard.ZstdCompressor(level=level).compress(symbols),
        lambda stream, count: zstandard.ZstdDecompressor().decompress(
            stream, max_output_size=count
        ),
    )


def _brotli(name: str, quality: int) -> Contender:
    return BytesContender(
        name,
        lambda symbols: brotli.compress(symbols.tobytes(), quality=quality, lgwin=24),
        lambda stream, count: brotli.decompress(stream),
    )


def _xz(name: str, preset: int) -> Contender:
    return BytesContender(
        name,
        lambda symbols: lzma.compress(symbols.tobytes(), preset=preset | lzma.PRESET_EXTREME),
        lambda stream, count: lzma.decompress(stream),
    )
