"""Why a training run cannot go on, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flyweight.errors import RecipeError
from flyweight.model.config import ModelConfig
from flyweight.train.config import TrainConfig
from flyweight.train.distributed import World

__all__ = ["memory_explained"]


@contextmanager
def memory_explained(
    model: ModelConfig, config: TrainConfig, parts: int, world: World
) -> Iterator[None]:
    """Say what to change where a pass does not fit the memory of the device.

    Parameters
    ----------
    parts : passes of each process in a step

    Raises
    ------
    RecipeError
        There was not enough memory within.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        rows = world.rows(config.batch_sequences) // parts
        sizes = [n for n in range(2, rows + 1) if rows % n == 0]
        steps = config.accumulation_steps
        advice = (
            f"raise accumulation_steps from {steps} to {steps * sizes[0]}, for passes of "
            f"{rows // sizes[0]} sequences; the batch stays the same"
            if sizes
            else "it is one sequence at a time already: lower model.seq_len or the model's size"
        )
        raise RecipeError(
            f"{world.device}: no memory for a pass of {rows} sequences of {model.seq_len} tokens "
            f"(batch_sequences={config.batch_sequences}, accumulation_steps={steps}, processes="
            f"{world.size}): {advice} ({str(error).split('. ')[0]})"
        ) from error
