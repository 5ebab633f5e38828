"""``flyweight audit``: check a submission folder."""

from __future__ import annotations

from pathlib import Path

import click

from flyweight.cli.output import FiniteRange, emit, json_option
from flyweight.errors import DataError
from flyweight.submission.audit import audit_folder
from flyweight.submission.budget import CAP_BYTES

__all__ = ["command"]


@click.command(epilog="Example: flyweight audit runs/first/bundle --data shards/")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Validation shards; without, nothing is scored."
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=CAP_BYTES,
    show_default=True,
    help="Bytes that code and model may have.",
)
@click.option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True, max=1e6),
    default=3600.0,
    show_default=True,
    help="Seconds that scoring may take.",
)
@click.option(
    "--ledgers", type=click.Path(path_type=Path), help="Ledgers to replay: score/ of a RUN folder."
)
@json_option
def command(
    folder: Path,
    data: Path | None,
    budget: int,
    timeout: float,
    ledgers: Path | None,
    as_json: bool,
) -> None:
    """Check a submission folder: sizes, round trip, byte accounting. Runs nothing of it."""
    report = audit_folder(
        folder, data=data, budget_bytes=budget, timeout_seconds=timeout, ledgers=ledgers
    )
    emit(report.to_json(), report.to_markdown(), as_json=as_json)
    if not report.passed:
        raise DataError(f"{folder}: failed {', '.join(report.failed)}")
