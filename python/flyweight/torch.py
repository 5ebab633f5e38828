"""The four verbs of safetensors for torch tensors, lossless and in fewer bytes.

A drop-in for ``safetensors.torch``: names, shapes, dtypes and bits come back as they were. To
quantize, use :func:`flyweight.pack`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

import ml_dtypes
import torch

from flyweight import numpy as arrays
from flyweight.errors import InvalidArgumentError
from flyweight.interop import atomic_write
from flyweight.typing import AnyArray

__all__ = ["load", "load_file", "safe_open", "save", "save_file"]

Device = str | int | torch.device


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as the bytes of a .fly file.

    Parameters
    ----------
    tensors : name to dense, contiguous tensor on any device; tensors that share memory are stored
        each on its own
    metadata : text pairs

    Raises
    ------
    InvalidArgumentError
        A tensor that is sparse or not contiguous, or a dtype that the format does not have; the
        message names the tensor.

    Examples
    --------
    >>> import torch
    >>> load(save({"w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}))
    {'w': tensor([ 1.5000, -2.0000], dtype=torch.bfloat16)}
    """
    return arrays.save({n: _to_array(n, t) for n, t in tensors.items()}, metadata)


def load(data: bytes) -> dict[str, torch.Tensor]:
    """Inverse of :func:`save`, on the CPU.

    Raises
    ------
    CorruptStreamError
        The bytes are damaged; the message names the tensor.
    """
    return {name: _to_tensor(array) for name, array in arrays.load(data).items()}


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Tensors to a .fly file, written whole or not at all; see :func:`save`.

    Raises
    ------
    InvalidArgumentError
        See :func:`save`.
    DataError
        The file cannot be written; what was there before is intact.
    """
    atomic_write(filename, save(tensors, metadata))


def load_file(filename: str | os.PathLike[str], device: Device = "cpu") -> dict[str, torch.Tensor]:
    """Inverse of :func:`save_file`.

    Parameters
    ----------
    filename : a .fly file
    device : where the tensors shall be

    Raises
    ------
    CorruptStreamError
        The file is damaged; the message names the tensor.
    OSError
        The file cannot be read.
    """
    loaded = arrays.load_file(filename)
    return {name: _to_tensor(array).to(device) for name, array in loaded.items()}


class safe_open:  # noqa: N801 - the name that safetensors gives it
    """A file whose tensors are decoded one by one, when asked for.

    Parameters
    ----------
    filename : a .fly file; it is mapped, not read
    framework : ``pt`` or ``torch``, as in safetensors
    device : where the tensors shall be

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
        self,
        filename: str | os.PathLike[str],
        framework: Literal["pt", "torch"] = "pt",
        device: Device = "cpu",
    ) -> None:
        if framework not in ("pt", "torch"):
            raise InvalidArgumentError(f"got framework {framework!r}, expected pt or torch")
        self._file = arrays.safe_open(filename)
        self._device = device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def keys(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return self._file.keys()

    def get_tensor(self, name: str) -> torch.Tensor:
        """One tensor; no other section is read.

        Raises
        ------
        InvalidArgumentError
            There is no such tensor, or the file is closed.
        CorruptStreamError
            Its section is damaged.
        """
        return _to_tensor(self._file.get_tensor(name)).to(self._device)

    def metadata(self) -> dict[str, str] | None:
        """Text pairs; None where there are none."""
        return self._file.metadata()


def _to_array(name: str, tensor: torch.Tensor) -> AnyArray:
    """The same memory as an array, or a copy of it from another device."""
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise InvalidArgumentError(
            f"tensor {name!r} is sparse or not contiguous: store tensor.to_dense().contiguous()"
        )
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # which NumPy itself does not have
        bits: AnyArray = tensor.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    try:
        array: AnyArray = tensor.numpy()
    except TypeError:
        raise InvalidArgumentError(f"tensor {name!r}: {tensor.dtype} cannot be stored") from None
    return array


def _to_tensor(array: AnyArray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view("<i2")).view(torch.bfloat16)
    return torch.from_numpy(array)
