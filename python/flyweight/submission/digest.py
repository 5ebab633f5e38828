"""A name for weights: equal exactly when a model computes with the same numbers.

Like the decoder it is shipped inside of submissions, so it imports nothing of flyweight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["weights_sha256"]


def weights_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, shapes and values of weights as float32, in hex.

    Parameters
    ----------
    tensors : name to array of any float dtype up to float32, which is widened without loss; the
        order of the names does not matter

    Notes
    -----
    For each name in ascending order: ``name [shape]`` and a line feed in UTF-8, then the values in
    C order as little-endian float32.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()
