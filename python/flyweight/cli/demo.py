"""``flyweight demo``: the main job on the embedded default, offline, on a CPU."""

from __future__ import annotations

import lzma
from pathlib import Path

import brotli
import click

from flyweight.cli.output import emit, json_option, note, table
from flyweight.cli.run import SEED, STEPS
from flyweight.cli.summary import check_audit, run_facts, run_text
from flyweight.data.embedded import EmbeddedCorpus
from flyweight.recipes.load import load_recipe
from flyweight.stages import Run, run_stages

__all__ = ["command"]


@click.command(epilog="Example: flyweight demo --out demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="RUN folder; a second call goes on there.",
)
@click.option("--seed", type=SEED, help="Instead of the recipe's seed.")
@click.option("--steps", type=STEPS, help="Training steps, instead of the recipe's budget.")
@json_option
def command(out: Path, seed: int | None, steps: int | None, as_json: bool) -> None:
    """Train, quantize, code, score and audit a small model on prose that Python carries."""
    recipe = load_recipe("demo")
    run = run_stages(recipe, out=out, seed=seed, max_steps=steps, report=note)
    baselines = compressor_bpb()
    text = f"{run_text(run)}\n\n{_comparison(run, baselines)}"
    emit({**run_facts(run), "compressors": baselines}, text, as_json=as_json)
    check_audit(run)


def compressor_bpb() -> dict[str, float]:
    """Bits per byte of text that general compressors need for the same validation documents."""
    documents = [document.text for document in EmbeddedCorpus().documents("val")]
    text = "\n".join(documents).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    coded = {
        "xz -9e": len(lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters)),
        "brotli -q 11": len(brotli.compress(text, quality=11, lgwin=24)),
    }
    return {name: 8 * size / len(text) for name, size in coded.items()}


def _comparison(run: Run, baselines: dict[str, float]) -> str:
    stages = run.manifest["stages"]
    facts = run_facts(run)
    rows = [(name, value, "its decoder only") for name, value in baselines.items()]
    rows += [
        (f"model, {name}", value, f"{facts['bytes']['total']:,} bytes of model and code")
        for name, value in stages["score"]["facts"]["bpb"].items()
        if name in ("sliding", "ttt")
    ]
    size = run.data.val.text_bytes or 0
    return (
        f"The same {size:,} bytes of validation text, compressed:\n\n"
        f"{table(('by', 'bits per byte', 'what the reader must have'), rows)}\n\n"
        "The model learned from other documents of the same kind before it saw this text, and its\n"
        "own bytes are not in its bits per byte; xz and brotli start from nothing."
    )
