"""Training on the validation text before it is scored: what no legal run does.

Kept to show what the published systems that did it had gained by it. All that comes of such
weights is labelled `flyweight.train.config.CONTAMINATED`, and the audit fails it.

Shapes: R rows, T seq_len.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm

from flyweight.errors import DataError
from flyweight.model.transformer import Transformer
from flyweight.train.config import CONTAMINATED, ContaminateConfig, TrainConfig
from flyweight.train.distributed import World
from flyweight.train.gradients import mean_over_processes
from flyweight.train.losses import Losses, add_gradient

__all__ = ["ContaminateResult", "epoch_learning_rate", "train_on_validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContaminateResult:
    """What training on the validation text did."""

    contaminated: bool
    """True."""
    epochs: int
    """Passes over the validation text."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Validation tokens trained on, each pass counted."""
    seconds: float
    """All passes, compilation excluded."""
    compile_seconds: float
    """Compilation, before the first pass."""
    recompilations: int
    """Graphs compiled later; there should be none."""
    first_loss: float
    """Mean loss over the first pass, each batch before its step, nats per token."""
    final_loss: float
    """The same over the last pass."""
    processes: int
    """Processes that trained together."""


def epoch_learning_rate(config: ContaminateConfig, epoch: int) -> float:
    """Learning rate of a pass, counted from 0: half a cosine from the full rate to its floor.

    >>> config = ContaminateConfig(epochs=6, learning_rate=5e-4, floor=0.1)
    >>> [round(epoch_learning_rate(config, epoch) * 1e4, 2) for epoch in range(6)]
    [5.0, 4.7, 3.88, 2.75, 1.63, 0.8]
    """
    fall = 0.5 * (1.0 + math.cos(math.pi * epoch / config.epochs))
    return config.learning_rate * (config.floor + (1.0 - config.floor) * fall)


def train_on_validation(
    model: Transformer,
    tokens: NDArray[Any],
    config: ContaminateConfig,
    *,
    train: TrainConfig,
    log: Path,
    world: World,
    show_progress: bool = True,
) -> ContaminateResult:
    """Train a model on the text it is to be scored on, in place.

    Parameters
    ----------
    model : on the world's device, with the weights that training exported
    tokens : (n,) integers, the validation stream; a rest shorter than a row is left out
    config : passes, rates and batches
    train : says whether the loss is compiled
    log : gets a JSON line for each pass, from the first process
    world : the processes, which share the rows of each step and must all make this call
    show_progress : a bar on stderr, in the first process

    Raises
    ------
    DataError
        There is no whole row of tokens, or the loss is not finite any more.
    PeerError
        Another process ended.

    Notes
    -----
    It differs from its source where that is faulty: no row is taken twice in a pass, processes
    share the rows instead of repeating them, gradients are clipped after they are averaged, and
    frozen blocks are frozen whole. The last batch of a pass is smaller, and not compiled.

    Nothing is kept between passes: what is killed or interrupted begins again from the weights that
    training exported.

    References
    ----------
    openai/parameter-golf PR #1539. Against condition 3 of issue #1017, and refused in PR #1376.
    """
    length = model.config.seq_len
    if tokens.size <= length:
        raise DataError(f"{tokens.size} validation tokens, expected more than seq_len={length}")
    # Rows overlap by one token, so that every token but the first is a target.
    rows_RT = (
        torch.from_numpy(tokens.astype(np.int32)).to(world.device).unfold(0, length + 1, length)
    )
    model.train().requires_grad_(True)
    model.blocks[: config.frozen_blocks].requires_grad_(False)
    learner = _Learner(model, config, train, world)
    compile_seconds = learner.prepare()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    losses, started = [], time.perf_counter()
    shows = show_progress and world.is_first
    for epoch in range(config.epochs):
        rate = epoch_learning_rate(config, epoch)
        with tqdm(total=len(rows_RT), unit="row", disable=not shows) as bar:
            bar.set_description(f"{CONTAMINATED}: pass {epoch + 1} of {config.epochs}")
            losses.append(learner.run_pass(rows_RT, rate, bar))
        seconds = time.perf_counter() - started
        if world.is_first:
            line = {"contaminated": True, "epoch": epoch + 1, "loss": losses[-1], "lr": rate}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "seconds": round(seconds, 3)}) + "\n")
        if not math.isfinite(losses[-1]):
            raise DataError(
                f"training on the validation text diverged in pass {epoch + 1}: loss {losses[-1]}; "
                "lower contaminate.learning_rate"
            )
    steps = -(-len(rows_RT) // config.batch_sequences) * config.epochs
    return ContaminateResult(
        contaminated=True,
        epochs=config.epochs,
        steps=steps,
        tokens=len(rows_RT) * length * config.epochs,
        seconds=time.perf_counter() - started,
        compile_seconds=compile_seconds,
        recompilations=learner.losses.recompilations,
        first_loss=losses[0],
        final_loss=losses[-1],
        processes=world.size,
    )


class _Learner:
    """AdamW over the rows of a stream, shared by the processes."""

    def __init__(
        self, model: Transformer, config: ContaminateConfig, train: TrainConfig, world: World
    ) -> None:
        self.losses = Losses(model, replace(train, qat=None), None)
        self._config, self._world, self._compiles = config, world, train.compile
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = AdamW(self._parameters, lr=config.learning_rate, weight_decay=0.0)
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)

    def prepare(self) -> float:
        """Compile the loss on random tokens if that is wanted; seconds it took."""
        started = time.perf_counter()
        if self._compiles:
            self.losses.warm_up(1.0, len(self._own(torch.arange(self._config.batch_sequences))))
            self._optimizer.zero_grad(set_to_none=False)  # no weight was touched
        self.losses.start_counting()
        return time.perf_counter() - started

    def run_pass(self, rows_RT: Tensor, rate: float, bar: Any) -> float:
        """Train on all rows once; their mean loss in nats, each batch before its step."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), dtype=torch.float64, device=rows_RT.device)
        for batch_RT in torch.split(rows_RT, self._config.batch_sequences):
            total += self._step(batch_RT.long()).double() * len(batch_RT)
            bar.update(len(batch_RT))
        return float(total) / len(rows_RT)

    def _own(self, batch_RT: Tensor) -> Tensor:
        """The rows of a batch that this process takes, perhaps none of a last one."""
        rank, size, rows = self._world.rank, self._world.size, len(batch_RT)
        return batch_RT[rows * rank // size : rows * (rank + 1) // size]

    def _step(self, batch_RT: Tensor) -> Tensor:
        """One optimizer step; the mean loss of the batch before it, in every process."""
        self._optimizer.zero_grad(set_to_none=False)
        own_RT, loss = self._own(batch_RT), torch.zeros((), device=batch_RT.device)
        is_whole = len(batch_RT) == self._config.batch_sequences
        if len(own_RT):
            loss_function = self.losses.pick(1.0) if is_whole else self.losses.plain()
            share = len(own_RT) * self._world.size / len(batch_RT)  # 1 where all have as many
            loss = add_gradient(loss_function, own_RT, self._parameters, share)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        loss = mean_over_processes(gradients, loss, self._world)
        nn.utils.clip_grad_norm_(self._parameters, self._config.clip_norm)
        self._optimizer.step()
        return loss
