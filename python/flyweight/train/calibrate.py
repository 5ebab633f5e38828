"""Second moments of the inputs of every weight matrix, which GPTQ calls Hessians."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flyweight.errors import InvalidArgumentError
from flyweight.model.transformer import Transformer

__all__ = ["Hessians", "collect_hessians"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hessians:
    """Mean of ``x x^T`` over tokens, by weight name."""

    matrices: dict[str, NDArray[np.float32]]
    """Weight name to (cols, cols) float32; for a tied head the embedding's name and the head's
    input."""
    n_tokens: int
    """Tokens in the mean."""


@torch.inference_mode()
def collect_hessians(model: Transformer, batches: Iterable[Tensor]) -> Hessians:
    """Run a model over calibration tokens and average the outer products of its activations.

    Parameters
    ----------
    model : the model that will be scored; sums are kept on its device
    batches : (B, T) int64 token ids each, moved to that device; forwards run under the caller's
        autocast, if any

    Raises
    ------
    InvalidArgumentError
        There is no batch.

    Notes
    -----
    Products and sums are float32 without TF32, whatever the activations are. GPTQ's factor 2 is
    left out: it cancels.

    References
    ----------
    Frantar et al., "GPTQ" (2023), section 3.
    """
    device = model.tok_emb.weight.device
    sums: dict[str, Tensor] = {}
    n_tokens = 0
    with _float32_products(), _input_hooks(model, sums):
        for tokens_BT in batches:
            hidden_BTD = model.hidden(tokens_BT.to(device))
            head = "tok_emb.weight" if model.lm_head is None else "lm_head.weight"
            _add_outer_products(sums, head, hidden_BTD)
            n_tokens += tokens_BT.numel()
    if not n_tokens:
        raise InvalidArgumentError("no calibration batches: expected at least one")
    matrices = {name: (total / n_tokens).cpu().numpy() for name, total in sums.items()}
    return Hessians(matrices=matrices, n_tokens=n_tokens)


def _add_outer_products(sums: dict[str, Tensor], name: str, x: Tensor) -> None:
    with torch.autocast(x.device.type, enabled=False):
        rows = x.flatten(0, -2).float()
        product = rows.mT @ rows
    if name in sums:
        sums[name] += product
    else:
        sums[name] = product


@contextmanager
def _input_hooks(model: Transformer, sums: dict[str, Tensor]) -> Iterator[None]:
    """Add up the inputs of the linears of all blocks while the block runs."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, inputs: _add_outer_products(sums, name, inputs[0])

    handles = [
        module.register_forward_pre_hook(hook_for(f"blocks.{name}.weight"))
        for name, module in model.blocks.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _float32_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
