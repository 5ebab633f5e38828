"""Static range ANS with interleaved states, and the frequency tables it codes by."""

from __future__ import annotations

from flyweight.kernels.dispatch import implementation
from flyweight.reference import freq_table as reference_table
from flyweight.reference import rans as reference
from flyweight.typing import BytesLike, Counts, Freqs, Symbols, Words

__all__ = ["histogram", "normalize_counts", "rans_bound", "rans_decode", "rans_encode"]


def histogram(symbols: Symbols, *, alphabet_size: int) -> Counts:
    """Occurrences of each symbol.

    Parameters
    ----------
    symbols : (n,) uint8, C-contiguous, each below ``alphabet_size``
    alphabet_size : 1 to 256

    Returns
    -------
    (alphabet_size,) int64

    Raises
    ------
    InvalidArgumentError
        A symbol is outside the alphabet; the message has the first such position.
    TypeError
        Not a C-contiguous uint8 array of one dimension.
    """
    return implementation(reference_table.histogram)(symbols, alphabet_size=alphabet_size)


def normalize_counts(counts: Counts, *, prob_bits: int) -> Freqs:
    """Integer frequencies that sum to a power of two and keep every seen symbol.

    Parameters
    ----------
    counts : (alphabet,) int64, occurrences, 1 to 256 symbols, sum below ``1 << 48``
    prob_bits : 8 to 15, log2 of the sum

    Returns
    -------
    (alphabet,) uint16, sums to ``1 << prob_bits``; zero exactly where the count is zero

    Raises
    ------
    InvalidArgumentError
        A negative count, only zeros, a sum of 2**48 or more, or an argument out of range.
    TypeError
        Not a C-contiguous int64 array of one dimension.

    Notes
    -----
    Shares are rounded down, but to at least 1; slots left over go to the largest remainders, and
    missing slots are taken one at a time from the largest frequency. Ties go to the lower symbol.
    All in integers: decoders run this too.

    References
    ----------
    docs/format.md, "Normalization".

    Examples
    --------
    >>> import numpy as np
    >>> normalize_counts(np.array([3, 0, 1]), prob_bits=8)
    array([192,   0,  64], dtype=uint16)
    """
    return implementation(reference_table.normalize_counts)(counts, prob_bits=prob_bits)


def rans_bound(count: int, *, ways: int) -> int:
    """Upper bound of the size of a stream.

    Parameters
    ----------
    count : number of symbols
    ways : 1, 2, 4, ... 64, interleaved states

    Returns
    -------
    bytes, ``4 * ways + 2 * count``

    Raises
    ------
    InvalidArgumentError
        A negative count, or ways that are not a power of two up to 64.
    """
    return implementation(reference.rans_bound)(count, ways=ways)


def rans_encode(
    symbols: Symbols,
    freqs: Freqs,
    *,
    prob_bits: int,
    ways: int,
    row_classes: Symbols | None = None,
    col_classes: Symbols | None = None,
    hidden: Words | None = None,
) -> bytes:
    """Symbols to a stream of about their information content under ``freqs``.

    Parameters
    ----------
    symbols : (n,) uint8, C-contiguous
    freqs : (alphabet,) or (tables, alphabet) uint16, C-contiguous, at most 256 tables; each sums to
        ``1 << prob_bits`` and is not zero for any symbol coded by it
    prob_bits : 8 to 15
    ways : 1, 2, 4, ... 64, interleaved states: each costs 4 bytes, of which it carries 1 byte of
        the symbols and 2 of ``hidden``, and may be decoded beside the others
    row_classes, col_classes : (rows,) and (columns,) uint8, ``rows * columns == n``, where there
        is more than one table: symbol ``i`` is coded by table ``row_classes[i // columns] +
        col_classes[i % columns]``, or by the last table if that is none
    hidden : (ways,) uint16, any words to carry along for free; zeros if None

    Returns
    -------
    at most ``rans_bound(n, ways=ways)`` bytes, the same on every backend

    Raises
    ------
    InvalidArgumentError
        A symbol without a frequency (the message has the first position), frequencies with another
        sum, classes of another number of symbols, or an argument out of range.
    TypeError
        An array that is not C-contiguous or not of the dtype above.

    References
    ----------
    docs/format.md, "rANS streams"; Duda 2013, arXiv:1311.2540.
    """
    return implementation(reference.rans_encode)(
        symbols,
        freqs,
        prob_bits=prob_bits,
        ways=ways,
        row_classes=row_classes,
        col_classes=col_classes,
        hidden=hidden,
    )


def rans_decode(
    stream: BytesLike,
    freqs: Freqs,
    *,
    count: int,
    prob_bits: int,
    ways: int,
    row_classes: Symbols | None = None,
    col_classes: Symbols | None = None,
    hidden: Words | None = None,
) -> Symbols:
    """Inverse of :func:`rans_encode`.

    Parameters
    ----------
    stream : exactly what the encoder returned, as bytes or a (size,) uint8 array
    freqs, prob_bits, ways, row_classes, col_classes : as for the encoder
    count : number of symbols; memory for them is allocated at once, and a symbol of frequency
        ``1 << prob_bits`` takes no bytes, so a count from a file must be checked by the caller
    hidden : (ways,) uint16, filled with the words that the stream carries; they must be zeros if
        None

    Returns
    -------
    (count,) uint8

    Raises
    ------
    CorruptStreamError
        The stream ends early, has words left over, or a state starts below or does not end at the
        lower bound. No stream but the encoder's own passes.
    InvalidArgumentError
        Frequencies with another sum, or an argument out of range.
    TypeError
        An array that is not C-contiguous or not of the dtype above.
    """
    return implementation(reference.rans_decode)(
        stream,
        freqs,
        count=count,
        prob_bits=prob_bits,
        ways=ways,
        row_classes=row_classes,
        col_classes=col_classes,
        hidden=hidden,
    )
