"""Windows over a token stream: which targets each one scores.

Target ``i`` is token ``i + 1``, predicted from the tokens up to ``i``. A window reads the tokens
``begin .. end - 1`` and scores the targets ``first .. end - 1``; plans are pure functions of sizes,
and in each of them every target belongs to exactly one window, the ragged tail included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError

__all__ = [
    "Windows",
    "plain_windows",
    "sliding_windows",
    "split_chunks",
    "window_batches",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """A run of windows, left to right; together they score adjacent targets, each once."""

    begin: NDArray[np.int64]
    """``(n,)``, first token read."""
    first: NDArray[np.int64]
    """``(n,)``, first target scored; the targets from ``begin`` on are context only."""
    end: NDArray[np.int64]
    """``(n,)``, one past the last target scored."""

    def __len__(self) -> int:
        return self.end.size

    def __getitem__(self, part: slice) -> Windows:
        return Windows(begin=self.begin[part], first=self.first[part], end=self.end[part])

    @property
    def start(self) -> int:
        """First target of the run."""
        return int(self.first[0])

    @property
    def stop(self) -> int:
        """One past the last target of the run."""
        return int(self.end[-1])

    @property
    def tokens(self) -> int:
        """Tokens that a model reads in all of them."""
        return int((self.end - self.begin).sum())


def plain_windows(targets: int, *, seq_len: int, start: int = 0) -> Windows:
    """Blocks without overlap; the last one is shorter when ``seq_len`` does not divide.

    Parameters
    ----------
    targets : targets of the stream, one less than its tokens
    seq_len : tokens of a window
    start : first target of the blocks

    Raises
    ------
    InvalidArgumentError
        A size below 1.
    """
    _check_plan(targets, seq_len, seq_len)
    first = np.arange(start, targets, seq_len, dtype=np.int64)
    return Windows(begin=first, first=first, end=np.minimum(first + seq_len, targets))


def sliding_windows(targets: int, *, seq_len: int, stride: int) -> Windows:
    """Windows that move by ``stride`` and score only what no earlier window scored.

    The first scores all of its targets. The last ends with the stream and reaches back as far as
    any other, so all windows of a stream that is long enough have one length.

    Parameters
    ----------
    targets : targets of the stream, one less than its tokens
    seq_len : tokens of a window
    stride : targets that a window adds, 1 to ``seq_len``

    Raises
    ------
    InvalidArgumentError
        A size below 1, or a stride that skips targets.
    """
    _check_plan(targets, seq_len, stride)
    ends = np.arange(min(seq_len, targets), targets + stride, stride, dtype=np.int64)
    end = np.minimum(ends, targets)
    first = np.concatenate(([0], end[:-1]))
    return Windows(begin=np.maximum(end - seq_len, 0), first=first, end=end)


def _check_plan(targets: int, seq_len: int, stride: int) -> None:
    if targets < 1 or not 1 <= stride <= seq_len:
        raise InvalidArgumentError(
            f"windows: targets={targets}, seq_len={seq_len}, stride={stride}; expected a target, "
            "and a stride of 1 to seq_len"
        )


def split_chunks(windows: Windows, *, chunk_targets: int) -> list[Windows]:
    """Runs of windows whose first scored targets lie in the same ``chunk_targets`` of the stream.

    A window is never split, so the scores of a frozen model do not depend on the chunks.
    """
    if chunk_targets < 1:
        raise InvalidArgumentError(f"chunks: chunk_targets={chunk_targets}, expected at least 1")
    cuts = np.flatnonzero(np.diff(windows.first // chunk_targets)) + 1
    return [windows[a:b] for a, b in pairwise([0, *cuts.tolist(), len(windows)])]


def window_batches(windows: Windows, *, batch_windows: int) -> Iterator[Windows]:
    """Runs of at most ``batch_windows`` windows of one length that score equally many targets."""
    if batch_windows < 1:
        raise InvalidArgumentError(f"batches: batch_windows={batch_windows}, expected at least 1")
    lengths, scored = windows.end - windows.begin, windows.end - windows.first
    cuts = np.flatnonzero((np.diff(lengths) != 0) | (np.diff(scored) != 0)) + 1
    for a, b in pairwise([0, *cuts.tolist(), len(windows)]):
        for start in range(a, b, batch_windows):
            yield windows[start : min(start + batch_windows, b)]
