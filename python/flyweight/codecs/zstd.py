"""Zstandard frames (RFC 8878) over one byte a symbol."""

from __future__ import annotations

import zstandard

from flyweight.codecs.codec import PlaneSpec, check_symbols, checked_decoded, register
from flyweight.errors import CorruptStreamError
from flyweight.typing import Symbols

__all__ = ["ZstdCodec"]


class ZstdCodec:
    """One frame without content size, checksum or dictionary id; the level is the encoder's choice.

    Parameters
    ----------
    level : 1 to 22; any level decodes the same way
    """

    codec_id = 2
    name = "zstd"
    decode_rank = 2

    def __init__(self, level: int = 22) -> None:
        self.level = level

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> bytes:
        check_symbols(symbols, spec)
        compressor = zstandard.ZstdCompressor(
            level=self.level, write_checksum=False, write_content_size=False, write_dict_id=False
        )
        return compressor.compress(symbols.tobytes())

    def decode(self, stream: bytes | memoryview, spec: PlaneSpec) -> Symbols:
        try:
            # A frame that says its size gets that much memory, whatever max_output_size says.
            declared = zstandard.frame_content_size(bytes(stream))
            if declared > spec.count:
                raise CorruptStreamError(
                    f"zstd: the frame says {declared} symbols, expected {spec.count}"
                )
            raw = zstandard.ZstdDecompressor().decompress(
                bytes(stream), max_output_size=max(spec.count, 1), allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise CorruptStreamError(f"zstd: {error}") from error
        return checked_decoded(raw, spec, name=self.name)


register(ZstdCodec())
