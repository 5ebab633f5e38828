"""Bit-packing beside memcpy, memset and NumPy: pack, unpack, and unpack with dequantization.

    python benchmarks/bench_bitpack.py --rounds 15 --bits 4 5 6

One thread, all contenders in turn within a round, outputs allocated and touched beforehand. Codes
are those of a Gaussian, in rows of 768. memcpy moves as many bytes as there are codes; memset
writes as many as the float32 values take.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.kernels import (
    backend,
    cpu_tiers,
    pack_bits,
    unpack_bits,
    unpack_dequantize,
)
from harness import (
    RESULTS,
    cpus,
    fingerprint,
    hash_of,
    interleave,
    ratio,
    summary,
    using_cpus,
    write,
)

COLS = 768
ROWS = {"24 Ki": 32, "576 Ki": 768, "22.7 M": 29_560}
CODES_PER_SAMPLE = 4_000_000
"""Small arrays are coded often enough within a sample for the clock not to matter."""
BITWISE_LIMIT = 1_000_000
"""NumPy takes a byte per bit there; larger arrays would only take long."""
LIMITS = {
    "pack": ["memcpy"],
    "unpack": ["memcpy"],
    "dequantize": ["memset", "fill"],
    "dequantize-bfloat16": ["half-memset"],
}

Task = Callable[[], object]
Bytes = NDArray[np.uint8]


def main() -> None:
    options = _parse()
    with using_cpus(cpus(1)):
        sizes = [_measure(name, rows, options) for name, rows in ROWS.items()]
    settings = {
        "cols": COLS,
        "rounds": options.rounds,
        "threads": 1,
        "buffers": "outputs are passed in, so no fresh memory is faulted in",
        "clock": "processor time of the process; ratios within a round",
        "memcpy": "np.copyto of as many bytes as there are codes",
        "memset": "ctypes.memset of as many bytes as the float32 values; half-memset: as bfloat16",
        "fill": "ndarray.fill of the float32 values",
    }
    record = {"fingerprint": fingerprint(options.commit), "settings": settings, "sizes": sizes}
    print(write("bitpack", record, options.out))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 5, 6], choices=range(1, 9))
    parser.add_argument("--tiers", nargs="+", default=cpu_tiers(), choices=cpu_tiers())
    parser.add_argument("--commit", help="for a copy without a repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def _measure(name: str, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    count = rows * COLS
    repeats = max(1, CODES_PER_SAMPLE // count)
    inputs = {bits: _gaussian_codes(rows, bits) for bits in options.bits}
    limits = _limits(count)
    tasks = {key: _repeated(task, repeats) for key, task in limits.items()}
    for bits, codes in inputs.items():
        ours = _flyweight_tasks(codes, bits, options.tiers)
        peers = _numpy_tasks(codes, bits)
        tasks |= {key: _repeated(task, repeats) for key, task in (ours | peers).items()}
    for task in tasks.values():
        task()
    samples = interleave(tasks, options.rounds)
    results = {key: summary(taken, count * repeats) for key, taken in samples.items()}
    ratios: dict[str, Any] = {}
    for key in results:
        verb, tier = key.partition("/")[0], key.rpartition("/")[2]
        if tier in options.tiers:
            for limit in LIMITS[verb]:
                ratios[f"{key} to {limit}"] = ratio(samples[key], samples[limit])
    _report(name, results, ratios)
    return {
        "name": name,
        "count": count,
        "calls_per_sample": repeats,
        "input_sha256": {bits: hash_of([codes]) for bits, codes in inputs.items()},
        "results": results,
        "ratios": ratios,
    }


def _gaussian_codes(rows: int, bits: int) -> NDArray[np.int8]:
    """Codes of the symmetric range of a width, three standard deviations within it."""
    hi = max(2 ** (bits - 1) - 1, 0)
    noise = np.random.default_rng(bits).standard_normal((rows, COLS), dtype=np.float32)
    return np.rint(noise * np.float32(hi / 3)).clip(-hi, hi).astype(np.int8)


def _limits(count: int) -> dict[str, Task]:
    """What memory itself allows."""
    source, target = np.zeros(count, np.int8), np.ones(count, np.int8)
    values = np.ones(count, np.float32)
    address = values.ctypes.data
    return {
        "memcpy": lambda: np.copyto(target, source),
        "memset": lambda: ctypes.memset(address, 1, values.nbytes),
        "half-memset": lambda: ctypes.memset(address, 1, values.nbytes // 2),
        "fill": lambda: values.fill(1.5),
    }


def _flyweight_tasks(codes: NDArray[np.int8], bits: int, tiers: list[Any]) -> dict[str, Task]:
    lo = -(2 ** (bits - 1))
    shape, flat = codes.shape, codes.ravel()
    scales = np.full((codes.shape[0], 1), 0.01, np.float32)
    packed = pack_bits(flat, bits=bits, lo=lo)
    packed_out, codes_out = np.ones_like(packed), np.ones_like(flat)
    values, halves = np.ones(shape, np.float32), np.ones(shape, np.uint16)
    calls: dict[str, Task] = {
        "pack": lambda: pack_bits(flat, bits=bits, lo=lo, out=packed_out),
        "unpack": lambda: unpack_bits(packed, bits=bits, count=flat.size, lo=lo, out=codes_out),
        "dequantize": lambda: unpack_dequantize(
            packed, scales, bits=bits, lo=lo, shape=shape, out=values
        ),
        "dequantize-bfloat16": lambda: unpack_dequantize(
            packed, scales, bits=bits, lo=lo, shape=shape, dtype="bfloat16", out=halves
        ),
    }
    tasks = {f"{verb}/{bits}/{tier}": _on(tier, c) for verb, c in calls.items() for tier in tiers}
    for task in tasks.values():
        task()
        np.testing.assert_array_equal(packed_out, packed)
    np.testing.assert_array_equal(codes_out, flat)
    np.testing.assert_array_equal(values, codes * scales)
    return tasks


def _numpy_tasks(codes: NDArray[np.int8], bits: int) -> dict[str, Task]:
    symbols = (codes.ravel() + np.int8(2 ** (bits - 1))).view(np.uint8)
    packed = pack_bits(symbols, bits=bits)
    packed_out, symbols_out = np.ones_like(packed), np.ones_like(symbols)
    scales, values = np.full((len(codes), 1), 0.01, np.float32), np.ones(codes.shape, np.float32)
    tasks: dict[str, Task] = {
        f"pack/{bits}/numpy-shift": lambda: _pack_by_shifts(symbols, bits, packed_out),
        f"unpack/{bits}/numpy-shift": lambda: _unpack_by_shifts(packed, bits, symbols_out),
        f"scale-only/{bits}/numpy": lambda: np.multiply(codes, scales, out=values),
    }
    if symbols.size <= BITWISE_LIMIT:
        tasks[f"pack/{bits}/numpy-packbits"] = lambda: _pack_by_bits(symbols, bits)
        tasks[f"unpack/{bits}/numpy-unpackbits"] = lambda: _unpack_by_bits(packed, bits)
        np.testing.assert_array_equal(_pack_by_bits(symbols, bits), packed)
        np.testing.assert_array_equal(_unpack_by_bits(packed, bits), symbols)
    for task in tasks.values():
        task()
    np.testing.assert_array_equal(packed_out, packed)
    np.testing.assert_array_equal(symbols_out, symbols)
    return tasks


def _pack_by_shifts(symbols: Bytes, bits: int, out: Bytes) -> None:
    """Symbol k of each eight into the one or two bytes that it lies in."""
    groups, packed = symbols.reshape(-1, 8), out.reshape(-1, bits)
    packed[:] = 0
    for k in range(8):
        byte, shift = divmod(k * bits, 8)
        packed[:, byte] |= groups[:, k] << np.uint8(shift)
        if shift + bits > 8:
            packed[:, byte + 1] |= groups[:, k] >> np.uint8(8 - shift)


def _unpack_by_shifts(packed: Bytes, bits: int, out: Bytes) -> None:
    groups, symbols = packed.reshape(-1, bits), out.reshape(-1, 8)
    mask = np.uint8((1 << bits) - 1)
    for k in range(8):
        byte, shift = divmod(k * bits, 8)
        symbol = groups[:, byte] >> np.uint8(shift)
        if shift + bits > 8:
            symbol |= groups[:, byte + 1] << np.uint8(8 - shift)
        np.bitwise_and(symbol, mask, out=symbols[:, k])


def _pack_by_bits(symbols: Bytes, bits: int) -> Bytes:
    matrix = np.unpackbits(symbols[:, None], axis=1, bitorder="little", count=bits)
    return np.packbits(matrix, bitorder="little")


def _unpack_by_bits(packed: Bytes, bits: int) -> Bytes:
    matrix = np.unpackbits(packed, bitorder="little").reshape(-1, bits)
    return np.packbits(matrix, axis=1, bitorder="little").ravel()


def _on(tier: Any, call: Task) -> Task:
    """The call on a tier; the best one needs no forcing, which small arrays would notice."""
    if tier == cpu_tiers()[-1]:
        return call

    def forced() -> None:
        with backend(tier):
            call()

    return forced


def _repeated(task: Task, repeats: int) -> Task:
    def many() -> None:
        for _ in range(repeats):
            task()

    return many


def _report(name: str, results: dict[str, Any], ratios: dict[str, Any]) -> None:
    print(f"{name} codes, millions a second (median; share of the limit)")
    for key, result in sorted(results.items()):
        shares = [
            f"{ratios[to]['median']:.2f} of {to.rpartition(' ')[2]}"
            for to in ratios
            if to.startswith(f"{key} to ")
        ]
        rate = result["cpu_msymbols_per_second"]
        print(f"  {key:32} {rate:10,.0f}  {', '.join(shares)}", flush=True)


if __name__ == "__main__":
    main()
