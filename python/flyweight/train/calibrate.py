"""What a model says about its weights: Hessians of their inputs, and how much each row matters.

Shapes: B sequences, T tokens, D model_dim, V vocab_size, N tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from flyweight.model.blocks import PLAIN
from flyweight.model.transformer import Transformer
from flyweight.train.moments import Moments, accumulate

__all__ = ["Hessians", "collect_hessians", "collect_in_sequence"]

Matrix = NDArray[np.float32]


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


def collect_hessians(
    model: Transformer,
    batches: Iterable[Tensor],
    *,
    sensitivities: bool = False,
    generator: torch.Generator | None = None,
    max_seconds: float | None = None,
    only: Container[str] | None = None,
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
    only : names of the weights to collect for, None is all; not with sensitivities

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
    sums = Moments()
    started = time.perf_counter()
    operations = model.use(PLAIN)  # others pass the linears by, where activations are noted
    try:
        for tokens_BT in batches:
            mode = _gradients_of_lookups(model) if sensitivities else torch.no_grad()
            # Not while the next batch is made: that may run the model too.
            with _float32_products(), sums.collecting(model, only), mode:
                hidden_BTD = model.hidden(tokens_BT.to(device))
                sums.n_tokens += tokens_BT.numel()
                if only is None or _head_name(model) in only:
                    sums.add_input(_head_name(model), hidden_BTD)
                sums.forget_input()
                if sensitivities:
                    _add_gradients(model, hidden_BTD, sums, generator)
            if max_seconds is not None and _seconds_since(started, device) >= max_seconds:
                break
    finally:
        model.use(operations)
    sums.reduce(device)
    return _finish(model, sums, sensitivities=sensitivities)


def collect_in_sequence(
    model: Transformer,
    batches: Sequence[Tensor],
    rounded: Callable[[Sequence[str], Mapping[str, Matrix]], Mapping[str, Matrix]],
) -> Hessians:
    """Hessians of each block from a model whose earlier blocks are quantized already.

    Parameters
    ----------
    model : as for :func:`collect_hessians`; its weights change meanwhile and come back
    batches : (B, T) int64 token ids each; there is a pass over them for every block
    rounded : takes the names of parameters and Hessians of some of them, and gives the weights
        (rows, cols) that the export will make of those that it quantizes

    Notes
    -----
    What lies outside of the blocks comes first, as every block is behind it. On a language model of
    33.6 M weights at 2.4 bits each this gave 0.00003 bits per byte and 0.13 % of the bytes
    (docs/experiments.md).

    References
    ----------
    Frantar et al., "GPTQ" (2023), section 4: inputs of a block are those of the quantized model.
    """
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    matrices: dict[str, Matrix] = {}
    n_tokens = 0
    try:
        for names in _in_sequence(model):
            found = collect_hessians(model, batches, only=names)
            n_tokens = found.n_tokens
            matrices |= found.matrices
            for name, array in rounded(names, found.matrices).items():
                parameter = model.get_parameter(name)
                with torch.no_grad():
                    parameter.copy_(torch.from_numpy(array).view(parameter.shape))
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                model.get_parameter(name).copy_(weight)
    return Hessians(matrices=matrices, row_sensitivities=None, n_tokens=n_tokens)


def _in_sequence(model: Transformer) -> list[list[str]]:
    """Names of parameters: those outside of the blocks, then block by block."""
    groups: dict[str, list[str]] = {"": []}
    for name, _ in model.named_parameters():
        block = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else ""
        groups.setdefault(block, []).append(name)
    return list(groups.values())


def _add_gradients(
    model: Transformer, hidden_BTD: Tensor, sums: Moments, generator: torch.Generator
) -> None:
    """Run backward from labels that the model draws; hooks of the linears and tables add up."""
    logits_NV = model.logits(hidden_BTD).flatten(0, 1)
    probabilities_NV = torch.softmax(logits_NV.detach(), -1)
    labels_N = torch.multinomial(probabilities_NV, 1, generator=generator).squeeze(1)
    squares_NV = probabilities_NV * (1 - probabilities_NV)
    if cap := model.config.softcap:
        squares_NV *= (1 - (logits_NV.detach() / cap).square()).square()
    accumulate(sums.squares, _head_name(model), squares_NV.sum(0))
    nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum").backward()  # type: ignore[no-untyped-call]


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


def _seconds_since(started: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # else only the launches are timed
    return time.perf_counter() - started


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _finish(model: Transformer, sums: Moments, *, sensitivities: bool) -> Hessians:
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
    tiny = torch.finfo(torch.float32).tiny
    matrix = head + table * (table_rows.sum() / head_rows.sum().clamp(min=tiny))
    rows = head_rows * head.trace() + table_rows * table.trace()
    return matrix, rows / matrix.trace().clamp(min=tiny)


def _head_name(model: Transformer) -> str:
    return "tok_emb.weight" if model.lm_head is None else "lm_head.weight"
