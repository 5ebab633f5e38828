"""``flyweight bench``: codecs side by side on one's own tensors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from flyweight.artifact import quantize
from flyweight.bake_off import BakeOff, CodecTotal, bake_off, default_codecs
from flyweight.cli.output import emit, json_option, printable, table
from flyweight.cli.plot import Point, scatter_svg, scatter_text
from flyweight.errors import InvalidArgumentError
from flyweight.format.container import MAGIC
from flyweight.format.container import open as open_fly
from flyweight.format.stored import Stored
from flyweight.interop import atomic_write, read_safetensors
from flyweight.quant.config import QuantConfig
from flyweight.quant.grid import QuantizedTensor

__all__ = ["command"]

BITS = 6


@click.command(epilog="Example: flyweight bench model.safetensors --codecs ans,zstd-3,brotli-5")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--codecs", help="Comma between them.  [default: flyweight's own,zstd-1,zstd-22,brotli-11]"
)
@click.option(
    "--bits",
    type=click.IntRange(4, 8),
    help=f"SDClip grid for a checkpoint, as in pack.  [default: {BITS}]",
)
@click.option("--plot", type=click.Path(path_type=Path), help="SVG file to write the plot to.")
@json_option
def command(
    model: Path, codecs: str | None, bits: int | None, plot: Path | None, as_json: bool
) -> None:
    """Codecs side by side on the tensors of a checkpoint or a .fly file: bytes and speed.

    One thread; the default codecs take about a minute for 33 million weights.
    """
    if plot is not None and plot.suffix != ".svg":
        raise click.UsageError(f"--plot writes SVG: name a file that ends in .svg, not {plot}")
    tensors, bits = _load(model, bits)
    names = codecs.split(",") if codecs else default_codecs()
    total = len(names) * sum(_symbols(stored) for stored in tensors.values())
    try:
        with tqdm(desc="code", total=total, unit="B", unit_scale=True, disable=None) as bar:
            result = bake_off(tensors, names, clock=time.perf_counter, progress=bar.update)
    except InvalidArgumentError as error:
        raise click.UsageError(str(error)) from error
    if plot is not None and result.tensors:
        atomic_write(plot, scatter_svg(_points(result), printable(model.name)).encode())
    facts = {"source": str(model), "bits": bits, **_facts(result)}
    emit(facts, _text(result), as_json=as_json)


def _load(model: Path, bits: int | None) -> tuple[Mapping[str, Stored], int | None]:
    """What to code, and the bits that a checkpoint was rounded to."""
    with model.open("rb") as file:
        is_fly = file.read(len(MAGIC)) == MAGIC
    if not is_fly:
        bits = bits or BITS
        return quantize(read_safetensors(model)[0], QuantConfig.uniform(bits))[0], bits
    if bits is not None:
        raise click.UsageError("--bits is for checkpoints: a .fly file has its codes already")
    fly = open_fly(model)
    return {name: fly.stored(name) for name in fly}, None


def _facts(result: BakeOff) -> dict[str, Any]:
    return {
        "symbols": result.symbols,
        "information_bits": result.information_bits,
        "smallest_bytes": result.smallest_size,
        "codecs": [
            {
                "codec": total.codec,
                "bytes": total.size,
                "overhead": result.overhead(total.size),
                "encode_mb_per_second": _speed(result.symbols, total.encode_seconds),
                "decode_mb_per_second": _speed(result.symbols, total.decode_seconds),
                "wins": total.wins,
            }
            for total in result.codecs
        ],
        "tensors": [
            {
                "name": tensor.name,
                "role": tensor.role,
                "symbols": tensor.symbols,
                "information_bits": tensor.information_bits,
                "bytes": tensor.sizes,
                "winner": tensor.winner,
                "overhead": tensor.overhead,
            }
            for tensor in result.tensors
        ],
    }


def _text(result: BakeOff) -> str:
    if not result.tensors:
        return "nothing to code: no tensor has elements"
    names = [total.codec for total in result.codecs]
    rows = [
        (
            tensor.name,
            tensor.role,
            tensor.symbols,
            tensor.information_bits / tensor.symbols,
            *(tensor.sizes[name] for name in names),
            tensor.winner,
            f"{tensor.overhead:+.3%}",
        )
        for tensor in result.tensors
    ]
    header = ("tensor", "part", "symbols", "bits/symbol", *names, "winner", "overhead")
    blocks = [table(header, rows)]
    totals = [_row(result, total) for total in result.codecs]
    best = result.smallest_size
    totals.append(("winner of each", best, f"{result.overhead(best):+.3%}", "", "", ""))
    header = ("codec", "bytes", "overhead", "encode MB/s", "decode MB/s", "wins")
    blocks.append(table(header, totals))
    blocks.append(scatter_text(_points(result)))
    return "\n\n".join(blocks)


def _row(result: BakeOff, total: CodecTotal) -> tuple[object, ...]:
    return (
        total.codec,
        total.size,
        f"{result.overhead(total.size):+.3%}",
        f"{_speed(result.symbols, total.encode_seconds):,.1f}",
        f"{_speed(result.symbols, total.decode_seconds):,.1f}",
        f"{total.wins} of {len(result.tensors)}",
    )


def _points(result: BakeOff) -> list[Point]:
    return [
        Point(
            total.codec, result.overhead(total.size), _speed(result.symbols, total.decode_seconds)
        )
        for total in result.codecs
    ]


def _speed(symbols: int, seconds: float) -> float:
    """MB of symbols a second; a time of zero, for next to nothing, counts as a nanosecond."""
    return symbols / max(seconds, 1e-9) / 1e6


def _symbols(stored: Stored) -> int:
    """Symbols that the codecs will see."""
    return stored.codes.size if isinstance(stored, QuantizedTensor) else stored.values.nbytes
