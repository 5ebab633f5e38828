"""Processes that train together: torchrun starts them, this joins them and ends them as one.

Numbers on the training device go through NCCL on GPUs and gloo on CPUs. What the first process
decides goes through gloo in both cases: it waits for no kernel, and it notices at once when another
process is gone, where NCCL would wait.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from flyweight.errors import InvalidArgumentError, PeerError
from flyweight.train.interrupt import termination_raises

__all__ = ["Flying", "World", "join", "pick_device"]

_TIMEOUT = timedelta(hours=1)
"""For data and compilation before the first step; a dead process is noticed without it."""
_JOINS = count()
"""Numbers the meetings of this process, each of which has names of its own in the store."""
# The second names are those of PyTorch before 2.13, where the first do not exist.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(slots=True)
class Flying:
    """A tensor that is on its way between processes."""

    tensor: Tensor
    work: Any = None
    """None if it is there already."""

    def land(self) -> Tensor:
        """The tensor, once it is there; on a GPU its stream waits, not the caller.

        Raises
        ------
        PeerError
            Another process ended.
        """
        if self.work is not None:
            with _peers():
                self.work.wait()
            self.work = None
        return self.tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The processes of a run, seen from one of them; alone, nothing is sent or copied."""

    device: torch.device
    """Where this process trains."""
    rank: int = 0
    """Number of this process, below ``size``."""
    size: int = 1
    """Processes."""

    @property
    def is_first(self) -> bool:
        """Whether this process decides, writes and reports."""
        return self.rank == 0

    def rows(self, count: int) -> int:
        """How many of ``count`` rows each process takes.

        Raises
        ------
        InvalidArgumentError
            They do not divide.
        """
        if count % self.size:
            raise InvalidArgumentError(
                f"batch_sequences={count} is not a multiple of the {self.size} processes"
            )
        return count // self.size

    def share(self, count: int) -> slice:
        """Which of ``count`` rows this process takes."""
        rows = self.rows(count)
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def agree(self, *values: float) -> list[float]:
        """The numbers of the first process, in each of them.

        Raises
        ------
        PeerError
            Another process ended.
        """
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        with _peers():
            dist.broadcast(numbers, src=0)
        return numbers.tolist()

    def spread(self, values: Tensor) -> Tensor:
        """A tensor on the CPU of the first process, in each of them; theirs is overwritten.

        Raises
        ------
        PeerError
            Another process ended.
        """
        if self.size > 1:
            with _peers():
                dist.broadcast(values, src=0)
        return values

    def mean(self, values: Tensor) -> Flying:
        """Mean over the processes of a tensor of one shape and type in all of them, in place.

        Raises
        ------
        PeerError
            Another process ended; also by :meth:`Flying.land`.
        """
        return self.total(values if self.size == 1 else values.div_(self.size))

    def total(self, values: Tensor) -> Flying:
        """Sum over the processes; for the rest as :meth:`mean`."""
        if self.size == 1:
            return Flying(values)
        with _peers():
            return Flying(values, dist.all_reduce(values, async_op=True))

    def scatter_mean(self, values: Tensor) -> Flying:
        """This process's :meth:`share` of the mean over the processes, along the first axis.

        Parameters
        ----------
        values : (n, ...) float, n a multiple of the processes; overwritten

        Returns
        -------
        (n / size, ...) of the same type

        Raises
        ------
        PeerError
            Another process ended; also by :meth:`Flying.land`.
        """
        if self.size == 1:
            return Flying(values)
        own = values.new_empty(len(values) // self.size, *values.shape[1:])
        with _peers():
            return Flying(own, _reduce_scatter(own, values.div_(self.size), async_op=True))

    def gather(self, own: Tensor) -> Flying:
        """The shares of all processes, one behind the other along the first axis.

        Parameters
        ----------
        own : (n, ...), of one shape and type in all processes

        Returns
        -------
        (n * size, ...)

        Raises
        ------
        PeerError
            Another process ended; also by :meth:`Flying.land`.
        """
        if self.size == 1:
            return Flying(own)
        values = own.new_empty(len(own) * self.size, *own.shape[1:])
        with _peers():
            return Flying(values, _all_gather(values, own.contiguous(), async_op=True))


@contextmanager
def join(device_name: str) -> Iterator[World]:
    """The processes that torchrun started, as its environment says; without it, this one alone.

    They may join and part any number of times, all of them each time.

    Parameters
    ----------
    device_name : ``auto``, ``cpu`` or ``cuda``, where each process has a GPU of its own

    Raises
    ------
    InvalidArgumentError
        There is no such device, or there are more processes than GPUs.
    PeerError
        Another process ended without a word.
    SystemExit
        Another process ended with an error, which it reported.

    Notes
    -----
    An error in one process ends all: the first one to meet an error reports it, the others notice
    that it is gone and leave silently.
    """
    device = pick_device(device_name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        device = _own_gpu()
        torch.cuda.set_device(device)
    store, rank, size = _meet()
    is_cuda = device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
        store=dist.PrefixStore(f"flyweight/{next(_JOINS)}", store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
        device_id=device if is_cuda else None,
    )
    try:
        with termination_raises(_peer_error()):
            yield World(device=device, rank=rank, size=size)
    except BaseException as error:
        if _first_to_fail(store, rank) != rank:
            raise SystemExit(1) from error
        raise
    dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """The device that a config names.

    Parameters
    ----------
    name : ``auto`` takes CUDA where there is one; ``cpu``; ``cuda``

    Raises
    ------
    InvalidArgumentError
        CUDA is asked for, and PyTorch has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError("device='cuda', but PyTorch finds no CUDA device; use 'auto'")
    return torch.device(name)


@cache
def _meet() -> tuple[Any, int, int]:
    """Store, number of this process and number of processes, found once."""
    store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
    return store, rank, size


def _own_gpu() -> torch.device:
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise InvalidArgumentError(
            f"process {index} of this machine has no GPU: it has {count}; "
            f"start torchrun with --nproc_per_node of at most {count}"
        )
    return torch.device("cuda", index)


def _first_to_fail(store: Any, rank: int) -> int:
    """Number of the process that reports why all end."""
    try:
        return int(store.compare_set("flyweight/failed", "", str(rank)))
    except RuntimeError:  # the store was in a process that is gone
        return rank


@contextmanager
def _peers() -> Iterator[None]:
    """Say what a broken connection means."""
    try:
        yield
    except torch.OutOfMemoryError:  # of this process, which can say what to lower
        raise
    except RuntimeError as error:
        raise _peer_error() from error


def _peer_error() -> PeerError:
    return PeerError(
        "another process of this run ended without a message: it was killed, or out of memory, or "
        "torchrun was told to stop"
    )
