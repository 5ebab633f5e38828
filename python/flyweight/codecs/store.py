"""Symbols as they are, one byte each."""

from __future__ import annotations

from flyweight.codecs.codec import check_symbols, checked_decoded, register
from flyweight.typing import Symbols

__all__ = ["StoreCodec"]


class StoreCodec:
    """One byte a symbol; what nothing else can shrink."""

    codec_id = 0
    name = "store"
    decode_rank = 0

    def encode(self, symbols: Symbols, *, alphabet_size: int) -> bytes:
        check_symbols(symbols, alphabet_size=alphabet_size)
        return symbols.tobytes()

    def decode(self, stream: bytes | memoryview, *, count: int, alphabet_size: int) -> Symbols:
        return checked_decoded(
            bytes(stream), count=count, alphabet_size=alphabet_size, name=self.name
        )


register(StoreCodec())
