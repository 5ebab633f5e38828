"""The auditor's replay of ledgers: recorded scores are derived again from entries and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flyweight.data.facts import DataInfo
from flyweight.data.shards import Tokens, read_validation
from flyweight.data.sidecar import validation_counter
from flyweight.errors import DataError
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.replay import replay_ledger
from flyweight.submission.claim import ARTIFACT_FILE, Claim

__all__ = ["replay_scores", "score_config"]


_PROTOCOLS = {"float": "plain", "quantized": "plain", "sliding": "sliding"}
"""Of the scores of a run; that of ``ttt`` is the headline."""
_UNBOUND = "float"
"""Scored with weights that are not in the folder, so nobody can say what its ledger is bound to."""


def replay_scores(
    folder: Path,
    data: DataInfo,
    scores: dict[str, dict[str, Any]],
    *,
    claim: Claim,
    artifact_sha256: str,
) -> tuple[list[str], str]:
    """Derive scores again from their ledgers.

    Parameters
    ----------
    folder : holds ``NAME.ledger`` of each score
    data : the validation shards
    scores : name to recorded ``bpb``, ``nats``, ``bits``, ``bytes``, ``targets`` and ``chain``
    claim : of the script, with the protocols that the ledgers must have been scored under
    artifact_sha256 : of the model that they must have been scored with, hexadecimal

    Returns
    -------
    What differs, one line each, none if all is as recorded; and what was found, in one line

    Raises
    ------
    DataError
        A ledger is missing, unfinished, changed or of another text, model or config, as
        `replay_ledger`; or a score has a name or a protocol that the script does not know.
    """
    tokens = read_validation(data.folder)
    counter = validation_counter(data)
    wrong = []
    for name, recorded in scores.items():
        found = replay_ledger(
            folder / f"{name}.ledger",
            tokens,
            counter,
            binding=_expected_binding(name, tokens, claim, artifact_sha256),
            chain=str(recorded.get("chain")),
        )
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
    unbound = f"; of {_UNBOUND} the weights are not in the folder" if _UNBOUND in scores else ""
    return wrong, (
        f"{len(scores)} ledgers replayed: {tokens.size - 1:,} targets each, every one scored once, "
        "left to right; bits per byte equal to the last digit; bound to this text, "
        f"{ARTIFACT_FILE} and the script's protocols{unbound}"
    )


def _expected_binding(
    name: str, tokens: Tokens, claim: Claim, artifact_sha256: str
) -> bytes | None:
    """What the ledger of a score is of, derived from what is shipped; None where that cannot be."""
    from flyweight.evaluate.stream import score_binding  # imports torch, as whatever scores

    config = score_config(name, claim)
    if name == _UNBOUND:
        return None
    return score_binding(tokens, config, model_sha256=artifact_sha256)


def score_config(name: str, claim: Claim) -> ScoreConfig:
    """What a score of a run was made by, after the script's claim.

    Raises
    ------
    DataError
        It is not the name of a score, or the claim has no such protocol.
    """
    protocol = claim.headline if name == "ttt" else _PROTOCOLS.get(name)
    if protocol is None:  # a name comes from a file, and names one
        raise DataError(f"{name!r} is not the name of a score")
    config = claim.protocols.get(protocol)
    if config is None:
        raise DataError(f"score {name!r}: the script has no protocol {protocol!r}")
    return config
