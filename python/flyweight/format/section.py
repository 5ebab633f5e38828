"""One tensor of a .fly file: to the streams that it lies in, and back."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from flyweight.codecs.codec import codec_by_id
from flyweight.codecs.layout import join_planes, plane_specs
from flyweight.codecs.select import Choice, Effort, select
from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.format.header import DTYPE_IDS, MAX_AXES, Part, Section
from flyweight.format.stored import PlainTensor, Stored, arrays_of
from flyweight.quant.grid import QuantizedTensor
from flyweight.typing import AnyArray

__all__ = ["CodedTensor", "code_tensor", "decode_tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedTensor:
    """A tensor as it lies in a file, before the file is put together."""

    section: Section
    """Its entry in the directory."""
    body: bytes
    """Its bytes."""
    choices: dict[str, Choice]
    """Role (``codes``, ``scales``, ...) to what was tried for it."""


def code_tensor(name: str, tensor: Stored, codec: str, effort: Effort) -> CodedTensor:
    """The smallest streams of a tensor.

    Parameters
    ----------
    codec, effort : see :func:`flyweight.codecs.select.select`

    Raises
    ------
    InvalidArgumentError
        Its dtype or its number of axes cannot be stored.
    """
    if isinstance(tensor, QuantizedTensor):
        shape, grid = tensor.shape, tensor.grid
    else:
        shape, grid = tensor.values.shape, None
    arrays = arrays_of(tensor)
    last = [*arrays.values()][-1].dtype
    if last not in DTYPE_IDS or len(shape) > MAX_AXES:
        raise InvalidArgumentError(
            f"tensor {name!r}: {last} with {len(shape)} axes cannot be stored; "
            f"at most {MAX_AXES} axes of {', '.join(map(str, DTYPE_IDS))}"
        )
    parts = []
    choices = {}
    body = b""
    for role, array in arrays.items():
        alphabet_size = grid.alphabet_size if grid and role == "codes" else 256
        choice = select(array, alphabet_size=alphabet_size, codec=codec, effort=effort)
        choices[role] = choice
        body += b"".join(stream for _, stream in choice.streams)
        parts.append(
            Part(
                role=role,
                shape=(array.shape[0], array.shape[1]),
                dtype=array.dtype,
                alphabet_size=alphabet_size,
                layout=choice.layout,
                streams=tuple((codec_id, len(stream)) for codec_id, stream in choice.streams),
            )
        )
    section = Section(
        name=name,
        shape=shape,
        dtype=tensor.dtype,
        grid=grid,
        parts=tuple(parts),
        checksum=zlib.crc32(body),
    )
    return CodedTensor(section=section, body=body, choices=choices)


def decode_tensor(section: Section, body: memoryview) -> Stored:
    """The tensor of a directory's entry and its bytes; undoes :func:`code_tensor`.

    Raises
    ------
    CorruptStreamError
        The bytes are no such streams, or give values that no tensor has.
    UnsupportedError
        A codec or layout is not known here.
    """
    arrays: dict[str, AnyArray] = {}
    offset = 0
    for part in section.parts:
        arrays[part.role] = _decode_part(part, body[offset : offset + part.length])
        offset += part.length
    if section.grid is None:
        if arrays["data"].dtype == np.bool_ and arrays["data"].view(np.uint8).max(initial=0) > 1:
            raise CorruptStreamError("data: a bool is neither 0 nor 1")
        return PlainTensor(values=arrays["data"].reshape(section.shape), dtype=section.dtype)
    for role in ("scales", "zero_points", "column_scales"):
        if role in arrays and not np.isfinite(arrays[role]).all():
            raise CorruptStreamError(f"{role}: a value is not finite")
    codes = (arrays["codes"].astype(np.int16) + section.grid.lo).astype(np.int8)
    return QuantizedTensor(
        shape=section.shape,
        dtype=section.dtype,
        grid=section.grid,
        codes=codes,
        scales=arrays["scales"],
        zero_points=arrays.get("zero_points"),
        column_scales=arrays["column_scales"][0] if section.grid.has_column_scales else None,
    )


def _decode_part(part: Part, body: memoryview) -> AnyArray:
    specs = plane_specs(part.layout, part.shape, part.dtype.itemsize, part.alphabet_size)
    planes = []
    offset = 0
    for spec, (codec_id, length) in zip(specs, part.streams, strict=True):
        stream = body[offset : offset + length]
        offset += length
        if spec.count == 0:
            planes.append(np.zeros(0, dtype=np.uint8))
            continue
        planes.append(codec_by_id(codec_id).decode(stream, spec))
    return join_planes(part.layout, planes, part.shape, part.dtype, part.alphabet_size)
