"""Work on many tensors at once: the only place that decides on the number of threads.

Kernels and byte compressors release the GIL, so threads suffice and nothing is copied.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flyweight.errors import InvalidArgumentError

__all__ = ["map_parallel", "thread_count"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count(threads: int | None) -> int:
    """Threads to use: as asked for, or one per processor that this process may use.

    Raises
    ------
    InvalidArgumentError
        Fewer than one.
    """
    if threads is None:
        try:
            return len(os.sched_getaffinity(0))
        except AttributeError:  # not on this system
            return os.cpu_count() or 1
    if threads < 1:
        raise InvalidArgumentError(f"got threads={threads}, expected at least 1")
    return threads


def map_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    sizes: Sequence[int],
    threads: int | None,
) -> list[Result]:
    """Results in the order of the items, computed by several threads, the largest items first.

    Parameters
    ----------
    function : must not depend on what other items do; runs on the caller's kernel backend
    items : what to work on
    sizes : a number for each that grows with its work
    threads : see :func:`thread_count`

    Raises
    ------
    Exception
        What ``function`` raised for the first item, in order, that it failed on.
    """
    workers = min(thread_count(threads), len(items))
    if workers <= 1:
        return [function(item) for item in items]
    largest_first = sorted(range(len(items)), key=lambda index: -sizes[index])
    with ThreadPoolExecutor(workers) as pool:
        futures = {
            index: pool.submit(contextvars.copy_context().run, function, items[index])
            for index in largest_first
        }
        try:
            return [futures[index].result() for index in range(len(items))]
        finally:
            pool.shutdown(cancel_futures=True)
