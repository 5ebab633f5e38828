"""Batches made by a thread of their own, ahead of the step that wants them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, Queue
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from flyweight.train.data import TokenStream

__all__ = ["Prefetcher"]

DEPTH = 3
"""Batches that lie ready at most."""


class Prefetcher:
    """Hands out the batches of rising steps; what they hold is a function of the step alone.

    Parameters
    ----------
    stream : where they come from
    first_step : the first one that will be asked for
    share : takes a batch (rows, seq_len + 1) and gives the rows of this process
    pin : put them into pinned memory, from where they go to a GPU without waiting

    Attributes
    ----------
    stall_seconds : that :meth:`take` has waited
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        first_step: int,
        share: Callable[[Tensor], Tensor],
        pin: bool,
    ) -> None:
        self.stall_seconds = 0.0
        self._stream, self._share, self._pin = stream, share, pin
        self._ready: Queue[tuple[int, Tensor | BaseException]] = Queue(DEPTH)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first_step,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        while self._thread.is_alive():  # it may wait for room
            try:
                self._ready.get(timeout=0.01)
            except Empty:
                continue

    def take(self, step: int) -> Tensor:
        """Token ids (rows of this process, seq_len + 1) int64 of a step, one after the last.

        Raises
        ------
        DataError
            As :meth:`TokenStream.batch`.
        """
        started = time.perf_counter()
        found_step, batch = self._ready.get()
        self.stall_seconds += time.perf_counter() - started
        if isinstance(batch, BaseException):
            raise batch
        assert found_step == step
        return batch

    def _work(self, step: int) -> None:
        while not self._stopped.is_set():
            try:
                batch = self._share(torch.from_numpy(self._stream.batch(step)))
                made: Tensor | BaseException = batch.pin_memory() if self._pin else batch
            except BaseException as error:  # raised where the batch is taken
                made = error
            self._ready.put((step, made))
            if isinstance(made, BaseException):
                return
            step += 1
