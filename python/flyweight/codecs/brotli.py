"""Brotli streams (RFC 7932) over one byte a symbol."""

from __future__ import annotations

import brotli

from flyweight.codecs.codec import PlaneSpec, check_symbols, checked_decoded, register
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

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> bytes:
        check_symbols(symbols, spec)
        encoded: bytes = brotli.compress(symbols.tobytes(), quality=self.quality, lgwin=24)
        return encoded

    def decode(self, stream: bytes | memoryview, spec: PlaneSpec) -> Symbols:
        decoder = brotli.Decompressor()
        try:
            # The limit bounds memory; a stream that holds more is noticed by its length.
            raw = decoder.process(bytes(stream), output_buffer_limit=spec.count + 1)
            while len(raw) <= spec.count and not decoder.is_finished():
                more = decoder.process(b"", output_buffer_limit=spec.count + 1 - len(raw))
                if not more:
                    raise CorruptStreamError(
                        f"brotli: stream ends after {len(raw)} of {spec.count} symbols"
                    )
                raw += more
        except brotli.error as error:
            raise CorruptStreamError(f"brotli: {error}") from error
        return checked_decoded(raw, spec, name=self.name)


register(BrotliCodec())
