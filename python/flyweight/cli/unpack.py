"""``flyweight unpack``: a .fly file back to safetensors."""

from __future__ import annotations

from pathlib import Path

import click

from flyweight.artifact import unpack
from flyweight.cli.output import emit, json_option, threads_option
from flyweight.interop import write_safetensors

__all__ = ["command"]


@click.command(epilog="Example: flyweight unpack model.fly -o model.safetensors")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@threads_option
@json_option
def command(artifact: Path, out: Path, threads: int | None, as_json: bool) -> None:
    """A .fly file back to plain tensors in their source dtypes."""
    tensors = unpack(artifact, threads=threads)
    write_safetensors(out, tensors)
    size = out.stat().st_size
    emit(
        {"tensors": len(tensors), "bytes": {"total": size}},
        f"{out}: {len(tensors)} tensors, {size:,} bytes",
        as_json=as_json,
    )
