"""Checkpoint tensors to the bytes of a .fly file, and back: the story in one file.

Going down: :func:`quantize` turns float tensors into codes and scales (``quant/gptq.py``),
:func:`pack` gives them to the container (``format/container.py``), which lets ``codecs/select.py``
find the smallest streams. :func:`unpack` is the way back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flyweight.codecs.select import Effort
from flyweight.errors import DataError, InvalidArgumentError
from flyweight.format.container import open, write_container  # noqa: A004
from flyweight.format.header import DTYPE_IDS
from flyweight.format.stored import PlainTensor, Stored
from flyweight.format.wire import FieldValue
from flyweight.interop import read_safetensors, write_safetensors
from flyweight.quant.config import QuantConfig, QuantRule
from flyweight.quant.gptq import hessian_error, quantize_matrix
from flyweight.quant.grid import Grid, QuantizedTensor, matrix_shape
from flyweight.quant.scale_rules import find_scales
from flyweight.typing import AnyArray

__all__ = [
    "FLOAT_DTYPES",
    "TensorReport",
    "keep_tensor",
    "load_stored",
    "pack",
    "quantize",
    "save_stored",
    "unpack",
]

FLOAT_DTYPES = (
    np.dtype(np.float64),
    np.dtype(np.float32),
    np.dtype(np.float16),
    np.dtype(ml_dtypes.bfloat16),
)
FLOAT16_TOLERANCE = 1e-3
"""Largest relative error of a tensor kept as float16, twice that of its rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """What quantization did to one tensor."""

    name: str
    """Tensor name."""
    method: str
    """``gptq``, ``rtn`` or ``float``."""
    bits: int
    """Nominal bits of the grid; 0 for float."""
    relative_error: float
    """``tr(D H D^T) / tr(W H W^T)``, with a unit Hessian where there is none; 0 for float."""
    damp_ratio: float | None
    """Damping that the Hessian took; None without one."""
    dead_columns: int
    """Inputs that calibration never saw; their weights are zero."""


def quantize(
    tensors: Mapping[str, AnyArray],
    config: QuantConfig,
    *,
    hessians: Mapping[str, NDArray[np.float32]] | None = None,
) -> tuple[dict[str, Stored], list[TensorReport]]:
    """Float tensors to codes and scales, by the rules of a config.

    Parameters
    ----------
    tensors : name to array; float tensors of two or more axes are quantized where a rule matches,
        everything else is kept
    config : grids, scale rule and solver settings
    hessians : weight name to (cols, cols) float32, mean of ``x x^T``; matrices without one are
        rounded to nearest

    Returns
    -------
    stored : name to stored tensor
    reports : one per tensor, in the order of ``tensors``

    Raises
    ------
    InvalidArgumentError
        A weight or Hessian is not finite, a Hessian has the wrong shape, or there is no tensor for
        it; the message names the tensor.
    """
    unknown = sorted(set(hessians or {}) - set(tensors))
    if unknown:
        raise InvalidArgumentError(f"there is a Hessian for {unknown[0]!r}, but no such tensor")
    stored: dict[str, Stored] = {}
    reports = []
    for name, array in tensors.items():
        rule = config.rule_for_array(name, array.shape)
        try:
            if rule is not None and array.dtype in FLOAT_DTYPES:
                hessian = (hessians or {}).get(name)
                stored[name], report = _quantize_tensor(name, array, rule, config, hessian)
            else:
                stored[name] = keep_tensor(array, is_source=config.passthrough_dtype == "source")
                report = TensorReport(
                    name=name,
                    method="float",
                    bits=0,
                    relative_error=0.0,
                    damp_ratio=None,
                    dead_columns=0,
                )
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"tensor {name!r}: {error}") from error
        reports.append(report)
    return stored, reports


def pack(
    tensors: Mapping[str, AnyArray],
    *,
    bits: int = 6,
    is_lossless: bool = False,
    hessians: Mapping[str, NDArray[np.float32]] | None = None,
    config: Mapping[int, FieldValue] | None = None,
    metadata: Mapping[str, str] | None = None,
    codec: str = "auto",
    effort: Effort = "default",
    threads: int | None = None,
) -> bytes:
    """A whole checkpoint as the bytes of a .fly file.

    Parameters
    ----------
    tensors : name to array
    bits : 4 to 8; SDClip grids for every float tensor of two or more axes
    is_lossless : keep every tensor as it is; ``bits`` and ``hessians`` are not used
    hessians : see :func:`quantize`
    config : numbered fields of the model's config
    metadata : text pairs; their bytes count
    codec, effort : see :func:`flyweight.codecs.select.select`
    threads : tensors coded at once; None means one per processor. The bytes do not depend on it

    Examples
    --------
    >>> import numpy as np
    >>> weights = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    >>> data = pack({"w": weights})
    >>> bool(abs(unpack(data)["w"] - weights).max() < 0.3)
    True
    """
    if is_lossless:
        stored: Mapping[str, Stored] = {
            name: PlainTensor(values=array, dtype=array.dtype) for name, array in tensors.items()
        }
    else:
        stored, _ = quantize(tensors, QuantConfig.uniform(bits), hessians=hessians)
    return write_container(
        stored, config=config, metadata=metadata, codec=codec, effort=effort, threads=threads
    )[0]


def unpack(
    source: str | os.PathLike[str] | bytes, *, threads: int | None = None
) -> dict[str, AnyArray]:
    """All tensors of a .fly file, in their own shapes and dtypes.

    Parameters
    ----------
    source : path, or the bytes of the file
    threads : tensors decoded at once; None means one per processor

    Raises
    ------
    CorruptStreamError
        The file is damaged; the message names the tensor.
    """
    return open(source).load_all(threads=threads)


def save_stored(path: str | os.PathLike[str], stored: Mapping[str, Stored]) -> None:
    """Stored tensors as a safetensors file: what lies between quantizing and coding."""
    arrays: dict[str, AnyArray] = {}
    index: dict[str, dict[str, object]] = {}
    for name, tensor in stored.items():
        if isinstance(tensor, QuantizedTensor):
            arrays[f"{name}.codes"] = tensor.codes
            arrays[f"{name}.scales"] = tensor.scales
            if tensor.zero_points is not None:
                arrays[f"{name}.zero_points"] = tensor.zero_points
            if tensor.column_scales is not None:
                arrays[f"{name}.column_scales"] = tensor.column_scales
            grid = tensor.grid
            entry: dict[str, object] = {
                "shape": list(tensor.shape),
                "lo": grid.lo,
                "hi": grid.hi,
                "group_size": grid.group_size,
                "is_symmetric": grid.is_symmetric,
                "scale_dtype": grid.scale_dtype,
                "has_column_scales": grid.has_column_scales,
            }
        else:
            arrays[f"{name}.values"] = tensor.values
            entry = {}
        index[name] = {"dtype": str(tensor.dtype), **entry}
    write_safetensors(path, arrays, {"flyweight": json.dumps(index, sort_keys=True)})


def load_stored(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """Stored tensors from what :func:`save_stored` wrote.

    Raises
    ------
    DataError
        The file is no safetensors file, or its index is damaged; the message names the tensor.
    """
    arrays, metadata = read_safetensors(path)
    if "flyweight" not in metadata:
        raise DataError(f"{path}: holds no codes; it was not written by `flyweight quantize`")
    try:
        index = json.loads(metadata["flyweight"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the index of its codes is not JSON: {error}") from error
    if not isinstance(index, dict):
        raise DataError(f"{path}: the index of its codes is {type(index).__name__}, not an object")
    stored: dict[str, Stored] = {}
    for name, entry in index.items():
        parts = {part: arrays[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in arrays}
        try:
            stored[name] = _read_stored(entry, parts)
        except (DataError, InvalidArgumentError) as error:
            raise DataError(f"{path}: tensor {name!r}: {error}") from error
    return stored


_PARTS = ("values", "codes", "scales", "zero_points", "column_scales")
_GRID_FIELDS = {
    "lo": int,
    "hi": int,
    "group_size": int,
    "is_symmetric": bool,
    "scale_dtype": str,
    "has_column_scales": bool,
}


def _read_stored(entry: object, parts: Mapping[str, AnyArray]) -> Stored:
    """One tensor from its entry in the index, which may hold anything, and its arrays."""
    if not isinstance(entry, dict):
        raise DataError(f"its entry is {entry!r}, not an object")
    dtypes = {str(each): each for each in DTYPE_IDS}
    dtype = dtypes.get(str(entry.get("dtype")))
    needed = ("values",) if entry.keys() == {"dtype"} else ("codes", "scales")
    if dtype is None:
        raise DataError(f"dtype is {entry.get('dtype')!r}, expected one of {', '.join(dtypes)}")
    if missing := [part for part in needed if part not in parts]:
        raise DataError(f"its {' and '.join(missing)} are not in the file")
    if needed == ("values",):
        found = parts["values"].dtype
        if found != dtype and not (found in FLOAT_DTYPES and dtype in FLOAT_DTYPES):
            raise DataError(f"values of {found} cannot come back as {dtype}")
        return PlainTensor(values=parts["values"], dtype=dtype)
    if dtype not in FLOAT_DTYPES:
        raise DataError(f"weights come back as a float dtype, not as {dtype}")
    grid, codes = _read_grid(entry), parts["codes"]
    tensor = QuantizedTensor(
        shape=_read_shape(entry.get("shape")),
        dtype=dtype,
        grid=grid,
        codes=codes,
        scales=parts["scales"],
        zero_points=parts.get("zero_points"),
        column_scales=parts.get("column_scales"),
    )
    if codes.size and not grid.lo <= codes.min() <= codes.max() <= grid.hi:
        raise DataError(
            f"codes are {codes.min()} to {codes.max()}, the grid has {grid.lo} to {grid.hi}"
        )
    return tensor


def _read_grid(entry: Mapping[str, Any]) -> Grid:
    for key, kind in _GRID_FIELDS.items():
        # Not isinstance: true is no number here.
        if type(entry.get(key)) is not kind:
            raise DataError(f"{key} is {entry.get(key)!r}, expected {kind.__name__}")
    if entry["scale_dtype"] not in ("float16", "float32"):
        raise DataError(f"scale_dtype is {entry['scale_dtype']!r}, expected float16 or float32")
    if surplus := entry.keys() - _GRID_FIELDS.keys() - {"dtype", "shape"}:
        raise DataError(f"unknown field {', '.join(sorted(surplus))}")
    if entry["group_size"] >= 1 << 31:
        raise DataError(f"group_size is {entry['group_size']}, expected less than 2**31")
    return Grid(**{key: entry[key] for key in _GRID_FIELDS})


def _read_shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise DataError(f"shape is {shape!r}, expected a list of sizes")
    return tuple(shape)


def _quantize_tensor(
    name: str,
    array: AnyArray,
    rule: QuantRule,
    config: QuantConfig,
    hessian: NDArray[np.float32] | None,
) -> tuple[QuantizedTensor, TensorReport]:
    weights = np.ascontiguousarray(array.reshape(matrix_shape(array.shape)), dtype=np.float32)
    grid = rule.build_grid()
    if not np.isfinite(weights).all():
        row, col = (int(i) for i in np.argwhere(~np.isfinite(weights))[0])
        raise InvalidArgumentError(f"{weights[row, col]} at row {row}, column {col}")
    scales, zero_points = find_scales(weights, grid, rule=rule.scale, k=rule.k, hessian=hessian)
    result = quantize_matrix(
        weights,
        scales,
        grid,
        hessian=hessian,
        zero_points=zero_points,
        damp_ratio=config.damp_ratio,
        act_order=config.act_order,
        block_cols=config.block_cols,
    )
    tensor = QuantizedTensor(
        shape=array.shape,
        dtype=array.dtype,
        grid=grid,
        codes=result.codes,
        scales=scales,
        zero_points=zero_points,
    )
    dequantized = grid.dequantize(result.codes, scales, zero_points)
    report = TensorReport(
        name=name,
        method="rtn" if result.damp_ratio is None else "gptq",
        bits=grid.bits,
        relative_error=hessian_error(weights, dequantized, hessian),
        damp_ratio=result.damp_ratio,
        dead_columns=result.dead_columns,
    )
    return tensor, report


def keep_tensor(array: AnyArray, *, is_source: bool = False) -> PlainTensor:
    """A tensor as it is, or as float16 where that loses no more than float16's precision."""
    if array.dtype not in FLOAT_DTYPES or is_source:
        return PlainTensor(values=array, dtype=array.dtype)
    if not np.isfinite(array).all():
        at = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise InvalidArgumentError(f"{array[at]} at {list(at)}")
    if array.dtype.itemsize <= 2:
        return PlainTensor(values=array, dtype=array.dtype)
    wide = array.astype(np.float64)
    with np.errstate(over="ignore"):
        small = array.astype(np.float16)
    error = np.linalg.norm((small.astype(np.float64) - wide).ravel())
    is_close = error <= FLOAT16_TOLERANCE * np.linalg.norm(wide.ravel())  # not for NaN from inf
    return PlainTensor(values=small if is_close else array, dtype=array.dtype)
