"""``flyweight run``: all stages of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from flyweight.cli.output import emit, json_option, note
from flyweight.cli.summary import check_audit, run_facts, run_text
from flyweight.recipes.load import load_recipe
from flyweight.stages import STAGES, run_stages

__all__ = ["command"]


@click.command(epilog="Example: flyweight run tiny-sp1024 --data shards/ --out runs/first")
@click.argument("recipe")
@click.option("--data", type=click.Path(path_type=Path), help="Data folder with token shards.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="RUN folder.")
@click.option("--max-seconds", type=float, help="Training clock, instead of the recipe's budget.")
@click.option("--steps", type=int, help="Training steps, instead of the recipe's budget.")
@click.option("--seed", type=int, help="Instead of the recipe's seed.")
@click.option("--until", type=click.Choice(STAGES), default=STAGES[-1], help="Last stage to run.")
@json_option
def command(
    recipe: str,
    data: Path | None,
    out: Path,
    max_seconds: float | None,
    steps: int | None,
    seed: int | None,
    until: str,
    as_json: bool,
) -> None:
    """Run the stages of a recipe; a second call goes on where the first one stopped."""
    run = run_stages(
        load_recipe(recipe),
        out=out,
        data=data,
        seed=seed,
        max_steps=steps,
        max_seconds=max_seconds,
        stages=STAGES[: STAGES.index(until) + 1],
        report=note,
    )
    emit(run_facts(run), run_text(run), as_json=as_json)
    check_audit(run)
