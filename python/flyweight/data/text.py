"""Documents from text files: ``.txt``, ``.jsonl`` and ``.jsonl.zst``, one at a time."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import file_digest
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import zstandard

from flyweight.data.shards import Split
from flyweight.errors import DataError

__all__ = ["HELD_OUT_BYTES", "Corpus", "Document", "FileCorpus", "expand_sources", "iter_documents"]

HELD_OUT_BYTES = 262_144
"""Validation text set aside when nobody names any."""

_SUFFIXES = (".txt", ".jsonl", ".jsonl.zst")
_READ_BYTES = 1 << 13  # zstd can make 128 kB of three bytes: this bounds one step to 350 MB
_MAX_LINE_BYTES = 1 << 28
_MAX_WINDOW_BYTES = 1 << 27


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it came from."""

    text: str
    place: str
    """File and, for line formats, line number: what an error message names."""


class Corpus(Protocol):
    """Two sets of documents that can be read again and again in the same order."""

    @property
    def drops_overlap(self) -> bool:
        """What to do with a training document that is in validation too: drop it, or refuse."""

    def documents(self, split: Split) -> Iterator[Document]:
        """Documents of one split, none of them empty."""

    def describe(self) -> dict[str, Any]:
        """What the documents come from, as JSON; equal descriptions mean equal documents."""


class FileCorpus:
    """Documents of files and folders.

    Parameters
    ----------
    train : files or folders of training text
    val : files or folders of validation text; without any, the last documents of ``train`` are
        held out, and repetitions of them are dropped from the others
    val_bytes : most UTF-8 bytes to hold out; always at least one document

    Raises
    ------
    DataError
        A source is missing or has another suffix than ``.txt``, ``.jsonl`` or ``.jsonl.zst``.
    """

    def __init__(
        self,
        train: Iterable[str | os.PathLike[str]],
        val: Iterable[str | os.PathLike[str]] = (),
        *,
        val_bytes: int = HELD_OUT_BYTES,
    ) -> None:
        self._train = expand_sources(train)
        self._val = expand_sources(val)
        self._val_bytes = val_bytes
        self._held_out: tuple[int, list[Document]] | None = None

    @property
    def drops_overlap(self) -> bool:
        """Whether validation was held out, so that nobody claimed it to be separate."""
        return not self._val

    def documents(self, split: Split) -> Iterator[Document]:
        """Documents of one split in the order of the sources; blank ones are left out.

        Raises
        ------
        DataError
            A source is malformed, or has one document alone, which cannot be in both splits.
        """
        if self._val:
            return iter_documents(self._val if split == "val" else self._train)
        if self._held_out is None:
            self._held_out = _last_documents(iter_documents(self._train), self._val_bytes)
        before, held_out = self._held_out
        if len(held_out) == 1 and not before:
            raise DataError(
                f"{self._train[0]}: its only document is held out for validation; name more text, "
                "or validation text of its own (a .txt file is one document)"
            )
        return iter(held_out) if split == "val" else islice(iter_documents(self._train), before)

    def describe(self) -> dict[str, Any]:
        """Name, size and hash of every file."""
        held_out = None if self._val else self._val_bytes
        return {
            "kind": "files",
            "train": [_describe_file(path) for path in self._train],
            "val": [_describe_file(path) for path in self._val],
            "held_out_bytes": held_out,
        }


def expand_sources(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Text files named or found below the folders named, those of a folder sorted.

    Raises
    ------
    DataError
        A source does not exist, is of an unknown kind, or is a folder without any text file.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(p for p in source.rglob("*") if p.name.endswith(_SUFFIXES))
            if not found:
                raise DataError(f"{source}: no {', '.join(_SUFFIXES)} file in this folder")
            paths += found
        elif not source.exists():
            raise DataError(f"{source}: no such file or folder")
        elif not source.name.endswith(_SUFFIXES):
            raise DataError(f"{source}: unknown kind of text, expected {', '.join(_SUFFIXES)}")
        else:
            paths.append(source)
    return paths


def iter_documents(paths: Iterable[Path]) -> Iterator[Document]:
    """Documents of text files in order, without those that are blank.

    A ``.txt`` file is one document; a line of the others is a JSON object with the field ``text``.

    Raises
    ------
    DataError
        A file cannot be read, is not UTF-8, is damaged, or a line is not such an object; the
        message names file and line.
    """
    for path in paths:
        try:
            documents = _read_txt(path) if path.suffix == ".txt" else _read_jsonl(path)
            yield from (document for document in documents if document.text.strip())
        except OSError as error:
            raise DataError(f"{path}: cannot read the text: {error.strerror}") from error


def _last_documents(documents: Iterable[Document], max_bytes: int) -> tuple[int, list[Document]]:
    """How many documents come before the last ones of together ``max_bytes``, and those."""
    kept: deque[tuple[Document, int]] = deque()
    before = total = 0
    for document in documents:
        size = len(document.text.encode())
        kept.append((document, size))
        total += size
        while total > max_bytes and len(kept) > 1:
            total -= kept.popleft()[1]
            before += 1
    return before, [document for document, _ in kept]


def _describe_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot read the text: {error.strerror}") from error
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _read_txt(path: Path) -> Iterator[Document]:
    yield Document(_decode(path.read_bytes(), str(path)), str(path))


def _read_jsonl(path: Path) -> Iterator[Document]:
    with path.open("rb") as file:
        chunks = iter(lambda: file.read(_READ_BYTES), b"")
        if path.suffix == ".zst":
            chunks = _decompress(chunks, path)
        for number, line in enumerate(_lines(chunks, path), 1):
            if line.strip():
                place = f"{path} line {number}"
                yield Document(_parse(line, place), place)


def _lines(chunks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    pending: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        pending.append(first)
        if rest:
            yield b"".join(pending)
            yield from rest[:-1]
            pending = rest[-1:]
        if sum(map(len, pending)) > _MAX_LINE_BYTES:
            raise DataError(f"{path}: a line has more than {_MAX_LINE_BYTES} bytes; split it")
    yield b"".join(pending)


def _decompress(chunks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """Plain bytes of one or several zstd frames; a cut file is an error, not a short text."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    is_open = True
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if not is_open:
                    frame = decompressor.decompressobj()
                yield frame.decompress(rest)
                is_open, rest = not frame.eof, frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: damaged zstd data: {error}; get the file again") from error
    if is_open:
        raise DataError(f"{path}: the zstd data ends too early; get the file again")


def _parse(line: bytes, place: str) -> str:
    source = _decode(line, place)
    try:
        record = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{place}: expected an object with a string in the field 'text'")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: half a surrogate pair at character {error.start}") from None
    return text


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 at byte {error.start}; convert the file") from None
