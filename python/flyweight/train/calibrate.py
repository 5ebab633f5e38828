"""What a model says about its weights: Hessians of their inputs, and how much each row matters.

Shapes: B sequences, T tokens, D model_dim, V vocab_size, R rows and C cols of a weight, N tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from flyweight.errors import InvalidArgumentError
from flyweight.model.transformer import Transformer

__all__ = ["Hessians", "collect_hessians"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hessians:
    """Second moments by weight name, averaged over the tokens of all ranks.

    Notes
    -----
    With both, an error ``d`` (rows, cols) of a weight costs about
    ``1/2 sum_r row_sensitivities[r] d[r] H d[r]^T`` nats per token: the Fisher information, taken
    as a Kronecker product with a diagonal factor on the side of the rows.
    """

    matrices: dict[str, NDArray[np.float32]]
    """Weight name to (cols, cols) float32: mean of ``x x^T`` over the inputs of a linear or head.
    With sensitivities also for tables that are looked up: mean of ``g g^T`` over the gradients of
    what was looked up, and for a tied head both."""
    row_sensitivities: dict[str, NDArray[np.float32]] | None
    """Weight name to (rows,) float32: mean over tokens of the squared gradient of the summed loss
    to the row's output; for a table how often a token looks up the row. None if not asked for."""
    n_tokens: int
    """Tokens in the mean."""


@dataclass(slots=True)
class _Sums:
    """What is added up on the device, by weight name."""

    products: dict[str, Tensor] = field(default_factory=dict)
    """(C, C) float32; only the first of several linears with the same input has one."""
    same_input: dict[str, str] = field(default_factory=dict)
    """Linear to the one whose product it shares."""
    squares: dict[str, Tensor] = field(default_factory=dict)
    """(R,) float32."""
    lookups: dict[str, Tensor] = field(default_factory=dict)
    """(R,) float32 counts."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """(C, C) float32, of tables."""
    n_tokens: int = 0
    _last: tuple[str, Tensor] | None = None

    def add_input(self, name: str, x: Tensor) -> None:
        """Count the input of a linear, unless the linear before had the very same."""
        if self._last is not None and self._last[1] is x:
            self.same_input[name] = self._last[0]
            return
        self._last = (name, x)
        _add(self.products, name, _outer(x))

    def forget_input(self) -> None:
        """End a batch; its last input need not be kept."""
        self._last = None


def collect_hessians(
    model: Transformer,
    batches: Iterable[Tensor],
    *,
    sensitivities: bool = False,
    generator: torch.Generator | None = None,
    max_seconds: float | None = None,
) -> Hessians:
    """Run a model over calibration tokens and average outer products of activations.

    Parameters
    ----------
    model : the model that will be scored, not compiled; sums are kept on its device
    batches : (B, T) int64 token ids each, moved to that device; forwards run under the caller's
        autocast, if any. Where ``torch.distributed`` is initialised, each rank gives its own.
    sensitivities : also run backward, from labels that the model draws itself
    generator : draws those labels, on the model's device; None is one seeded by the rank
    max_seconds : no further batch is begun after that long; one is always counted

    Raises
    ------
    InvalidArgumentError
        There is no batch (on some rank).

    Notes
    -----
    Products and sums are float32 without TF32, whatever the activations are. GPTQ's factor 2 is
    left out: it cancels. Labels of the model make it the true Fisher information, not the
    empirical one. The head needs no labels: their expected squared gradient is
    ``p (1 - p)`` times the squared slope of the soft cap.

    References
    ----------
    Frantar et al., "GPTQ" (2023), section 3. Martens and Grosse, "Optimizing neural networks with
    Kronecker-factored approximate curvature" (2015), section 5.
    """
    device = model.tok_emb.weight.device
    if generator is None:
        generator = torch.Generator(device).manual_seed(_rank())
    sums = _Sums()
    started = time.perf_counter()
    for tokens_BT in batches:
        mode = _gradients_of_lookups(model) if sensitivities else torch.no_grad()
        with _float32_products(), _hooks(model, sums), mode:  # not while the next batch is made
            _add_batch(model, tokens_BT.to(device), sums, generator if sensitivities else None)
        if max_seconds is not None and _seconds_since(started, device) >= max_seconds:
            break
    _reduce(sums, device)
    return _finish(model, sums, sensitivities=sensitivities)


def _add_batch(
    model: Transformer, tokens_BT: Tensor, sums: _Sums, generator: torch.Generator | None
) -> None:
    hidden_BTD = model.hidden(tokens_BT)
    sums.add_input(_head_name(model), hidden_BTD)
    sums.forget_input()
    sums.n_tokens += tokens_BT.numel()
    if generator is None:
        return
    logits_NV = model.logits(hidden_BTD).flatten(0, 1)
    probabilities_NV = torch.softmax(logits_NV.detach(), -1)
    labels_N = torch.multinomial(probabilities_NV, 1, generator=generator).squeeze(1)
    squares_NV = probabilities_NV * (1 - probabilities_NV)
    if cap := model.config.softcap:
        squares_NV *= (1 - (logits_NV.detach() / cap).square()).square()
    _add(sums.squares, _head_name(model), squares_NV.sum(0))
    nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum").backward()  # type: ignore[no-untyped-call]


@contextmanager
def _hooks(model: Transformer, sums: _Sums) -> Iterator[None]:
    """Add up inputs and, where gradients flow, squared gradients of linears and lookups."""

    def of_linear(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            sums.add_input(name, inputs[0])
            if output.requires_grad:
                output.register_hook(lambda g: _add(sums.squares, name, _squares(g)))  # type: ignore[no-untyped-call]

        return hook

    def of_table(name: str) -> Callable[[nn.Embedding, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Embedding, inputs: tuple[Any, ...], output: Tensor) -> None:
            if torch.is_grad_enabled():
                counts = torch.bincount(inputs[0].flatten(), minlength=module.num_embeddings)
                _add(sums.lookups, name, counts.float())
                output.requires_grad_()
                output.register_hook(lambda g: _add(sums.gradients, name, _outer(g)))  # type: ignore[no-untyped-call]

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(of_linear(f"{name}.weight")))
        elif isinstance(module, nn.Embedding):
            handles.append(module.register_forward_hook(of_table(f"{name}.weight")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _gradients_of_lookups(model: Transformer) -> Iterator[None]:
    """Let gradients begin at what was looked up: none is computed for a weight."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def _float32_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _outer(x: Tensor) -> Tensor:
    """Sum of ``x x^T`` over all but the last axis, (C, C) float32."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        rows = x.flatten(0, -2).float()
        return rows.mT @ rows


def _squares(g: Tensor) -> Tensor:
    """Sum of squares over all but the last axis, (R,) float32."""
    return g.flatten(0, -2).float().square().sum(0)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value


def _seconds_since(started: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # else only the launches are timed
    return time.perf_counter() - started


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _reduce(sums: _Sums, device: torch.device) -> None:
    """Add up the sums of all ranks."""
    n_tokens = torch.tensor(sums.n_tokens, device=device)
    fewest = n_tokens.clone()
    if distributed.is_initialized():
        distributed.all_reduce(fewest, distributed.ReduceOp.MIN)
    if not fewest:
        raise InvalidArgumentError("no calibration batches: expected at least one")
    if distributed.is_initialized():
        distributed.all_reduce(n_tokens)
        for group in (sums.products, sums.squares, sums.lookups, sums.gradients):
            for name in sorted(group):
                distributed.all_reduce(group[name])
    sums.n_tokens = int(n_tokens)


def _finish(model: Transformer, sums: _Sums, *, sensitivities: bool) -> Hessians:
    matrices = sums.products | sums.gradients
    rows = sums.squares | sums.lookups
    if sensitivities and model.lm_head is None:
        name = _head_name(model)
        matrices[name], rows[name] = _both_roles(
            sums.products[name], sums.squares[name], sums.gradients[name], sums.lookups[name]
        )
    arrays = {name: (total / sums.n_tokens).cpu().numpy() for name, total in matrices.items()}
    for name, source in sums.same_input.items():
        arrays[name] = arrays[source]
    found = {name: (total / sums.n_tokens).cpu().numpy() for name, total in rows.items()}
    return Hessians(
        matrices=arrays,
        row_sensitivities=found if sensitivities else None,
        n_tokens=sums.n_tokens,
    )


def _both_roles(
    head: Tensor, head_rows: Tensor, table: Tensor, table_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """One matrix and one vector for a tied embedding, whose errors cost as head and as table.

    The sum of two Kronecker products, ``diag(a) (x) A + diag(b) (x) B``, becomes the product of its
    marginals, which keeps what all columns of a row, and all rows of a column pair, cost together.
    The matrix stays in units of the head's.
    """
    matrix = head + table * (table_rows.sum() / head_rows.sum())
    rows = head_rows * head.trace() + table_rows * table.trace()
    return matrix, rows / matrix.trace()


def _head_name(model: Transformer) -> str:
    return "tok_emb.weight" if model.lm_head is None else "lm_head.weight"
