"""A score derived again from its ledger, by someone who trusts neither."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.data.byte_counts import ByteSidecar, ByteTable
from flyweight.errors import DataError
from flyweight.evaluate.bpb import Score, score_targets
from flyweight.evaluate.ledger import read_ledger

__all__ = ["replay_ledger"]


def replay_ledger(
    path: str | os.PathLike[str],
    tokens: NDArray[Any],
    counter: ByteTable | ByteSidecar,
    *,
    binding: bytes | None = None,
    chain: str | None = None,
) -> Score:
    """Bits per byte from the entries of a finished ledger, the text and its byte counts.

    Parameters
    ----------
    path : the ledger
    tokens : (tokens,) integers, the stream that it is of
    counter : bytes of each token id, or of each token
    binding : 32 bytes that the ledger must be bound to, see
        `flyweight.evaluate.stream.score_binding`; None where model and config are not at hand
    chain : hash over the ledger that was published with the score, hexadecimal; None where there
        was none

    Returns
    -------
    The score; equal to the one that was reported to the last bit if nothing was changed

    Raises
    ------
    DataError
        The ledger is missing, was changed, is of another stream, model or config, is not finished,
        is not the one that was published, or its chunks are not in the order of the text.
    InvalidArgumentError
        The byte counts are not of these tokens.

    Notes
    -----
    Reading checks each record's hash and that no target was scored twice, so a ledger that gets
    this far has one entry for each target, and had it when its chain was published.

    References
    ----------
    openai/parameter-golf issue #1017, condition 4: one pass, left to right.
    """
    name, targets = os.fspath(path), tokens.size - 1
    ledger = read_ledger(path, targets=targets)
    if binding is not None and ledger.binding != binding:
        raise DataError(f"{name}: this ledger is of other tokens, another model or another config")
    missing = np.isnan(ledger.nats)
    if missing.any():
        raise DataError(
            f"{name}: {int(missing.sum())} of {targets} targets have no score, the first is "
            f"{int(np.argmax(missing))}"
        )
    expected = 0
    for first, count in ledger.records:
        if first != expected:
            raise DataError(
                f"{name}: target {first} was scored when {expected} was next: not left to right"
            )
        expected += count
    if chain is not None and ledger.chain.hex() != chain:
        raise DataError(
            f"{name}: the ledger ends in {ledger.chain.hex()}, the score was published with {chain}"
        )
    return score_targets(ledger.nats, tokens, counter)
