"""Score-first training of chosen weights: SGD or AdamW, and an average that scores are taken from.

Shapes: B sequences, L tokens of one, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flyweight.errors import InvalidArgumentError
from flyweight.evaluate.config import AdaptConfig, ScoreConfig
from flyweight.evaluate.engine import Alone, ScoredChunk, Sliding
from flyweight.evaluate.ledger import Entries
from flyweight.evaluate.scorer import autocast, is_fused, rows_that_fit
from flyweight.model.transformer import Transformer

__all__ = ["ScoreFirst", "chosen_parameters", "mean_loss"]

_TRAINING_VALUES = 12
"""Numbers of the size of the stream that a block keeps for its backward pass, for each token."""
_MANY_STEPS = 500
"""Optimizer steps from which on compiled gradients make up for their compilation where operations
are fused: a short step takes an H100 50 ms, most of them to start its kernels."""


class ScoreFirst(Sliding):
    """Sliding windows, and after each chunk some steps on it by weights of a copy of the model.

    Notes
    -----
    On resume the chunks in the ledger are learned from again, in order. On the CPU the state, and
    so every later score, is then bit-identical; on a GPU as far as its kernels are deterministic.
    A step of more sequences than fit the memory is taken in parts, whose gradients add up.

    References
    ----------
    openai/parameter-golf: PR #461 (chunked form), #578 (SGD, average of the weights), #585 (AdamW
    on the last blocks), #1123 (SGD, first blocks frozen), #1683 (queries of the last blocks alone).
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: NDArray[Any],
        ledger: Entries,
        config: ScoreConfig,
        peers: Alone | None = None,
    ) -> None:
        super().__init__(copy.deepcopy(model), tokens, ledger, config, peers)
        if config.adapt is None:
            raise InvalidArgumentError("score: score-first needs a table adapt")
        self._adapt = config.adapt
        chosen = chosen_parameters(self.model, config.adapt)
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name in chosen)
        self._parameters = list(chosen.values())
        self._optimizer = _make_optimizer(self._parameters, config.adapt)
        is_averaged = config.adapt.ema_decay > 0
        self._raw = [weight.detach().clone() for weight in self._parameters if is_averaged]
        depth = len(list(self.model.get_submodule("blocks").children()))
        fitting = rows_that_fit(self.model, config.seq_len, _TRAINING_VALUES * depth, share=0.5)
        rows = min(config.adapt.sequences, max(config.chunk_targets // config.seq_len, 1))
        own = len(self.peers.rows(torch.empty(rows)))
        self._part = max(min(own, fitting), 1)
        self._compiled: Callable[..., Tensor] | None = None
        compiles = config.compile
        if compiles == "auto":
            compiles = not is_fused(self.model) or self._steps > _MANY_STEPS
        if compiles:
            self._compiled = torch.compile(mean_loss, fullgraph=True, dynamic=False)

    @property
    def _steps(self) -> int:
        """Of the optimizer, over the whole stream."""
        rows = max(self.config.chunk_targets // self.config.seq_len, 1)
        return self._learned_chunks * self._adapt.epochs * -(-rows // self._adapt.sequences)

    @property
    def _learned_chunks(self) -> int:
        return min(self._adapt.max_chunks or len(self.chunks), len(self.chunks))

    def tokens_to_learn(self, index: int) -> int:
        """Those of the chunk in each epoch; none behind the first ``max_chunks``."""
        windows = self.chunks[index]
        is_used = index < self._learned_chunks
        return is_used * self._adapt.epochs * (windows.stop - windows.start)

    def warm_up(self) -> None:
        """Also a pass of the usual size forward and backward; no weight changes."""
        super().warm_up()
        shape = (self._part, self.config.seq_len + 1)
        rows_BL = torch.zeros(shape, dtype=torch.int64, device=self.tokens_T.device)
        self._add_gradients(rows_BL, 1.0)
        self._optimizer.zero_grad()

    def _learn(self, scored: ScoredChunk) -> None:
        if scored.index >= self._learned_chunks:
            return
        self.scorer.suspicion = (
            f"; chunk {scored.index} was learned from, lower adapt.learning_rate"
        )
        self._set_rate(scored.index / max(self._learned_chunks - 1, 1))
        rows_BL = self._sequences(scored.start, scored.stop)
        if self._raw:
            averages = [weight.detach().clone() for weight in self._parameters]
            self._load(self._raw)
        for _ in range(self._adapt.epochs):
            for batch_BL in torch.split(rows_BL, self._adapt.sequences):
                self._step(batch_BL)
        if self._raw:
            self._raw = [weight.detach().clone() for weight in self._parameters]
            torch._foreach_lerp_(averages, self._raw, 1 - self._adapt.ema_decay)
            self._load(averages)

    def _set_rate(self, progress: float) -> None:
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        factor = cosine if self._adapt.schedule == "cosine" else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = self._adapt.learning_rate * factor

    def _sequences(self, start: int, stop: int) -> Tensor:
        """The chunk's own tokens, rows without overlap; a rest shorter than a row is left out."""
        length = min(self.config.seq_len, stop - start)
        tokens_T = self.tokens_T[start : stop + 1].long()
        return tokens_T.unfold(0, length + 1, length).contiguous()  # strides are compiled in

    @torch.no_grad()
    def _load(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(tuple(self._parameters), weights)

    def _step(self, rows_BL: Tensor) -> None:
        self._optimizer.zero_grad()
        own_BL = self.peers.rows(rows_BL)
        for part_BL in torch.split(own_BL, self._part) if len(own_BL) else ():
            self._add_gradients(part_BL, len(part_BL) / len(rows_BL))
        self.peers.sum_gradients(self._parameters)
        nn.utils.clip_grad_norm_(self._parameters, self._adapt.clip_norm)
        self._optimizer.step()

    def _add_gradients(self, rows_BL: Tensor, weight: float) -> None:
        is_usual = rows_BL.shape == (self._part, self.config.seq_len + 1)
        function = self._compiled if self._compiled is not None and is_usual else mean_loss
        with torch.enable_grad():
            with autocast(rows_BL.device, self.config.precision):
                loss = function(self.model, rows_BL)
            torch.autograd.backward(loss * weight)


def chosen_parameters(model: nn.Module, config: AdaptConfig) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name, in the order of the model.

    Raises
    ------
    InvalidArgumentError
        A pattern matches no parameter, or none is left to learn.
    """
    named = dict(model.named_parameters())
    for pattern in (*config.learn, *config.freeze):
        if not any(fnmatchcase(name, pattern) for name in named):
            raise InvalidArgumentError(
                f"score: adapt pattern {pattern!r} matches no parameter of the model, such as "
                f"{next(iter(named))!r}"
            )
    chosen = {
        name: weight
        for name, weight in named.items()
        if any(fnmatchcase(name, pattern) for pattern in config.learn)
        and not any(fnmatchcase(name, pattern) for pattern in config.freeze)
    }
    if not chosen:
        raise InvalidArgumentError(
            f"score: adapt.freeze={config.freeze} leaves nothing of learn={config.learn}"
        )
    return chosen


def mean_loss(model: nn.Module, rows_BL: Tensor) -> Tensor:
    """Mean cross-entropy in nats of all but the first token of each row, a scalar."""
    if isinstance(model, Transformer):
        return model.loss(rows_BL[:, :-1], rows_BL[:, 1:])
    logits_BLV = model(rows_BL[:, :-1])
    return functional.cross_entropy(logits_BLV.flatten(0, 1).float(), rows_BL[:, 1:].flatten())


def _make_optimizer(weights: list[nn.Parameter], config: AdaptConfig) -> torch.optim.Optimizer:
    rate = config.learning_rate
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=rate, momentum=config.momentum)
    betas = (config.momentum, config.second_beta)
    return torch.optim.AdamW(weights, lr=rate, betas=betas, weight_decay=0.0)
