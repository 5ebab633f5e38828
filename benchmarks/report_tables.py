"""Tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reach import Goal

__all__ = ["goal_table", "table"]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [[str(value).replace("|", "\\|") for value in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def goal_table(found: Iterable[Goal]) -> str:
    rows = [(goal.words, goal.wanted, goal.found, goal.verdict) for goal in found]
    return table(("goal", "wanted", "found", ""), rows)
