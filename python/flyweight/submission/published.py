"""What submission folders of the challenge say of themselves: ``submission.json`` and logs.

Folders differ in names and detail; this reads the variants that are in use. Nothing is believed:
each value is of the expected kind or it is not there.

References
----------
openai/parameter-golf, records/track_10min_16mb: 46 folders, 114 logs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flyweight.errors import DataError
from flyweight.submission.statistics import Runs
from flyweight.train.config import CONTAMINATED

__all__ = ["LogFacts", "SeedClaim", "read_claims", "read_log", "read_runs"]

_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)"
_SCORE = re.compile(rf"^(.*?)val_loss\s*[:=]\s*{_NUMBER},?\s+val_bpb\s*[:=]\s*{_NUMBER}(.*)$")
_PROGRESS = re.compile(r"(?:step\s*[:=]?\s*)?[0-9]+/[0-9]+\s*$|step\s*[:=]?\s*[0-9]+\s*$")
_EVALUATION = re.compile(rf"eval_time\s*[:=]\s*{_NUMBER}\s*(ms|s)\b|elapsed\s*[:=]\s*{_NUMBER}s\b")
_MAX_DIGITS = 20
_NOT_FINAL = ("diagnostic", "pre-quant", "pre_quant", "post_ema")
_PATTERNS = {
    "code_bytes": re.compile(r"^code size:\s*([0-9,]+) bytes", re.IGNORECASE),
    "code_uncompressed_bytes": re.compile(r"^code size \(uncompressed\):\s*([0-9,]+) bytes", re.I),
    "code_compressed_bytes": re.compile(r"^code size \(compressed\):\s*([0-9,]+) bytes", re.I),
    "model_bytes": re.compile(r"^serialized model \S+:\s*([0-9,]+) bytes", re.IGNORECASE),
    "total_bytes": re.compile(r"^total submission size \S+:\s*([0-9,]+) bytes", re.IGNORECASE),
    "val_tokens": re.compile(r"^(?:val_tokens:\s*|val_loader:.*\btokens:)([0-9]+)\s*$"),
    "train_shards": re.compile(r"^(?:train_shards:\s*|train_loader:.*\btrain_shards:)([0-9]+)\b"),
}
_TRAINED = re.compile(rf"train_time\s*:\s*{_NUMBER}ms")
_TOTAL_EVALUATION = re.compile(rf"^total_eval_time\s*:\s*{_NUMBER}s")
_HESSIANS = re.compile(rf"collected [0-9]+ Hessians in {_NUMBER}s", re.IGNORECASE)
_RESERVE = re.compile(rf"^\s*gptq_reserve_seconds\s*:\s*{_NUMBER}\s*$")
_CLOCK = re.compile(rf"^\s*max_wallclock_seconds\s*:\s*{_NUMBER}\s*$")
_STEPS = re.compile(r"stopping_early.*step\s*:\s*([0-9]+)/")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """What a log of the challenge's scripts prints; None where it does not."""

    val_loss: float | None = None
    """Nats per token of the last final score."""
    val_bpb: float | None = None
    """Bits per byte of the same score."""
    label: str = ""
    """What the log calls that score."""
    scores: tuple[tuple[str, float, float], ...] = ()
    """Label, nats per token and bits per byte of every final score, in the order of the log."""
    eval_seconds: float | None = None
    """Of that score, or of the whole evaluation where the log has it."""
    train_seconds: float | None = None
    """The training clock when it stopped."""
    hessian_seconds: float | None = None
    """What reading training data for Hessians took, which is part of training."""
    reserve_seconds: float | None = None
    """What the script kept of its training clock for them."""
    clock_seconds: float | None = None
    """The training clock's limit, as configured."""
    code_bytes: int | None = None
    """Code, as the script counted it."""
    code_uncompressed_bytes: int | None = None
    """Code before a wrapper that is only built in memory."""
    code_compressed_bytes: int | None = None
    """Code after it."""
    model_bytes: int | None = None
    """The compressed model."""
    total_bytes: int | None = None
    """Code and model, as the script counted them; the last compression that it tried."""
    val_tokens: int | None = None
    """Validation tokens."""
    train_shards: int | None = None
    """Training shards."""
    steps: int | None = None
    """Optimizer steps."""

    @property
    def data_seconds(self) -> float | None:
        """When training data was last read: the clock, and the Hessians unless they lie inside."""
        if self.train_seconds is None:
            return None
        return self.train_seconds + (self.hessian_seconds or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedClaim:
    """What ``submission.json`` says of one seed; None where it does not."""

    seed: str
    val_bpb: float | None = None
    val_loss: float | None = None
    artifact_bytes: int | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None


def read_log(text: str) -> LogFacts:
    """Facts of a log; of a value that is printed more than once the last one counts.

    Some logs begin with the script's own source: only lines with numbers where the script prints
    them match.
    """
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if len(line) > 1000:
            continue
        for name, pattern in _PATTERNS.items():
            if (match := pattern.search(line)) and len(match[1]) <= _MAX_DIGITS:
                found[name] = int(match[1].replace(",", ""))
        if match := _SCORE.match(line):
            _read_score(match, found)
        for name, pattern, unit in (
            ("eval_seconds", _TOTAL_EVALUATION, 1.0),
            ("train_seconds", _TRAINED, 1e-3),
            ("hessian_seconds", _HESSIANS, 1.0),
            ("reserve_seconds", _RESERVE, 1.0),
            ("clock_seconds", _CLOCK, 1.0),
        ):
            if match := pattern.search(line):
                found[name] = float(match[1]) * unit
        if match := _STEPS.search(line):
            found["steps"] = int(match[1])
    return LogFacts(**found)


def _read_score(match: re.Match[str], found: dict[str, Any]) -> None:
    """Enter a score that is no progress line; the same score with fewer digits changes nothing."""
    label = match[1].strip(" :\t")
    if _PROGRESS.search(label) or any(word in label.lower() for word in _NOT_FINAL):
        return
    loss, bpb = float(match[2]), float(match[3])
    found["scores"] = (*found.get("scores", ()), (label or "score", loss, bpb))
    known = found.get("val_bpb")
    if known is None or abs(known - bpb) > 5e-4 or len(match[3]) >= len(repr(known)):
        found.update(val_loss=loss, val_bpb=bpb, label=label or "score")
    if time := _EVALUATION.search(match[4]):
        unit = 1e-3 if time[2] == "ms" else 1.0
        found["eval_seconds"] = float(time[1] or time[3]) * unit


def read_claims(record: Mapping[str, Any]) -> list[SeedClaim]:
    """Seeds of a ``submission.json``: ``seed_results``, ``seeds`` as a map, or ``seed_scores``."""
    results = record.get("seed_results")
    if not isinstance(results, dict):
        results = record.get("seeds")
    if not isinstance(results, dict):
        results = {}
    claims = [_read_claim(seed, values) for seed, values in results.items()]
    scores, seeds = record.get("seed_scores"), record.get("seeds")
    if not claims and isinstance(scores, list) and isinstance(seeds, list):
        claims = [
            SeedClaim(seed=str(seed), val_bpb=_number(score))
            for seed, score in zip(seeds, scores, strict=False)
        ]
    return claims


def read_runs(record: Mapping[str, Any], *, name: str) -> Runs:
    """Scores by seed of a ``submission.json``, or its mean alone where it has no seeds.

    Raises
    ------
    DataError
        The record says of itself that it is contaminated: nothing can be shown with it.
    """
    if record.get("contaminated"):
        raise DataError(f"{name}: {CONTAMINATED}; its scores cannot be compared with others")
    claims = read_claims(record)
    bpb = [claim.val_bpb for claim in claims if claim.val_bpb is not None]
    loss = [claim.val_loss for claim in claims if claim.val_loss is not None]
    if not bpb:
        mean, mean_loss = _number(record.get("val_bpb")), _number(record.get("val_loss"))
        bpb, loss = (
            [x for x in (mean,) if x is not None],
            [x for x in (mean_loss,) if x is not None],
        )
    if len(loss) != len(bpb):
        loss = []
    ratio = sum(loss) / math.log(2.0) / sum(bpb) if sum(loss) > 0 and sum(bpb) > 0 else None
    return Runs(name=name, bpb=tuple(bpb), loss=tuple(loss), bytes_per_token=ratio)


def _read_claim(seed: str, values: Any) -> SeedClaim:
    if not isinstance(values, dict):
        return SeedClaim(seed=seed, val_bpb=_number(values))
    size = _first(values, "artifact_bytes", "bytes_total", "total_bytes")
    return SeedClaim(
        seed=seed,
        val_bpb=_first(values, "val_bpb", "bpb"),
        val_loss=_first(values, "val_loss"),
        artifact_bytes=None if size is None else int(size),
        train_seconds=_seconds(values, "train_data_seconds", "train_seconds", "train_time"),
        eval_seconds=_seconds(values, "eval_seconds", "eval_time", "ttt_eval_time", "ttt_time"),
    )


def _seconds(values: Mapping[str, Any], *names: str) -> float | None:
    for name in names:
        for suffix, unit in (("", 1.0), ("_s", 1.0), ("_ms", 1e-3)):
            value = _number(values.get(name + suffix))
            if value is not None:
                return value * unit
    return None


def _first(values: Mapping[str, Any], *names: str) -> float | None:
    return next((x for x in (_number(values.get(name)) for name in names) if x is not None), None)


def _number(value: Any) -> float | None:
    """A finite number, no bool; an int of hundreds of digits is none."""
    if type(value) not in (int, float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
