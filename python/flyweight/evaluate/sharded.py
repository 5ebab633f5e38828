"""Scoring in several processes: each scores a share of the windows and learns from a share.

All processes go through the stream in step, chunk by chunk. The batches of windows of a chunk are
shared out as they are, so each forward pass is the one that a single process makes: a frozen model
gives the same scores bit for bit on equal devices. Learning is the published form: sequences of an
optimizer step are shared out, gradients are summed over the processes before they are clipped, and
each takes the same step; only the order of these sums differs from a single process.

Every process keeps the scores and the chain of the ledger, the first one the file as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flyweight.errors import DataError
from flyweight.evaluate.engine import Alone, Item
from flyweight.evaluate.ledger import Entries, Ledger
from flyweight.evaluate.scorer import Tilt, WindowScorer
from flyweight.evaluate.window import Windows, window_batches
from flyweight.train.distributed import World

__all__ = ["Together", "check_agreement", "open_shared_ledger", "share_windows"]


def share_windows(windows: Windows, *, batch_windows: int, rank: int, size: int) -> Windows:
    """The windows of one process: whole batches, in order, as evenly as they go.

    Parameters
    ----------
    windows : of a chunk
    batch_windows : windows in one forward pass
    rank, size : number of the process, and of all

    Returns
    -------
    A part of the windows, none where there are fewer batches than processes; the parts of all
    processes, one behind the other, are the windows, and their batches are those of the whole.
    """
    sizes = [len(batch) for batch in window_batches(windows, batch_windows=batch_windows)]
    edges = np.concatenate(([0], np.cumsum(sizes)))
    first, last = (len(sizes) * place // size for place in (rank, rank + 1))
    return windows[int(edges[first]) : int(edges[last])]


class Together(Alone):
    """The processes of a world, seen from one of them.

    Parameters
    ----------
    world : what `flyweight.train.distributed.join` found
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def score(
        self, scorer: WindowScorer, windows: Windows, tilt: Tilt | None = None
    ) -> NDArray[np.float64]:
        """As `WindowScorer.score`, in every process the scores of all windows.

        Raises
        ------
        DataError
            The model gives no finite loss for a target of this process.
        PeerError
            Another process ended.
        """
        rank, size = self.world.rank, self.world.size
        own = share_windows(windows, batch_windows=scorer.batch_windows, rank=rank, size=size)
        found = scorer.score(own, tilt) if len(own) else np.empty(0)
        gathered = gather_in_order(found.reshape(-1), self.world)
        return gathered if tilt is None else gathered.reshape(-1, 2)

    @property
    def is_first(self) -> bool:  # type: ignore[override]
        """Whether this process writes."""
        return self.world.is_first

    def decide(self, answer: bool) -> bool:
        """The answer of the first process, in each of them."""
        return bool(self.world.agree(float(answer))[0])

    def fewest(self, count: int) -> int:
        """The smallest count of all processes; devices may hold more or less at once."""
        return int(self.world.gather(torch.tensor([count])).land().min())

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every so many-th item, as many as there are processes."""
        return items[self.world.rank :: self.world.size]

    def sum_scores(self, nats: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of all processes, in each of them; a sum with zeros is exact."""
        total = self.world.total(torch.from_numpy(nats.copy())).land()
        return np.asarray(total.numpy(), dtype=np.float64)

    def rows(self, rows_BL: Tensor) -> Tensor:
        """The sequences of a step that this process learns from, perhaps none."""
        rank, size, count = self.world.rank, self.world.size, len(rows_BL)
        return rows_BL[count * rank // size : count * (rank + 1) // size]

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their sums over the processes; no gradient counts as zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = self.world.total(torch.cat([each.flatten() for each in gradients])).land()
        sums = torch.split(flat, [each.numel() for each in gradients])
        torch._foreach_copy_(
            gradients, [own.view_as(each) for own, each in zip(sums, gradients, strict=True)]
        )


def gather_in_order(own: NDArray[np.float64], world: World) -> NDArray[np.float64]:
    """Arrays of all processes, one behind the other, in each of them.

    Parameters
    ----------
    own : (n,) float64, n may differ from process to process and be 0
    world : of which gloo carries them, as they are on the CPU

    Returns
    -------
    (sum of all n,) float64

    Raises
    ------
    PeerError
        Another process ended.
    """
    sizes = world.gather(torch.tensor([own.size])).land().tolist()
    padded = torch.zeros(max(sizes), dtype=torch.float64)
    padded[: own.size] = torch.from_numpy(own)
    rows = world.gather(padded).land().view(len(sizes), -1).numpy()
    return np.concatenate([row[:size] for row, size in zip(rows, sizes, strict=True)])


@contextmanager
def open_shared_ledger(
    path: str | os.PathLike[str], *, targets: int, binding: bytes, world: World
) -> Iterator[Entries]:
    """A ledger that all processes enter the same scores in; the first one has the file.

    Raises
    ------
    DataError
        As `Ledger`, in the first process.
    PeerError
        In the others, if the first one met an error.
    """
    if world.is_first:
        with Ledger(path, targets=targets, binding=binding) as ledger:
            chain = np.frombuffer(bytes.fromhex(ledger.chain), dtype=np.uint8)
            if world.size > 1:
                world.spread(torch.from_numpy(chain.copy()))
                world.spread(torch.from_numpy(ledger.entries()))
            yield ledger
        return
    chain_now = world.spread(torch.empty(32, dtype=torch.uint8)).numpy().tobytes()
    nats = world.spread(torch.empty(targets, dtype=torch.float64)).numpy()
    yield Entries(Path(path), nats, chain_now)


def check_agreement(ledger: Entries, world: World) -> None:
    """Hold the chains of all processes against each other, at the end of a stream.

    Raises
    ------
    DataError
        One process has entered other scores than the first.
    """
    chain = torch.tensor(list(bytes.fromhex(ledger.chain)))
    if not torch.equal(world.gather(chain).land().view(-1, 32), chain.expand(world.size, 32)):
        raise DataError(
            f"{ledger.path}: the processes ended with different ledgers; score again, and report it"
        )
