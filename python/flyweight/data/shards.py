"""The challenge's token shards: 256 little-endian int32 of header, then uint16 token ids."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import DataError, InvalidArgumentError
from flyweight.interop import atomic_path

__all__ = [
    "BOS_ID",
    "SHARD_MAGIC",
    "SHARD_TOKENS",
    "ShardWriter",
    "Split",
    "Tokens",
    "iter_chunks",
    "iter_token_documents",
    "list_shards",
    "list_sidecars",
    "read_shard",
    "read_validation",
    "shard_name",
    "write_shard",
]

Split: TypeAlias = Literal["train", "val"]
Tokens: TypeAlias = NDArray[np.uint16]
"""Token ids of a stream of documents, each opened by ``BOS_ID``, ``(tokens,)``."""

BOS_ID = 1
"""Opens every document; there is no token at the end of one."""
SHARD_MAGIC = 20240520
SHARD_TOKENS = 100_000_000
"""Most tokens the published exports put into one shard; a document may run across two."""

_VERSION = 1
_HEADER_BYTES = 1024
_CHUNK_TOKENS = 1 << 22


def write_shard(path: str | os.PathLike[str], tokens: Tokens) -> None:
    """Token ids to one shard file, by way of a temporary file.

    Parameters
    ----------
    path : the file to write or replace
    tokens : (tokens,) uint16, at least one and fewer than ``2**31``

    Raises
    ------
    TypeError
        The ids are not a one-dimensional uint16 array.
    InvalidArgumentError
        There are no tokens, or more than the header can count.
    """
    _check_tokens(tokens)
    header = _header(tokens.size)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        file.write(tokens.astype("<u2", copy=False).tobytes())


def read_shard(path: str | os.PathLike[str]) -> Tokens:
    """Token ids of one shard file, mapped into memory and read-only.

    Returns
    -------
    (tokens,) uint16

    Raises
    ------
    DataError
        The file is missing or empty, has another magic or version, or its length is not what its
        header says; the message has both byte counts.

    Notes
    -----
    The challenge's own loader asks for the same: exactly ``1024 + 2 * tokens`` bytes.
    """
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            header = np.frombuffer(file.read(_HEADER_BYTES), dtype="<i4")
    except OSError as error:
        raise DataError(f"{path}: cannot read the shard: {error.strerror}") from error
    except ValueError:
        header = np.empty(0, dtype="<i4")
    _check_header(path, header, size)
    return np.memmap(path, dtype="<u2", mode="r", offset=_HEADER_BYTES, shape=(int(header[2]),))


def shard_name(split: Split, index: int) -> str:
    """File name of the ``index``-th shard of a split, as the challenge's loader expects it."""
    return f"fineweb_{split}_{index:06d}.bin"


def list_shards(folder: str | os.PathLike[str], split: Split) -> list[Path]:
    """Shard files of a split in reading order.

    Side files that share the prefix (``fineweb_val_bytes_000000.bin``) are not shards.

    Raises
    ------
    DataError
        The folder is missing or has no shard of that split.
    """
    paths = _list_matching(folder, rf"fineweb_{split}_[0-9]{{6}}\.bin")
    if not paths:
        raise DataError(
            f"{folder}: no {shard_name(split, 0)} or further {split} shards here; make them with "
            "`flyweight data build` or get them with `flyweight data fetch`"
        )
    return paths


def read_validation(folder: str | os.PathLike[str]) -> Tokens:
    """All validation tokens of a data folder, shards joined in order, ``(tokens,)`` uint16.

    Raises
    ------
    DataError
        There is no validation shard, or one is malformed.
    """
    return np.concatenate([read_shard(path) for path in list_shards(folder, "val")])


def list_sidecars(folder: str | os.PathLike[str]) -> list[Path]:
    """Byte counts of validation shards in the order of these; see `flyweight.data.sidecar`.

    Raises
    ------
    DataError
        The folder is missing.
    """
    return _list_matching(folder, r"fineweb_val_bytes_[0-9]{6}\.bin")


def _list_matching(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    try:
        return sorted(p for p in Path(folder).iterdir() if re.fullmatch(pattern, p.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot list the data folder: {error.strerror}") from error


def iter_chunks(paths: Iterable[Path]) -> Iterator[Tokens]:
    """The stream of several shards in pieces that fit into memory, each a copy."""
    for path in paths:
        tokens = read_shard(path)
        for start in range(0, tokens.size, _CHUNK_TOKENS):
            yield np.array(tokens[start : start + _CHUNK_TOKENS], dtype=np.uint16)


def iter_token_documents(chunks: Iterable[Tokens]) -> Iterator[Tokens]:
    """Documents of a stream, each from its ``BOS_ID`` to before the next one.

    Tokens before the first ``BOS_ID`` come as a document of their own.
    """
    pending: list[Tokens] = []
    for chunk in chunks:
        head, *rest = np.split(chunk, np.flatnonzero(chunk == BOS_ID))
        pending.append(head)
        for piece in rest:
            if any(part.size for part in pending):
                yield np.concatenate(pending)
            pending = [piece]
    if any(part.size for part in pending):
        yield np.concatenate(pending)


class ShardWriter:
    """Writes a stream of any length as numbered shards, holding no more than what it is given.

    Use it as a context manager: a shard gets its name when it is complete, and the last one is
    dropped when the block ends with an error.

    Parameters
    ----------
    folder : where the shards go
    split : ``train`` or ``val``
    shard_tokens : most tokens in one file
    """

    def __init__(
        self, folder: str | os.PathLike[str], split: Split, *, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        if not 1 <= shard_tokens < 2**31:
            raise InvalidArgumentError(f"shard_tokens must be 1 to 2**31 - 1, got {shard_tokens}")
        self._folder = Path(folder)
        self._split: Split = split
        self._shard_tokens = shard_tokens
        self._open = ExitStack()
        self._file: BinaryIO | None = None
        self._room = 0
        self.paths: list[Path] = []

    def append(self, tokens: Tokens) -> None:
        """Add tokens to the stream; they may fill several shards."""
        if tokens.size:
            _check_tokens(tokens)
        while tokens.size:
            file = self._file or self._start_shard()
            part, tokens = tokens[: self._room], tokens[self._room :]
            file.write(part.astype("<u2", copy=False).tobytes())
            self._room -= part.size
            if not self._room:
                self._finish_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._file is not None:
            self._finish_shard()
        self._open.__exit__(kind, error, trace)

    def _start_shard(self) -> BinaryIO:
        self.paths.append(self._folder / shard_name(self._split, len(self.paths)))
        temporary = self._open.enter_context(atomic_path(self.paths[-1]))
        self._file = self._open.enter_context(temporary.open("wb"))
        self._file.write(bytes(_HEADER_BYTES))
        self._room = self._shard_tokens
        return self._file

    def _finish_shard(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.write(_header(self._shard_tokens - self._room))
        self._file = None
        self._open.close()


def _header(tokens: int) -> bytes:
    header = np.zeros(_HEADER_BYTES // 4, dtype="<i4")
    header[:3] = SHARD_MAGIC, _VERSION, tokens
    return header.tobytes()


def _check_tokens(tokens: Tokens) -> None:
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise TypeError(
            f"tokens must be one-dimensional uint16, got {tokens.ndim}-dimensional {tokens.dtype}; "
            "convert with np.asarray(ids, dtype=np.uint16)"
        )
    if not 1 <= tokens.size < 2**31:
        raise InvalidArgumentError(f"a shard holds 1 to 2**31 - 1 tokens, got {tokens.size}")


def _check_header(path: str | os.PathLike[str], header: NDArray[np.int32], size: int) -> None:
    remedy = "build or fetch it again"
    if size < _HEADER_BYTES or header.size != _HEADER_BYTES // 4:
        raise DataError(
            f"{path}: {size} bytes are too few for a shard header of {_HEADER_BYTES}; {remedy}"
        )
    if header[0] != SHARD_MAGIC:
        raise DataError(
            f"{path}: not a token shard: it starts with {header[0]}, expected {SHARD_MAGIC}"
        )
    if header[1] != _VERSION:
        raise DataError(f"{path}: shard version {header[1]} at byte 4, only {_VERSION} is known")
    if header[2] < 1:
        raise DataError(f"{path}: the header at byte 8 counts {header[2]} tokens; {remedy}")
    expected = _HEADER_BYTES + 2 * int(header[2])
    if size != expected:
        raise DataError(
            f"{path}: expected {expected} bytes for {header[2]} tokens, found {size}; {remedy}"
        )
