"""Documents that are in the training shards and in the validation shards: none should be.

A document is what lies between two ``BOS_ID``; two are the same if they have the same tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from flyweight.data.facts import DataInfo
from flyweight.data.shards import BOS_ID, Tokens, iter_chunks, list_shards
from flyweight.errors import DataError
from flyweight.interop import atomic_write

__all__ = ["Overlap", "overlapping_documents", "remembered_overlap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What two splits have in common."""

    val_documents: int
    """Documents of the validation split."""
    shared_val: int
    """How many of these are in the training split."""
    shared_train: int
    """Documents of the training split that are in the validation split."""
    first: str
    """Where the first of the latter is; empty if there is none."""

    @property
    def share(self) -> float:
        """Of the validation documents that are in the training split, 0 to 1."""
        return self.shared_val / max(self.val_documents, 1)

    def refuse_above(self, share: float, folder: str | os.PathLike[str]) -> None:
        """Raise if more of the validation documents were trained on than a run admits to.

        Raises
        ------
        DataError
            `share` of this overlap is larger.
        """
        if self.share > share:
            raise DataError(
                f"{os.fspath(folder)}: {self.shared_val:,} of {self.val_documents:,} validation "
                f"documents ({self.share:.2%}) are in the training shards too, the first as "
                f"{self.first}: scores would be of text that was trained on. Build the data again "
                "without them; or, if you know it and want it, set data.max_overlap of the recipe "
                f"(now {share:g})"
            )


def overlapping_documents(
    train: str | os.PathLike[str],
    val: str | os.PathLike[str],
    *,
    progress: Callable[[int], None] | None = None,
) -> Overlap:
    """Compare all documents of two splits by the SHA-256 of their tokens.

    Parameters
    ----------
    train : folder with ``fineweb_train_*.bin``
    val : folder with ``fineweb_val_*.bin``, the same one as a rule
    progress : told the number of tokens read since it was last told

    Raises
    ------
    DataError
        Shards are missing or malformed.

    Notes
    -----
    Shards are streamed; what stays in memory is a digest for each validation document.

    References
    ----------
    openai/parameter-golf issue #2127: 15 of 34 entries had trained on 80 % of the validation
    documents.
    """
    digests = [digest for digest, _ in _digests(list_shards(val, "val"), progress)]
    wanted, found, shared, first = set(digests), set(), 0, ""
    for digest, (path, token) in _digests(list_shards(train, "train"), progress):
        if digest in wanted:
            first = first or f"token {token} of {path.name}"
            shared += 1
            found.add(digest)
    return Overlap(
        val_documents=len(digests),
        shared_val=sum(digest in found for digest in digests),
        shared_train=shared,
        first=first,
    )


def remembered_overlap(
    info: DataInfo, cache: Path, *, report: Callable[[str], None] = lambda line: None
) -> Overlap:
    """The overlap of a data folder, from a file where one of the same shards is known.

    Parameters
    ----------
    info : with training shards
    cache : JSON file; written anew when a shard has another size, hash or time than in it
    report : told one line before all shards are read

    Raises
    ------
    DataError
        As :func:`overlapping_documents`.
    """
    key = _shards_key(info)
    try:
        known = json.loads(cache.read_bytes())
        if known.pop("key") == key and known.pop("schema") == 1:
            return Overlap(**known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # unknown, or no such file: counted anew
    report("data: comparing the documents of training and validation")
    overlap = overlapping_documents(info.folder, info.folder)
    text = json.dumps({"schema": 1, "key": key, **asdict(overlap)}, indent=1)
    atomic_write(cache, f"{text}\n".encode())
    return overlap


def _shards_key(info: DataInfo) -> str:
    """Changes with what is known of the shards and with their files."""
    shards = (*info.train.shards, *info.val.shards)
    files = [(info.folder / shard.name).resolve() for shard in shards]
    facts = [[str(path), path.stat().st_mtime_ns] for path in files]
    sizes = [[shard.tokens, shard.sha256] for shard in shards]
    return sha256(json.dumps([facts, sizes]).encode()).hexdigest()


def _digests(
    paths: Sequence[Path], progress: Callable[[int], None] | None
) -> Iterator[tuple[bytes, tuple[Path, int]]]:
    """Of each document of a stream, with the shard that it begins in and the token there."""
    state, place = sha256(), None
    for path in paths:
        offset = 0
        for chunk in iter_chunks([path]):
            view = chunk.data
            for start, stop in _pieces(chunk):
                if view[start] == BOS_ID and place is not None:
                    yield state.digest(), place
                    state, place = sha256(), None
                place = place or (path, offset + start)
                state.update(view[start:stop])
            offset += chunk.size
            if progress is not None:
                progress(chunk.size)
    if place is not None:
        yield state.digest(), place


def _pieces(chunk: Tokens) -> Iterator[tuple[int, int]]:
    """Begin and end of what lies before the first document of a chunk, and of each document."""
    starts = np.flatnonzero(chunk == BOS_ID).tolist()
    edges = [*starts, chunk.size] if starts[:1] == [0] else [0, *starts, chunk.size]
    return pairwise(edges)
