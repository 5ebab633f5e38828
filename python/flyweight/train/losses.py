"""The loss functions of a run, of which one is taken at each step; all are compiled beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
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

__all__ = ["LossFunction", "Losses", "Phase", "add_gradient", "fastest_operations"]

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""From tokens and targets (B, T) to their mean cross-entropy in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What a model does at a time of a run; each phase has a graph of its own."""

    recurs: bool
    """Layers are repeated, where the model has any to repeat."""
    seq_len: int
    """Tokens that attention sees."""


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
    phase : of the loss that was picked last

    Raises
    ------
    InvalidArgumentError
        There is nothing that says how weights are quantized, or it is not for training; sequences
        do not divide into the short ones.

    Notes
    -----
    The graphs of all phases are compiled before the clock starts. Rounding has none: the same graph
    gets other weights (docs/decisions/0013).
    """

    def __init__(
        self, model: Transformer, config: TrainConfig, quantize: QuantConfig | None
    ) -> None:
        self.hardness: float | None = None
        self._model, self._config = model, config
        if config.short_seq_len and model.config.seq_len % config.short_seq_len:
            raise InvalidArgumentError(
                f"short_seq_len={config.short_seq_len} does not divide "
                f"seq_len={model.config.seq_len}"
            )
        self.phase = self._phase_at(1.0)
        model.use(fastest_operations(model))
        self._compiled: dict[Phase, LossFunction] = {}
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
        ends = (self._config.recur_start_fraction, self._config.short_fraction)
        phases = {self._phase_at(time) for time in (spent, *(max(spent, end) for end in ends))}
        for phase in sorted(phases, key=repr):
            # Rows that compilers pad are copied for our own kernels, which takes longer.
            self._compiled[phase] = torch.compile(
                self._plain(phase),
                fullgraph=True,
                dynamic=False,
                options={"comprehensive_padding": False},
            )
        return list(self._compiled.values())

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
        self.phase = self._phase_at(spent)
        return self._compiled.get(self.phase) or self.plain()

    def plain(self) -> LossFunction:
        """The loss that was picked last, not compiled."""
        return self._plain(self.phase)

    def _phase_at(self, spent: float) -> Phase:
        config, model = self._config, self._model.config
        return Phase(
            recurs=not model.recur_passes or spent >= config.recur_start_fraction,
            seq_len=config.short_seq_len if spent < config.short_fraction else model.seq_len,
        )

    def _plain(self, phase: Phase) -> LossFunction:
        loss_function = self._model.loss if phase.recurs else self._model.loss_once

        def of_pieces(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
            shape = (-1, phase.seq_len)
            return loss_function(tokens_BT.reshape(shape), targets_BT.reshape(shape))

        return of_pieces

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
