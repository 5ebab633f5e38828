"""Whole ANS streams, and the frequency tables in them."""

from __future__ import annotations

from flyweight.kernels.dispatch import implementation
from flyweight.reference import ans as reference
from flyweight.reference import weights as reference_weights
from flyweight.typing import BytesLike, Counts, Symbols

__all__ = ["ans_decode", "ans_encode", "choose_weights", "decode_weights"]


def ans_encode(symbols: Symbols, *, alphabet_size: int) -> bytes:
    """Symbols to a stream with its table, close to their order-0 information content.

    Parameters
    ----------
    symbols : (n,) uint8, C-contiguous, each below ``alphabet_size``
    alphabet_size : 1 to 256

    Returns
    -------
    the stream, the same bytes on every backend

    Raises
    ------
    InvalidArgumentError
        A symbol is outside the alphabet; the message has the first such position.
    TypeError
        Not a C-contiguous uint8 array of one dimension.

    References
    ----------
    docs/format.md, "ANS".

    Examples
    --------
    >>> import numpy as np
    >>> stream = ans_encode(np.zeros(1000, dtype=np.uint8), alphabet_size=16)
    >>> len(stream)
    2
    >>> int(ans_decode(stream, count=1000, alphabet_size=16).sum())
    0
    """
    return implementation(reference.ans_encode)(symbols, alphabet_size=alphabet_size)


def ans_decode(stream: BytesLike, *, count: int, alphabet_size: int) -> Symbols:
    """Inverse of :func:`ans_encode`.

    Parameters
    ----------
    stream : exactly what the encoder returned
    count : number of symbols; memory for them is allocated at once, so a count from a file must be
        checked by the caller
    alphabet_size : as for the encoder

    Returns
    -------
    (count,) uint8

    Raises
    ------
    CorruptStreamError
        The stream is damaged, or does not hold exactly ``count`` symbols of the alphabet.
    InvalidArgumentError
        A negative count, or an alphabet out of range.
    """
    return implementation(reference.ans_decode)(stream, count=count, alphabet_size=alphabet_size)


def choose_weights(counts: Counts, *, prob_bits: int) -> bytes:
    """The coded frequency table that makes table plus symbols smallest, of those that are tried.

    Parameters
    ----------
    counts : (alphabet,) int64 occurrences, 1 to 256 symbols, not all zero
    prob_bits : 8 to 15, log2 of the sum of the frequencies

    Returns
    -------
    coded weights, see :func:`decode_weights`

    References
    ----------
    docs/format.md, "Frequency tables".
    """
    return implementation(reference_weights.choose_weights)(counts, prob_bits=prob_bits)


def decode_weights(stream: BytesLike, *, alphabet_size: int) -> tuple[Counts, int]:
    """Weights of a coded table at the front of a stream, and the number of bytes that it took.

    Parameters
    ----------
    stream : bytes that begin with a table
    alphabet_size : 1 to 256

    Returns
    -------
    weights : (alphabet_size,) int64, 0 to 65535, not all zero
    taken : bytes

    Raises
    ------
    CorruptStreamError
        The bytes end early, a class is outside 0 to 16, padding is not zero, or the first or last
        symbol has no weight.
    """
    return implementation(reference_weights.decode_weights)(stream, alphabet_size=alphabet_size)
