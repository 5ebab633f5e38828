"""A clock that knows what phases cost, and a journal of what was decided by it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Journal", "Pace"]

SLOWDOWN = 3.0
"""A phase is begun only if it and plain blocks for the rest would end in time on a machine that is
from now on so many times slower than it was. Another job on the cores was seen to cost 2.5; what
is held back shrinks with what is left, to that of one chunk."""
_RESERVE = 1.05
"""At the speed that was measured, what is planned may take that much longer."""
_COST = {"score": 1.0, "plain": 1.0, "adapt": 3.0}
"""Of a token in each phase, where it was not measured: forward and backward are three forward."""


class Pace:
    """Seconds of each phase, and what still fits before a deadline; the clock runs from here.

    Parameters
    ----------
    deadline : seconds; None is no end
    seconds_per_token : by phase, of a pass forward, until it is measured on the stream; plain
        blocks take longer than windows, since all of their positions are scored
    clock : seconds, rising
    """

    def __init__(
        self,
        deadline: float | None,
        seconds_per_token: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._deadline, self._clock = deadline, clock
        self._assumed = seconds_per_token or {}
        self._begin = clock()
        self.seconds = dict.fromkeys(_COST, 0.0)
        self._tokens = dict.fromkeys(_COST, 0)

    @contextmanager
    def measure(self, phase: str, tokens: int) -> Iterator[None]:
        """Count the block to a phase, in which the model goes over that many tokens."""
        begin = self._clock()
        yield
        self.seconds[phase] += self._clock() - begin
        self._tokens[phase] += tokens

    def fits(self, **tokens: int) -> bool:
        """Whether phases that go over so many tokens will end before the deadline."""
        return self._ends(_RESERVE, tokens)

    def is_safe(self, **tokens: int) -> bool:
        """Whether they would on a machine that becomes `SLOWDOWN` times slower now."""
        return self._ends(SLOWDOWN, tokens)

    def _ends(self, reserve: float, tokens: Mapping[str, int]) -> bool:
        if self._deadline is None:
            return True
        wanted = sum(self._rate(phase) * count for phase, count in tokens.items())
        return self._clock() - self._begin + reserve * wanted < self._deadline

    def _rate(self, phase: str) -> float:
        """Seconds per token: measured, or assumed, or from another phase."""
        known = {name: self.seconds[name] / n for name, n in self._tokens.items() if n}
        for rates in (known, self._assumed):
            if phase in rates:
                return rates[phase]
        rates = {**self._assumed, **known}
        other = next((name for name in ("score", "plain") if name in rates), None)
        return rates[other] * _COST[phase] / _COST[other] if other else 0.0


class Journal:
    """What was decided by the clock, chunk by chunk, beside a ledger: one JSON object a line.

    A resumed run decides as its former lives did, so that it comes to the same state.

    Parameters
    ----------
    path : the file
    is_new : begin anew, whatever the file holds
    writes : whether this process keeps the file, or only reads what is in it at the start

    Notes
    -----
    The line of a chunk is on disk before its scores are in the ledger. A line that was torn by a
    kill, or whose chunk did not get into the ledger, is written again.

    Attributes
    ----------
    former_seconds : what former lives took, each from `start` to the last chunk that it noted
    """

    def __init__(self, path: Path, *, is_new: bool, writes: bool = True) -> None:
        self._path, self._writes = path, writes
        self._lines: dict[int, dict[str, Any]] = {}
        self.former_seconds = 0.0
        self.start()
        if is_new and writes:
            path.unlink(missing_ok=True)
        if is_new or not path.exists():
            return
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                self._lines[entry["chunk"]] = entry
                self.former_seconds = max(self.former_seconds, float(entry.get("seconds", 0)))
            except (ValueError, KeyError, TypeError):
                continue

    def start(self) -> None:
        """Count the seconds of this life from here."""
        self._begin = time.perf_counter()

    def write(self, chunk: int, **facts: Any) -> None:
        """Note facts of a chunk."""
        seconds = self.former_seconds + time.perf_counter() - self._begin
        self._lines[chunk] = {"chunk": chunk, "seconds": round(seconds, 3), **facts}
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            # A line before that was torn by a kill ends here.
            file.write("\n" + json.dumps(self._lines[chunk]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, chunk: int, name: str) -> Any:
        """A fact of a chunk, or None where it is not known."""
        return self._lines.get(chunk, {}).get(name)
