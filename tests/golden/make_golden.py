"""How the frozen files were made; they are never made again in place.

Run ``python tests/golden/make_golden.py NEW_FOLDER`` for the files of a new format version, and
keep the old ones: every later reader must still read them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from flyweight.codecs.codec import PlaneSpec, codec_by_name
from flyweight.codecs.layout import FLOAT_PLANES
from flyweight.format.container import PlainTensor, Stored, write_container
from flyweight.interop import write_safetensors
from flyweight.quant.grid import Grid, QuantizedTensor


def gaussian_codes(rows: int, cols: int, sigma: float, limit: int, seed: int) -> np.ndarray:
    """Rounded sums of uniform integers: Gaussian-shaped and the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(seed))
    total = rng.integers(0, 1 << 16, size=(12, rows, cols)).sum(axis=0) - 6 * 65535
    codes = (total * int(sigma * 65536) + (1 << 31)) >> 32
    return np.clip(codes, -limit, limit).astype(np.int8)


def class_symbols(rows: int, cols: int) -> np.ndarray:
    """Symbols of 63 whose deviations differ by row and column, and means by column; outliers."""
    rng = np.random.Generator(np.random.PCG64(11))
    total = rng.integers(0, 1 << 16, size=(12, rows, cols)).sum(axis=0) - 6 * 65535
    row = rng.integers(40, 160, size=(rows, 1))
    col = rng.integers(20, 200, size=cols)
    mean = rng.integers(-2, 3, size=cols) << 15
    codes = ((total + mean) * row * col + (1 << 27)) >> 28
    codes.reshape(-1)[::997] = 31
    return (np.clip(codes, -31, 31) + 31).astype(np.uint8)


def tensors() -> dict[str, Stored]:
    """One of each: grids, dtypes, layouts and shapes that the format has."""
    float32 = np.dtype(np.float32)
    scales = (np.arange(1, 41, dtype=np.float16) / 64).reshape(40, 1)
    int6 = gaussian_codes(40, 300, 2.41, 31, seed=1)
    int4 = gaussian_codes(6, 64, 1.5, 7, seed=2)
    repeated = np.tile(gaussian_codes(1, 100, 9.0, 63, seed=3), (40, 1))
    return {
        "blocks.0.attn.c_q.weight": QuantizedTensor(
            shape=(40, 300), dtype=float32, grid=Grid(lo=-31, hi=31), codes=int6, scales=scales
        ),
        "blocks.0.mlp.fc.weight": QuantizedTensor(
            shape=(40, 10, 10),
            dtype=float32,
            grid=Grid(lo=-63, hi=63, scale_dtype="float32"),
            codes=repeated,
            scales=scales.astype(np.float32),
        ),
        "grouped": QuantizedTensor(
            shape=(6, 64),
            dtype=np.dtype(np.float16),
            grid=Grid(lo=-7, hi=7, group_size=24, is_symmetric=False),
            codes=int4,
            scales=scales[:18].reshape(6, 3),
            zero_points=(scales[18:36].reshape(6, 3) * 8),
        ),
        "constant": QuantizedTensor(
            shape=(4, 5),
            dtype=float32,
            grid=Grid(lo=-1, hi=1),
            codes=np.ones((4, 5), dtype=np.int8),
            scales=scales[:4],
        ),
        "gain": PlainTensor(values=np.linspace(0, 1, 8).astype(np.float16), dtype=float32),
        "ids": PlainTensor(values=np.arange(-500, 500), dtype=np.dtype(np.int64)),
        "flags": PlainTensor(values=np.array([True, False, True]), dtype=np.dtype(np.bool_)),
        "temperature": PlainTensor(values=np.array(0.75), dtype=np.dtype(np.float64)),
        "empty": PlainTensor(values=np.zeros((3, 0), np.float32), dtype=float32),
    }


def example() -> dict[str, Stored]:
    """The tensor of the worked example in docs/format.md."""
    codes = np.array([[0, 1, -1, 0, 2, 0, 0, -2], [1, 0, 0, -1, 0, 0, 1, 0]], dtype=np.int8)
    return {
        "w": QuantizedTensor(
            shape=(2, 8),
            dtype=np.dtype(np.float32),
            grid=Grid(lo=-2, hi=2),
            codes=codes,
            scales=np.array([[0.5], [0.25]], dtype=np.float16),
        )
    }


FRACTION_BITS = {np.float16: 10, ml_dtypes.bfloat16: 7, np.float32: 23, np.float64: 52}


def floats() -> dict[str, Stored]:
    """Floats of every width with two exponents, free fractions and signs, and special values."""
    tensors: dict[str, Stored] = {}
    for dtype, fraction in FRACTION_BITS.items():
        kind = np.dtype(dtype)
        top = 8 * kind.itemsize - 1
        bits = np.random.Generator(np.random.PCG64(11)).integers(0, 1 << 63, 504, dtype=np.uint64)
        signs = (bits & np.uint64(1)) << np.uint64(top)
        free = bits >> np.uint64(63 - min(fraction, 7)) << np.uint64(max(fraction - 10, 0))
        exponents = np.where(bits >> np.uint64(1) & np.uint64(3) > 0, 15, 16).astype(np.uint64)
        words = signs | exponents << np.uint64(fraction) | free
        # Zeros, the smallest and largest numbers, infinities and NaNs with payloads.
        special = [0, 1, 0x7F7F, 0x7F80, 0x7F81, 0x7FFF, 0x8000, 0xFFFF]
        words = np.append(words, np.array(special, dtype=np.uint64) << np.uint64(top - 15))
        values = words.astype(f"<u{kind.itemsize}").view(kind).reshape(16, 32)
        tensors[kind.name] = PlainTensor(values=values, dtype=kind)
    return tensors


def write_floats(folder: Path) -> None:
    """The files of layout 4, which came after the others."""
    data, choices = write_container(floats())
    assert {choice["data"].layout for choice in choices.values()} == {FLOAT_PLANES}
    (folder / "floats.fly").write_bytes(data)
    values = {name: tensor.values for name, tensor in floats().items()}
    write_safetensors(folder / "floats.safetensors", values)


def main(folder: Path) -> None:
    """Write every frozen file."""
    folder.mkdir(parents=True)
    config = {1: 1024, 2: -3, 5: 0.5, 6: True, 7: False, 9: "byte", 12: (3, 4, 5)}
    for codec in ("auto", "store", "ans", "zstd", "brotli"):
        data, _ = write_container(
            tensors(), config=config, metadata={"license": "Apache-2.0"}, codec=codec
        )
        (folder / f"all-{codec}.fly").write_bytes(data)
    (folder / "example.fly").write_bytes(write_container(example(), config={1: 8}, codec="ans")[0])
    (folder / "nothing.fly").write_bytes(write_container({})[0])
    stored = tensors()
    expected = {
        name: t.dequantize() if isinstance(t, QuantizedTensor) else t.values.astype(t.dtype)
        for name, t in stored.items()
    }
    write_safetensors(folder / "expected.safetensors", expected)
    for sigma, alphabet in ((0.5, 3), (2.41, 63), (30.0, 255)):
        codes = gaussian_codes(1, 5000, sigma, alphabet // 2, seed=7).ravel()
        symbols = (codes.astype(np.int16) + alphabet // 2).astype(np.uint8)
        stream = codec_by_name("ans").encode(
            symbols, PlaneSpec(symbols.size, alphabet, symbols.size)
        )
        (folder / f"alphabet-{alphabet}.symbols").write_bytes(symbols.tobytes())
        (folder / f"alphabet-{alphabet}.ans").write_bytes(stream)
    write_classes(folder)


def write_classes(folder: Path) -> None:
    """The ctx stream. Its classes come from floats, so another machine may write other bytes."""
    matrix = class_symbols(96, 80)
    spec = PlaneSpec(matrix.size, 63, matrix.shape[1])
    (folder / "classes-80-63.symbols").write_bytes(matrix.tobytes())
    (folder / "classes-80-63.ctx").write_bytes(codec_by_name("ctx").encode(matrix.ravel(), spec))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    write_floats(Path(sys.argv[1]))
