"""The ledger: one final score per target, append-only on disk, chained by hash.

A run that was killed goes on from the last whole record, and an auditor can check that nothing was
scored twice, left out or changed afterwards. All integers are little-endian.

==============  =====================================================================
header          64 bytes
==============  =====================================================================
8 bytes         magic ``FLYLEDGR``
u32, u32        version 1, zero
u64             targets of the stream
32 bytes        binding: SHA-256 of whatever fixes the scores (tokens, model, config)
8 bytes         begin of SHA-256(the 56 bytes above)
==============  =====================================================================

==============  =====================================================================
record          one per chunk, 56 + 8 n bytes
==============  =====================================================================
u64, u64        first target, number of targets n
8 bytes         begin of SHA-256(chain before, the two numbers)
n x f64         nats, ``-ln p``, of each target
32 bytes        chain: SHA-256(chain before, the two numbers, the nats)
==============  =====================================================================

The chain before the first record is the SHA-256 of the header. A file that ends inside a record was
torn by a kill: the reader ignores that record, the next writer cuts it off. A record's sizes have a
check of their own, so that a changed size is not mistaken for a torn end. Anything else that does
not fit is an error.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import DataError, InvalidArgumentError

__all__ = ["Entries", "Ledger", "LedgerFile", "ledger_binding", "read_ledger"]

_LEDGER_MAGIC = b"FLYLEDGR"
_LEDGER_VERSION = 1
_LEDGER_FIELDS = struct.Struct("<8sIIQ32s")
_LEDGER_SIZES = struct.Struct("<QQ")
_LEDGER_CHECK = 8
_LEDGER_HEADER = _LEDGER_FIELDS.size + _LEDGER_CHECK
_LEDGER_HEAD = _LEDGER_SIZES.size + _LEDGER_CHECK


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LedgerFile:
    """What a ledger on disk says, checked."""

    binding: bytes
    """32 bytes, what was scored."""
    records: tuple[tuple[int, int], ...]
    """First target and number of targets of each whole record, in the order written."""
    nats: NDArray[np.float64]
    """``(targets,)``, NaN where there is no score yet."""
    chain: bytes
    """32 bytes, hash over everything up to the last whole record."""
    whole_bytes: int
    """Bytes up to the end of the last whole record."""


def read_ledger(path: str | os.PathLike[str], *, targets: int | None = None) -> LedgerFile:
    """A ledger, every hash checked; the file is not changed.

    Parameters
    ----------
    path : the file
    targets : how many the stream has, where that is known; a header that says otherwise is refused
        before memory is taken for its scores

    Raises
    ------
    DataError
        The file is missing or no ledger, is of another number of targets or of more than memory
        holds, or a record was changed; the message names the chunk.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: no readable ledger: {error}") from error
    found, _ = _parse_ledger_header(data, os.fspath(path))
    if targets is not None and found != targets:
        raise DataError(f"{path}: ledger of {found} targets, expected {targets}")
    return _parse_ledger(data, os.fspath(path))


def ledger_binding(path: str | os.PathLike[str]) -> bytes | None:
    """What a ledger on disk is of; None if it was torn in its header, so that it has no score.

    Raises
    ------
    DataError
        The file cannot be read, is no ledger, or its header was changed.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LEDGER_HEADER)
    except OSError as error:
        raise DataError(f"{path}: no readable ledger: {error}") from error
    if len(data) < _LEDGER_HEADER:
        return None
    with _ledger_remedy():
        return _parse_ledger_header(data, os.fspath(path))[1]


@contextmanager
def _ledger_remedy() -> Iterator[None]:
    """Says what who scores can do about a ledger that is no good; who audits wants to keep it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}; remove the file to score anew") from error


def _parse_ledger(data: bytes, path: str) -> LedgerFile:
    targets, binding = _parse_ledger_header(data, path)
    chain, offset = hashlib.sha256(data[:_LEDGER_HEADER]).digest(), _LEDGER_HEADER
    try:
        nats = np.full(targets, np.nan)
    except (MemoryError, ValueError) as error:
        raise DataError(f"{path}: ledger of {targets} targets, more than memory holds") from error
    records: list[tuple[int, int]] = []
    while len(data) - offset >= _LEDGER_HEAD:
        where = f"{path}: ledger chunk {len(records)} (byte {offset})"
        sizes = data[offset : offset + _LEDGER_SIZES.size]
        check = data[offset + _LEDGER_SIZES.size : offset + _LEDGER_HEAD]
        if check != _ledger_check(chain + sizes):
            raise DataError(f"{where}: its sizes were changed after they were written")
        first, count = _LEDGER_SIZES.unpack(sizes)
        end = offset + _LEDGER_HEAD + 8 * count
        if len(data) - end < len(chain):
            break
        body = data[offset + _LEDGER_HEAD : end]
        chain = hashlib.sha256(chain + sizes + body).digest()
        if data[end : end + len(chain)] != chain:
            raise DataError(f"{where}: its scores do not match its hash: they were changed")
        try:
            _enter_scores(nats, first, np.frombuffer(body, "<f8"))
        except InvalidArgumentError as error:
            raise DataError(f"{where}: {error}") from error
        records.append((first, count))
        offset = end + len(chain)
    return LedgerFile(
        binding=binding, records=tuple(records), nats=nats, chain=chain, whole_bytes=offset
    )


def _make_ledger_header(targets: int, binding: bytes) -> bytes:
    fields = _LEDGER_FIELDS.pack(_LEDGER_MAGIC, _LEDGER_VERSION, 0, targets, binding)
    return fields + _ledger_check(fields)


def _parse_ledger_header(data: bytes, path: str) -> tuple[int, bytes]:
    if len(data) < _LEDGER_HEADER or not data.startswith(_LEDGER_MAGIC):
        raise DataError(f"{path}: no ledger: it does not begin with a header {_LEDGER_MAGIC!r}")
    _, version, _, targets, binding = _LEDGER_FIELDS.unpack_from(data)
    if version != _LEDGER_VERSION:
        raise DataError(f"{path}: ledger version {version}, expected {_LEDGER_VERSION}")
    if data[_LEDGER_FIELDS.size : _LEDGER_HEADER] != _ledger_check(data[: _LEDGER_FIELDS.size]):
        raise DataError(f"{path}: the header of the ledger was changed after it was written")
    return targets, binding


def _ledger_check(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_LEDGER_CHECK]


def _enter_scores(nats: NDArray[np.float64], first: int, scores: NDArray[np.float64]) -> None:
    """Enter final scores, or raise and leave all as it was."""
    if scores.size == 0 or not 0 <= first <= nats.size - scores.size:
        raise InvalidArgumentError(
            f"{scores.size} scores from target {first} on, the stream has {nats.size} targets"
        )
    bad = ~(np.isfinite(scores) & (scores >= 0))
    if bad.any():
        where = int(np.argmax(bad))
        raise InvalidArgumentError(
            f"target {first + where} has score {scores[where]}, expected nats of 0 or more"
        )
    taken = ~np.isnan(nats[first : first + scores.size])
    if taken.any():
        raise InvalidArgumentError(
            f"target {first + int(np.argmax(taken))} is already scored, and a score is final"
        )
    nats[first : first + scores.size] = scores


class Entries:
    """The scores of one stream and the chain over them, as any process has them in memory.

    Parameters
    ----------
    path : of the ledger that they are in
    nats : (targets,) float64, NaN where there is no score yet; taken over
    chain : 32 bytes, hash over everything up to here
    """

    def __init__(self, path: Path, nats: NDArray[np.float64], chain: bytes) -> None:
        self.path, self._nats, self._chain = path, nats, chain

    def _keep(self, record: bytes) -> None:
        """Nothing: whoever has the file writes."""

    def append(self, first: int, nats: NDArray[np.float64]) -> None:
        """Enter the final scores of a chunk; they are kept when this returns.

        Parameters
        ----------
        first : its first target
        nats : (n,) float64, ``-ln p`` of its targets

        Raises
        ------
        InvalidArgumentError
            A target outside of the stream or already scored, or a score that is negative or not
            finite.
        OSError
            The disk is full; the ledger is as it was.
        """
        scores = np.ascontiguousarray(nats, dtype="<f8")
        _enter_scores(self._nats, first, scores)
        sizes, body = _LEDGER_SIZES.pack(first, scores.size), scores.tobytes()
        chain = hashlib.sha256(self._chain + sizes + body).digest()
        record = sizes + _ledger_check(self._chain + sizes) + body + chain
        try:
            self._keep(record)
        except BaseException:
            self._nats[first : first + scores.size] = math.nan
            raise
        self._chain = chain

    def recorded(self, first: int, stop: int) -> NDArray[np.float64] | None:
        """Scores of the targets ``first .. stop - 1``, or None when none of them is scored yet.

        Raises
        ------
        DataError
            Some are scored and some are not.
        """
        nats = self._nats[first:stop].copy()
        missing = np.isnan(nats)
        if missing.all():
            return None
        if missing.any():
            raise DataError(
                f"{self.path}: of targets {first} to {stop - 1} only {int((~missing).sum())} are "
                "scored: the ledger was written with other chunks"
            )
        return nats

    def entries(self) -> NDArray[np.float64]:
        """A copy of what is entered, ``(targets,)`` float64, NaN where there is no score yet."""
        return self._nats.copy()

    @property
    def scored(self) -> int:
        """Targets that have their final score."""
        return int(np.count_nonzero(~np.isnan(self._nats)))

    @property
    def targets(self) -> int:
        """Targets of the stream."""
        return self._nats.size

    @property
    def chain(self) -> str:
        """Hash over everything written so far, hexadecimal."""
        return self._chain.hex()

    def complete(self) -> NDArray[np.float64]:
        """All scores, ``(targets,)`` float64.

        Raises
        ------
        DataError
            A target has no score.
        """
        missing = np.isnan(self._nats)
        if missing.any():
            raise DataError(
                f"{self.path}: {int(missing.sum())} of {self.targets} targets have no score, the "
                f"first is {int(np.argmax(missing))}"
            )
        return self._nats.copy()


class Ledger(Entries):
    """Scores whose file is in this process's hands; a context manager.

    Parameters
    ----------
    path : the file; a new one is made, an unfinished one is continued
    targets : targets of the stream
    binding : 32 bytes, SHA-256 of what fixes the scores

    Raises
    ------
    DataError
        The file is no ledger, was changed, belongs to other targets or another binding, or is being
        written by another process.
    """

    def __init__(self, path: str | os.PathLike[str], *, targets: int, binding: bytes) -> None:
        self.path = Path(path)
        if len(binding) != 32:
            raise InvalidArgumentError(f"ledger: binding of {len(binding)} bytes, expected 32")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            with _ledger_remedy():
                known = self._open(_make_ledger_header(targets, binding))
        except BaseException:
            self.close()
            raise
        super().__init__(self.path, known.nats, known.chain)
        self._size = known.whole_bytes

    def _open(self, header: bytes) -> LedgerFile:
        data = self.path.read_bytes()
        if header.startswith(data):  # new, or killed while the header was written
            data = header
            self._write(0, header)
        _parse_ledger_header(data, os.fspath(self.path))
        if data[: len(header)] != header:  # before memory is taken for a foreign header's targets
            raise DataError(
                f"{self.path}: this ledger is of other tokens, another model or another config"
            )
        known = _parse_ledger(data, os.fspath(self.path))
        os.ftruncate(self._descriptor, known.whole_bytes)
        return known

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{self.path}: another process is writing this ledger") from error

    def _write(self, offset: int, data: bytes) -> None:
        os.ftruncate(self._descriptor, offset)
        rest = memoryview(data)
        while rest:
            done = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[done:], offset + done
        os.fsync(self._descriptor)

    def _keep(self, record: bytes) -> None:
        self._write(self._size, record)
        self._size += len(record)

    def close(self) -> None:
        """Release the file; what was appended stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
