"""Byte sidecars: how many bytes of the original text each validation token stands for.

Shards of text that was transformed before it was tokenized have one file of counts beside each
validation shard, in the same layout: ``fineweb_val_bytes_000000.bin`` has for each token of
``fineweb_val_000000.bin`` one uint16. The counts replace the tokenizer's byte table as a whole.

References
----------
openai/parameter-golf PR #1729; #2071 on what happens without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.data.byte_counts import ByteSidecar, ByteTable
from flyweight.data.facts import DataInfo, ShardInfo
from flyweight.data.shards import BOS_ID, list_sidecars, read_shard, write_shard
from flyweight.data.tokenizer import Tokenizer
from flyweight.errors import DataError

__all__ = [
    "describe_sidecars",
    "read_sidecar",
    "sidecar_path",
    "validation_counter",
    "write_sidecar",
]

_REMEDY = "take shards and sidecars from one export"


def sidecar_path(shard: Path) -> Path:
    """Where the byte counts of a validation shard lie."""
    return shard.with_name(shard.name.replace("fineweb_val_", "fineweb_val_bytes_"))


def write_sidecar(shard: Path, counts: NDArray[Any]) -> None:
    """Write the byte counts of a validation shard beside it.

    Parameters
    ----------
    shard : ``fineweb_val_*.bin``, already written
    counts : (tokens,) integers from 0 to 65,535, bytes of original text; 0 for each ``BOS_ID``

    Raises
    ------
    DataError
        There is not one count for each token, one does not fit, or a document's opening has bytes.
    """
    if counts.size and not 0 <= int(counts.min()) <= int(counts.max()) < 1 << 16:
        raise DataError(
            f"{sidecar_path(shard)}: byte counts from {counts.min()} to {counts.max()}, expected 0 "
            "to 65535"
        )
    _check_counts(shard, counts)
    write_shard(sidecar_path(shard), counts.astype(np.uint16))


def read_sidecar(folder: Path, shards: Sequence[ShardInfo]) -> ByteSidecar:
    """The byte counts of the whole validation stream.

    Parameters
    ----------
    folder : data folder
    shards : its validation shards, in order

    Raises
    ------
    DataError
        A file is missing or malformed, or is not of its shard; the message names it.
    """
    parts = []
    for shard in shards:
        counts = read_shard(sidecar_path(folder / shard.name))
        _check_counts(folder / shard.name, counts)
        parts.append(counts)
    return ByteSidecar(counts=np.concatenate(parts))


def describe_sidecars(folder: Path, shards: Sequence[ShardInfo]) -> tuple[ShardInfo, ...]:
    """Facts about the sidecars of a folder; none where it has none.

    Raises
    ------
    DataError
        Some validation shards have a sidecar and some have not, or one has another length.
    """
    check_sidecars(folder, shards, stated=None)
    return tuple(ShardInfo.of(path) for path in list_sidecars(folder))


def check_sidecars(
    folder: Path, shards: Sequence[ShardInfo], stated: Sequence[ShardInfo] | None
) -> None:
    """Compare names and lengths of the sidecars with the shards, and with stored facts.

    Raises
    ------
    DataError
        Something is missing, surplus or of another length; the message names the file.
    """
    found = {path.name for path in list_sidecars(folder)}
    wanted = {sidecar_path(Path(shard.name)).name for shard in shards}
    if stated is not None and found != {sidecar.name for sidecar in stated}:
        odd = min(found ^ {sidecar.name for sidecar in stated})
        state = "is not in data.json" if odd in found else "is missing"
        raise DataError(f"{folder / odd}: this byte sidecar {state}; build or fetch the data again")
    if found and (odd_names := found ^ wanted):
        odd = min(odd_names)
        state = "has no shard" if odd in found else "is missing, where other shards have one"
        raise DataError(f"{folder / odd}: this byte sidecar {state}; {_REMEDY}")
    for shard in shards if found else ():
        path = sidecar_path(folder / shard.name)
        _check_length(path, read_shard(path).size, shard.tokens)


def validation_counter(info: DataInfo) -> ByteTable | ByteSidecar:
    """What says how many bytes the validation tokens stand for: sidecars, else the tokenizer.

    Raises
    ------
    DataError
        Tokenizer or sidecar is missing, malformed or not of these shards.
    """
    if info.val.byte_counts:
        return read_sidecar(info.folder, info.val.shards)
    return Tokenizer(info.tokenizer_path).byte_table


def _check_counts(shard: Path, counts: NDArray[Any]) -> None:
    path, tokens = sidecar_path(shard), read_shard(shard)
    _check_length(path, counts.size, tokens.size)
    wrong = (tokens == BOS_ID) & (counts != 0)
    if wrong.any():
        where = int(np.argmax(wrong))
        raise DataError(
            f"{path}: {counts[where]} bytes for token {where}, which opens a document and stands "
            f"for none; {_REMEDY}"
        )


def _check_length(path: Path, counts: int, tokens: int) -> None:
    if counts != tokens:
        raise DataError(f"{path}: {counts} byte counts for {tokens} tokens; {_REMEDY}")
