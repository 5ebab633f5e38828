"""Does a record beat another: every reading of the challenge's rule, with what each assumes.

The rule asks for 0.005 nats at p < 0.01 and leaves open nats per what; rows of the leaderboard were
later accepted at one-sided p < 0.25 against the previous row. No reading is chosen here.

References
----------
openai/parameter-golf README ("Submission Process"), PR #1902 and #2146 (p < 0.25), issue #2148.
B. L. Welch, "The generalization of Student's problem", Biometrika 34 (1947).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, variance
from typing import Any

from flyweight.errors import DataError

__all__ = [
    "MARGIN_NATS",
    "P_LINES",
    "Comparison",
    "Runs",
    "Test",
    "compare",
    "count_seeds",
    "student_tail",
]

MARGIN_NATS = 0.005
"""By how much the README wants a record beaten."""
P_LINES = {"README, p < 0.01": 0.01, "frontier practice, p < 0.25": 0.25}
"""Significance levels in use."""
_ANCHOR_BYTES_PER_TOKEN = {
    "SP1024": 151_080_891 / 62_021_845,
    "SP8192": 151_080_891 / 40_540_802,
    "CaseOps": 151_074_499 / 47_851_520,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Scores of one record, one entry for each seed."""

    name: str
    """Where they are from."""
    bpb: tuple[float, ...] = ()
    """Bits per byte."""
    loss: tuple[float, ...] = ()
    """Nats per token; empty where a seed has none."""
    bytes_per_token: float | None = None
    """Of the scored stream, where loss and bpb are both known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One test of "new is lower than old by more than the margin"."""

    __test__ = False  # not one of pytest's

    unit: str
    """What the values are."""
    margin: float
    """By how much, in that unit."""
    kind: str
    """``Welch`` or ``one-sample``."""
    gain: float
    """Old mean minus new mean."""
    t: float | None
    """Statistic; None where nothing varies or there are too few seeds."""
    degrees: float | None
    """Degrees of freedom."""
    p: float | None
    """One-sided."""
    passes: dict[str, bool] = field(default_factory=dict)
    """Significance line to whether `p` is below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All readings of a new record against an old one."""

    new: Runs
    old: Runs
    tests: tuple[Test, ...]
    assumptions: tuple[str, ...]
    """What has to hold for the readings to mean something."""

    def to_json(self) -> dict[str, Any]:
        """``new``, ``old``, ``tests``, ``assumptions``."""
        return asdict(self)


def count_seeds(count: int) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count} seed{'s' * (count != 1)}"


def compare(new: Runs, old: Runs) -> Comparison:
    """Every reading that the values allow.

    Parameters
    ----------
    new : at least one seed
    old : at least one; with one it is taken as a mean without error

    Raises
    ------
    DataError
        A side has no scores.
    """
    for runs in (new, old):
        if not runs.bpb and not runs.loss:
            raise DataError(f"{runs.name}: no scores to compare")
    tests: list[Test] = []
    if new.bpb and old.bpb:
        for name, margin in _bpb_margins(new):
            tests.append(_test(f"bpb, margin {name}", new.bpb, old.bpb, margin))
        nats = [tuple(value * math.log(2.0) for value in runs.bpb) for runs in (new, old)]
        tests.append(_test("nats per byte", nats[0], nats[1], MARGIN_NATS))
    if new.loss and old.loss:
        for margin in (0.0, MARGIN_NATS):
            tests.append(_test("nats per token", new.loss, old.loss, margin))
    return Comparison(
        new=new, old=old, tests=tuple(tests), assumptions=tuple(_assumptions(new, old))
    )


def _bpb_margins(new: Runs) -> list[tuple[str, float]]:
    """Margins in bits per byte: none, 0.005 nats per byte, and per token of known tokenizers."""
    margins = [("0", 0.0), ("0.005 nats per byte", MARGIN_NATS / math.log(2.0))]
    ratios = {f"{k} token": v for k, v in _ANCHOR_BYTES_PER_TOKEN.items()}
    if new.bytes_per_token is not None:
        ratios = {"token of the new record": new.bytes_per_token}
    for name, ratio in ratios.items():
        margins.append((f"0.005 nats per {name}", MARGIN_NATS / ratio / math.log(2.0)))
    margins.append(("0.005 bpb, as some wrote", MARGIN_NATS))
    return margins


def _test(unit: str, new: Sequence[float], old: Sequence[float], margin: float) -> Test:
    gain = fmean(old) - fmean(new)
    kind = "Welch" if len(old) > 1 else "one-sample"
    parts = [(variance(each) / len(each), len(each) - 1) for each in (new, old) if len(each) > 1]
    error = sum(part for part, _ in parts)
    if len(new) < 2 or error == 0.0:
        return Test(
            unit=unit, margin=margin, kind=kind, gain=gain, t=None, degrees=None, p=None,
            passes=dict.fromkeys(P_LINES, False),
        )  # fmt: skip
    t = (gain - margin) / math.sqrt(error)
    degrees = error**2 / sum(part**2 / free for part, free in parts)
    p = student_tail(t, degrees)
    return Test(
        unit=unit, margin=margin, kind=kind, gain=gain, t=t, degrees=degrees, p=p,
        passes={name: p < line for name, line in P_LINES.items()},
    )  # fmt: skip


def _assumptions(new: Runs, old: Runs) -> list[str]:
    said = [
        "one-sided: the new record is lower; seeds are independent and all that were run are here",
        "scores of seeds are normal; variances of the two sides may differ (Welch)",
        "both sides score the same text, every target once",
    ]
    for runs, side in ((new, "new"), (old, "old")):
        seeds = max(len(runs.bpb), len(runs.loss))
        if seeds < 3:
            said.append(f"{side}: {count_seeds(seeds)}, the rules want 3")
    if max(len(old.bpb), len(old.loss)) < 2:
        said.append("old: one value, taken as a mean without error (one-sample t)")
    ours, theirs = new.bytes_per_token, old.bytes_per_token
    if ours is None or theirs is None:
        said.append("nats per token are comparable only under one tokenizer; not known here")
    elif abs(ours / theirs - 1.0) > 1e-3:
        said.append(
            f"the tokenizers differ ({ours:.4f} and {theirs:.4f} bytes per token): nats per token "
            "mean nothing here, compare per byte"
        )
    else:
        said.append("the tokenizers have equal bytes per token, so nats per token compare")
    return said


def student_tail(t: float, degrees: float) -> float:
    """Probability that Student's t is above a value, one-sided.

    Parameters
    ----------
    t : the value
    degrees : of freedom, above 0, not only whole

    Notes
    -----
    ``I_x(df / 2, 1 / 2) / 2`` with ``x = df / (df + t^2)``, within 1e-12 of tables.

    References
    ----------
    Abramowitz and Stegun, 26.5.27 and 26.7.1.
    """
    tail = 0.5 * _incomplete_beta(degrees / (degrees + t * t), degrees / 2.0, 0.5)
    return tail if t >= 0.0 else 1.0 - tail


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised, by its continued fraction (Lentz), 26.5.8 of Abramowitz and Stegun."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1.0), tiny)
    fraction = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        before = fraction
        for term in (even, odd):
            d = 1.0 / ((1.0 + term * d) or tiny)
            c = (1.0 + term / c) or tiny
            fraction *= c * d
        if abs(fraction - before) <= 1e-16 * abs(fraction):
            break
    return math.exp(log_front) * fraction / a
