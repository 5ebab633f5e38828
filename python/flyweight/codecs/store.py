"""Symbols as they are, one byte each."""

from __future__ import annotations

from flyweight.codecs.codec import PlaneSpec, check_symbols, checked_decoded, register
from flyweight.typing import Symbols

__all__ = ["StoreCodec"]


class StoreCodec:
    """One byte a symbol; what nothing else can shrink."""

    codec_id = 0
    name = "store"
    decode_rank = 0

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> bytes:
        check_symbols(symbols, spec)
        return symbols.tobytes()

    def decode(self, stream: bytes | memoryview, spec: PlaneSpec) -> Symbols:
        return checked_decoded(bytes(stream), spec, name=self.name)


register(StoreCodec())
