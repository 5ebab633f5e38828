"""Checkpoints and files in and out: safetensors as NumPy arrays, and writes that lose nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save

from flyweight.errors import DataError
from flyweight.typing import AnyArray

__all__ = [
    "atomic_path",
    "atomic_write",
    "read_metadata",
    "read_safetensors",
    "write_safetensors",
]

_DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, AnyArray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Arrays to a safetensors file, by way of a temporary file; same input, same bytes.

    Parameters
    ----------
    path : the file to write or replace
    tensors : name to array of any dtype of the safetensors format, bfloat16 included
    metadata : optional string pairs for the header; with more than one the order of the pairs, and
        so the bytes, may differ between runs

    Raises
    ------
    DataError
        A dtype that the format does not have; the message names the tensor.
    """
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    for name, array in arrays.items():
        if array.dtype not in _DTYPES.values():
            raise DataError(f"tensor {name!r}: safetensors cannot hold dtype {array.dtype}")
        arrays[name] = array.reshape(np.shape(tensors[name]))  # 0-d stays 0-d
    atomic_write(path, save(arrays, metadata=dict(metadata) if metadata else None))


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, AnyArray], dict[str, str]]:
    """Arrays and metadata of a safetensors file, read into memory.

    Returns
    -------
    tensors : name to array, bfloat16 as ``ml_dtypes.bfloat16``
    metadata : the header's string pairs

    Raises
    ------
    DataError
        The file is missing, is not safetensors, or holds a dtype that NumPy does not have here.
    """
    metadata = read_metadata(path)
    with _readable(path):
        entries = safetensors.deserialize(Path(path).read_bytes())
    tensors = {}
    for name, entry in entries:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise DataError(f"{path}: tensor {name!r} has unsupported dtype {entry['dtype']}")
        tensors[name] = np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"])
    return tensors, metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """String pairs in the header of a safetensors file, whose arrays are not read.

    Raises
    ------
    DataError
        The file is missing or is not safetensors.
    """
    with _readable(path), safetensors.safe_open(os.fspath(path), framework="numpy") as file:
        return dict(file.metadata() or {})


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of which file an error is."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a readable safetensors file: {error}") from error


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file or leave the old one as it was.

    Raises
    ------
    DataError
        The disk is full or the folder cannot be written; the previous file is intact.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A sibling temporary path that replaces ``path`` when the block ends without an error.

    Raises
    ------
    DataError
        The disk is full or the folder cannot be written; the previous file is intact.
    """
    target = Path(path)
    try:
        with _replacing(target) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(
            f"{target}: not written, what was there before is intact: {error.strerror or error}"
        ) from error


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
