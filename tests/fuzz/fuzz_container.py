"""Any bytes as a .fly file, by atheris: only flyweight's errors escape, in bounded memory and time.

``python tests/fuzz/fuzz_container.py -max_total_time=600 tests/fuzz/corpus`` runs it where atheris
is installed; ``tests/fuzz/test_container_corpus.py`` replays the corpus without it.

Checksums are made right before the file is read. A fuzzer cannot guess them, and an attacker need
not: they are no defense.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import zlib
from dataclasses import replace

import flyweight
from flyweight.artifact import unpack
from flyweight.errors import CorruptStreamError, FlyweightError, UnsupportedError
from flyweight.format.container import HEADER, MAGIC, VERSION, FlyFile
from flyweight.format.header import read_directory, write_directory
from flyweight.submission.decoder import decode_fly

__all__ = ["check", "sealed"]

MAX_OUTPUT = 1 << 24
"""Bytes of all tensors; a file that says more is opened but not decoded."""
MAX_SHIPPED = 1 << 14
"""The same for the shipped decoder, which is slow where streams have few ways."""


def sealed(data: bytes) -> bytes:
    """The file with every checksum right that can be found: directory, sections, whole file."""
    if len(data) < HEADER.size + 4:
        return data
    length = min(int.from_bytes(data[6:10], "little"), len(data) - HEADER.size - 4)
    start = HEADER.size + length
    directory, body = data[HEADER.size : start], data[start:-4]
    with contextlib.suppress(FlyweightError):  # it breaks a rule: the reader is to say so
        directory = _with_checksums(directory, body)
    head = HEADER.pack(MAGIC, VERSION, data[5], len(directory), zlib.crc32(directory))
    whole = head + directory + body
    return whole + struct.pack("<I", zlib.crc32(whole))


def _with_checksums(raw: bytes, body: bytes) -> bytes:
    directory = read_directory(raw)
    at = 0

    def checksum(length: int) -> int:
        nonlocal at
        at += length
        return zlib.crc32(body[at - length : at])

    extras = [
        (entry[0], checksum(entry[0])) if entry else None
        for entry in (directory.config, directory.metadata)
    ]
    sections = tuple(
        replace(section, checksum=checksum(section.length)) for section in directory.sections
    )
    return write_directory(
        replace(directory, config=extras[0], metadata=extras[1], sections=sections)
    )


def declared_bytes(file: FlyFile) -> int:
    """Bytes of all tensors as the directory says."""
    total = 0
    for section in file.sections.values():
        elements = 1
        for size in section.shape:
            elements *= size
        total += elements * section.dtype.itemsize
    return total


def check(data: bytes) -> str:
    """Read a file with both readers; returns how that ended, raises what must not escape.

    Returns
    -------
    ``refused``, ``large`` (not decoded here) or ``read``
    """
    data = sealed(data)
    try:
        file = flyweight.open(data)
        if declared_bytes(file) > MAX_OUTPUT:
            return "large"
        file.verify()
        tensors = unpack(data)
    except (CorruptStreamError, UnsupportedError):
        return "refused"
    assert sorted(tensors) == sorted(file)
    if declared_bytes(file) <= MAX_SHIPPED:
        shipped, _ = decode_fly(data)
        for name, array in tensors.items():
            assert shipped[name].dtype == array.dtype or array.dtype.name == "bfloat16"
            same = array.astype(shipped[name].dtype).tobytes()
            assert shipped[name].tobytes() == same, f"the readers differ in {name!r}"
    return "read"


def main() -> None:
    """Fuzz; arguments are libFuzzer's."""
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
