"""Brotli streams (RFC 7932) over one byte a symbol."""

from __future__ import annotations

import brotli

from flyweight.codecs.codec import check_symbols, checked_decoded, register
from flyweight.errors import CorruptStreamError
from flyweight.typing import Symbols

__all__ = ["BrotliCodec"]


class BrotliCodec:
    """One stream with a 16 MiB window; the quality is the encoder's choice.

    Parameters
    ----------
    quality : 0 to 11; any quality decodes the same way
    """

    codec_id = 3
    name = "brotli"
    decode_rank = 3

    def __init__(self, quality: int = 11) -> None:
        self.quality = quality

    def encode(self, symbols: Symbols, *, alphabet_size: int) -> bytes:
        check_symbols(symbols, alphabet_size=alphabet_size)
        encoded: bytes = brotli.compress(symbols.tobytes(), quality=self.quality, lgwin=24)
        return encoded

    def decode(self, stream: bytes | memoryview, *, count: int, alphabet_size: int) -> Symbols:
        decoder = brotli.Decompressor()
        try:
            # The limit bounds memory; a stream that holds more is noticed by its length.
            raw = decoder.process(bytes(stream), output_buffer_limit=count + 1)
            while len(raw) <= count and not decoder.is_finished():
                more = decoder.process(b"", output_buffer_limit=count + 1 - len(raw))
                if not more:
                    raise CorruptStreamError(
                        f"brotli: stream ends after {len(raw)} of {count} symbols"
                    )
                raw += more
        except brotli.error as error:
            raise CorruptStreamError(f"brotli: {error}") from error
        return checked_decoded(raw, count=count, alphabet_size=alphabet_size, name=self.name)


register(BrotliCodec())
