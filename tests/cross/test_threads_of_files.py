"""Files are the same bytes, and come back the same, from any number of threads."""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import pytest

import flyweight
from flyweight.artifact import pack, unpack
from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.kernels import backend, current_backend
from flyweight.kernels.parallel import map_parallel, thread_count

THREADS = (1, 2, 4)


def model() -> dict[str, np.ndarray]:
    """A dozen tensors of many sizes."""
    rng = np.random.default_rng(0)
    shapes = [(300, 400), (64, 64), (5,), (0, 3), (), (1000, 70), (7, 9, 11), (128, 512)]
    tensors = {f"t{k}": rng.normal(size=shape).astype(np.float32) for k, shape in enumerate(shapes)}
    tensors["half"] = rng.normal(size=(90, 90)).astype(ml_dtypes.bfloat16)
    tensors["ids"] = np.arange(1000)
    return tensors


@pytest.mark.parametrize("is_lossless", [False, True])
def test_bytes_do_not_depend_on_the_number_of_threads(is_lossless: bool) -> None:
    files = {pack(model(), is_lossless=is_lossless, threads=threads) for threads in THREADS}
    files.add(pack(model(), is_lossless=is_lossless))
    assert len(files) == 1
    data = files.pop()
    expected = {name: array.tobytes() for name, array in unpack(data, threads=1).items()}
    for threads in THREADS[1:]:
        back = unpack(data, threads=threads)
        assert list(back) == list(expected)
        assert {name: array.tobytes() for name, array in back.items()} == expected


@pytest.mark.parametrize("threads", THREADS)
def test_the_first_damaged_tensor_is_named(threads: int) -> None:
    data = bytearray(pack(model(), is_lossless=True))
    file = flyweight.open(bytes(data))
    start = len(data) - 4 - sum(section.length for section in file.directory.sections)
    data[start] ^= 1  # half, the first by name
    data[-5] ^= 1
    for read in (lambda: unpack(bytes(data), threads=threads), flyweight.open(bytes(data)).verify):
        with pytest.raises(CorruptStreamError, match="'half'"):
            read()


def test_the_number_of_threads() -> None:
    assert thread_count(None) == len(os.sched_getaffinity(0))
    assert thread_count(3) == 3
    with pytest.raises(InvalidArgumentError, match="threads=0"):
        thread_count(0)
    with pytest.raises(InvalidArgumentError, match="threads=-1"):
        pack({"w": np.zeros(3)}, threads=-1)


def test_threads_work_on_the_callers_backend() -> None:
    with backend("reference"):
        found = map_parallel(lambda _: current_backend(), range(4), sizes=range(4), threads=2)
    assert found == ["reference"] * 4
