"""``flyweight pack``: any safetensors checkpoint to a .fly file."""

from __future__ import annotations

from pathlib import Path

import click

from flyweight.artifact import pack
from flyweight.cli.coding import codec_option, effort_option, hessians_option
from flyweight.cli.output import emit, json_option, threads_option
from flyweight.format.inspect import inspect
from flyweight.interop import atomic_write, read_safetensors

__all__ = ["command"]


@click.command(epilog="Example: flyweight pack model.safetensors -o model.fly --bits 5")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--bits", default=6, show_default=True, type=click.IntRange(4, 8), help="SDClip grid."
)
@click.option("--lossless", is_flag=True, help="Keep every bit instead of quantizing.")
@hessians_option
@codec_option
@effort_option
@threads_option
@json_option
def command(
    model: Path,
    out: Path,
    bits: int,
    lossless: bool,
    hessians: Path | None,
    codec: str,
    effort: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Any safetensors checkpoint to a .fly file, without calibration or with Hessians."""
    tensors, _ = read_safetensors(model)
    data = pack(
        tensors,
        bits=bits,
        is_lossless=lossless,
        hessians=read_safetensors(hessians)[0] if hessians else None,
        codec=codec,
        effort="max" if effort == "max" else "default",
        threads=threads,
    )
    atomic_write(out, data)
    before = sum(array.nbytes for array in tensors.values())
    weights = sum(array.size for array in tensors.values())
    facts = {
        "bytes": {"source": before, **inspect(data).by_class, "total": len(data)},
        "tensors": len(tensors),
        "bits_per_weight": 8 * len(data) / max(weights, 1),
    }
    emit(
        facts,
        f"{out}: {len(data):,} bytes, {facts['bits_per_weight']:.3f} bits a weight, "
        f"{len(data) / max(before, 1):.1%} of {before:,}",
        as_json=as_json,
    )
