"""The challenge's token shards: a header of 256 little-endian int32, then uint16 token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import DataError

__all__ = ["list_shards", "read_shard"]


def read_shard(path: Path) -> NDArray[np.uint16]:
    """Token ids of one shard, mapped from the file."""
    header = np.fromfile(path, dtype="<i4", count=256)
    if len(header) < 256 or header[0] != 20240520 or header[1] != 1:
        raise DataError(f"{path}: not a token shard")
    tokens: NDArray[np.uint16] = np.memmap(path, dtype="<u2", mode="r", offset=1024)
    if len(tokens) != header[2]:
        raise DataError(f"{path}: {len(tokens)} tokens, the header says {header[2]}")
    return tokens


def list_shards(folder: Path, split: str) -> list[Path]:
    """Shards of one split in name order."""
    return sorted(Path(folder).glob(f"fineweb_{split}_*.bin"))
