"""``flyweight inspect``: where every byte of a .fly file is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from flyweight.cli.output import emit, json_option, table
from flyweight.format.inspect import FileReport, inspect

__all__ = ["command"]


@click.command(epilog="Example: flyweight inspect model.fly --losers")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--losers", is_flag=True, help="Code everything again to show what lost; slow.")
@json_option
def command(artifact: Path, losers: bool, as_json: bool) -> None:
    """Where every byte of a .fly file is: per tensor, per codec, and in all."""
    report = inspect(artifact, with_candidates=losers)
    emit(asdict(report), _text(report), as_json=as_json)


def _text(report: FileReport) -> str:
    rows = []
    losers = []
    for section in report.sections:
        for part in section.parts:
            rows.append(
                (
                    section.name,
                    "x".join(map(str, section.shape)) or "scalar",
                    part.role,
                    section.grid,
                    f"{part.layout} {part.codecs}",
                    part.information_bits / part.elements if part.elements else 0.0,
                    f"{part.overhead:+.2%}",
                    part.stored_bytes,
                )
            )
            for candidate in part.candidates:
                losers.append(
                    (
                        section.name,
                        part.role,
                        f"{candidate.layout} {candidate.codec}",
                        candidate.size,
                    )
                )
    header = ("tensor", "shape", "part", "grid", "codec", "bits/elem", "overhead", "bytes")
    blocks = [table(header, rows)] if rows else []
    if losers:
        blocks.append(table(("tensor", "part", "candidate", "bytes"), losers))
    totals = [
        (name, size, f"{size / report.total_bytes:.2%}") for name, size in report.by_class.items()
    ]
    totals.append(("total", report.total_bytes, "100.00%"))
    blocks.append(table(("class", "bytes", "share"), totals))
    return "\n\n".join(blocks)
