"""How verbs speak: one JSON object for machines, tables for people, progress on stderr."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import click

__all__ = [
    "SCHEMA",
    "FiniteRange",
    "emit",
    "json_option",
    "note",
    "printable",
    "table",
    "threads_option",
]

SCHEMA = 1
_NUMBER = re.compile(r"[+-]?[\d,]+(\.\d+)?%?")

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Tensors at once; one per processor by default. Never changes the bytes.",
)


class FiniteRange(click.FloatRange):
    """Numbers of a range; a range alone lets NaN and infinity pass."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def emit(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a verb's result to stdout, as an object or as text."""
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **facts}, sort_keys=True, allow_nan=False))
    else:
        click.echo(printable(text))


def note(line: str) -> None:
    """Tell a person what is going on, on stderr."""
    click.echo(printable(line), err=True)


def printable(text: str) -> str:
    """Text with control characters escaped, for names that come out of files."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns lined up: text to the left, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))
    ]
    numeric = [
        all(_NUMBER.fullmatch(line[column]) for line in cells) for column in range(len(header))
    ]
    lines = []
    for line in [list(header), ["-" * width for width in widths], *cells]:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
