"""What a training log of a bundle says, against its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flyweight.submission.bundle import RECORD_FILE
from flyweight.submission.subject import value_at

__all__ = ["log_contradictions"]

_ROUNDING = 1e-3
"""Seconds of a step are logged to three digits."""


def log_contradictions(
    lines: Sequence[Mapping[str, Any]], record: Mapping[str, Any], *, seed: int, name: str
) -> list[str]:
    """What the lines about the run, its steps and its scores say otherwise than a record.

    Parameters
    ----------
    lines : of the log, but for the one that repeats the record
    record : ``submission.json`` of a bundle, not contaminated
    seed : of the log
    name : what messages call the log

    Returns
    -------
    One line each; none if all agree, to the last digit

    Raises
    ------
    DataError
        A field is missing.
    """
    runs = [line for line in lines if line.get("event") == "run"]
    wrong = [] if len(runs) == 1 else [f"{name}: {len(runs)} lines with the event 'run'"]
    for run in runs:
        said = {
            "seed": seed,
            "contaminated": record.get("contaminated"),
            "versions.torch": record.get("pytorch_version"),
            "data.tokenizer_sha256": record.get("tokenizer_sha256"),
        }
        for path, value in said.items():
            found = value_at(run, name, *path.split("."), kinds=(object,))
            if found != value:
                wrong.append(f"{name}: {path} is {found!r}, expected {value!r}")
    scores = value_at(record, RECORD_FILE, "scores", kinds=(dict,))
    logged = [line for line in lines if line.get("event") == "score"]
    if [line.get("name") for line in logged] != list(scores):
        wrong.append(f"{name}: scores {[line.get('name') for line in logged]}, not {list(scores)}")
    for line in logged:
        label = {"contaminated": record.get("contaminated")}
        score = label | scores.get(str(line.get("name")), {})
        wrong += [
            f"{name}: {line['name']}.{field} is {line.get(field)!r}, {value!r} in {RECORD_FILE}"
            for field, value in score.items()
            if line.get(field) != value
        ]
    return [*wrong, *_clock_contradictions(lines, record, seed=seed, name=name)]


def _clock_contradictions(
    lines: Sequence[Mapping[str, Any]], record: Mapping[str, Any], *, seed: int, name: str
) -> list[str]:
    """Steps and seconds beyond those that a record has."""
    result = value_at(record, RECORD_FILE, "seed_results", str(seed), kinds=(dict,))
    limits = {
        "step": value_at(result, RECORD_FILE, "steps"),
        "seconds": value_at(result, RECORD_FILE, "train_data_seconds") + _ROUNDING,
    }
    steps = [line for line in lines if "event" not in line]
    wrong = []
    for field, limit in limits.items():
        most = max((value_at(line, name, field) for line in steps if field in line), default=0)
        if most > limit:
            wrong.append(f"{name}: trains until {field} {most}, {RECORD_FILE} until {limit}")
    return wrong
