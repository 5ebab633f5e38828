"""``flyweight train``, ``hessian``, ``quantize``, ``code``, ``score``, ``bundle``: a stage each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from flyweight.cli.output import emit, json_option, note
from flyweight.cli.run import DEADLINE, limit_options, load_for_run
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


def _own_options(stage: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """What only one stage has: limits to train, a deadline to score."""
    if stage == "train":
        return limit_options
    if stage == "score":
        return click.option(
            "--deadline",
            type=DEADLINE,
            help="Seconds that each protocol may take; then it goes on without training, then in "
            "plain blocks, so that every target is scored.",
        )
    return lambda function: function


def stage_command(stage: str) -> click.Command:
    """The verb of one stage."""

    @click.command(
        stage,
        help=f"{PURPOSES[stage]}\n\nRECIPE is a name that `recipe list` prints, or a TOML file.",
        epilog=f"Example: flyweight {stage} tiny-sp1024 --data shards/ --out runs/first",
    )
    @click.argument("recipe")
    @click.option("--data", type=click.Path(path_type=Path), help="Data folder with token shards.")
    @click.option("--out", required=True, type=click.Path(path_type=Path), help="RUN folder.")
    @_own_options(stage)
    @json_option
    def command(
        recipe: str,
        data: Path | None,
        out: Path,
        as_json: bool,
        max_seconds: float | None = None,
        steps: int | None = None,
        seed: int | None = None,
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
