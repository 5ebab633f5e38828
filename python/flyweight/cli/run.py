"""``flyweight run``: all stages of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from flyweight.cli.output import FiniteRange, emit, json_option, note
from flyweight.cli.summary import check_audit, run_facts, run_text
from flyweight.recipes.load import load_recipe
from flyweight.recipes.schema import Recipe
from flyweight.stages import STAGES, run_stages

__all__ = ["DEADLINE", "SEED", "STEPS", "command", "limit_options", "load_for_run"]


SEED = click.IntRange(min=0, max=(1 << 63) - 1)
STEPS = click.IntRange(min=1)
SECONDS = FiniteRange(min=0, min_open=True)
DEADLINE = FiniteRange(min=0)


def limit_options(function: Callable[..., None]) -> Callable[..., None]:
    """``--max-seconds``, ``--steps`` and ``--seed``, for the verbs that train."""
    for option in (
        click.option("--seed", type=SEED, help="Instead of the recipe's seed."),
        click.option("--steps", type=STEPS, help="Training steps, instead of the recipe's budget."),
        click.option(
            "--max-seconds", type=SECONDS, help="Training clock, instead of the recipe's budget."
        ),
    ):
        function = option(function)
    return function


def load_for_run(name: str, data: Path | None) -> Recipe:
    """A recipe, once it is sure that it has data."""
    recipe = load_recipe(name)
    if data is None and recipe.data.source == "folder":
        raise click.UsageError(f"recipe {recipe.name} needs a data folder: give --data")
    return recipe


@click.command(epilog="Example: flyweight run tiny-sp1024 --data shards/ --out runs/first")
@click.argument("recipe")
@click.option("--data", type=click.Path(path_type=Path), help="Data folder with token shards.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="RUN folder.")
@limit_options
@click.option("--until", type=click.Choice(STAGES), default=STAGES[-1], help="Last stage to run.")
@click.option("--deadline", type=DEADLINE, help="Seconds that each score may take.")
@json_option
def command(
    recipe: str,
    data: Path | None,
    out: Path,
    max_seconds: float | None,
    steps: int | None,
    seed: int | None,
    until: str,
    deadline: float | None,
    as_json: bool,
) -> None:
    """Run the stages of a recipe; a second call goes on where the first one stopped.

    RECIPE is a name that `recipe list` prints, or a TOML file.
    """
    run = run_stages(
        load_for_run(recipe, data),
        out=out,
        data=data,
        seed=seed,
        max_steps=steps,
        max_seconds=max_seconds,
        deadline=deadline,
        stages=STAGES[: STAGES.index(until) + 1],
        report=note,
    )
    emit(run_facts(run), run_text(run), as_json=as_json)
    check_audit(run)
