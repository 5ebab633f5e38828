"""The loss functions of a run, of which one is taken at each step; all are compiled beforehand."""

from __future__ import annotations

from collections.abc import Callable
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

__all__ = ["LossFunction", "Losses", "fastest_operations"]

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""From tokens and targets (B, T) to their mean cross-entropy in nats."""
_Phase = tuple[bool, bool]
"""Whether layers are repeated, and whether weights are rounded."""


class Losses:
    """The loss of each phase of a run: with and without recurrence, of weights rounded and not.

    Parameters
    ----------
    model : gets the fastest operations for its device
    quantize : what the export will do; needed with ``config.qat``

    Attributes
    ----------
    hardness : of the rounding in the loss that was picked last; 0 is the plain loss, and None
        means that there is no other

    Raises
    ------
    InvalidArgumentError
        There is nothing that says how weights are quantized, or it is not for training.

    Notes
    -----
    A graph for each phase instead of one with switches: a phase costs nothing before it starts, and
    as all are compiled before the clock starts, nothing then either (docs/decisions/0010).
    """

    def __init__(
        self, model: Transformer, config: TrainConfig, quantize: QuantConfig | None
    ) -> None:
        self.hardness: float | None = None
        self._qat = config.qat
        self._recur_start = config.recur_start_fraction if model.config.recur_passes else 0.0
        model.use(fastest_operations(model))
        self._functions: dict[_Phase, LossFunction] = {
            (True, False): model.loss,
            (False, False): model.loss_once,
        }
        self._fakes: dict[_Phase, FakeQuant] = {}
        self._graphs = 0
        if self._qat is None:
            return
        if quantize is None:
            raise InvalidArgumentError("quantization-aware training needs a quantization config")
        is_soft = self._qat.method == "soft-round"
        phases = {self._phase(spent)[0] for spent in (self._qat.start_fraction, 1.0)}
        for recurs in phases:
            method = "loss" if recurs else "loss_once"
            fake = FakeQuant(model, quantize, is_soft=is_soft, method=method)
            self._fakes[recurs, True] = self._functions[recurs, True] = fake

    def compile(self, spent: float) -> list[LossFunction]:
        """Have what a run meets compiled on first use: the caller uses each of them once.

        Parameters
        ----------
        spent : share of the budget that is gone
        """
        starts = [self._recur_start] + ([self._qat.start_fraction] if self._qat else [])
        phases = {self._phase(max(spent, start)): None for start in (spent, *sorted(starts))}
        for phase in phases:
            function = self._functions[phase]
            self._functions[phase] = torch.compile(function, fullgraph=True, dynamic=False)
        return [self._functions[phase] for phase in phases]

    def start_counting(self) -> None:
        """From here on a graph that is compiled counts as a recompilation."""
        self._graphs = counters["stats"]["unique_graphs"]

    @property
    def recompilations(self) -> int:
        """Graphs compiled since :meth:`start_counting`, in the whole process."""
        return int(counters["stats"]["unique_graphs"] - self._graphs)

    def pick(self, spent: float) -> LossFunction:
        """The loss for a step, with scales of the weights as they are now.

        Parameters
        ----------
        spent : share of the budget that is gone
        """
        phase = self._phase(spent)
        if self._qat is not None:
            self.hardness = rounding_hardness(
                spent,
                start_fraction=self._qat.start_fraction,
                anneal_fraction=self._qat.anneal_fraction,
            )
        if phase in self._fakes:
            self._fakes[phase].hardness.fill_(self.hardness or 0.0)
            self._fakes[phase].refresh()
        return self._functions[phase]

    def _phase(self, spent: float) -> _Phase:
        rounds = self._qat is not None and spent >= self._qat.start_fraction
        return spent >= self._recur_start, rounds


def fastest_operations(model: Transformer) -> Operations:
    """Triton kernels where the model is on CUDA, Triton is installed and they take its shape."""
    config = model.config
    sizes = (config.head_dim, config.num_heads, config.num_kv_heads)
    fits = all(size & (size - 1) == 0 for size in sizes) and config.num_heads <= 64
    if not (model.tok_emb.weight.is_cuda and fits and find_spec("triton")):
        return PLAIN
    from flyweight.model.fused import FUSED

    return FUSED
