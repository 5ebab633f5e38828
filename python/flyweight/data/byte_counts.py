"""How many bytes of the original text a token stands for: the denominator of bits per byte.

The tokenizer fixes three facts about each token id: its own bytes, whether a space precedes it, and
whether it is a boundary (control, unknown, unused) after which no space is written. A submission
ships them as one small integer per id, and so needs no tokenizer to be scored.

Where the text was transformed before it was tokenized, the same id stands for more or fewer bytes
of the original in one place than in another. Then a count per token, a sidecar, replaces the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError

__all__ = ["ByteSidecar", "ByteTable", "count_bytes"]


def count_bytes(
    previous: NDArray[Any],
    current: NDArray[Any],
    *,
    base: NDArray[np.int64],
    has_space: NDArray[np.bool_],
    is_boundary: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Bytes of text of each token, given the token before it.

    Parameters
    ----------
    previous, current : (n,) integers, token ids: the token before, and the token counted
    base : (vocab,) int64, UTF-8 bytes of the piece without its leading space mark
    has_space : (vocab,) bool, the piece begins with the space mark
    is_boundary : (vocab,) bool, no space is written after this token

    Returns
    -------
    (n,) int64, ``base[cur] + (has_space[cur] and not is_boundary[prev])``

    Raises
    ------
    InvalidArgumentError
        The arrays differ in shape, or an id lies outside of the vocabulary.

    References
    ----------
    The accounting of train_gpt.py in openai/parameter-golf.
    """
    if previous.shape != current.shape:
        raise InvalidArgumentError(
            f"byte counts: {previous.shape} previous tokens for {current.shape} current ones"
        )
    for name, ids in (("previous", previous), ("current", current)):
        outside = (ids < 0) | (ids >= base.size)
        if outside.any():
            where = int(np.argmax(outside))
            raise InvalidArgumentError(
                f"byte counts: {name} token {where} is id {ids.flat[where]}, "
                f"expected 0 to {base.size - 1}"
            )
    counts: NDArray[np.int64] = base[current] + (has_space[current] & ~is_boundary[previous])
    return counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ByteTable:
    """The byte facts of a vocabulary, read-only.

    Raises
    ------
    InvalidArgumentError
        The arrays are not of one length, a size is negative, or a boundary token has bytes.
    """

    base: NDArray[np.int64]
    """``(vocab,)``, UTF-8 bytes of the piece without its leading space mark."""
    has_space: NDArray[np.bool_]
    """``(vocab,)``, the piece begins with the space mark."""
    is_boundary: NDArray[np.bool_]
    """``(vocab,)``, control, unknown or unused: no bytes, and no space after it."""

    def __post_init__(self) -> None:
        kinds: tuple[tuple[str, type[np.generic]], ...] = (
            ("base", np.int64),
            ("has_space", np.bool_),
            ("is_boundary", np.bool_),
        )
        for name, dtype in kinds:
            column = np.array(getattr(self, name), dtype=dtype)
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        if self.base.ndim != 1 or not (
            self.base.shape == self.has_space.shape == self.is_boundary.shape
        ):
            raise InvalidArgumentError(
                f"byte table: expected three arrays (vocab,), got {self.base.shape}, "
                f"{self.has_space.shape} and {self.is_boundary.shape}"
            )
        wrong = (self.base < 0) | (self.is_boundary & ((self.base > 0) | self.has_space))
        if wrong.any():
            raise InvalidArgumentError(
                f"byte table: token {int(np.argmax(wrong))} has a negative size, or is a boundary "
                "that has bytes"
            )

    def count(self, previous: NDArray[Any], current: NDArray[Any]) -> NDArray[np.int64]:
        """Bytes of each current token; see `count_bytes`."""
        return count_bytes(
            previous,
            current,
            base=self.base,
            has_space=self.has_space,
            is_boundary=self.is_boundary,
        )

    def total(self, chunks: Iterable[NDArray[Any]]) -> int:
        """Bytes of all targets of a stream in chunks of ``(n,)`` ids: all its tokens but the first.

        Chunks of a million or so bound the memory: 62 M tokens at once would need gigabytes.
        """
        total = 0
        last: NDArray[Any] | None = None
        for chunk in chunks:
            stream = chunk if last is None else np.concatenate([last, chunk])
            total += int(self.count(stream[:-1], stream[1:]).sum())
            last = stream[-1:]
        return total

    @classmethod
    def from_token_bytes(cls, pieces: Sequence[bytes | None]) -> ByteTable:
        """The table of a tokenizer whose tokens are plain bytes, as those of tiktoken are.

        Parameters
        ----------
        pieces : raw bytes of each id, its space included; None for control tokens

        Notes
        -----
        Decoding a token and encoding the text again counts three bytes for each that is no UTF-8 by
        itself (openai/parameter-golf PR #1289: 4.13 % too many), so text never enters here.
        """
        return cls(
            base=np.array([len(piece or b"") for piece in pieces]),
            has_space=np.zeros(len(pieces), dtype=np.bool_),
            is_boundary=np.array([piece is None for piece in pieces]),
        )

    def to_codes(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """One integer per id: 0 for a boundary, else ``1 + 2 * base + has_space``.

        Returns
        -------
        (vocab,) uint8, or uint16 where a piece has more than 126 bytes

        Raises
        ------
        InvalidArgumentError
            A piece has more than 32,766 bytes.
        """
        codes = np.where(self.is_boundary, 0, 1 + 2 * self.base + self.has_space)
        if codes.max(initial=0) >= 1 << 16:
            raise InvalidArgumentError(
                f"byte table: token {int(np.argmax(codes))} has {self.base.max()} bytes, "
                "expected at most 32766"
            )
        if codes.max(initial=0) < 1 << 8:
            return codes.astype(np.uint8)
        return codes.astype(np.uint16)

    @classmethod
    def from_codes(cls, codes: NDArray[np.uint8] | NDArray[np.uint16]) -> ByteTable:
        """The table that `to_codes` wrote, from ``(vocab,)`` uint8 or uint16."""
        facts = np.maximum(codes.astype(np.int64), 1) - 1
        return cls(base=facts >> 1, has_space=facts & 1 == 1, is_boundary=codes == 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ByteSidecar:
    """Bytes of original text of each token of one stream, for text that was transformed.

    Raises
    ------
    InvalidArgumentError
        The counts are not one-dimensional integers of 0 or more.

    References
    ----------
    openai/parameter-golf PR #1729: ``fineweb_val_bytes_*.bin``.
    """

    counts: NDArray[Any]
    """``(tokens,)`` uint8 or uint16."""

    def __post_init__(self) -> None:
        kind = self.counts.dtype.kind
        if self.counts.ndim != 1 or kind not in "ui" or (self.counts < 0).any():
            raise InvalidArgumentError(
                "byte sidecar: expected (tokens,) integers of 0 or more, got "
                f"{self.counts.shape} {self.counts.dtype}"
            )

    def total(self, chunks: Iterable[NDArray[Any]]) -> int:
        """Bytes of all targets of the stream, given in chunks as to `ByteTable.total`.

        Raises
        ------
        InvalidArgumentError
            The stream is not as long as the sidecar.
        """
        tokens = sum(chunk.size for chunk in chunks)
        if tokens != self.counts.size:
            raise InvalidArgumentError(
                f"byte sidecar: {self.counts.size} counts for {tokens} tokens, expected one each"
            )
        return int(self.counts[1:].sum(dtype=np.int64))
