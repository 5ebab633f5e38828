"""What a submission's script knows of its submission; shipped inside of it, as literals."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.evaluate.config import ScoreConfig

__all__ = ["ARTIFACT_FILE", "Claim", "read_byte_codes", "write_byte_codes"]

ARTIFACT_FILE = "model.fly"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Everything that differs between the scripts of two submissions."""

    weights_sha256: str
    """Of the weights that were scored; see `flyweight.submission.digest`."""
    tokenizer_sha256: str
    """Of the SentencePiece model that made the shards."""
    byte_codes: str
    """Bytes per token id; see `write_byte_codes`."""
    protocols: dict[str, ScoreConfig]
    """Protocol name to config."""
    headline: str
    """The protocol whose score is claimed."""


def write_byte_codes(codes: NDArray[Any]) -> str:
    """Codes of a `ByteTable`, ``(vocab,)`` below 65,536, as text for a Python literal."""
    return base64.b85encode(zlib.compress(codes.astype("<u2").tobytes(), 9)).decode()


def read_byte_codes(text: str) -> NDArray[np.uint16]:
    """The codes that `write_byte_codes` wrote, ``(vocab,)``."""
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype="<u2")
