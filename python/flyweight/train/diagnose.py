"""Why a training run cannot go on, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flyweight.errors import RecipeError
from flyweight.model.config import ModelConfig
from flyweight.model.parameters import parameter_counts
from flyweight.model.transformer import Transformer
from flyweight.train.config import TrainConfig
from flyweight.train.distributed import World
from flyweight.train.losses import LossFunction, add_gradient

__all__ = [
    "memory_explained",
    "model_memory_explained",
    "stage_memory_explained",
    "why_not_finite",
]

_CPU_IS_FULL = "DefaultCPUAllocator: "
"""In the errors of memory on the CPU, which have no type of their own."""


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
    with _out_of_memory() as lacking:
        yield
    if lacking:
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
            f"{world.size}): {advice} ({_reason(lacking[0])})"
        ) from lacking[0]


@contextmanager
def model_memory_explained(model: ModelConfig, device: torch.device) -> Iterator[None]:
    """Say what to change where a model and its optimizers do not fit the memory of the device.

    Raises
    ------
    RecipeError
        There was not enough memory within.
    """
    with _out_of_memory() as lacking:
        yield
    if lacking:
        raise RecipeError(
            f"{device}: no memory for a model of {sum(parameter_counts(model).values()):,} "
            f"parameters, its gradients and averages: lower model.num_layers={model.num_layers}, "
            f"model.model_dim={model.model_dim} or model.mlp_hidden={model.mlp_hidden} "
            f"({_reason(lacking[0])})"
        ) from lacking[0]


@contextmanager
def stage_memory_explained(stage: str, numbers: Mapping[str, int]) -> Iterator[None]:
    """Say what to change where a stage behind the training does not fit the memory of the device.

    Parameters
    ----------
    numbers : of the recipe, by key, which memory grows with; 0 is one that is chosen by itself

    Raises
    ------
    RecipeError
        There was not enough memory within.
    """
    with _out_of_memory() as lacking:
        yield
    if lacking:
        lower = " or ".join(f"{key}={number or '0 (by itself)'}" for key, number in numbers.items())
        raise RecipeError(
            f"no memory for {stage}: lower {lower} ({_reason(lacking[0])})"
        ) from lacking[0]


@contextmanager
def _out_of_memory() -> Iterator[list[RuntimeError]]:
    """Gets the error if there was not enough memory within."""
    found: list[RuntimeError] = []
    try:
        yield found
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_IS_FULL not in str(error):
            raise
        found.append(error)


def _reason(error: RuntimeError) -> str:
    """The first sentence that is for people."""
    text = str(error)
    return text[max(text.find(_CPU_IS_FULL), 0) :].split(". ")[0]


def why_not_finite(model: Transformer, batch: Tensor, loss_function: LossFunction) -> str:
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
            loss = add_gradient(loss_function, row[None], model.parameters())
            if found or not loss.isfinite():
                return f"what {found[0] if found else 'the loss'} gives is not finite"
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
