"""The .fly container: writing it, and reading it back lazily, tensor by tensor.

Layout of a file (docs/format.md): 14 bytes of header, the directory, the config section, the
metadata section, one section per tensor, and a checksum of it all. Sections tile the file.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from flyweight.codecs.select import Choice, Effort
from flyweight.errors import CorruptStreamError, InvalidArgumentError, UnsupportedError
from flyweight.format.header import (
    Directory,
    read_directory,
    write_directory,
)
from flyweight.format.section import CodedTensor, code_tensor, decode_tensor
from flyweight.format.stored import Stored
from flyweight.format.wire import FieldValue, read_fields, read_pairs, write_fields, write_pairs
from flyweight.kernels.parallel import map_parallel
from flyweight.quant.grid import QuantizedTensor, from_float32
from flyweight.typing import AnyArray

__all__ = [
    "FlyFile",
    "assemble",
    "code_tensors",
    "open",
    "write_container",
]

MAGIC = b"\x89FLY"
VERSION = 1
HEADER = struct.Struct("<4sBBII")
TRAILER = struct.Struct("<I")


def write_container(
    tensors: Mapping[str, Stored],
    *,
    config: Mapping[int, FieldValue] | None = None,
    metadata: Mapping[str, str] | None = None,
    codec: str = "auto",
    effort: Effort = "default",
    threads: int | None = None,
) -> tuple[bytes, dict[str, dict[str, Choice]]]:
    """Bytes of a .fly file, and what was tried for each array.

    Parameters
    ----------
    tensors : name to stored tensor
    config : numbered fields of the model's config
    metadata : text pairs; their bytes count
    codec, effort : see :func:`flyweight.codecs.select.select`
    threads : tensors coded at once; None means one per processor

    Returns
    -------
    data : the file
    choices : tensor name to role (``codes``, ``scales``, ...) to choice

    Notes
    -----
    The same input gives the same bytes with the same versions of the codec libraries, whatever the
    number of threads.
    """
    coded = code_tensors(tensors, codec=codec, effort=effort, threads=threads)
    data = assemble(coded, config=config, metadata=metadata)
    return data, {name: tensor.choices for name, tensor in coded.items()}


def code_tensors(
    tensors: Mapping[str, Stored],
    *,
    codec: str = "auto",
    effort: Effort = "default",
    threads: int | None = None,
) -> dict[str, CodedTensor]:
    """The smallest streams of each tensor, by name; see :func:`write_container`."""
    names = list(tensors)
    coded = map_parallel(
        lambda name: code_tensor(name, tensors[name], codec, effort),
        names,
        sizes=[_size(tensors[name]) for name in names],
        threads=threads,
    )
    return dict(zip(names, coded, strict=True))


def assemble(
    coded: Mapping[str, CodedTensor],
    *,
    config: Mapping[int, FieldValue] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The file of coded tensors; see :func:`write_container`."""
    ordered = [coded[name] for name in sorted(coded, key=lambda text: text.encode("utf-8"))]
    extras = [write_fields(config or {}), write_pairs(metadata or {})]
    entries = [(len(raw), zlib.crc32(raw)) if raw else None for raw in extras]
    sections = tuple(tensor.section for tensor in ordered)
    directory = write_directory(
        Directory(config=entries[0], metadata=entries[1], sections=sections)
    )
    header = HEADER.pack(MAGIC, VERSION, 0, len(directory), zlib.crc32(directory))
    data = b"".join([header, directory, *extras, *(tensor.body for tensor in ordered)])
    return data + TRAILER.pack(zlib.crc32(data))


class FlyFile:
    """A .fly file, opened; tensors are decoded when asked for.

    Parameters
    ----------
    data : the whole file
    name : what to call it in errors

    Raises
    ------
    CorruptStreamError
        Not a .fly file, or its header, directory or size is damaged.
    UnsupportedError
        Of a version that this build cannot read.
    """

    def __init__(
        self, data: bytes | bytearray | memoryview | mmap.mmap, name: str = "<bytes>"
    ) -> None:
        self._data = memoryview(data)
        self.name = name
        try:
            self.directory, self._start = _read_head(self._data)
        except (CorruptStreamError, UnsupportedError) as error:
            raise type(error)(f"{name}: {error}") from error
        self.sections = {section.name: section for section in self.directory.sections}
        self._offsets = {}
        offset = self._start
        for entry in (self.directory.config, self.directory.metadata):
            offset += entry[0] if entry else 0
        for section in self.directory.sections:
            self._offsets[section.name] = offset
            offset += section.length

    @property
    def total_bytes(self) -> int:
        """Size of the file."""
        return len(self._data)

    @property
    def body_offset(self) -> int:
        """Offset of the first section: bytes of header and directory."""
        return self._start

    def __len__(self) -> int:
        return len(self.sections)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sections)

    def __getitem__(self, name: str) -> AnyArray:
        """One tensor in its own shape and dtype; reads no other section."""
        stored = self.stored(name)
        if isinstance(stored, QuantizedTensor):
            return stored.dequantize()
        if stored.values.dtype == stored.dtype:
            return stored.values
        return from_float32(stored.values.astype(np.float32), stored.dtype)

    def stored(self, name: str) -> Stored:
        """One tensor as it is stored: codes and scales, or plain values.

        Raises
        ------
        InvalidArgumentError
            There is no such tensor.
        CorruptStreamError
            Its section is damaged; the message names the tensor.
        """
        body = self.section_bytes(name)
        try:
            return decode_tensor(self.sections[name], body)
        except (CorruptStreamError, UnsupportedError) as error:
            raise type(error)(f"{self.name}: tensor {name!r}: {error}") from error
        except MemoryError:
            shape = self.sections[name].shape
            raise CorruptStreamError(
                f"{self.name}: tensor {name!r}: no memory for the declared shape {shape}"
            ) from None

    def section_bytes(self, name: str) -> memoryview:
        """The coded bytes of one tensor, checked against their checksum."""
        if name not in self.sections:
            raise InvalidArgumentError(f"{self.name}: no tensor {name!r}")
        section = self.sections[name]
        return self._section(self._offsets[name], section.length, section.checksum, repr(name))

    def config(self) -> dict[int, FieldValue]:
        """Numbered fields of the model's config; empty where the file has none."""
        entry = self.directory.config
        if entry is None:
            return {}
        return read_fields(self._section(self._start, *entry, "config"))

    def metadata(self) -> dict[str, str]:
        """Text pairs; empty where the file has none."""
        entry = self.directory.metadata
        if entry is None:
            return {}
        start = self._start + (self.directory.config[0] if self.directory.config else 0)
        return read_pairs(self._section(start, *entry, "metadata"))

    def load_all(self, *, threads: int | None = None) -> dict[str, AnyArray]:
        """All tensors in their own shapes and dtypes, checked like :meth:`verify`.

        Parameters
        ----------
        threads : tensors decoded at once; None means one per processor

        Raises
        ------
        CorruptStreamError
            The message names the damaged tensor, or says that none is.
        """
        self.config()
        self.metadata()
        names = list(self.sections)
        sizes = [self.sections[name].elements for name in names]
        arrays = map_parallel(self.__getitem__, names, sizes=sizes, threads=threads)
        self._check_file()
        return dict(zip(names, arrays, strict=True))

    def verify(self, *, threads: int | None = None) -> None:
        """Check every section and the whole file.

        Parameters
        ----------
        threads : as for :meth:`load_all`

        Raises
        ------
        CorruptStreamError
            The message names the damaged tensor, or says that none is.
        """
        self.config()
        self.metadata()
        names = list(self.sections)
        sizes = [self.sections[name].elements for name in names]
        map_parallel(self._check_section, names, sizes=sizes, threads=threads)
        self._check_file()

    def _check_section(self, name: str) -> None:
        self.stored(name)

    def _check_file(self) -> None:
        expected = TRAILER.unpack(self._data[-TRAILER.size :])[0]
        found = zlib.crc32(self._data[: -TRAILER.size])
        if found != expected:
            raise CorruptStreamError(
                f"{self.name}: file checksum is {found:08x}, expected {expected:08x}, "
                "but no section is damaged"
            )

    def _section(self, offset: int, length: int, checksum: int, what: str) -> memoryview:
        body = self._data[offset : offset + length]
        found = zlib.crc32(body)
        if found != checksum:
            raise CorruptStreamError(
                f"{self.name}: section {what} at byte {offset} is damaged: "
                f"checksum {found:08x}, expected {checksum:08x}"
            )
        return body


def open(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> FlyFile:  # noqa: A001
    """Open a .fly file by path (memory-mapped) or from bytes.

    Raises
    ------
    CorruptStreamError, UnsupportedError
        See :class:`FlyFile`.
    OSError
        The file cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return FlyFile(source)
    path = Path(source)
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise CorruptStreamError(f"{path}: the file is empty")
        return FlyFile(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))


def _read_head(data: memoryview) -> tuple[Directory, int]:
    """The directory and the offset of the byte after it; the file's size is checked against it."""
    if len(data) < HEADER.size + TRAILER.size:
        raise CorruptStreamError(
            f"{len(data)} bytes are too few for a .fly file, which has at least "
            f"{HEADER.size + TRAILER.size}"
        )
    magic, version, flags, length, checksum = HEADER.unpack(data[: HEADER.size])
    if magic != MAGIC:
        raise CorruptStreamError(f"not a .fly file: starts with {bytes(magic).hex(' ')}")
    if version != VERSION or flags:
        raise UnsupportedError(
            f"format version {version} with flags {flags:#x}; this build reads version {VERSION}"
        )
    start = HEADER.size + length
    raw = data[HEADER.size : start]
    if len(raw) < length or zlib.crc32(raw) != checksum:
        raise CorruptStreamError(
            f"the directory of {length} bytes at byte {HEADER.size} is damaged or cut off"
        )
    directory = read_directory(raw)
    expected = start + directory.body_length + TRAILER.size
    if len(data) != expected:
        raise CorruptStreamError(f"the file has {len(data)} bytes, its directory says {expected}")
    return directory, start


def _size(tensor: Stored) -> int:
    return (tensor.codes if isinstance(tensor, QuantizedTensor) else tensor.values).nbytes
