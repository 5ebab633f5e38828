"""Safetensors in and out, and writes that leave the old file alone until they are whole."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flyweight.errors import DataError
from flyweight.interop import atomic_path, atomic_write, read_safetensors, write_safetensors


def test_round_trip_of_every_dtype(tmp_path) -> None:
    rng = np.random.default_rng(0)
    dtypes = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint16, np.bool_]
    tensors = {np.dtype(d).name: rng.integers(0, 2, size=(3, 4)).astype(d) for d in dtypes}
    tensors["scalar"] = np.array(3.5)
    tensors["empty"] = np.zeros((0, 2), dtype=np.float32)
    tensors["strided"] = np.arange(12.0).reshape(3, 4).T
    path = tmp_path / "t.safetensors"
    write_safetensors(path, tensors, {"key": "value"})
    back, metadata = read_safetensors(path)
    assert metadata == {"key": "value"}
    assert sorted(back) == sorted(tensors)
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == np.ascontiguousarray(array).tobytes()
    first = path.read_bytes()
    write_safetensors(path, dict(reversed(tensors.items())), {"key": "value"})
    assert path.read_bytes() == first


def test_dtypes_that_it_cannot_hold(tmp_path) -> None:
    with pytest.raises(DataError, match="tensor 'z': safetensors cannot hold dtype complex128"):
        write_safetensors(tmp_path / "t", {"z": np.zeros(2, dtype=complex)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 200])
def test_other_files_are_refused(tmp_path, content: bytes) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable safetensors file"):
        read_safetensors(path)
    with pytest.raises(DataError, match="no such file"):
        read_safetensors(tmp_path / "missing")


def test_a_failed_write_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_full_disk_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def write_to_full_disk() -> None:
        with atomic_path(path) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"new")

    with pytest.raises(DataError, match="file: not written, .* is intact: No space left"):
        write_to_full_disk()
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_a_file_is_named(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DataError, match=r"below: not written, .*: (Not a directory|File exists)"):
        atomic_write(tmp_path / "file" / "below", b"new")
