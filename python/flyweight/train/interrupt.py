"""Ctrl-C, or the end of a reservation, in the middle of a step waits for the step's end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stop_noted"]


@contextmanager
def stop_noted(*, is_alone: bool) -> Iterator[threading.Event]:
    """Note the first SIGINT or SIGTERM instead of ending in the middle of a step.

    Parameters
    ----------
    is_alone : no other process trains with this one; a second signal then does what it always does.
        torchrun passes on a SIGINT that a terminal sent to its processes already, so there it is
        one and the same, and sends SIGTERM to those that outlive another, which cannot go on
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
