"""What a run shows of itself: lines of JSON, a progress bar, and an error when it diverges."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor
from tqdm import tqdm

from flyweight.errors import DataError
from flyweight.interop import atomic_write
from flyweight.train.curve import open_events, write_curve
from flyweight.train.losses import Phase
from flyweight.train.speed import Speedometer, tokens_per_second
from flyweight.train.state import TrainState

__all__ = ["Monitor", "StepRecord"]

_SCALARS = (
    *("loss", "bpb_estimate", "grad_norm", "lr", "tokens", "tokens_per_second"),
    *("stall_seconds", "qat"),
)
"""What TensorBoard gets, of what is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    metrics: Tensor
    """(2,) float32 on the training device: mean loss in nats, norm of the gradient."""
    lr: float
    """Muon's learning rate."""
    tokens: int
    """Tokens trained on so far."""
    seconds: float
    """Training clock when the step was handed to the device; a monitor writes and shows when it was
    done instead, which it knows once it has waited."""
    spent: float
    """Share of the budget that is gone; 1 is the last step."""
    batch_tokens: int
    """Tokens of this step, in all processes."""
    phase: Phase
    """What the model did."""
    recompilations: int
    """Graphs compiled inside the clock so far."""
    qat: float | None = None
    """How hard weights were rounded, 0 to 1; None without quantization-aware training."""
    stall_seconds: float = 0.0
    """What steps have waited for their batches so far."""


class Monitor:
    """Keeps the last step until it is looked at, which waits for the device to finish it.

    A line is written for the first step, every ``log_steps`` and the last one.

    Parameters
    ----------
    path : the log, one JSON object a line; lines behind the steps of ``state`` are from a life that
        ended before its next checkpoint, and are dropped
    state : where the run begins, or goes on
    spent : share of the budget that is gone by then
    log_steps : steps between lines
    speedometer : what a loss and a speed come to
    explain : says of a step whose loss or gradient is not finite where that begins
    progress : show a bar on stderr

    Attributes
    ----------
    loss : of the last step looked at, nats per token
    last_checkpoint : what the error about divergence says of it
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        state: TrainState,
        spent: float,
        log_steps: int,
        speedometer: Speedometer,
        explain: Callable[[int], str],
        progress: bool,
    ) -> None:
        self.loss = state.loss
        self.last_checkpoint = "no checkpoint was written yet"
        self._path = Path(path)
        self._log_steps = log_steps
        self._speedometer = speedometer
        self._explain = explain
        self._events = open_events(self._path.parent / "tensorboard", state.step)
        self._start_seconds, self._flops = state.seconds, 0.0
        self._recompilations = 0
        self._pending: StepRecord | None = None
        self._noted = 0.0
        self._bar = tqdm(
            total=1.0,
            initial=min(spent, 1.0),
            desc="train",
            file=sys.stderr,
            disable=not progress,
            mininterval=0.5,
            bar_format="{desc} {percentage:3.0f}%|{bar:24}| {elapsed}<{remaining}{postfix}",
        )
        if self._events is None:
            self.say(
                "no TensorBoard event files are written: TensorBoard is not installed; "
                "pip install 'flyweight[tensorboard]'"
            )
        atomic_write(self._path, b"".join(_lines_until(self._path, state.step)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._events is not None:
            self._events.close()
        if kind is None:
            write_curve(self._path, self._path.with_name("loss.svg"))

    def record(self, record: StepRecord) -> None:
        """Take note of a step, which is looked at later."""
        self._pending, self._noted = record, time.perf_counter()

    def look(self) -> None:
        """Wait for the recorded step, check it and report it, once.

        Raises
        ------
        DataError
            Loss or gradient are not finite; the message names step and last checkpoint.
        """
        record, self._pending = self._pending, None
        if record is None:
            return
        self.loss, grad_norm = record.metrics.tolist()
        # A CPU has done the step when it is recorded; other devices have when this was waited for.
        if record.metrics.device.type != "cpu":
            record = replace(record, seconds=record.seconds + time.perf_counter() - self._noted)
        if not (math.isfinite(self.loss) and math.isfinite(grad_norm)):
            raise DataError(
                f"training diverged at step {record.step}: loss {self.loss}, gradient norm "
                f"{grad_norm}: {self._explain(record.step)}; {self.last_checkpoint}; lower the "
                "learning rates"
            )
        graphs = record.recompilations
        if graphs > self._recompilations:
            self._recompilations = graphs
            self.say(f"graphs compiled inside the clock by step {record.step}: {graphs}")
        if record.step % self._log_steps == 0 or record.step == 1 or record.spent >= 1:
            self._write(record, grad_norm)
        self._show(record)

    def _show(self, record: StepRecord) -> None:
        self._flops += self._speedometer.flops(record.batch_tokens, record.phase)
        seconds = record.seconds - self._start_seconds  # of this life, as the operations are
        shown = self._speedometer.text(
            self.loss, record.tokens, record.seconds, self._flops / seconds if seconds else 0.0
        )
        self._bar.set_postfix_str(f"step {record.step} {shown}", refresh=False)
        self._bar.update(min(record.spent, 1.0) - self._bar.n)

    def say(self, line: str) -> None:
        """A line of its own above the bar, where there is one."""
        if not self._bar.disable:
            self._bar.write(f"train: {line}", file=sys.stderr)

    def _write(self, record: StepRecord, grad_norm: float) -> None:
        line: dict[str, Any] = {
            "step": record.step,
            "loss": self.loss,
            "grad_norm": grad_norm,
            "lr": record.lr,
            "tokens": record.tokens,
            "seconds": round(record.seconds, 3),
            "stall_seconds": round(record.stall_seconds, 3),
            "recompilations": record.recompilations,
        }
        if record.qat is not None:
            line["qat"] = record.qat
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        if self._events is not None:
            scalars = line | {
                "bpb_estimate": self._speedometer.bpb(self.loss),
                "tokens_per_second": tokens_per_second(record.tokens, record.seconds),
            }
            for name in _SCALARS:
                if scalars.get(name) is not None:
                    self._events.add_scalar(name, scalars[name], record.step)


def _lines_until(path: Path, step: int) -> list[bytes]:
    """Readable lines of an earlier log up to a step; a kill can cut the last one short."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]


def _step_of(line: bytes) -> float:
    """The step of a line; infinite where the line is damaged, which is no reason to stop a run."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf
