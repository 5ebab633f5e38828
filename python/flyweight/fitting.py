"""``fit``: the best model that a byte budget holds.

One number sets every step size: the slope, damage bought back by a byte, equal for all rows of all
tensors (``quant/equal_slope.py``). The search quantizes and codes the whole model at a few slopes,
with exact sizes, until one file just fits and another just does not; then single tensors take the
finer codes of the second while the file still fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyweight.codecs.select import Effort
from flyweight.errors import BudgetExceededError, InvalidArgumentError
from flyweight.fit_candidates import Candidate, Candidates
from flyweight.format.container import assemble, code_tensors
from flyweight.format.stored import Stored
from flyweight.format.wire import FieldValue
from flyweight.typing import AnyArray

__all__ = ["FitConfig", "FitResult", "TensorFit", "fit"]

TOLERANCE = 1e-4
"""A file that is below the budget by at most this share of it needs no further search."""
SHORTFALL = 1e-3
"""The search goes on while a mixture is further below the budget than this share of it."""
NEIGHBOURHOOD = 0.004
"""Two files this close to each other and to the budget, as a share of it, are mixed."""
OVERSHOOT = 0.0015
"""How far beyond the budget the search aims, as a share of it, to bracket it."""
MAX_ROUNDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """What a recipe says of a fit; the budget is the recipe's, less what its code takes."""

    min_elements: int = 4096
    """Smaller tensors are kept in float."""

    def __post_init__(self) -> None:
        if self.min_elements < 0:
            raise InvalidArgumentError(f"min_elements={self.min_elements}, expected 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFit:
    """What became of one tensor."""

    name: str
    """Tensor name."""
    method: str
    """``gptq``, ``rtn``, ``fixed`` (8-bit SDClip, for tensors without calibration in a calibrated
    model), ``lossless`` or ``float`` (small tensors)."""
    elements: int
    """Elements of the tensor."""
    bytes: int
    """Of its section: codes, scales, tables."""
    damage: float
    """Its part of :attr:`FitResult.damage`."""
    relative_error: float
    """``|W - W'|^2 / |W|^2``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A file that fits, and what it is predicted to cost."""

    data: bytes
    """The .fly file, at most ``budget`` bytes."""
    stored: Mapping[str, Stored]
    """What it holds."""
    budget: int
    """Bytes that the file was allowed."""
    objective: str
    """``loss``: damage is the predicted rise of the loss in nats a token. ``distortion``: damage is
    the mean relative squared error, of outputs where there are Hessians, of weights elsewhere."""
    damage: float
    """Predicted, summed over tensors."""
    damage_per_kilobyte: float
    """Damage that 1,000 bytes more would remove; 0 where nothing is left to remove."""
    tensors: tuple[TensorFit, ...]
    """One for each tensor, in the order of the checkpoint."""
    rounds: int
    """Whole models that were quantized and coded on the way."""


def fit(
    tensors: Mapping[str, AnyArray],
    budget: int,
    *,
    hessians: Mapping[str, NDArray[np.float32]] | None = None,
    sensitivities: Mapping[str, NDArray[np.float32]] | None = None,
    config: Mapping[int, FieldValue] | None = None,
    metadata: Mapping[str, str] | None = None,
    min_elements: int = 4096,
    codec: str = "auto",
    effort: Effort = "default",
    threads: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """The least damaged model whose .fly file has at most ``budget`` bytes.

    Parameters
    ----------
    tensors : name to array; float tensors of two or more axes are quantized, everything else is
        kept as it is or as float16
    budget : bytes of the file
    hessians : weight name to (cols, cols) float32, mean of ``x x^T`` per token
    sensitivities : weight name to (rows,) float32, mean squared gradient of a token's loss by the
        row's output. With a Hessian and a sensitivity a tensor's damage is a loss; tensors that
        lack one of them get a fine fixed grid then
    config, metadata : see :func:`flyweight.artifact.pack`
    min_elements : smaller tensors are kept in float
    codec, effort : see :func:`flyweight.codecs.select.select`
    threads : tensors worked on at once; None means one per processor
    report : told one line a round

    Returns
    -------
    FitResult
        Its file is at most 0.1 % smaller than the budget. More is left where everything is lossless
        in less; between 8-bit codes and lossless storage, where tensors are promoted one by one;
        and where a model has too few tensors to come that close.

    Raises
    ------
    BudgetExceededError
        Not even a model of zeros fits; the message says what it takes.
    InvalidArgumentError
        A tensor, Hessian or sensitivity is not finite or of the wrong shape, or there is no tensor
        for it.

    Notes
    -----
    Deterministic for the same versions, processor and number of BLAS threads.

    Examples
    --------
    >>> import numpy as np
    >>> weights = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    >>> found = fit({"w": weights}, 4000)
    >>> found.objective, 3980 <= len(found.data) <= 4000
    ('distortion', True)
    """
    candidates = Candidates(
        tensors,
        hessians or {},
        sensitivities or {},
        min_elements=min_elements,
        threads=threads,
        code=lambda stored, effort: code_tensors(
            stored, codec=codec, effort=effort, threads=threads
        ),
        join=lambda coded: assemble(coded, config=config, metadata=metadata),
        effort=effort,
    )
    search = _Search(candidates, budget, report)
    best = search.best()
    if best is None:  # the finest codes leave room
        best = _promoted(candidates, budget, search.seen[-1])
    return _result(best, search)


class _Search:
    """The slope whose file just fits."""

    def __init__(self, candidates: Candidates, budget: int, report: Callable[[str], None]) -> None:
        self.candidates, self.budget, self.report = candidates, budget, report
        self.seen: list[Candidate] = []

    def best(self) -> Candidate | None:
        """The finest model that fits, None if even the finest steps leave room.

        Raises
        ------
        BudgetExceededError
            Even zeros do not fit.
        """
        low, high = self.candidates.slope_range()
        below: Candidate | None = None  # fits
        above: Candidate | None = None  # does not
        log_slope, is_final = self._guess(low, high), False
        for _ in range(MAX_ROUNDS):
            found = self._look(log_slope, is_final)
            if found.size <= self.budget:
                below = found
                if found.log_slope <= low:
                    return None
            else:
                above = found
                if found.log_slope >= high:
                    raise BudgetExceededError(
                        f"the budget is {self.budget:,} bytes; the smallest file of these tensors "
                        f"has {found.size:,}"
                    )
            if not is_final and self._is_close(below, above):
                is_final = True
                below = below and self.candidates.finished(below)
                above = above and self.candidates.finished(above)
                if above is not None and above.size <= self.budget:
                    below, above = above, None
            if below is not None and self._is_close(below, above):
                best = self._best(below, above)
                if self.budget - best.size <= SHORTFALL * self.budget:
                    return best
            log_slope = min(max(self._next(below, above), low), high)
        return self._best(below or self._look(high, True), above)

    def _best(self, below: Candidate, above: Candidate | None) -> Candidate:
        return below if above is None else _mixed(self.candidates, self.budget, below, above)

    def _is_close(self, below: Candidate | None, above: Candidate | None) -> bool:
        """Whether one fits exactly enough, or two are close enough to be mixed."""
        if below is None:
            return False
        if self.budget - below.size <= TOLERANCE * self.budget:
            return True
        return above is not None and above.size - below.size <= NEIGHBOURHOOD * self.budget

    def _look(self, log_slope: float, is_final: bool) -> Candidate:
        found = self.candidates.at(log_slope)
        found = self.candidates.finished(found) if is_final else found
        self.seen.append(found)
        objective = "loss" if self.candidates.is_loss else "distortion"
        self.report(
            f"round {len(self.seen)}: {found.size:,} bytes, predicted {objective} "
            f"{found.damage:.5f}"
        )
        return found

    def _guess(self, low: float, high: float) -> float:
        """Where the expected size is the budget."""
        if self.candidates.expected_bytes(low) <= self.budget:
            return low
        for _ in range(30):
            middle = (low + high) / 2
            if self.candidates.expected_bytes(middle) > self.budget:
                low = middle
            else:
                high = middle
        return high

    def _next(self, below: Candidate | None, above: Candidate | None) -> float:
        """Between two, at the budget if sizes lay on a line; or somewhat beyond the budget."""
        if below is not None and above is not None:
            share = (self.budget * (1 - TOLERANCE / 2) - below.size) / (above.size - below.size)
            share = min(max(share, 0.05), 0.95)
            return below.log_slope + share * (above.log_slope - below.log_slope)
        found = below or above
        assert found is not None
        excess = float(found.size - self.budget)
        excess += OVERSHOOT * self.budget * (1 if excess > 0 else -1)
        return found.log_slope + 1.05 * excess / max(self.bytes_per_octave(found.log_slope), 1.0)

    def bytes_per_octave(self, log_slope: float) -> float:
        """Bytes that steps of half the size cost, as expected."""
        expect = self.candidates.expected_bytes
        return expect(log_slope - 0.5) - expect(log_slope + 0.5)


def _mixed(candidates: Candidates, budget: int, below: Candidate, above: Candidate) -> Candidate:
    """The one that fits, with tensors of the other where they pay most and still fit."""
    finer = above.tensors
    gains = []
    for name, coarse in below.tensors.items():
        extra = len(finer[name].coded.body) - len(coarse.coded.body)
        gain = coarse.damage - finer[name].damage
        if gain > 0:
            gains.append((-gain / max(extra, 0.5), name))
    best = below
    for _, name in sorted(gains):
        trial = candidates.candidate(below.log_slope, {**best.tensors, name: finer[name]})
        if trial.size <= budget:
            best = trial
    return best


def _promoted(candidates: Candidates, budget: int, finest: Candidate) -> Candidate:
    """Between 8-bit codes and lossless storage: tensors with all their bits where they pay most."""
    lossless = candidates.candidate(-np.inf, candidates.lossless())
    return lossless if lossless.size <= budget else _mixed(candidates, budget, finest, lossless)


def _result(best: Candidate, search: _Search) -> FitResult:
    candidates = search.candidates
    data = candidates.join({name: tensor.coded for name, tensor in best.tensors.items()})
    return FitResult(
        data=data,
        stored={name: tensor.stored for name, tensor in best.tensors.items()},
        budget=search.budget,
        objective="loss" if candidates.is_loss else "distortion",
        damage=best.damage,
        damage_per_kilobyte=_marginal(best, search),
        tensors=tuple(
            TensorFit(
                name=name,
                method=best.tensors[name].method,
                elements=int(array.size),
                bytes=len(best.tensors[name].coded.body),
                damage=best.tensors[name].damage,
                relative_error=best.tensors[name].relative_error,
            )
            for name, array in candidates.tensors.items()
        ),
        rounds=len(search.seen),
    )


def _marginal(best: Candidate, search: _Search) -> float:
    """Damage falls by a factor of four with each octave of the slope."""
    if not best.damage or not np.isfinite(best.log_slope):
        return 0.0
    octave = max(search.bytes_per_octave(best.log_slope), 1.0)
    return float(np.log(4) * best.damage / octave * 1000)
