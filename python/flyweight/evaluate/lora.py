"""Per-document training of low-rank additions, many documents side by side.

Every document has low-rank additions of its own to chosen linears. They start anew at its BOS, and
learn from each of its steps of some tokens once those are scored. Nothing is carried from one
document to another, so scores do not depend on which documents run together, but for rounding.

Shapes: R documents side by side, L tokens of a window, S targets of a step, K rank, I inputs and O
outputs of a linear.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flyweight.errors import DataError, InvalidArgumentError
from flyweight.evaluate.config import LoraConfig, ScoreConfig
from flyweight.evaluate.engine import Alone, ScoringEngine
from flyweight.evaluate.ledger import Entries
from flyweight.evaluate.nonfinite import why_not_finite
from flyweight.evaluate.scorer import autocast, target_nats
from flyweight.evaluate.window import Windows
from flyweight.model.blocks import PLAIN
from flyweight.model.config import BOS_TOKEN
from flyweight.model.transformer import Transformer

__all__ = ["DocumentRows", "LowRank", "PerDocument", "ScoredRows", "add_low_rank"]

_ROWS_SEAL = object()
_PASSES = 3
"""Passes forward that a pass forward and backward takes."""


class LowRank(nn.Module):
    """A linear with an addition per row: ``y[r] = W x[r] + scale B[r] A[r] x[r]``.

    Fewer rows than it has additions take the first ones.

    References
    ----------
    E. Hu et al., "LoRA", 2021, equation 3; openai/parameter-golf, PR #1530 (one per document).
    """

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.linear, self.scale = linear, config.scale
        size, weight = (config.documents, config.rank), linear.weight
        self.down_RKI = nn.Parameter(weight.new_empty(*size, linear.in_features))
        self.up_RKO = nn.Parameter(weight.new_empty(*size, linear.out_features))

    def reset(self, generator: torch.Generator) -> None:
        """No addition: B is zero, and A the same random matrix in every row."""
        bound = self.linear.in_features**-0.5
        start_KI = torch.empty(self.down_RKI.shape[1:]).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.down_RKI.copy_(start_KI)
            self.up_RKO.zero_()

    def forward(self, x_RLI: Tensor) -> Tensor:
        rows = len(x_RLI)
        low_RLK = torch.bmm(x_RLI, self.down_RKI[:rows].to(x_RLI.dtype).mT)
        added_RLO = torch.bmm(low_RLK, self.up_RKO[:rows].to(low_RLK.dtype))
        out_RLO: Tensor = self.linear(x_RLI) + self.scale * added_RLO
        return out_RLO


def add_low_rank(model: nn.Module, config: LoraConfig) -> list[LowRank]:
    """Put a `LowRank` in the place of each chosen linear; everything else is frozen.

    Raises
    ------
    InvalidArgumentError
        A pattern matches no linear.
    """
    model.requires_grad_(False)
    linears = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    for pattern in config.match:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise InvalidArgumentError(
                f"score: lora pattern {pattern!r} matches no linear of the model"
            )
    found = []
    for name, linear in linears.items():
        if any(fnmatchcase(name, pattern) for pattern in config.match):
            parent, _, last = name.rpartition(".")
            found.append(LowRank(linear, config))
            setattr(model.get_submodule(parent), last, found[-1])
    return found


@dataclass(frozen=True, slots=True, eq=False)
class ScoredRows:
    """A step of each document whose scores are final; only `DocumentRows` can make one."""

    step: int
    """Number of the step in its documents."""
    nats: Tensor
    """(r, S) scores of the first r documents, the others have ended, with the graph that led to
    them; 0 where a document has no such target."""
    counts: Tensor
    """(r,) targets of each document in the step, at least 1."""
    seal: object = field(repr=False)
    """What only `DocumentRows` has."""

    def __post_init__(self) -> None:
        if self.seal is not _ROWS_SEAL:
            raise InvalidArgumentError("ScoredRows come from score(), they cannot be made")


class DocumentRows:
    """Documents side by side, step by step: score, then and only then learn.

    Parameters
    ----------
    model : with low-rank additions from `add_low_rank`
    additions : these
    tokens_T : the whole stream
    first_R, end_R : (R,) int64, targets of each document, ``first .. end - 1``, the longest first;
        R is ``lora.documents``
    config, lora : sizes, precision; what the additions learn by
    whole_window : `target_nats` or a compiled twin, for R windows of ``seq_len`` tokens

    Notes
    -----
    Documents that have ended are left out where the rows before them are a power of two.
    """

    def __init__(
        self,
        model: nn.Module,
        additions: list[LowRank],
        tokens_T: Tensor,
        first_R: Tensor,
        end_R: Tensor,
        config: ScoreConfig,
        lora: LoraConfig,
        whole_window: Callable[..., Tensor] = target_nats,
    ) -> None:
        self._whole_window = whole_window
        self._model, self._tokens_T, self._config, self._lora = model, tokens_T, config, lora
        self._first_R, self._end_R = first_R, end_R
        steps_R = -((first_R - end_R) // lora.step_targets).cpu().numpy()
        self.steps = int(steps_R.max())
        last = [int(np.flatnonzero(steps_R > step)[-1]) for step in range(self.steps)]
        self._rows = [min(1 << n.bit_length(), len(steps_R)) for n in last]
        generator = torch.Generator().manual_seed(0)
        for addition in additions:
            addition.reset(generator)
        self._optimizer = torch.optim.AdamW(
            [weight for each in additions for weight in (each.down_RKI, each.up_RKO)],
            lr=lora.learning_rate,
            betas=(lora.momentum, lora.second_beta),
            eps=1e-10,
            weight_decay=lora.weight_decay,
        )
        self._next = 0
        self._newest: ScoredRows | None = None

    def score(self, step: int) -> ScoredRows:
        """Final scores of the next step of every document.

        Returns
        -------
        Nats float32, in parts of a graph that `adapt` goes back through

        Raises
        ------
        InvalidArgumentError
            The step is not the next one.
        """
        if step != self._next or step >= self.steps:
            raise InvalidArgumentError(
                f"score: got step {step} of {self.steps}, expected step {self._next}"
            )
        size, device = self._lora.step_targets, self._tokens_T.device
        length = min((step + 1) * size, self._config.seq_len)
        rows = self._rows[step]
        stop_R = self._first_R[:rows] + (step + 1) * size
        places_RL = stop_R[:, None] - length + torch.arange(length + 1, device=device)
        inside_RL = places_RL <= self._end_R[:rows, None]
        last = len(self._tokens_T) - 1
        rows_RL = torch.where(inside_RL, self._tokens_T[places_RL.clamp(max=last)].long(), 0)
        positions = min(size, length)
        is_usual = length == self._config.seq_len and rows == len(self._first_R)
        function = self._whole_window if is_usual else target_nats
        with torch.enable_grad(), autocast(device, self._config.precision):
            nats_RS = function(self._model, rows_RL, positions)
        is_target_RS = inside_RL[:, -positions:]
        nats_RS = torch.where(is_target_RS, nats_RS, 0.0)
        self._newest = ScoredRows(step, nats_RS, is_target_RS.sum(1).clamp(min=1), _ROWS_SEAL)
        self._next = step + 1
        return self._newest

    def adapt(self, scored: ScoredRows) -> None:
        """Learn from a step that was just scored, each document from its own; at most once.

        Raises
        ------
        InvalidArgumentError
            Not the object that the newest `score` returned, or already used.
        """
        if scored is not self._newest or not isinstance(scored, ScoredRows):
            raise InvalidArgumentError(
                "adapt: expected the ScoredRows that the newest score() returned, not yet used; "
                f"got {type(scored).__name__}"
            )
        self._newest = None
        self._optimizer.zero_grad()
        torch.autograd.backward((scored.nats.sum(1) / scored.counts).sum())
        self._optimizer.step()


class PerDocument(ScoringEngine):
    """Low-rank additions per document; a chunk of the stream is a run of whole documents.

    Notes
    -----
    A document also scores the BOS of the next one. What the first document lacks of its start is
    lacking. No state leaves a chunk, so that a resumed run has nothing to replay. Kernels that read
    the weights of linears past them are not used. Compiled are full rows of windows of
    ``seq_len`` tokens; the first ones of a document, which grow step by step, would each be a graph
    of their own.
    """

    adapts_within = True

    def __init__(
        self,
        model: nn.Module,
        tokens: NDArray[Any],
        ledger: Entries,
        config: ScoreConfig,
        peers: Alone | None = None,
    ) -> None:
        self._is_start = np.flatnonzero(tokens[:-1] == BOS_TOKEN)
        super().__init__(model, tokens, ledger, config, peers)
        if config.lora is None:
            raise InvalidArgumentError("score: per-document needs a table lora")
        self._lora = config.lora
        self._added = copy.deepcopy(model).eval()
        if isinstance(self._added, Transformer):
            self._added.use(PLAIN)
        self._additions = add_low_rank(self._added, config.lora)
        self._whole_window: Callable[..., Tensor] = target_nats
        if self.compiles:
            self._whole_window = torch.compile(target_nats, fullgraph=True, dynamic=False)

    def _plan(self, targets: int) -> Windows:
        """One window for each document, whatever its length."""
        first = np.union1d([0], self._is_start).astype(np.int64)
        return Windows(begin=first, first=first, end=np.append(first[1:], targets))

    def tokens_to_score(self, index: int, *, plainly: bool = False) -> int:
        """Windows of all steps, forward and backward."""
        if plainly:
            return super().tokens_to_score(index, plainly=True)
        documents, size = self.chunks[index], self._lora.step_targets
        steps = -(-(documents.end - documents.first) // size)
        full = np.minimum(steps, self.config.seq_len // size)
        read = size * full * (full + 1) // 2 + (steps - full) * self.config.seq_len
        return _PASSES * int(read.sum())

    def warm_up(self) -> None:
        """Run a step behind the first window, forward and backward; no document is read."""
        shape = (self._lora.documents, self.config.seq_len + 1)
        rows_RL = torch.zeros(shape, dtype=torch.int64, device=self.tokens_T.device)
        with torch.enable_grad(), autocast(rows_RL.device, self.config.precision):
            nats_RS = self._whole_window(self._added, rows_RL, self._lora.step_targets)
        torch.autograd.backward(nats_RS.sum())

    def _score_plainly(self, index: int) -> NDArray[np.float64]:
        return self.peers.score(self.scorer, self._blocks(index))

    def _score(self, windows: Windows) -> NDArray[np.float64]:
        """Documents of about one length together, the longest first."""
        nats_N = torch.zeros(windows.stop - windows.start, device=self.tokens_T.device)
        order = np.argsort(windows.first - windows.end, kind="stable")
        groups = [
            order[at : at + self._lora.documents]
            for at in range(0, order.size, self._lora.documents)
        ]
        for group in self.peers.share(groups):
            self._score_group(windows.first[group], windows.end[group], windows.start, nats_N)
        nats: NDArray[np.float64] = self.peers.sum_scores(nats_N.double().cpu().numpy())
        if not np.isfinite(nats).all():
            self._refuse(windows.start, nats)
        return nats

    def _refuse(self, start: int, nats: NDArray[np.float64]) -> None:
        """Run what led to the first bad target again, without additions, and name the layer."""
        bad = int(np.argmin(np.isfinite(nats)))
        target = start + bad
        begin = self._is_start[: np.searchsorted(self._is_start, target, side="right")][-1:]
        first = max([target + 1 - self.config.seq_len, 0, *begin.tolist()])
        tokens_L = self.tokens_T[first : target + 1].long()
        with torch.inference_mode(), autocast(tokens_L.device, self.config.precision):
            reason = why_not_finite(self.model, tokens_L[None])
        raise DataError(
            f"the model's loss is {nats[bad]} at token {target + 1} of the stream, expected a "
            f"finite number: without what its document had learned {reason}"
        )

    def _score_group(
        self, first: NDArray[np.int64], end: NDArray[np.int64], start: int, nats_N: Tensor
    ) -> None:
        missing, device = self._lora.documents - first.size, self.tokens_T.device
        first_R = torch.from_numpy(np.pad(first, (0, missing), mode="edge")).to(device)
        empty = np.full(missing, first[-1])
        end_R = torch.from_numpy(np.concatenate((end, empty))).to(device)
        rows = DocumentRows(
            self._added,
            self._additions,
            self.tokens_T,
            first_R,
            end_R,
            self.config,
            self._lora,
            self._whole_window,
        )
        for step in range(rows.steps):
            scored = rows.score(step)
            self._enter(scored, first_R[: first.size], end_R, start, nats_N)
            if step < rows.steps - 1:
                rows.adapt(scored)

    def _enter(
        self, scored: ScoredRows, first_R: Tensor, end_R: Tensor, start: int, nats_N: Tensor
    ) -> None:
        rows, size = scored.nats.shape
        first_R = first_R[:rows]
        stop_R = first_R + (scored.step + 1) * self._lora.step_targets
        targets_RS = stop_R[:, None] - size + torch.arange(size, device=first_R.device)
        is_target_RS = targets_RS < end_R[: len(first_R), None]
        places_RS = torch.where(is_target_RS, targets_RS - start, 0)
        nats_RS = torch.where(is_target_RS, scored.nats.detach()[: len(first_R)], 0.0)
        nats_N.index_put_((places_RS.flatten(),), nats_RS.flatten(), accumulate=True)
