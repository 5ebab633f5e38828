"""``flyweight stats``: does a record beat others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean

import click

from flyweight.cli.output import emit, json_option, table
from flyweight.errors import DataError
from flyweight.submission.published import read_runs
from flyweight.submission.statistics import Comparison, Runs, compare, count_seeds

__all__ = ["command"]


@click.command(epilog="Example: flyweight stats records/new records/old")
@click.argument("records", nargs=-1, required=True)
@json_option
def command(records: tuple[str, ...], as_json: bool) -> None:
    """Compare the first record with each other one, under every reading of the rule.

    A RECORD is a submission folder, a submission.json, or bits per byte of its seeds: 1.08,1.081
    """
    if len(records) < 2:
        raise click.UsageError("expected a new record and one or more old ones")
    new, *old = [_read(record) for record in records]
    comparisons = [compare(new, each) for each in old]
    emit(
        {"comparisons": [each.to_json() for each in comparisons]},
        "\n\n".join(map(_as_text, comparisons)),
        as_json=as_json,
    )


def _read(record: str) -> Runs:
    path = Path(record)
    if path.is_dir():
        path = path / "submission.json"
    if path.is_file():
        try:
            facts = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON: {error}") from error
        return read_runs(facts if isinstance(facts, dict) else {}, name=record)
    try:
        values = tuple(float(value) for value in record.split(","))
    except ValueError as error:
        raise DataError(f"{record}: neither a record nor numbers") from error
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise DataError(f"{record}: bits per byte must be above 0")
    return Runs(name=record, bpb=values)


def _as_text(comparison: Comparison) -> str:
    rows = [
        (
            test.unit,
            f"{test.margin:.5f}",
            f"{test.gain:+.5f}",
            test.kind,
            "" if test.t is None else f"{test.t:.3f}",
            "" if test.degrees is None else f"{test.degrees:.2f}",
            "not known" if test.p is None else f"{test.p:.3g}",
            *("yes" if holds else "no" for holds in test.passes.values()),
        )
        for test in comparison.tests
    ]
    lines = list(comparison.tests[0].passes) if comparison.tests else []
    header = ("reading", "margin", "gain", "test", "t", "df", "p", *lines)
    heads = [f"{_name(comparison.new)}\nagainst {_name(comparison.old)}"]
    return "\n".join(
        [*heads, table(header, rows), *(f"assumes: {line}" for line in comparison.assumptions)]
    )


def _name(runs: Runs) -> str:
    seeds = runs.bpb or runs.loss
    return f"{runs.name}: {count_seeds(len(seeds))}, mean {fmean(seeds):.6f}"
