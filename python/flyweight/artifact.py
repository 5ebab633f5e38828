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

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flyweight.codecs.select import Effort
from flyweight.errors import DataError, InvalidArgumentError
from flyweight.format.container import PlainTensor, Stored, open, write_container  # noqa: A004
from flyweight.format.wire import FieldValue
from flyweight.interop import read_safetensors, write_safetensors
from flyweight.quant.clip import sdclip_scales
from flyweight.quant.config import QuantConfig, QuantRule
from flyweight.quant.gptq import hessian_error, quantize_matrix
from flyweight.quant.grid import Grid, QuantizedTensor, matrix_shape
from flyweight.typing import AnyArray

__all__ = [
    "TensorReport",
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
        rule = config.rule_for(name)
        wanted = array.ndim >= 2 and array.size >= max(config.min_elements, 1)
        try:
            if rule is not None and wanted and array.dtype in FLOAT_DTYPES:
                hessian = (hessians or {}).get(name)
                stored[name], report = _quantize_tensor(name, array, rule, config, hessian)
            else:
                stored[name] = _keep(array, config)
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
    return write_container(stored, config=config, metadata=metadata, codec=codec, effort=effort)[0]


def unpack(source: str | os.PathLike[str] | bytes) -> dict[str, AnyArray]:
    """All tensors of a .fly file, in their own shapes and dtypes.

    Raises
    ------
    CorruptStreamError
        The file is damaged; the message names the tensor.
    """
    file = open(source)
    file.verify()
    return {name: file[name] for name in file}


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
            grid = tensor.grid
            entry: dict[str, object] = {
                "shape": list(tensor.shape),
                "lo": grid.lo,
                "hi": grid.hi,
                "group_size": grid.group_size,
                "is_symmetric": grid.is_symmetric,
                "scale_dtype": grid.scale_dtype,
            }
        else:
            arrays[f"{name}.values"] = tensor.values
            entry = {}
        index[name] = {"dtype": str(tensor.dtype), **entry}
    write_safetensors(path, arrays, {"flyweight": json.dumps(index, sort_keys=True)})


def load_stored(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """Stored tensors from what :func:`save_stored` wrote."""
    arrays, metadata = read_safetensors(path)
    if "flyweight" not in metadata:
        raise DataError(f"{path}: holds no codes; it was not written by `flyweight quantize`")
    stored: dict[str, Stored] = {}
    for name, entry in json.loads(metadata["flyweight"]).items():
        dtype = np.dtype(entry.pop("dtype"))
        if not entry:
            stored[name] = PlainTensor(values=arrays[f"{name}.values"], dtype=dtype)
            continue
        stored[name] = QuantizedTensor(
            shape=tuple(entry.pop("shape")),
            dtype=dtype,
            grid=Grid(**entry),
            codes=arrays[f"{name}.codes"],
            scales=arrays[f"{name}.scales"],
            zero_points=arrays.get(f"{name}.zero_points"),
        )
    return stored


def _quantize_tensor(
    name: str,
    array: AnyArray,
    rule: QuantRule,
    config: QuantConfig,
    hessian: NDArray[np.float32] | None,
) -> tuple[QuantizedTensor, TensorReport]:
    weights = np.ascontiguousarray(array.reshape(matrix_shape(array.shape)), dtype=np.float32)
    grid = Grid.symmetric(rule.bits)
    if not np.isfinite(weights).all():
        row, col = (int(i) for i in np.argwhere(~np.isfinite(weights))[0])
        raise InvalidArgumentError(f"{weights[row, col]} at row {row}, column {col}")
    scales = sdclip_scales(weights, grid, k=rule.k)
    result = quantize_matrix(
        weights,
        scales,
        grid,
        hessian=hessian,
        damp_ratio=config.damp_ratio,
        act_order=config.act_order,
        block_cols=config.block_cols,
    )
    tensor = QuantizedTensor(
        shape=array.shape, dtype=array.dtype, grid=grid, codes=result.codes, scales=scales
    )
    report = TensorReport(
        name=name,
        method="rtn" if result.damp_ratio is None else "gptq",
        bits=rule.bits,
        relative_error=hessian_error(weights, grid.dequantize(result.codes, scales), hessian),
        damp_ratio=result.damp_ratio,
        dead_columns=result.dead_columns,
    )
    return tensor, report


def _keep(array: AnyArray, config: QuantConfig) -> PlainTensor:
    """A tensor as it is, or as float16 where that loses no more than float16's precision."""
    if array.dtype not in FLOAT_DTYPES or config.passthrough_dtype == "source":
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
