"""docs/tour.md is run: its Python blocks are one doctest session."""

from __future__ import annotations

import doctest
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def python_blocks(text: str) -> str:
    """The fenced Python blocks of a page; all other lines are blanked, so that numbers hold."""
    lines = []
    inside = False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines) + "\n"


def test_python_blocks_keep_their_line_numbers() -> None:
    page = "words >>> 1\n```python\n>>> 1 + 1\n2\n```\n```\n>>> 3\n```\n"
    assert python_blocks(page) == "\n\n>>> 1 + 1\n2\n\n\n\n\n"


def test_the_tour_runs() -> None:
    path = DOCS / "tour.md"
    source = python_blocks(path.read_text(encoding="utf-8"))
    session = doctest.DocTestParser().get_doctest(source, {}, "tour.md", str(path), 0)
    assert len(session.examples) > 30
    failures: list[str] = []
    outcome = doctest.DocTestRunner(verbose=False).run(session, out=failures.append)
    assert outcome.failed == 0, "".join(failures)
