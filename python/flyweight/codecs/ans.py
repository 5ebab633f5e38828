"""Static range ANS: one frequency table for all symbols of the stream (docs/format.md, "ANS")."""

from __future__ import annotations

import numpy as np

from flyweight.codecs.codec import PlaneSpec, check_symbols, is_credible, register
from flyweight.codecs.freq_table import choose_table, code_length, decode_table
from flyweight.errors import CorruptStreamError
from flyweight.kernels.rans import histogram, normalize_counts, rans_decode, rans_encode
from flyweight.typing import Counts, Symbols

__all__ = ["AnsCodec"]

MIN_PROB_BITS = 8
MODE_SINGLE = 0
MODE_TABLE = 1
SYMBOLS_PER_WAY = 16384
DENSE_WAYS = 32
LARGE_STREAM = 1 << 21
MAX_LOG_WAYS = 6
PROB_BITS_CHOICES = (8, 10, 12, 13, 14)
STATE_LOSS_AT_14_BITS = 3e-4
"""Bits a symbol that 16-bit words lose at 14 bits, a quarter of it per bit less (decision 0001)."""


class AnsCodec:
    """Interleaved rANS with a table of a few tens of bytes.

    Notes
    -----
    Header byte: bits 0-2 ``prob_bits - 8``, bits 3-5 ``log2(ways)``, bits 6-7 the table mode.
    """

    codec_id = 1
    name = "ans"
    decode_rank = 1

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> bytes:
        check_symbols(symbols, spec)
        counts = histogram(np.ascontiguousarray(symbols), alphabet_size=spec.alphabet_size)
        if np.count_nonzero(counts) <= 1 and is_credible(symbols.size, 2):
            return bytes([MODE_SINGLE << 6, int(counts.argmax())])
        prob_bits = choose_prob_bits(counts)
        table, freqs = choose_table(counts, prob_bits=prob_bits)
        ways = choose_ways(symbols.size)
        header = (prob_bits - MIN_PROB_BITS) | (ways.bit_length() - 1) << 3 | MODE_TABLE << 6
        stream = rans_encode(np.ascontiguousarray(symbols), freqs, prob_bits=prob_bits, ways=ways)
        return bytes([header]) + table + stream

    def decode(self, stream: bytes | memoryview, spec: PlaneSpec) -> Symbols:
        view = memoryview(stream)
        mode, ways, prob_bits = _read_header(view)
        if mode == MODE_SINGLE:
            return _decode_single(view, spec)
        weights, taken = decode_table(view[1:], alphabet_size=spec.alphabet_size)
        freqs = normalize_counts(weights, prob_bits=prob_bits)
        return rans_decode(
            view[1 + taken :], freqs, count=spec.count, prob_bits=prob_bits, ways=ways
        )

    @staticmethod
    def overhead_bytes(stream: bytes | memoryview, *, alphabet_size: int) -> int:
        """Bytes of a stream that are its header and table, not coded symbols."""
        view = memoryview(stream)
        mode, _, _ = _read_header(view)
        if mode == MODE_SINGLE:
            return len(view)
        return 1 + decode_table(view[1:], alphabet_size=alphabet_size)[1]


def choose_ways(count: int) -> int:
    """Ways of a stream: more where decoding speed pays for their three bytes each."""
    if count >= LARGE_STREAM:
        return 1 << MAX_LOG_WAYS
    ways = 1
    while ways < DENSE_WAYS and ways * SYMBOLS_PER_WAY < count:
        ways *= 2
    return ways


def choose_prob_bits(counts: Counts) -> int:
    """The precision with the shortest expected stream, the smaller one among equals."""

    def bits(prob_bits: int) -> float:
        freqs = normalize_counts(counts, prob_bits=prob_bits)
        state_loss = float(counts.sum()) * STATE_LOSS_AT_14_BITS * 4.0 ** (prob_bits - 14)
        return code_length(counts, freqs, prob_bits=prob_bits) + state_loss

    return min((p for p in PROB_BITS_CHOICES if np.count_nonzero(counts) <= 1 << p), key=bits)


def _read_header(view: memoryview) -> tuple[int, int, int]:
    """Table mode, ways and prob_bits of a stream."""
    if len(view) < 2:
        raise CorruptStreamError(f"ans: stream has {len(view)} bytes, expected at least 2")
    mode, log_ways, extra_bits = view[0] >> 6, view[0] >> 3 & 7, view[0] & 7
    if mode not in (MODE_SINGLE, MODE_TABLE):
        raise CorruptStreamError(f"ans: table mode {mode} is not defined")
    if log_ways > MAX_LOG_WAYS:
        raise CorruptStreamError(f"ans: 2**{log_ways} ways, expected at most 2**{MAX_LOG_WAYS}")
    return mode, 1 << log_ways, MIN_PROB_BITS + extra_bits


def _decode_single(view: memoryview, spec: PlaneSpec) -> Symbols:
    if view[0] != MODE_SINGLE << 6 or len(view) != 2 or view[1] >= spec.alphabet_size:
        raise CorruptStreamError(
            f"ans: a one-symbol stream is a zero byte and a symbol below {spec.alphabet_size}, "
            f"got {bytes(view[:4]).hex(' ')}"
        )
    return np.full(spec.count, view[1], dtype=np.uint8)


register(AnsCodec())
