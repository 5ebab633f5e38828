"""The auditor's arithmetic on a record: numbers that follow from others must do so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from flyweight.errors import DataError
from flyweight.submission.budget import CAP_BYTES
from flyweight.submission.bundle import RECORD_FILE
from flyweight.submission.check_ledgers import score_config
from flyweight.submission.claim import Claim
from flyweight.submission.record import CLOCK_SECONDS, headline_score
from flyweight.submission.subject import value_at

__all__ = ["contradictions"]

_LARGEST = 1e18


def contradictions(record: Mapping[str, Any], claim: Claim) -> list[str]:
    """What a record of one run says that its other numbers, or the script's claim, do not give.

    Parameters
    ----------
    record : ``submission.json`` of a bundle, not contaminated
    claim : of its script

    Returns
    -------
    One line each; none if all agree, to the last digit

    Raises
    ------
    DataError
        A number is missing or is none, or a score is none that the script knows.
    """
    scores = value_at(record, RECORD_FILE, "scores", kinds=(dict,))
    results = value_at(record, RECORD_FILE, "seed_results", kinds=(dict,))
    best = headline_score(scores)
    said = {
        "contaminated": claim.contaminated,
        "tokenizer_sha256": claim.tokenizer_sha256,
        "weights_sha256": claim.weights_sha256,
        "val_protocol": claim.headline,
        "val_bpb": _number(record, "scores", best, "bpb"),
        "val_loss": _number(record, "scores", best, "nats")
        / _number(record, "scores", best, "targets"),
        "pre_quant_val_bpb": _number(record, "scores", "float", "bpb"),
    }
    for name in scores:
        bits = _number(record, "scores", name, "nats") / math.log(2.0)
        said |= {
            f"scores.{name}.method": score_config(name, claim).method,
            f"scores.{name}.bits": bits,
            f"scores.{name}.bpb": bits / _number(record, "scores", name, "bytes"),
        }
    for seed in results:
        said |= {
            f"seed_results.{seed}.val_bpb": record.get("val_bpb"),
            f"seed_results.{seed}.val_loss": record.get("val_loss"),
            f"seed_results.{seed}.artifact_bytes": record.get("bytes_total"),
            f"seed_results.{seed}.eval_seconds": _number(record, "scores", best, "seconds"),
        }
    wrong = [] if len(results) == 1 else [f"{len(results)} seeds, but the artifact of one run"]
    for path, value in said.items():
        found = value_at(record, RECORD_FILE, *path.split("."), kinds=(object,))
        if found != value:
            wrong.append(
                f"{path} is {found!r}, the rest of the record and the script give {value!r}"
            )
    return wrong + [f"compliance.{name} is true, and is not so" for name in _broken(record)]


def _broken(record: Mapping[str, Any]) -> Iterator[str]:
    """Rules that a record says it keeps, against its own numbers."""
    results = record["seed_results"].values()
    holds = {
        "artifact_under_16mb": value_at(record, RECORD_FILE, "bytes_total") <= CAP_BYTES,
        "train_under_600s": all(_number(r, "train_data_seconds") <= CLOCK_SECONDS for r in results),
        "eval_under_600s": all(_number(r, "eval_seconds") <= CLOCK_SECONDS for r in results),
        "score_first_ttt": "ttt" in record["scores"],
        "three_seeds": len(results) >= 3,
    }
    said = value_at(record, RECORD_FILE, "compliance", kinds=(dict,))
    yield from (name for name, is_kept in holds.items() if said.get(name) and not is_kept)


def _number(facts: Any, *path: str) -> float:
    """A number above 0, as all of these are; anything else is a `DataError`."""
    value = value_at(facts, RECORD_FILE, *path)
    if not 0 < value < _LARGEST:
        raise DataError(f"{RECORD_FILE}: {'.'.join(path)} is {value!r}, expected more than 0")
    return float(value)
