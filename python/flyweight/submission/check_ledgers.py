"""The auditor's replay of ledgers: recorded scores are derived again from entries and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flyweight.data.facts import DataInfo
from flyweight.data.shards import read_validation
from flyweight.data.sidecar import validation_counter
from flyweight.errors import DataError
from flyweight.evaluate.replay import replay_ledger

__all__ = ["replay_scores"]


def replay_scores(
    folder: Path, data: DataInfo, scores: dict[str, dict[str, Any]]
) -> tuple[list[str], str]:
    """Derive scores again from their ledgers.

    Parameters
    ----------
    folder : holds ``NAME.ledger`` of each score
    data : the validation shards
    scores : name to recorded ``bpb``, ``nats``, ``bits``, ``bytes``, ``targets`` and ``chain``

    Returns
    -------
    What differs, one line each, none if all is as recorded; and what was found, in one line

    Raises
    ------
    DataError
        A ledger is missing, unfinished, changed or of another stream, as `replay_ledger`.
    """
    tokens = read_validation(data.folder)
    counter = validation_counter(data)
    wrong = []
    for name, recorded in scores.items():
        if not name.isidentifier():  # it names a file, and comes from one
            raise DataError(f"{name!r} is not the name of a score")
        path = folder / f"{name}.ledger"
        found = replay_ledger(path, tokens, counter, chain=str(recorded.get("chain")))
        values = {
            "bpb": found.bpb,
            "nats": found.nats,
            "bits": found.bits,
            "bytes": found.text_bytes,
            "targets": found.targets,
        }
        wrong += [
            f"{name}: {field} is {recorded.get(field)!r}, its ledger gives {value!r}"
            for field, value in values.items()
            if recorded.get(field) != value
        ]
    return wrong, (
        f"{len(scores)} ledgers replayed: {tokens.size - 1:,} targets each, every one scored once, "
        "left to right; bits per byte equal to the last digit"
    )
