"""The loss functions of a run, of which one is taken at each step; all are compiled beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from flyweight.errors import InvalidArgumentError
from flyweight.model.blocks import PLAIN, Operations
from flyweight.model.transformer import Transformer
from flyweight.quant.config import QuantConfig
from flyweight.quant.qat import FakeQuant
from flyweight.train.config import TrainConfig
from flyweight.train.schedule import rounding_hardness

__all__ = ["LossFunction", "Losses", "add_gradient", "fastest_operations"]

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""From tokens and targets (B, T) to their mean cross-entropy in nats."""


class Losses:
    """The loss of each phase of a run: with and without recurrence, of weights rounded and not.

    Parameters
    ----------
    model : gets the fastest operations for its device
    quantize : what the export will do; needed with ``config.qat``

    Attributes
    ----------
    hardness : of the rounding in the loss that was picked last; 0 is none yet, and None that there
        will be none
    recurs : whether the loss that was picked last repeats layers, where the model has any to repeat

    Raises
    ------
    InvalidArgumentError
        There is nothing that says how weights are quantized, or it is not for training.

    Notes
    -----
    Recurrence has a graph of its own, and both are compiled before the clock starts. Rounding has
    none: the same graph gets other weights (docs/decisions/0013).
    """

    def __init__(
        self, model: Transformer, config: TrainConfig, quantize: QuantConfig | None
    ) -> None:
        self.hardness: float | None = None
        self._model, self.recurs = model, True
        self._recur_start = config.recur_start_fraction if model.config.recur_passes else 0.0
        model.use(fastest_operations(model))
        self._functions: dict[bool, LossFunction] = {True: model.loss, False: model.loss_once}
        self._qat, self._graphs = config.qat, 0
        if self._qat is None:
            return
        if quantize is None:
            raise InvalidArgumentError("quantization-aware training needs a quantization config")
        self._fake = FakeQuant(model, quantize, is_soft=self._qat.method == "soft-round")

    def warm_up(self, spent: float, rows: int) -> None:
        """Compile what a run meets, on random tokens; the model is left with a gradient of these.

        Parameters
        ----------
        spent : share of the budget that is gone
        rows : of each pass
        """
        config, device = self._model.config, self._model.tok_emb.weight.device
        generator = torch.Generator().manual_seed(0)
        shape = (rows, config.seq_len + 1)
        rows_RT = torch.randint(config.vocab_size, shape, generator=generator).to(device)
        weights = list(self._model.parameters())
        for loss_function in self.compile(spent):
            float(add_gradient(loss_function, rows_RT, weights))  # waits for the device

    def compile(self, spent: float) -> list[LossFunction]:
        """Have what a run meets compiled on first use: the caller uses each of them once.

        Parameters
        ----------
        spent : share of the budget that is gone
        """
        phases = [True] if spent >= self._recur_start else [False, True]
        for recurs in phases:
            function = self._functions[recurs]
            # Rows that compilers pad are copied for our own kernels, which takes longer.
            self._functions[recurs] = torch.compile(
                function, fullgraph=True, dynamic=False, options={"comprehensive_padding": False}
            )
        return [self._functions[recurs] for recurs in phases]

    def pick(self, spent: float) -> LossFunction:
        """The loss for a step, to be called under :meth:`rounding`.

        Parameters
        ----------
        spent : share of the budget that is gone
        """
        if self._qat is not None:
            self.hardness = rounding_hardness(
                spent,
                start_fraction=self._qat.start_fraction,
                anneal_fraction=self._qat.anneal_fraction,
            )
        self.recurs = spent >= self._recur_start
        return self._functions[self.recurs]

    def plain(self) -> LossFunction:
        """The loss that was picked last, not compiled."""
        return self._model.loss if self.recurs else self._model.loss_once

    def rounding(self) -> AbstractContextManager[None]:
        """Round the weights, if it is time, for all losses and gradients of a step."""
        return self._fake.applied(self.hardness) if self.hardness else nullcontext()

    def start_counting(self) -> None:
        """From here on a graph that is compiled counts as a recompilation."""
        self._graphs = counters["stats"]["unique_graphs"]

    @property
    def recompilations(self) -> int:
        """Graphs compiled since :meth:`start_counting`, in the whole process."""
        return int(counters["stats"]["unique_graphs"] - self._graphs)


def add_gradient(
    loss_function: LossFunction, rows_RT: Tensor, weights: Iterable[Tensor], factor: float = 1.0
) -> Tensor:
    """Add the gradient of the mean loss of some rows, times a factor, to those of the weights.

    Parameters
    ----------
    rows_RT : (rows, seq_len + 1) int64 on the device of the model, which computes in bfloat16 there
        if it is CUDA, and else in float32
    weights : those of the model; the frozen ones get none

    Returns
    -------
    () float32 without a gradient, the mean loss in nats per token, times the factor
    """
    learned = [weight for weight in weights if weight.requires_grad]
    with torch.autocast(rows_RT.device.type, torch.bfloat16, enabled=rows_RT.is_cuda):
        loss = loss_function(rows_RT[:, :-1], rows_RT[:, 1:]) * factor
    found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, learned, allow_unused=True)
    sums, added = [], []
    for weight, gradient in zip(learned, found, strict=True):
        if gradient is not None and weight.grad is not None:
            sums.append(weight.grad)
            added.append(gradient)
        elif gradient is not None:
            weight.grad = gradient.contiguous()  # as fused optimizers want it
    if added:  # in one kernel: that of each weight takes longer to start than to run
        torch._foreach_add_(sums, added)
    return loss.detach()


def fastest_operations(model: Transformer) -> Operations:
    """Triton kernels where the model is on CUDA, Triton is installed and they take its shape."""
    config, device = model.config, model.tok_emb.weight.device
    fits = config.head_dim & (config.head_dim - 1) == 0 and config.rope_dims > 0
    if not (device.type == "cuda" and fits and find_spec("triton")):
        return PLAIN
    from flyweight.model.fused import FUSED

    has_tensor_memory_accelerator = torch.cuda.get_device_capability(device) >= (9, 0)
    if has_tensor_memory_accelerator and config.model_dim % 64 == config.mlp_hidden % 64 == 0:
        return FUSED  # whole tiles, or halves of them: a smaller model gains nothing by it
    return replace(FUSED, squared_linear=PLAIN.squared_linear)
