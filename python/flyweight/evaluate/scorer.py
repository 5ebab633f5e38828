"""Scores of windows under a model: fixed shapes, and the device is waited for once a call.

Shapes: N windows, B of them in a batch, L tokens of a window, S targets at its end, V vocabulary,
T tokens of the stream.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flyweight.errors import DataError
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.nonfinite import why_not_finite
from flyweight.evaluate.window import Windows, window_batches
from flyweight.model.blocks import PLAIN
from flyweight.model.transformer import Transformer

__all__ = [
    "Tilt",
    "WindowScorer",
    "autocast",
    "compiling_pays",
    "is_fused",
    "nats_of",
    "rows_that_fit",
    "target_nats",
]

_FORWARD_VALUES = 32
"""Numbers of the size of the stream that a forward pass holds at once, for each token."""
_LONG = 800_000_000
"""Tokens from which on compiled code makes up for its compilation where operations are fused: an
H200 takes 16 s for it, then reads 4.24 million a second instead of 3.92 (docs/experiments.md)."""


class Tilt(NamedTuple):
    """What a run of targets adds to one logit each before the softmax."""

    start: int
    """First target of the run."""
    tokens: Tensor
    """(n,) int64, whose logit, known before the target is looked at."""
    values: Tensor
    """(n,) float32, how much."""


class WindowScorer:
    """Negative log-probabilities of targets, under the weights that the model has at the call.

    Parameters
    ----------
    model : maps tokens (B, L) int64 to logits (B, L, V), causal; put into evaluation mode
    tokens_T : (T,) integers on the model's device, the whole stream
    config : sizes, precision, and whether the forward pass has one shape and is compiled
    compiles : False leaves it at the one shape

    Notes
    -----
    A target's score depends on the tokens of its own window only. The size of the batch may change
    it by float rounding: less than 1e-4 nats in float32. Of a `Transformer` the head, and in the
    last block all but keys and values, run for the scored positions alone. With
    ``compile`` each batch has the same shape: a smaller one is filled up, and so is the last of the
    blocks without overlap; sliding windows that are shorter than ``seq_len`` or score more than
    ``stride`` targets run uncompiled.

    Attributes
    ----------
    is_tilted : whether all calls of `score` have a tilt, for `warm_up`
    suspicion : what else a loss that is not finite may come from, behind the layer
    """

    is_tilted = False
    suspicion = ""
    most_windows: ClassVar[Mapping[str, int]] = MappingProxyType({"cpu": 16, "cuda": 128})
    """More of them in a batch are no faster: 16 of 256 tokens fill the caches of a processor, 128
    of 2,048 a GPU."""

    def __init__(
        self, model: nn.Module, tokens_T: Tensor, config: ScoreConfig, *, compiles: bool = True
    ) -> None:
        self._model, self._tokens_T = model.eval(), tokens_T
        self._length, self._precision = config.seq_len, config.precision
        self._usual = config.stride if config.has_windows else config.seq_len
        self.batch_windows = config.batch_windows or min(
            rows_that_fit(model, config.seq_len, _FORWARD_VALUES, share=0.25),
            self.most_windows.get(tokens_T.device.type, 16),
        )
        self._of_one_shape: Callable[..., Tensor] | None = None
        if config.compile:
            self._of_one_shape = target_nats
        if config.compile and compiles:
            self._of_one_shape = torch.compile(target_nats, fullgraph=True, dynamic=False)

    def warm_up(self, *, plainly: bool = False) -> int:
        """Run one usual batch of zeros, which compiles it, and wait; how many tokens it had.

        Of sliding windows the first runs too: it takes kernels that are made once for its shape.

        Parameters
        ----------
        plainly : a batch of blocks without overlap, as a deadline's fallback has them
        """
        scored = self._length if plainly else self._usual
        shape, device = (self.batch_windows, self._length + 1), self._tokens_T.device
        with torch.inference_mode(), autocast(device, self._precision):
            rows_BL = torch.zeros(shape, dtype=torch.int64, device=device)
            hints_BS = rows_BL.new_zeros(self.batch_windows, scored)
            hints = (hints_BS, hints_BS.float())
            usual = self._of_one_shape or target_nats
            function = target_nats if scored > self._usual else usual
            found = function(self._model, rows_BL, scored, *(hints if self.is_tilted else ()))
            if self._of_one_shape is not None and scored < self._length:
                found = found.sum() + target_nats(self._model, rows_BL[:1], self._length).sum()
            found.sum().item()
        return self.batch_windows * self._length

    def score(self, windows: Windows, tilt: Tilt | None = None) -> NDArray[np.float64]:
        """Nats of every target of the windows, in the order of the stream.

        Parameters
        ----------
        windows : one or more, adjacent
        tilt : of these targets, or of more

        Returns
        -------
        (n,) float64 with n = windows.stop - windows.start, computed in float32 over the full
        vocabulary; with a tilt (n, 2), behind each the nats of the token that was tilted

        Raises
        ------
        DataError
            The model gives NaN or infinity for a target; the message names token and layer.
        """
        begin_N = torch.from_numpy(windows.begin).to(self._tokens_T.device)
        parts, done = [], 0
        with torch.inference_mode(), autocast(self._tokens_T.device, self._precision):
            for batch in window_batches(windows, batch_windows=self.batch_windows):
                parts.append(self._score_batch(batch, begin_N[done : done + len(batch)], tilt))
                done += len(batch)
            nats = torch.cat(parts).cpu().numpy().astype(np.float64)
        if not np.isfinite(nats).all():
            self._refuse(windows, nats if tilt is None else nats[:, 0] + nats[:, 1])
        return nats

    def _score_batch(self, batch: Windows, begin_B: Tensor, tilt: Tilt | None) -> Tensor:
        length = int(batch.end[0] - batch.begin[0])
        scored = int(batch.end[0] - batch.first[0])
        is_block = scored == length and self._usual == self._length
        function, positions, skipped = target_nats, scored, 0
        if self._of_one_shape is not None and (
            is_block or (length == self._length and scored <= self._usual)
        ):
            function, positions, length = self._of_one_shape, self._usual, self._length
            skipped = 0 if is_block else positions - scored
            begin_B = functional.pad(begin_B, (0, self.batch_windows - len(batch)))
        places_BL = begin_B[:, None] + torch.arange(length + 1, device=begin_B.device)
        # What lies behind the stream is behind all that is scored.
        rows_BL = self._tokens_T[places_BL.clamp(max=len(self._tokens_T) - 1)].long()
        hints: tuple[Tensor, ...] = ()
        if tilt is not None:
            hinted_BS = places_BL[:, length - positions : length] - tilt.start
            hinted_BS = hinted_BS.clamp(0, len(tilt.tokens) - 1)  # what is cut off below
            hints = (tilt.tokens[hinted_BS], tilt.values[hinted_BS])
        nats_BS = function(self._model, rows_BL, positions, *hints)
        return nats_BS[: len(batch), skipped : skipped + scored].flatten(0, 1)

    def _refuse(self, windows: Windows, nats: NDArray[np.float64]) -> None:
        """Run the window of the first bad target again, and name the layer."""
        bad = int(np.argmin(np.isfinite(nats)))
        target = windows.start + bad
        window = int(np.searchsorted(windows.end, target, side="right"))
        tokens_L = self._tokens_T[int(windows.begin[window]) : int(windows.end[window])].long()
        with torch.inference_mode(), autocast(tokens_L.device, self._precision):
            reason = why_not_finite(self._model, tokens_L[None])
        raise DataError(
            f"the model's loss is {nats[bad]} at token {target + 1} of the stream, expected a "
            f"finite number: {reason}{self.suspicion}"
        )


def target_nats(
    model: nn.Module,
    rows_BL: Tensor,
    positions: int,
    hints_BS: Tensor | None = None,
    tilts_BS: Tensor | None = None,
) -> Tensor:
    """Nats of the last targets of each row.

    Parameters
    ----------
    model : maps tokens (B, L) int64 to logits (B, L, V), causal
    rows_BL : (B, L + 1) int64, what it reads and the last target
    positions : S, how many targets, 1 to L
    hints_BS, tilts_BS : int64 and float32, whose logit is raised and how much

    Returns
    -------
    (B, S) float32, 0 or more; with hints (B, S, 2), behind each target's nats those of its hint
    """
    if isinstance(model, Transformer):
        logits_BSV = model.logits(model.hidden(rows_BL[:, :-1], tail=positions))
    else:
        logits_BSV = model(rows_BL[:, :-1])[:, -positions:]
    targets_BS = rows_BL[:, -positions:]
    if hints_BS is not None and tilts_BS is not None:
        raised_BSV = logits_BSV.float().scatter_add(2, hints_BS[..., None], tilts_BS[..., None])
        asked_BS2 = torch.stack((targets_BS, hints_BS), dim=2)
        return raised_BSV.log_softmax(2).gather(2, asked_BS2).neg().clamp(min=0)
    return nats_of(logits_BSV, targets_BS)


def nats_of(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """Nats (B, S) float32 of targets under logits."""
    nats = functional.cross_entropy(
        logits_BSV.flatten(0, 1).float(), targets_BS.flatten(), reduction="none"
    )
    return nats.view(targets_BS.shape).clamp(min=0)  # rounding leaves a sure target a hair below


def compiling_pays(model: nn.Module, tokens: int) -> bool:
    """Whether a pass over so many tokens ends sooner compiled, compilation included."""
    return not is_fused(model) or tokens > _LONG


def is_fused(model: nn.Module) -> bool:
    """Whether kernels of our own leave compilers little to gain."""
    return isinstance(model, Transformer) and model.operations != PLAIN


def rows_that_fit(model: nn.Module, length: int, values: int, *, share: float) -> int:
    """Rows of tokens whose pass fits the memory of the model's device; the same on each call.

    Parameters
    ----------
    length : tokens of a row
    values : float32 numbers of the size of the stream that the pass keeps for each token
    share : of the memory, free or not, that it may take
    """
    weight = next(model.parameters())
    if weight.is_cuda:
        memory = torch.cuda.get_device_properties(weight.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    width = model.config.model_dim if isinstance(model, Transformer) else weight.shape[-1]
    return max(1, int(share * memory) // (4 * values * width * length))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in bfloat16 where ``precision`` says so, else as the weights are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
