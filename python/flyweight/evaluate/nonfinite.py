"""Where NaN and infinity come from in a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["why_not_finite"]


def why_not_finite(model: nn.Module, tokens_BL: Tensor) -> str:
    """Name the weight or the layer where a pass stops being finite.

    Parameters
    ----------
    model : not compiled, in evaluation mode
    tokens_BL : (B, L) int64, on its device, what it failed on

    Returns
    -------
    A clause, for the end of a message
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"weight {name} is not finite"
    found: list[str] = []
    handles = [
        module.register_forward_hook(_noting(name, found))
        for name, module in model.named_modules()
        if name
    ]
    try:
        model(tokens_BL)
    finally:
        for handle in handles:
            handle.remove()
    return f"what layer {found[0]} gives is not" if found else "every layer by itself gives one"


def _noting(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple | list) else (output,)
        if not all(part.isfinite().all() for part in parts if isinstance(part, Tensor)):
            found.append(name)

    return hook
