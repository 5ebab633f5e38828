"""Second moments of what the linears and tables of a model meet, added up on its device.

Shapes: R rows and C cols of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn

from flyweight.errors import InvalidArgumentError

__all__ = ["Moments", "accumulate"]


@dataclass(slots=True)
class Moments:
    """Sums on the device, by weight name."""

    products: dict[str, Tensor] = field(default_factory=dict)
    """(C, C) float32; only the first of several linears with the same input has one."""
    same_input: dict[str, str] = field(default_factory=dict)
    """Linear to the one whose product it shares."""
    squares: dict[str, Tensor] = field(default_factory=dict)
    """(R,) float32, of the gradients of outputs."""
    lookups: dict[str, Tensor] = field(default_factory=dict)
    """(R,) float32, how often each row of a table was looked up."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """(C, C) float32, of the gradients of what was looked up."""
    n_tokens: int = 0
    """Tokens counted."""
    _last: tuple[str, Tensor] | None = None

    def add_input(self, name: str, x: Tensor) -> None:
        """Count the input of a linear, unless the linear before had the very same."""
        if self._last is not None and self._last[1] is x:
            self.same_input[name] = self._last[0]
            return
        self._last = (name, x)
        accumulate(self.products, name, _outer(x))

    def forget_input(self) -> None:
        """End a batch; its last input need not be kept."""
        self._last = None

    @contextmanager
    def collecting(self, model: nn.Module, only: Container[str] | None = None) -> Iterator[None]:
        """Add up what the linears and tables of a model meet while the block runs.

        Inputs always; gradients where they are enabled, for which lookups are made to ask for them.

        Parameters
        ----------
        only : names of the weights that are looked at; None is all
        """

        def of_linear(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                self.add_input(name, inputs[0])
                if output.requires_grad:
                    output.register_hook(lambda g: accumulate(self.squares, name, _squares(g)))  # type: ignore[no-untyped-call]

            return hook

        def of_table(name: str) -> Callable[[nn.Embedding, tuple[Any, ...], Tensor], None]:
            def hook(module: nn.Embedding, inputs: tuple[Any, ...], output: Tensor) -> None:
                if torch.is_grad_enabled():
                    counts = torch.bincount(inputs[0].flatten(), minlength=module.num_embeddings)
                    accumulate(self.lookups, name, counts.float())
                    output.requires_grad_()
                    output.register_hook(lambda g: accumulate(self.gradients, name, _outer(g)))  # type: ignore[no-untyped-call]

            return hook

        handles = []
        for name, module in model.named_modules():
            if only is not None and f"{name}.weight" not in only:
                continue
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_hook(of_linear(f"{name}.weight")))
            elif isinstance(module, nn.Embedding):
                handles.append(module.register_forward_hook(of_table(f"{name}.weight")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def reduce(self, device: torch.device) -> None:
        """Add up the sums of all ranks.

        Raises
        ------
        InvalidArgumentError
            A rank has counted no token.
        """
        n_tokens = torch.tensor(self.n_tokens, device=device)
        fewest = n_tokens.clone()
        if distributed.is_initialized():
            distributed.all_reduce(fewest, distributed.ReduceOp.MIN)
        if not fewest:
            raise InvalidArgumentError("no calibration batches: expected at least one")
        if distributed.is_initialized():
            distributed.all_reduce(n_tokens)
            for group in (self.products, self.squares, self.lookups, self.gradients):
                for name in sorted(group):
                    distributed.all_reduce(group[name])
        self.n_tokens = int(n_tokens)


def _outer(x: Tensor) -> Tensor:
    """Sum of ``x x^T`` over all but the last axis, (C, C) float32."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        rows = x.flatten(0, -2).float()
        return rows.mT @ rows


def _squares(g: Tensor) -> Tensor:
    """Sum of squares over all but the last axis, (R,) float32."""
    return g.flatten(0, -2).float().square().sum(0)


def accumulate(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add to the sum of that name in place, or begin it with this value.

    Parameters
    ----------
    sums : tensors of the shape and type of ``value``, by weight name
    """
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value
