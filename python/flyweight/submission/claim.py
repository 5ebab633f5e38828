"""What a submission's script knows of its submission; shipped inside of it, as literals."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import DataError
from flyweight.evaluate.config import ScoreConfig

__all__ = ["ARTIFACT_FILE", "Claim", "read_byte_codes", "write_byte_codes"]

ARTIFACT_FILE = "model.fly"
_MAX_CODE = (1 << 16) - 1
_FIRST_LETTER = 58  # the character after "9"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Everything that differs between the scripts of two submissions."""

    weights_sha256: str
    """Of the weights that were scored; see `flyweight.submission.digest`."""
    tokenizer_sha256: str
    """Of the SentencePiece model that made the shards."""
    byte_codes: str
    """Bytes per token id; see `write_byte_codes`. Empty where sidecars of the data count them."""
    protocols: dict[str, ScoreConfig]
    """Protocol name to config."""
    headline: str
    """The protocol whose score is claimed."""
    contaminated: bool = False
    """The weights were trained on the text that is scored."""


def write_byte_codes(codes: NDArray[Any]) -> str:
    """Codes of a `ByteTable`, ``(vocab,)`` below 65,536, as text for a Python literal.

    Notes
    -----
    A run of equal codes is the character ``58 + code`` and, from 2 on, its length in decimal. These
    bytes are counted, so they must not depend on a zlib build: 665 for the challenge's 1,024 ids,
    where zlib and base85 take 543 and base85 alone 1,280 (8,192 ids: 7,765, 6,554 and 10,240).
    """
    runs = [(code, len(list(run))) for code, run in groupby(codes.tolist())]
    return "".join(chr(_FIRST_LETTER + code) + (str(n) if n > 1 else "") for code, n in runs)


def read_byte_codes(text: str) -> NDArray[np.uint16]:
    """The codes that `write_byte_codes` wrote, ``(vocab,)``.

    Raises
    ------
    DataError
        The text is damaged.
    """
    runs = re.findall(r"([^0-9])([0-9]{0,5})", text)
    codes = np.array([ord(letter) - _FIRST_LETTER for letter, _ in runs], dtype=np.int64)
    counts = np.array([int(count or 1) for _, count in runs], dtype=np.int64)
    is_whole = sum(map(len, map("".join, runs))) == len(text)
    is_valid = (codes >= 0).all() and (codes <= _MAX_CODE).all() and counts.sum() <= _MAX_CODE + 1
    if not (is_whole and is_valid):
        raise DataError("the byte table is damaged: expected runs of codes below 65,536")
    return np.repeat(codes, counts).astype(np.uint16)
