"""Static range ANS: one frequency table for all symbols of the stream (docs/format.md, "ANS")."""

from __future__ import annotations

from flyweight.codecs.codec import PlaneSpec, check_run, register
from flyweight.kernels.ans import ans_decode, ans_encode, decode_weights
from flyweight.typing import Symbols

__all__ = ["AnsCodec"]

MODE_SINGLE = 0


class AnsCodec:
    """Interleaved rANS with a table of a few tens of bytes."""

    codec_id = 1
    name = "ans"
    decode_rank = 1

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> bytes:
        check_run(symbols, spec)  # the kernel, which counts them, finds symbols that do not fit
        return ans_encode(symbols, alphabet_size=spec.alphabet_size)

    def decode(self, stream: bytes | memoryview, spec: PlaneSpec) -> Symbols:
        return ans_decode(stream, count=spec.count, alphabet_size=spec.alphabet_size)

    @staticmethod
    def overhead_bytes(stream: bytes | memoryview, *, alphabet_size: int) -> int:
        """Bytes of a stream that are its header and table, not coded symbols."""
        view = memoryview(stream)
        if view[0] >> 6 == MODE_SINGLE:
            return len(view)
        return 1 + decode_weights(view[1:], alphabet_size=alphabet_size)[1]


register(AnsCodec())
