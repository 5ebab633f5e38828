"""What every twin asks of its arrays, the same as ``csrc/bindings/buffers.hpp``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.typing import AnyArray

__all__ = ["as_array", "as_output", "check_range"]


def as_array(source: object, name: str, dtype: DTypeLike, ndim: int) -> NDArray[Any]:
    """The buffer of ``source`` as an array, without conversion or copy.

    Raises
    ------
    TypeError
        It is no buffer, or not C-contiguous, or of another dtype or number of dimensions.
    """
    wanted = np.dtype(dtype)
    try:
        array = source if isinstance(source, np.ndarray) else np.asarray(memoryview(source))  # type: ignore[arg-type]
    except TypeError:
        array = None
    if array is None:
        got = f"got {type(source).__name__}"
    elif array.dtype != wanted:
        got = f"got dtype {array.dtype}"
    elif array.ndim != ndim:
        got = f"got {array.ndim} dimensions"
    elif not array.flags.c_contiguous:
        got = "got one that is not C-contiguous"
    elif not array.flags.aligned:
        got = "got one that is not aligned"
    else:
        return array
    raise TypeError(
        f"{name}: expected a C-contiguous {wanted} array of {ndim} dimension(s), {got}; "
        f"convert it with np.ascontiguousarray({name}, dtype=np.{wanted})"
    )


def as_output(
    out: object, shape: tuple[int, ...], dtype: DTypeLike, **inputs: AnyArray
) -> NDArray[Any]:
    """The array to fill: ``out`` itself, or a fresh one where that is None.

    Raises
    ------
    TypeError
        It is no writable, C-contiguous array of exactly this shape and dtype.
    InvalidArgumentError
        It shares memory with one of the inputs.
    """
    wanted = np.dtype(dtype)
    if out is None:
        return np.empty(shape, wanted)
    if not isinstance(out, np.ndarray):
        got = type(out).__name__
    elif out.dtype != wanted:
        got = f"dtype {out.dtype}"
    elif out.shape != shape:
        got = f"shape {out.shape}"
    elif not out.flags.c_contiguous:
        got = "one that is not C-contiguous"
    elif not out.flags.writeable:
        got = "one that is read-only"
    elif not out.flags.aligned:
        got = "one that is not aligned"
    else:
        for name, array in inputs.items():
            if np.may_share_memory(out, array):
                raise InvalidArgumentError(f"out overlaps {name}, expected separate memory")
        return out
    raise TypeError(
        f"out: expected a writable C-contiguous {wanted} array of shape {shape}, got {got}; "
        f"make it with np.empty({shape}, dtype=np.{wanted})"
    )


def check_range(name: str, value: int, lowest: int, highest: int) -> None:
    """Refuse an integer argument outside ``lowest .. highest``."""
    if not lowest <= value <= highest:
        raise InvalidArgumentError(f"got {name}={value}, expected {lowest} to {highest}")
