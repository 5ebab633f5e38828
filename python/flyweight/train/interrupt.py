"""Ctrl-C, or the end of a reservation, in the middle of a step waits for the step's end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stop_noted", "termination_raises"]


@contextmanager
def stop_noted(*, is_alone: bool) -> Iterator[threading.Event]:
    """Note the first SIGINT or SIGTERM instead of ending in the middle of a step.

    Parameters
    ----------
    is_alone : no other process trains with this one; a second signal then does what it always does.
        torchrun passes on a SIGINT that a terminal sent to its processes already, so there it is
        one and the same, and SIGTERM means that they cannot go on, see :func:`termination_raises`
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread may handle signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM) if is_alone else (signal.SIGINT,)
    previous = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        if is_alone:
            restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


@contextmanager
def termination_raises(error: Exception) -> Iterator[None]:
    """Raise an error at SIGTERM, which torchrun sends to the processes that outlive another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise error

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
