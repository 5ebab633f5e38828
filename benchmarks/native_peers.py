"""Peers from shared libraries that are built outside of this repository, called through ctypes.

Build each from its own source with ``-O3 -fPIC -shared`` and its own instruction set flags per file
(README.md). Output is new memory in every call, of the size that the library asks for, aligned to
64 bytes. A peer that crashes is noticed in a process of its own, and left out.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contenders import AbsentError, Contender
from flyweight.codecs.codec import PlaneSpec
from harness import cpu_flags

__all__ = ["crash_of", "open_fse", "open_htscodecs", "open_hypersonic"]

Symbols = NDArray[np.uint8]
BLOCK = 128 * 1024
BLOCK_HEADER = 4
ALIGNMENT = 64
HTSCODECS_X32 = 0x04
HTSCODECS_TIERS = {
    # name: (order, allowed encoders and decoders as rans_set_cpu takes them, CPU flag)
    "4x16 scalar": (0, 0, None),
    "32x sse4": (HTSCODECS_X32, 0x0101, "sse4_1"),
    "32x avx2": (HTSCODECS_X32, 0x0202, "avx2"),
    "32x avx512": (HTSCODECS_X32, 0x0404, "avx512f"),
}


class _Htscodecs:
    """rANS Nx16 of order 0, on one instruction set."""

    def __init__(self, library: ctypes.CDLL, tier: str) -> None:
        self.name = f"htscodecs {tier}"
        self._order, self._cpu, _ = HTSCODECS_TIERS[tier]
        self._library = library

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> Symbols:
        bound = self._library.rans_compress_bound_4x16(spec.count, self._order)
        out = _new(bound)
        size = ctypes.c_uint(bound)
        self._library.rans_set_cpu(self._cpu)
        done = self._library.rans_compress_to_4x16(
            symbols.ctypes.data, spec.count, out.ctypes.data, ctypes.byref(size), self._order
        )
        if not done:
            raise RuntimeError(f"{self.name}: encoding failed")
        return out[: size.value]

    def decode(self, stream: Symbols, spec: PlaneSpec) -> Symbols:
        out = _new(spec.count)
        size = ctypes.c_uint(spec.count)
        self._library.rans_set_cpu(self._cpu)
        done = self._library.rans_uncompress_to_4x16(
            stream.ctypes.data, stream.size, out.ctypes.data, ctypes.byref(size)
        )
        if not done or size.value != spec.count:
            raise RuntimeError(f"{self.name}: decoding failed")
        return out

    def size(self, stream: Symbols) -> int:
        return stream.size


class _Blocks:
    """FSE or Huff0 over blocks of 128 KiB, with 4 bytes a block for its size."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = {"FSE": "FSE 128 KiB, 12 bits", "HUF": "Huff0 128 KiB"}[name]
        self._is_fse = name == "FSE"
        self._bound = getattr(library, f"{name}_compressBound")
        self._is_error = getattr(library, f"{name}_isError")
        self._compress = library.FSE_compress2 if self._is_fse else library.HUF_compress
        self._more = (255, 12) if self._is_fse else ()
        self._decompress = getattr(library, f"{name}_decompress")

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> tuple[Symbols, list[int]]:
        blocks = -(-spec.count // BLOCK)
        room = self._bound(BLOCK)
        out = _new(spec.count + blocks * (room - BLOCK))
        source, target, sizes, offset = symbols.ctypes.data, out.ctypes.data, [], 0
        for start in range(0, spec.count, BLOCK):
            taken = min(BLOCK, spec.count - start)
            size = self._compress(target + offset, room, source + start, taken, *self._more)
            if self._is_error(size):
                raise RuntimeError(f"{self.name}: encoding failed")
            if size <= 1:  # 0: not compressible, 1: all alike
                size = 1 if size else taken
                out[offset : offset + size] = symbols[start : start + size]
            sizes.append(size)
            offset += size
        return out[:offset], sizes

    def decode(self, stream: tuple[Symbols, list[int]], spec: PlaneSpec) -> Symbols:
        data, sizes = stream
        out = _new(spec.count)
        source, target, start, offset = data.ctypes.data, out.ctypes.data, 0, 0
        for size in sizes:
            expected = min(BLOCK, spec.count - start)
            if size in (1, expected):
                out[start : start + expected] = data[offset : offset + size]
            elif self._decompress(target + start, expected, source + offset, size) != expected:
                raise RuntimeError(f"{self.name}: decoding failed")
            offset += size
            start += expected
        return out

    def size(self, stream: tuple[Symbols, list[int]]) -> int:
        data, sizes = stream
        return data.size + BLOCK_HEADER * len(sizes)


class _Hypersonic:
    """hypersonic-rANS 32x64 16w with 12 bits: the scalar encoder, and one of its decoders."""

    def __init__(self, library: ctypes.CDLL, tier: str) -> None:
        self.name = f"hypersonic 32x64 {tier}"
        decoder = {
            "avx2": "_Z42rANS32x64_xmmShfl2_16w_decode_avx2_varC_12PKhmPhm",
            "avx512": "_Z44rANS32x64_ymmShfl2_16w_decode_avx512_varC_12PKhmPhm",
        }[tier]
        self._histogram = _function(library, "_Z9make_histP6hist_tPKhmm", None, "ppzz")
        self._capacity = _function(library, "_Z22rANS32x64_16w_capacitym", ctypes.c_size_t, "z")
        encoder = "_Z30rANS32x64_16w_encode_scalar_12PKhmPhmPK6hist_t"
        self._encode = _function(library, encoder, ctypes.c_size_t, "pzpzp")
        self._decode = _function(library, decoder, ctypes.c_size_t, "pzpz")

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> Symbols:
        histogram = np.empty(512, dtype=np.uint16)
        out = _new(self._capacity(spec.count))
        self._histogram(histogram.ctypes.data, symbols.ctypes.data, spec.count, 12)
        size = self._encode(
            symbols.ctypes.data, spec.count, out.ctypes.data, out.size, histogram.ctypes.data
        )
        if not size:
            raise RuntimeError(f"{self.name}: encoding failed")
        return out[:size]

    def decode(self, stream: Symbols, spec: PlaneSpec) -> Symbols:
        out = _new(spec.count)
        size = self._decode(stream.ctypes.data, stream.size, out.ctypes.data, out.size)
        if size != spec.count:
            raise RuntimeError(f"{self.name}: decoding failed")
        return out

    def size(self, stream: Symbols) -> int:
        return stream.size


def open_htscodecs(path: Path) -> list[Contender]:
    """rANS Nx16 (samtools/htscodecs) on every instruction set that this machine has."""
    library = _load(path)
    _function(library, "rans_compress_bound_4x16", ctypes.c_uint, "ui")
    _function(library, "rans_compress_to_4x16", ctypes.c_void_p, "pupqi")
    _function(library, "rans_uncompress_to_4x16", ctypes.c_void_p, "pupq")
    _function(library, "rans_set_cpu", None, "i")
    flags = cpu_flags()
    return [
        _Htscodecs(library, t) for t, (_, _, f) in HTSCODECS_TIERS.items() if f in {None, *flags}
    ]


def open_fse(path: Path) -> list[Contender]:
    """FSE and Huff0 (Cyan4973/FiniteStateEntropy)."""
    library = _load(path)
    for name in ("FSE", "HUF"):
        _function(library, f"{name}_compressBound", ctypes.c_size_t, "z")
        _function(library, f"{name}_isError", ctypes.c_uint, "z")
        _function(library, f"{name}_decompress", ctypes.c_size_t, "pzpz")
    _function(library, "FSE_compress2", ctypes.c_size_t, "pzpzuu")
    _function(library, "HUF_compress", ctypes.c_size_t, "pzpz")
    return [_Blocks(library, "FSE"), _Blocks(library, "HUF")]


def open_hypersonic(path: Path) -> list[Contender]:
    """hypersonic-rANS (rainerzufalldererste), under the names that g++ and clang++ give."""
    library = _load(path)
    flags = cpu_flags()
    tiers = {"avx2": {"avx2"}, "avx512": {"avx512f", "avx512dq", "avx512bw"}}
    return [_Hypersonic(library, tier) for tier, needed in tiers.items() if needed <= flags]


def crash_of(contender: Contender) -> str | None:
    """What happens to a process that codes a little and back; None where all goes well."""
    child = multiprocessing.get_context("fork").Process(target=_try_out, args=(contender,))
    child.start()
    child.join()
    code = child.exitcode
    if code == 0:
        return None
    return f"dies of signal {-code}" if code and code < 0 else "fails, or gives other symbols back"


def _try_out(contender: Contender) -> None:
    rng = np.random.default_rng(0)
    for count in (4096, 16_391, 1_000_003):
        symbols = rng.normal(31, 6, count).clip(0, 62).astype(np.uint8)
        spec = PlaneSpec(count, 63, count)
        if not np.array_equal(contender.decode(contender.encode(symbols, spec), spec), symbols):
            os._exit(1)
    os._exit(0)


def _new(size: int) -> Symbols:
    """New memory, aligned to 64 bytes: some kernels stream their output only then."""
    room = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        raise AbsentError(f"cannot be loaded: {error}") from error


_TYPES = {
    "p": ctypes.c_void_p,
    "q": ctypes.POINTER(ctypes.c_uint),
    "u": ctypes.c_uint,
    "i": ctypes.c_int,
    "z": ctypes.c_size_t,
}


def _function(library: ctypes.CDLL, name: str, result: Any, arguments: str) -> Any:
    """A function with its types declared; letters of ``arguments`` are keys of ``_TYPES``."""
    try:
        found = getattr(library, name)
    except AttributeError as error:
        raise AbsentError(f"has no function {name}") from error
    found.restype = result
    found.argtypes = [_TYPES[letter] for letter in arguments]
    return found
