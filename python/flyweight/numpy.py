"""The four verbs of safetensors for NumPy arrays, lossless and in fewer bytes.

A drop-in for ``safetensors.numpy``: names, shapes, dtypes and bits come back as they were; only
exponents, indices and whatever else has structure are entropy-coded. To quantize, use
:func:`flyweight.pack`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

import numpy as np

from flyweight.artifact import pack, unpack
from flyweight.errors import InvalidArgumentError
from flyweight.format.container import FlyFile
from flyweight.format.container import open as open_fly
from flyweight.interop import atomic_write
from flyweight.typing import AnyArray

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]


def save(tensors: Mapping[str, AnyArray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Arrays as the bytes of a .fly file.

    Parameters
    ----------
    tensors : name to array of any shape and of a dtype of docs/format.md, bfloat16 as
        ``ml_dtypes.bfloat16``
    metadata : text pairs

    Raises
    ------
    InvalidArgumentError
        A dtype or number of axes that the format does not have; the message names the tensor.

    Examples
    --------
    >>> import numpy as np
    >>> load(save({"w": np.array([1.5, -0.0, np.inf])}))
    {'w': array([ 1.5, -0. ,  inf])}
    """
    return pack(tensors, is_lossless=True, metadata=metadata)


def load(data: bytes) -> dict[str, AnyArray]:
    """Inverse of :func:`save`; the arrays are writable.

    Raises
    ------
    CorruptStreamError
        The bytes are damaged; the message names the tensor.
    """
    return {name: _writable(array) for name, array in unpack(data).items()}


def save_file(
    tensors: Mapping[str, AnyArray],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Arrays to a .fly file, written whole or not at all; see :func:`save`.

    Raises
    ------
    InvalidArgumentError
        See :func:`save`.
    DataError
        The file cannot be written; what was there before is intact.
    """
    atomic_write(filename, save(tensors, metadata))


def load_file(filename: str | os.PathLike[str]) -> dict[str, AnyArray]:
    """Inverse of :func:`save_file`.

    Raises
    ------
    CorruptStreamError
        The file is damaged; the message names the tensor.
    OSError
        The file cannot be read.
    """
    return {name: _writable(array) for name, array in unpack(filename).items()}


class safe_open:  # noqa: N801 - the name that safetensors gives it
    """A file whose tensors are decoded one by one, when asked for.

    Parameters
    ----------
    filename : a .fly file; it is mapped, not read
    framework : ``numpy`` or ``np``, as in safetensors

    Raises
    ------
    CorruptStreamError
        Not a .fly file, or its directory is damaged.
    InvalidArgumentError
        Another framework.
    OSError
        The file cannot be read.
    """

    def __init__(
        self, filename: str | os.PathLike[str], framework: Literal["numpy", "np"] = "numpy"
    ) -> None:
        if framework not in ("numpy", "np"):
            raise InvalidArgumentError(f"got framework {framework!r}, expected numpy or np")
        self._file: FlyFile | None = open_fly(filename)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file = None

    def keys(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self._opened())

    def get_tensor(self, name: str) -> AnyArray:
        """One tensor; no other section is read.

        Raises
        ------
        InvalidArgumentError
            There is no such tensor, or the file is closed.
        CorruptStreamError
            Its section is damaged.
        """
        return _writable(self._opened()[name])

    def metadata(self) -> dict[str, str] | None:
        """Text pairs; None where there are none."""
        return self._opened().metadata() or None

    def _opened(self) -> FlyFile:
        if self._file is None:
            raise InvalidArgumentError("the file is closed: use it inside its `with` block")
        return self._file


def _writable(array: AnyArray) -> AnyArray:
    return array if array.flags.writeable else np.array(array)
