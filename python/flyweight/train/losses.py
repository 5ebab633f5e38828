"""The loss functions of a run, of which one is taken at each step; all are compiled beforehand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flyweight.errors import InvalidArgumentError
from flyweight.model.transformer import Transformer
from flyweight.quant.config import QuantConfig
from flyweight.quant.qat import FakeQuant
from flyweight.train.config import QatConfig
from flyweight.train.schedule import rounding_hardness

__all__ = ["LossFunction", "Losses"]

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""From tokens and targets (B, T) to their mean cross-entropy in nats."""


class Losses:
    """The plain loss, and from some share of the budget on that of quantized weights.

    Parameters
    ----------
    qat : None takes the plain loss alone, and nothing is added to it
    quantize : what the export will do; needed with ``qat``

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
    Two graphs instead of one with a switch: a late start costs nothing before it, and as both are
    compiled before the clock starts, nothing after it either (docs/decisions/0010).
    """

    def __init__(
        self, model: Transformer, qat: QatConfig | None, quantize: QuantConfig | None
    ) -> None:
        self.hardness: float | None = None
        self._qat = qat
        self._plain: LossFunction = model.loss
        if qat is None:
            return
        if quantize is None:
            raise InvalidArgumentError("quantization-aware training needs a quantization config")
        is_soft = qat.method == "soft-round"
        self._fake = FakeQuant(model, quantize, is_soft=is_soft, method="loss")
        self._quantized: LossFunction = self._fake

    def compile(self, spent: float) -> list[LossFunction]:
        """Have what a run meets compiled on first use: the caller uses each of them once.

        Parameters
        ----------
        spent : share of the budget that is gone
        """
        used = []
        if self._qat is None or spent < self._qat.start_fraction:
            self._plain = torch.compile(self._plain, fullgraph=True, dynamic=False)
            used.append(self._plain)
        if self._qat is not None:
            self._quantized = torch.compile(self._fake, fullgraph=True, dynamic=False)
            used.append(self._quantized)
        return used

    def pick(self, spent: float) -> LossFunction:
        """The loss for a step, with scales of the weights as they are now.

        Parameters
        ----------
        spent : share of the budget that is gone
        """
        if self._qat is None:
            return self._plain
        start = self._qat.start_fraction
        self.hardness = rounding_hardness(
            spent, start_fraction=start, anneal_fraction=self._qat.anneal_fraction
        )
        if spent < start:
            return self._plain
        self._fake.hardness.fill_(self.hardness)
        self._fake.refresh()
        return self._quantized
