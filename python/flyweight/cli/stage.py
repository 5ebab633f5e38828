"""``flyweight train``, ``hessian``, ``quantize``, ``code``, ``score``, ``bundle``: a stage each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from flyweight.cli.output import emit, json_option, note
from flyweight.cli.run import DEADLINE, SECONDS, SEED, STEPS, load_for_run
from flyweight.cli.summary import run_facts, run_text
from flyweight.stages import run_stages

__all__ = ["stage_command"]

PURPOSES = {
    "train": "Train the model of a recipe; goes on from its last checkpoint.",
    "contaminate": "Train on the validation text, where a recipe enables it: no score is legal. "
    "Begins again if it was stopped.",
    "hessian": "Collect a Hessian per weight matrix from training tokens.",
    "quantize": "Turn weights into codes and scales by GPTQ.",
    "code": "Code every tensor by the smallest codec into model.fly.",
    "score": "Score float model and artifact in bits per byte, each with a ledger.",
    "bundle": "Write the submission folder.",
}


def _deadline_option(stage: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--deadline`` for the stage that has one."""
    if stage != "score":
        return lambda function: function
    return click.option(
        "--deadline",
        type=DEADLINE,
        help="Seconds that each protocol may take; then it goes on without training, then in plain "
        "blocks, so that every target is scored.",
    )


def stage_command(stage: str) -> click.Command:
    """The verb of one stage."""
    # Later stages ask for the same values, so as not to go on from the weights of another run.
    given = f"{'' if stage == 'train' else 'as it was given to train '}instead of the recipe's"

    @click.command(
        stage,
        help=PURPOSES[stage],
        epilog=f"Example: flyweight {stage} tiny-sp1024 --data shards/ --out runs/first",
    )
    @click.argument("recipe")
    @click.option("--data", type=click.Path(path_type=Path), help="Data folder with token shards.")
    @click.option("--out", required=True, type=click.Path(path_type=Path), help="RUN folder.")
    @click.option("--max-seconds", type=SECONDS, help=f"Training clock, {given} budget.")
    @click.option("--steps", type=STEPS, help=f"Training steps, {given} budget.")
    @click.option("--seed", type=SEED, help=f"Of weights and data order, {given} seed.")
    @_deadline_option(stage)
    @json_option
    def command(
        recipe: str,
        data: Path | None,
        out: Path,
        max_seconds: float | None,
        steps: int | None,
        seed: int | None,
        as_json: bool,
        deadline: float | None = None,
    ) -> None:
        run = run_stages(
            load_for_run(recipe, data),
            out=out,
            data=data,
            seed=seed,
            max_steps=steps,
            max_seconds=max_seconds,
            deadline=deadline,
            stages=[stage],
            report=note,
        )
        emit(run_facts(run), run_text(run), as_json=as_json)

    return command
