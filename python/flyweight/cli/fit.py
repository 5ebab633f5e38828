"""``flyweight fit``: the best model that a byte budget holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from flyweight.cli.coding import codec_option, effort_option, hessians_option
from flyweight.cli.output import FiniteRange, emit, json_option, note, table, threads_option
from flyweight.errors import BudgetExceededError
from flyweight.fitting import FitResult, fit
from flyweight.interop import atomic_write, read_safetensors

__all__ = ["command"]

MOST_SHOWN = 12
"""Tensors in the table, the largest first; --json has all."""


@click.command(
    epilog="Example: flyweight fit model.safetensors -o model.fly --budget 16000000 "
    "--reserve train_gpt.py --hessians hessian.safetensors --sensitivity sensitivity.safetensors"
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--budget", required=True, type=click.IntRange(min=1), help="Bytes of the file and the reserve."
)
@click.option(
    "--reserve", default="0", show_default=True, help="Bytes to leave for code, or the code's file."
)
@hessians_option
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    help="Row sensitivities by weight name: with Hessians, predicts the loss.",
)
@click.option(
    "--bytes-per-token",
    type=FiniteRange(min=0, min_open=True),
    help="Of the text to be scored: predictions in bits per byte too.",
)
@click.option("--dry-run", is_flag=True, help="Find the model and write nothing.")
@codec_option
@effort_option
@threads_option
@json_option
def command(
    model: Path,
    out: Path | None,
    budget: int,
    reserve: str,
    hessians: Path | None,
    sensitivity: Path | None,
    bytes_per_token: float | None,
    dry_run: bool,
    codec: str,
    effort: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """The best model whose .fly file fits a budget: step sizes and codecs are chosen for you."""
    if out is None and not dry_run:
        raise click.UsageError("give -o FILE, or --dry-run to write nothing")
    if sensitivity is not None and hessians is None:
        raise click.UsageError("--sensitivity predicts a loss only with --hessians")
    reserved = _reserved(reserve)
    if reserved >= budget:
        raise BudgetExceededError(
            f"the budget is {budget:,} bytes and the reserve {reserved:,}: nothing is left"
        )
    tensors, _ = read_safetensors(model)
    found = fit(
        tensors,
        budget - reserved,
        hessians=read_safetensors(hessians)[0] if hessians else None,
        sensitivities=read_safetensors(sensitivity)[0] if sensitivity else None,
        codec=codec,
        effort="max" if effort == "max" else "default",
        threads=threads,
        report=note,
    )
    if out is not None and not dry_run:
        atomic_write(out, found.data)
    per_nat = 1 / math.log(2) / bytes_per_token if bytes_per_token else None
    facts = _facts(found, reserved, None if found.objective == "distortion" else per_nat)
    where = "dry run" if dry_run or out is None else str(out)
    emit(facts, _text(where, found, facts), as_json=as_json)


def _reserved(reserve: str) -> int:
    if reserve.isdecimal():
        return int(reserve)
    path = Path(reserve)
    if not path.is_file():
        raise click.BadParameter(
            f"{reserve!r} is neither a number of bytes nor a file", param_hint="--reserve"
        )
    return path.stat().st_size


def _facts(found: FitResult, reserved: int, bpb_per_nat: float | None) -> dict[str, Any]:
    size = len(found.data)
    return {
        "bytes": {"model": size, "reserve": reserved, "total": size + reserved},
        "budget": found.budget + reserved,
        "slack": found.budget - size,
        "objective": found.objective,
        "damage": found.damage,
        "damage_per_kilobyte": found.damage_per_kilobyte,
        "bpb": None if bpb_per_nat is None else found.damage * bpb_per_nat,
        "bpb_per_kilobyte": (
            None if bpb_per_nat is None else found.damage_per_kilobyte * bpb_per_nat
        ),
        "rounds": found.rounds,
        "tensors": [
            {
                "name": tensor.name,
                "method": tensor.method,
                "elements": tensor.elements,
                "bytes": tensor.bytes,
                "bits_per_weight": 8 * tensor.bytes / max(tensor.elements, 1),
                "damage": tensor.damage,
                "relative_error": tensor.relative_error,
            }
            for tensor in found.tensors
        ],
    }


def _text(where: str, found: FitResult, facts: dict[str, Any]) -> str:
    unit = "nats a token" if found.objective == "loss" else "of the signal's power"
    shown = sorted(found.tensors, key=lambda tensor: -tensor.bytes)[:MOST_SHOWN]
    header = ("tensor", "method", "weights", "bytes", "bits a weight", f"{found.objective}, ppm")
    rows = [
        (
            tensor.name,
            tensor.method,
            tensor.elements,
            tensor.bytes,
            8 * tensor.bytes / max(tensor.elements, 1),
            tensor.damage * 1e6,
        )
        for tensor in shown
    ]
    lines = [table(header, rows)]
    if len(found.tensors) > len(shown):
        lines.append(f"and {len(found.tensors) - len(shown)} smaller tensors (--json has all)")
    size = facts["bytes"]
    reserve = f" and {size['reserve']:,} in reserve" if size["reserve"] else ""
    margin = f"{found.damage_per_kilobyte:.2e} less for each KB more"
    sizes = f"{size['model']:,} bytes{reserve} of {facts['budget']:,}, {facts['slack']:,} left"
    lines += [
        "",
        f"{where}: {sizes}",
        f"predicted {found.objective}: {found.damage:.5f} {unit}, {margin}",
    ]
    if facts["bpb"] is not None:
        lines.append(
            f"in bits per byte: {facts['bpb']:.5f}, {facts['bpb_per_kilobyte']:.2e} for each KB"
        )
    return "\n".join(lines)
