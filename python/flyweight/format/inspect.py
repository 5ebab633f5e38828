"""Where every byte of a .fly file is: per tensor, per role, and totals that tile the file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

from flyweight.codecs.ans import AnsCodec
from flyweight.codecs.codec import codec_by_id
from flyweight.codecs.ctx import CtxCodec
from flyweight.codecs.layout import LAYOUT_NAMES
from flyweight.codecs.select import Candidate, Effort, select
from flyweight.format.container import TRAILER, FlyFile, open  # noqa: A004
from flyweight.format.header import Part, Section
from flyweight.format.stored import arrays_of
from flyweight.kernels.parallel import map_parallel
from flyweight.quant.grid import QuantizedTensor
from flyweight.typing import AnyArray

__all__ = ["FileReport", "PartReport", "SectionReport", "information_bits", "inspect"]


CLASSES = {
    "codes": "codes",
    "scales": "scales",
    "zero_points": "scales",
    "column_scales": "scales",
    "data": "float",
}
"""Role of a part to the class in :attr:`FileReport.by_class` that counts its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """One array of a section."""

    role: str
    """``codes``, ``scales``, ``zero_points``, ``column_scales`` or ``data``."""
    elements: int
    """Elements of the array."""
    layout: str
    """How its elements were arranged."""
    codecs: str
    """Codec of each plane, joined by ``+``."""
    stored_bytes: int
    """Bytes in the file, tables included."""
    table_bytes: int
    """Bytes of that which are frequency tables and stream headers."""
    information_bits: float
    """Order-0 information content of the elements' bytes or codes under their own histogram."""
    candidates: tuple[Candidate, ...] = ()
    """Everything that can be tried on it, smallest first; filled on request."""

    @property
    def overhead(self) -> float:
        """Stored size over information content, minus 1; negative where a codec found structure."""
        return 8 * self.stored_bytes / self.information_bits - 1 if self.information_bits else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionReport:
    """One tensor."""

    name: str
    """Tensor name."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    dtype: str
    """Dtype that loading gives back."""
    grid: str
    """Codes and scales in words; empty for plain tensors."""
    stored_bytes: int
    """Bytes of the section."""
    parts: tuple[PartReport, ...]
    """Its arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """A whole file."""

    total_bytes: int
    """Size of the file."""
    by_class: dict[str, int] = field(default_factory=dict)
    """Bytes of ``codes``, ``scales`` (with zero-points and column scales), ``float``, ``tables``,
    ``config``, ``metadata`` and ``directory`` (header, index and checksums); they sum to
    ``total_bytes``."""
    sections: tuple[SectionReport, ...] = ()
    """Tensors in the order of the file."""


def inspect(
    source: str | os.PathLike[str] | bytes | FlyFile,
    *,
    with_candidates: bool = False,
    effort: Effort = "default",
) -> FileReport:
    """Where every byte of a file is.

    Parameters
    ----------
    source : path, bytes, or a file already open
    with_candidates : code every array with every candidate again, to show what lost, those that
        packing left out included
    effort : which candidates; see :func:`flyweight.codecs.select.select`

    Raises
    ------
    CorruptStreamError
        The file is damaged; the message names the tensor.
    """
    file = source if isinstance(source, FlyFile) else open(source)
    file.verify()
    sections = map_parallel(
        lambda section: _section(file, section, effort if with_candidates else None),
        file.directory.sections,
        sizes=[section.elements for section in file.directory.sections],
        threads=None,
    )
    by_class = dict.fromkeys(("codes", "scales", "float", "tables"), 0)
    for section in sections:
        for part in section.parts:
            by_class[CLASSES[part.role]] += part.stored_bytes - part.table_bytes
            by_class["tables"] += part.table_bytes
    directory = file.directory
    by_class["config"] = directory.config[0] if directory.config else 0
    by_class["metadata"] = directory.metadata[0] if directory.metadata else 0
    by_class["directory"] = file.body_offset + TRAILER.size
    return FileReport(total_bytes=file.total_bytes, by_class=by_class, sections=tuple(sections))


def _section(file: FlyFile, section: Section, effort: Effort | None) -> SectionReport:
    stored = file.stored(section.name)
    arrays = arrays_of(stored)
    if isinstance(stored, QuantizedTensor):
        per = f"{stored.grid.group_size} columns" if stored.grid.group_size else "row"
        per += " and per column" if stored.grid.has_column_scales else ""
        grid = f"{stored.grid.lo}..{stored.grid.hi}, {stored.grid.scale_dtype} scale per {per}"
    else:
        grid = "" if stored.values.dtype == stored.dtype else f"stored as {stored.values.dtype}"
    offset = 0
    body = file.section_bytes(section.name)
    parts = []
    for part in section.parts:
        parts.append(_part(part, body[offset : offset + part.length], arrays[part.role], effort))
        offset += part.length
    return SectionReport(
        name=section.name,
        shape=section.shape,
        dtype=str(section.dtype),
        grid=grid,
        stored_bytes=section.length,
        parts=tuple(parts),
    )


def _part(part: Part, body: memoryview, array: AnyArray, effort: Effort | None) -> PartReport:
    codecs = []
    tables = 0
    offset = 0
    for codec_id, length in part.streams:
        codec = codec_by_id(codec_id)
        codecs.append(codec.name)
        if isinstance(codec, (AnsCodec, CtxCodec)):
            stream = body[offset : offset + length]
            tables += codec.overhead_bytes(stream, alphabet_size=part.alphabet_size)
        offset += length
    candidates: tuple[Candidate, ...] = ()
    if effort is not None:
        choice = select(array, alphabet_size=part.alphabet_size, effort=effort, is_pruned=False)
        candidates = choice.candidates
    return PartReport(
        role=part.role,
        elements=array.size,
        layout=LAYOUT_NAMES[part.layout],
        codecs="+".join(codecs),
        stored_bytes=part.length,
        table_bytes=tables,
        information_bits=information_bits(array),
        candidates=candidates,
    )


def information_bits(array: AnyArray) -> float:
    """Order-0 bits: of the elements for codes, of each byte plane for wider elements."""
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(array.size, array.itemsize)
    total = 0.0
    for plane in range(raw.shape[1] if array.size else 0):
        counts = np.bincount(raw[:, plane])
        seen = counts[counts > 0].astype(np.float64)
        total += float(-(seen * np.log2(seen / array.size)).sum())
    return total
