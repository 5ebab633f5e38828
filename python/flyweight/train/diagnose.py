"""Why a training run cannot go on, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flyweight.errors import RecipeError
from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer
from flyweight.train.config import TrainConfig
from flyweight.train.distributed import World

__all__ = ["memory_explained", "why_not_finite"]


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
            f"raise accumulation_steps from {steps} to "
            f"{config.batch_sequences * sizes[0] // rows}, for passes of {rows // sizes[0]} "
            "sequences; the batch stays the same"
            if sizes
            else "it is one sequence at a time already: lower model.seq_len or the model's size"
        )
        raise RecipeError(
            f"{world.device}: no memory for a pass of {rows} sequences of {model.seq_len} tokens "
            f"(batch_sequences={config.batch_sequences}, accumulation_steps={steps}, processes="
            f"{world.size}): {advice} ({str(error).split('. ')[0]})"
        ) from error


def why_not_finite(model: Transformer, batch: Tensor, loss_function: Callable[..., Tensor]) -> str:
    """Name the layer where a loss or a gradient stops being finite, sequence by sequence.

    Parameters
    ----------
    batch : (rows, seq_len + 1) int64 on the model's device
    loss_function : of tokens and targets, not compiled, as the step had it

    Returns
    -------
    Half a sentence; gradients of the model are gone
    """
    weak = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if weak:
        return f"{weak[0]} is not finite"
    found: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(_watching(name, found)))
    try:
        for row in batch:
            model.zero_grad()
            tokens = row[None]
            with torch.autocast(row.device.type, torch.bfloat16, enabled=row.is_cuda):
                loss = loss_function(tokens[:, :-1], tokens[:, 1:])
            if found or not loss.isfinite():
                return f"what {found[0] if found else 'the loss'} gives is not finite"
            torch.autograd.backward(loss)
            gradients = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
            weak = [name for name, gradient in gradients if not gradient.isfinite().all()]
            if weak:
                return f"the gradient is not finite from {weak[-1]} on backwards"
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad()
    return "every sequence by itself is finite"


def _watching(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple | list) else (output,)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if not all(tensor.isfinite().all() for tensor in tensors):
            found.append(name)

    return hook
