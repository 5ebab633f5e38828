"""Kernels release the GIL and do not share state: four threads, every result right."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from checks import gaussian_symbols, gptq_problem, table_of
from flyweight.kernels import (
    backend,
    current_backend,
    gptq_quantize,
    pack_bits,
    rans_decode,
    rans_encode,
    unpack_bits,
)

THREADS = 4


@pytest.fixture
def no_thread_switches() -> Iterator[None]:
    """The interpreter hands the GIL over only where code releases it, not every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(600.0)
    yield
    sys.setswitchinterval(before)


def test_results_are_right_from_four_threads() -> None:
    barrier = threading.Barrier(THREADS)

    def work(seed: int) -> bool:
        symbols = gaussian_symbols(50_000 + seed, seed=seed)
        freqs = table_of(symbols, 63, 12)
        weights, factor, scales, _ = gptq_problem(8, 64, seed=seed)
        with backend("reference"):
            expected = gptq_quantize(weights, factor, scales, lo=-7, hi=7)
        barrier.wait(timeout=60)
        for _ in range(5):
            stream = rans_encode(symbols, freqs, prob_bits=12, ways=8)
            decoded = rans_decode(stream, freqs, count=symbols.size, prob_bits=12, ways=8)
            packed = pack_bits(symbols, bits=6)
            unpacked = unpack_bits(packed, bits=6, count=symbols.size)
            codes = gptq_quantize(weights, factor, scales, lo=-7, hi=7)
            np.testing.assert_array_equal(decoded, symbols)
            np.testing.assert_array_equal(unpacked, symbols)
            np.testing.assert_array_equal(codes, expected)
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(THREADS)))


def test_the_gil_is_released(no_thread_switches: None) -> None:
    """This thread runs on while the other is inside a kernel of about a tenth of a second."""
    weights = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    factor, scales = np.eye(1024, dtype=np.float32), np.ones((1024, 1), np.float32)
    entered, done = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        gptq_quantize(weights, factor, scales, lo=-7, hi=7)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(timeout=60)
    was_inside = not done.is_set()
    thread.join()
    assert was_inside


def test_backends_are_per_thread() -> None:
    with backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_backend).result() == "cpu"
        assert current_backend() == "reference"
