"""GPTQ beside the classic torch loop and the time that its arithmetic alone takes.

    OMP_NUM_THREADS=1 GOMP_SPINCOUNT=1000 python benchmarks/bench_gptq.py --rounds 7

The second variable is what the command line of flyweight sets: threads of torch that wait for each
other would else hold the processor that the next contender wants.

The floor of a matrix is a float32 torch.mm of rows * cols^2 operations, as many as the column
updates take, timed within the same rounds. 4-bit symmetric codes with a scale per row, columns in
their order, Hessians of correlated inputs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flyweight.kernels import backend, cpu_tiers, gptq_quantize
from flyweight.quant.gptq import hessian_error, inverse_factor
from flyweight.reference.gptq import quantize_columns
from gptq_peers import column_loop, gptqmodel_task, torch_factor
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

SHAPES = ((512, 512), (2048, 512), (512, 2048))
LO, HI = -7, 7
DAMP_RATIO = 0.01
SLOW_ROUNDS = 2
"""Of contenders that take seconds."""

Task = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Everything that the column updates of one matrix start from."""

    weights: NDArray[np.float32]
    inputs: NDArray[np.float32]
    hessian: NDArray[np.float32]
    factor: NDArray[np.float32]
    scales: NDArray[np.float32]


def main() -> None:
    options = _parse()
    record = {
        "fingerprint": fingerprint(options.commit),
        "settings": {
            "rounds": options.rounds,
            "slow_rounds": SLOW_ROUNDS,
            "buffers": "outputs are made by the call",
            "clock": "processor time, one thread; wall time, two threads; ratios within a round",
            "floor": "torch.mm in float32 of rows * cols^2 operations",
        },
        "matrices": [_measure(rows, cols, options) for rows, cols in options.shapes],
    }
    record["fingerprint"]["packages"]["torch"] = torch.__version__
    print(write("gptq", record, options.out))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", nargs="+", type=_shape, default=SHAPES, metavar="ROWSxCOLS")
    parser.add_argument("--commit", help="for a copy without a repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    if os.environ.get("OMP_NUM_THREADS") != "1":  # NumPy's BLAS reads it when it is loaded
        parser.error("set OMP_NUM_THREADS=1 in the environment")
    return parser.parse_args()


def _shape(text: str) -> tuple[int, int]:
    rows, cols = text.split("x")
    return int(rows), int(cols)


def _measure(rows: int, cols: int, options: argparse.Namespace) -> dict[str, Any]:
    matrix = _matrix(rows, cols)
    symbols = rows * cols
    *slow_tiers, best = cpu_tiers()
    fast = {f"flyweight {tier}": _ours(matrix, tier) for tier in (*slow_tiers, best)}
    slow = {"flyweight scalar": fast.pop("flyweight scalar")} if slow_tiers else {}
    peer, why = gptqmodel_task(matrix.weights, matrix.inputs, bits=4)
    if peer is not None:
        slow["GPTQModel, inputs and inverse included"] = peer
    tasks = fast | {
        "floor": _floor(matrix),
        "torch loop": _loop(matrix),
        "flyweight inverse": lambda: inverse_factor(matrix.hessian, damp_ratio=DAMP_RATIO),
        "torch inverse": _torch_inverse(matrix),
    }
    torch.set_num_threads(1)
    with using_cpus(cpus(1)):
        samples = _rounds(tasks, options.rounds) | _rounds(slow, SLOW_ROUNDS)
    with using_cpus(cpus(2)):
        samples |= _two_threads(matrix, best, options.rounds)
    torch.set_num_threads(1)
    ours, twice = samples[f"flyweight {best}"], samples["flyweight, 2 threads"]
    record = {
        "name": f"{rows}x{cols}",
        "input_sha256": hash_of([matrix.weights, matrix.factor, matrix.scales]),
        "results": {name: summary(taken, symbols) for name, taken in samples.items()},
        "times_the_floor": {
            name: ratio(samples["floor"], samples[name]) for name in (*fast, "torch loop")
        },
        "over_torch_loop": ratio(ours, samples["torch loop"]),
        "over_torch_loop_2_threads": ratio(twice, samples["torch loop, 2 threads"], "wall"),
        "over_one_thread": ratio(twice, samples["flyweight, 1 thread beside"], "wall"),
        "inverse_over_torch": ratio(samples["flyweight inverse"], samples["torch inverse"]),
        "loss_over_float64": _loss_over_float64(matrix),
        "absent": [{"name": "GPTQModel", "why": why}] if peer is None else [],
    }
    _report(record)
    return record


def _matrix(rows: int, cols: int) -> Matrix:
    rng = np.random.default_rng(rows + cols)
    mixing = rng.standard_normal((cols, cols), np.float32) / np.float32(cols**0.5)
    inputs = rng.standard_normal((2 * cols, cols), np.float32) @ (mixing + np.eye(cols, dtype="f"))
    hessian = inputs.T @ inputs / np.float32(len(inputs))
    weights = rng.standard_normal((rows, cols), np.float32)
    scales = np.abs(weights).max(axis=1, keepdims=True) / np.float32(HI)
    factor, _ = inverse_factor(hessian, damp_ratio=DAMP_RATIO)
    return Matrix(weights, inputs, hessian, factor, scales)


def _ours(matrix: Matrix, tier: Any, threads: int = 1) -> Task:
    def quantize() -> object:
        with backend(tier):
            return gptq_quantize(
                matrix.weights, matrix.factor, matrix.scales, lo=LO, hi=HI, threads=threads
            )

    return quantize


def _loop(matrix: Matrix) -> Task:
    weights, factor = torch.from_numpy(matrix.weights), torch.from_numpy(matrix.factor)
    scales = torch.from_numpy(matrix.scales[:, 0])
    return lambda: column_loop(weights.clone(), factor, scales, lo=LO, hi=HI)


def _floor(matrix: Matrix) -> Task:
    weights, factor = torch.from_numpy(matrix.weights), torch.from_numpy(matrix.factor)
    half = weights[: len(weights) // 2]
    return lambda: torch.mm(half, factor)


def _torch_inverse(matrix: Matrix) -> Task:
    hessian = torch.from_numpy(matrix.hessian)
    damping = DAMP_RATIO * hessian.diagonal().mean()
    return lambda: torch_factor(hessian + damping * torch.eye(len(hessian)))


def _rounds(tasks: dict[str, Task], rounds: int) -> dict[str, Any]:
    """In turn, after a round that warms up and is left out."""
    if not tasks:
        return {}
    return {name: taken[1:] for name, taken in interleave(tasks, rounds + 1).items()}


def _two_threads(matrix: Matrix, best: str, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(2)
    tasks = {
        "flyweight, 1 thread beside": _ours(matrix, best),
        "flyweight, 2 threads": _ours(matrix, best, threads=2),
        "torch loop, 2 threads": _loop(matrix),
    }
    return _rounds(tasks, rounds)


def _loss_over_float64(matrix: Matrix) -> dict[str, float]:
    """Hessian-weighted error over that of the same loop in float64, and the share of codes that
    differ."""
    codes = gptq_quantize(matrix.weights, matrix.factor, matrix.scales, lo=LO, hi=HI)
    wide = np.broadcast_to(matrix.scales, codes.shape).astype(np.float64)
    exact = quantize_columns(
        matrix.weights.astype(np.float64),
        matrix.factor.astype(np.float64),
        wide,
        np.zeros_like(wide),
        LO,
        HI,
    )
    losses = [
        hessian_error(matrix.weights, found * matrix.scales, matrix.hessian)
        for found in (codes, exact)
    ]
    return {"ratio": losses[0] / losses[1], "codes_differ": float((codes != exact).mean())}


def _report(record: dict[str, Any]) -> None:
    print(f"{record['name']}: milliseconds of processor, of wall; times the floor")
    for name, result in record["results"].items():
        cpu, wall = (result[clock]["median"] * 1e3 for clock in ("cpu_seconds", "wall_seconds"))
        floor = record["times_the_floor"].get(name)
        print(f"  {name:32} {cpu:9.2f} {wall:9.2f}", f"{floor['median']:6.2f}x" if floor else "")
    print(f"  loss over float64: {record['loss_over_float64']['ratio']:.6f}", flush=True)


if __name__ == "__main__":
    main()
