"""The auditor's search for answers in a folder: validation text that is shipped, not predicted.

A model that finds a part of the text in a file predicts it for nothing (a paid prefix, if the file
counts; if it does not, nobody even paid). The text is looked for as it lies in shards, 16-bit ids
in little endian, and as UTF-8. What is compressed or encrypted is not found.

The stream is cut into adjacent pieces, and each place of a file is held against all of them, so a
run that is twice as long as a piece is always found, wherever it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flyweight.data.facts import DataInfo
from flyweight.data.shards import iter_chunks
from flyweight.data.tokenizer import Tokenizer
from flyweight.errors import DataError

__all__ = ["TEXT_PIECE", "TOKEN_PIECE", "PieceIndex", "index_validation"]

TOKEN_PIECE = 64
"""Ids in a piece. Documents that are taken for near copies of each other share 50 (Lee et al. 2022,
"Deduplicating training data makes language models better"), and no other file has ids."""
TEXT_PIECE = 1024
"""Bytes in a piece: a page, longer than the notices, licence paragraphs and quotations that a
README may share with the web, and of no use to a score in smaller pieces."""
_WORDS = 16
"""64-bit words of a piece that are compared, evenly spaced: all of one of ids."""
_LEAST_DISTINCT = 12
"""Of these words, so that rules of dashes and tables of equal numbers are nobody's text."""
_FACTORS = np.random.default_rng(0).integers(1, 1 << 63, size=_WORDS, dtype=np.uint64) | 1
_FILE_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PieceIndex:
    """Pieces of a stream, known by a hash of 64 bits: of 10^7 places of a file and 10^6 pieces two
    meet by chance once in a million folders."""

    kind: str
    """What messages call it."""
    size: int
    """Bytes of a piece, a multiple of 128."""
    hashes: NDArray[np.uint64]
    """``(pieces,)``, sorted."""

    @classmethod
    def of(cls, kind: str, streams: Iterator[bytes], size: int) -> Self:
        """The pieces of a stream that comes in parts; what is left at the end of one is dropped."""
        parts = [np.empty(0, dtype=np.uint64)]
        for stream in streams:
            count = len(stream) // size
            words = np.frombuffer(stream, "<u8", count * size // 8).reshape(count, size // 8)
            words = words[:, :: size // (8 * _WORDS)]
            steps = np.diff(np.sort(words, axis=1), axis=1) != 0
            parts.append((words * _FACTORS).sum(axis=1)[steps.sum(axis=1) >= _LEAST_DISTINCT - 1])
        return cls(kind=kind, size=size, hashes=np.unique(np.concatenate(parts)))

    def find(self, path: Path) -> int | None:
        """The first byte of a file where a piece begins; None if there is none."""
        length = path.stat().st_size
        if length < self.size or not self.hashes.size:
            return None
        data = np.memmap(path, dtype=np.uint8, mode="r")
        for start in range(0, length - self.size + 1, _FILE_CHUNK):
            place = self._find(data[start : start + _FILE_CHUNK + self.size - 1].tobytes())
            if place is not None:
                return start + place
        return None

    def _find(self, data: bytes) -> int | None:
        spacing, found = self.size // (8 * _WORDS), []
        for shift in range(min(8, len(data) - self.size + 1)):
            words = np.frombuffer(data, "<u8", (len(data) - shift) // 8, shift)
            places = words.size - self.size // 8 + 1
            hashes = np.zeros(places, dtype=np.uint64)
            for index, factor in enumerate(_FACTORS):
                hashes += words[index * spacing : index * spacing + places] * factor
            nearest = np.searchsorted(self.hashes, hashes).clip(max=self.hashes.size - 1)
            hits = np.flatnonzero(self.hashes[nearest] == hashes)
            found += [8 * int(hit) + shift for hit in hits[:1]]
        return min(found, default=None)


def index_validation(data: DataInfo) -> tuple[PieceIndex, PieceIndex]:
    """Validation ids and their text, to be looked for in files.

    Raises
    ------
    DataError
        Shards or tokenizer are missing or malformed.
    """
    shards = [data.folder / shard.name for shard in data.val.shards]
    pieces = Tokenizer(data.tokenizer_path).pieces()
    ids = (chunk.astype("<u2", copy=False).tobytes() for chunk in iter_chunks(shards))
    texts = (b"".join([pieces[i] for i in chunk.tolist()]) for chunk in iter_chunks(shards))
    try:
        return (
            PieceIndex.of("validation tokens as 16-bit ids", ids, 2 * TOKEN_PIECE),
            PieceIndex.of("validation text", texts, TEXT_PIECE),
        )
    except IndexError as error:
        raise DataError(
            f"{data.folder}: the shards have ids that are not in the vocabulary of {len(pieces)}"
        ) from error
