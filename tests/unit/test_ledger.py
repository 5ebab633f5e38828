"""The ledger: resume after a kill at any byte, and no change goes unseen."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from flyweight.errors import DataError, InvalidArgumentError
from flyweight.evaluate.ledger import Ledger, ledger_binding, read_ledger

BINDING = bytes(range(32))
NATS = np.array([0.5, 0.0, 2.25, 1e-30, 7.0, 3.5, 0.125])
CHUNKS = [(0, 3), (3, 4), (4, 7)]
SIZES = [64, 64 + 56 + 24, 64 + 56 + 24 + 56 + 8, 64 + 56 + 24 + 56 + 8 + 56 + 24]


def open_ledger(path: Path) -> Ledger:
    return Ledger(path, targets=7, binding=BINDING)


def write_all(path: Path) -> bytes:
    with open_ledger(path) as ledger:
        for first, stop in CHUNKS:
            ledger.append(first, NATS[first:stop])
    return path.read_bytes()


def test_scores_come_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.ledger"
    data = write_all(path)
    assert len(data) == SIZES[-1]
    with open_ledger(path) as ledger:
        np.testing.assert_array_equal(ledger.complete(), NATS)
        assert (ledger.scored, ledger.targets) == (7, 7)
        assert read_ledger(path).chain.hex() == ledger.chain
    known = read_ledger(path)
    assert known.binding == BINDING
    assert known.records == ((0, 3), (3, 1), (4, 3))
    assert known.whole_bytes == len(data)


def test_the_bytes_follow_the_documented_layout(tmp_path: Path) -> None:
    fields = b"FLYLEDGR" + struct.pack("<IIQ", 1, 0, 7) + BINDING
    expected = fields + hashlib.sha256(fields).digest()[:8]
    chain = hashlib.sha256(expected).digest()
    for first, stop in CHUNKS:
        sizes = struct.pack("<QQ", first, stop - first)
        nats = struct.pack(f"<{stop - first}d", *NATS[first:stop])
        check = hashlib.sha256(chain + sizes).digest()[:8]
        chain = hashlib.sha256(chain + sizes + nats).digest()
        expected += sizes + check + nats + chain
    assert write_all(tmp_path / "x.ledger") == expected


def test_resume_after_a_kill_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    data = write_all(path)
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        whole = max([0, *(k for k, size in enumerate(SIZES) if size <= length)])
        with open_ledger(path) as ledger:
            assert path.stat().st_size == SIZES[whole]  # the torn end is cut off
            for k, (first, stop) in enumerate(CHUNKS):
                recorded = ledger.recorded(first, stop)
                assert (recorded is not None) == (k < whole)
                if recorded is None:
                    ledger.append(first, NATS[first:stop])
                else:
                    np.testing.assert_array_equal(recorded, NATS[first:stop])
        assert path.read_bytes() == data


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    data = write_all(path)
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        chunk = sum(position >= size for size in SIZES) - 1
        name = "ledger" if chunk < 0 else f"ledger chunk {chunk} "
        with pytest.raises(DataError, match=name):
            read_ledger(path)
        with pytest.raises(DataError, match=name):
            open_ledger(path)
        assert len(path.read_bytes()) == len(data)  # the evidence stays


def test_a_record_left_out_swapped_or_repeated_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    data = write_all(path)
    header, a, b, c = (data[i:j] for i, j in zip([0, *SIZES], SIZES, strict=False))
    for parts, chunk in [((b, c), 0), ((a, c), 1), ((b, a, c), 0), ((a, a, b, c), 1)]:
        path.write_bytes(header + b"".join(parts))
        with pytest.raises(DataError, match=f"chunk {chunk}"):
            read_ledger(path)


def test_a_score_is_final(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    with open_ledger(path) as ledger:
        ledger.append(2, NATS[2:5])
        before = path.read_bytes()
        with pytest.raises(InvalidArgumentError, match="target 2 is already scored"):
            ledger.append(0, NATS[0:3])
        assert path.read_bytes() == before
        ledger.append(0, NATS[0:2])  # nothing of the refused chunk was entered
        with pytest.raises(DataError, match="only 3 are scored"):
            ledger.recorded(2, 7)
        with pytest.raises(DataError, match="2 of 7 targets have no score, the first is 5"):
            ledger.complete()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-9])
def test_scores_that_cannot_be(tmp_path: Path, value: float) -> None:
    with (
        open_ledger(tmp_path / "x.ledger") as ledger,
        pytest.raises(InvalidArgumentError, match="target 4 has score"),
    ):
        ledger.append(3, np.array([1.0, value]))


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (6, 2), (7, 1), (0, 0)])
def test_targets_that_the_stream_does_not_have(tmp_path: Path, first: int, count: int) -> None:
    with (
        open_ledger(tmp_path / "x.ledger") as ledger,
        pytest.raises(InvalidArgumentError, match="7 targets"),
    ):
        ledger.append(first, np.zeros(count))


@pytest.mark.parametrize(("targets", "binding"), [(8, BINDING), (7, bytes(32))])
def test_a_ledger_of_something_else_is_refused(
    tmp_path: Path, targets: int, binding: bytes
) -> None:
    path = tmp_path / "x.ledger"
    data = write_all(path)
    with pytest.raises(DataError, match="other tokens, another model or another config"):
        Ledger(path, targets=targets, binding=binding)
    assert path.read_bytes() == data


def test_files_that_are_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    with pytest.raises(DataError, match="no readable ledger"):
        read_ledger(path)
    path.write_bytes(b"something else, and long enough to be taken for a header of 64 bytes")
    with pytest.raises(DataError, match="no ledger"):
        open_ledger(path)
    with pytest.raises(InvalidArgumentError, match="binding of 3 bytes"):
        Ledger(path, targets=7, binding=b"abc")


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    data = bytearray(write_all(path))
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(DataError, match="ledger version 2, expected 1"):
        open_ledger(path)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    with open_ledger(path), pytest.raises(DataError, match="another process is writing"):
        open_ledger(path)
    open_ledger(path).close()


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.ledger"
    write = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if offset > SIZES[1]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:10], offset)

    with open_ledger(path) as ledger:
        ledger.append(0, NATS[0:3])
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            ledger.append(3, NATS[3:4])
        assert path.stat().st_size == SIZES[1] + 10
        assert ledger.recorded(3, 4) is None
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:10], at))
        ledger.append(3, NATS[3:4])
        ledger.append(4, NATS[4:7])
    np.testing.assert_array_equal(read_ledger(path).nats, NATS)


def test_the_binding_is_read_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    data = write_all(path)
    assert ledger_binding(path) == BINDING
    path.write_bytes(data[:63])
    assert ledger_binding(path) is None
    path.write_bytes(data[:8] + b"\x02" + data[9:])
    with pytest.raises(DataError, match="version"):
        ledger_binding(path)


def test_a_header_of_too_many_targets_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    fields = b"FLYLEDGR" + struct.pack("<IIQ", 1, 0, 1 << 62) + BINDING
    path.write_bytes(fields + hashlib.sha256(fields).digest()[:8])
    with pytest.raises(DataError, match="more than memory holds"):
        read_ledger(path)
    with pytest.raises(DataError, match="expected 7"):
        read_ledger(path, targets=7)
    with pytest.raises(DataError, match="remove the file to score anew"):
        open_ledger(path)
