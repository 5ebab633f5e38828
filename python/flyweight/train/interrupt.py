"""Ctrl-C in the middle of a step waits for its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["sigint_noted"]


@contextmanager
def sigint_noted(*, again_raises: bool) -> Iterator[threading.Event]:
    """Note the first SIGINT instead of raising in the middle of a step.

    Parameters
    ----------
    again_raises : a second one raises. torchrun passes on a signal that a terminal sent to its
        processes already, so there it is one and the same.
    """
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread may handle signals
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        if again_raises:
            signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, previous)
