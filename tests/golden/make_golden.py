"""How the frozen files were made; they are never made again in place.

Run ``python tests/golden/make_golden.py NEW_FOLDER`` for the files of a new format version, and
keep the old ones: every later reader must still read them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import ml_dtypes
import numpy as np

from flyweight.codecs.codec import PlaneSpec, codec_by_name
from flyweight.codecs.layout import FLOAT_PLANES
from flyweight.format.container import write_container
from flyweight.format.stored import PlainTensor, Stored
from flyweight.interop import write_safetensors
from flyweight.quant.grid import Grid, QuantizedTensor
from flyweight.reference import ans as reference_ans
from flyweight.reference.weights import encode_weights
from flyweight.typing import Symbols


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


def with_rare(values: np.ndarray, others: range, step: int) -> np.ndarray:
    """One value in ``step`` replaced by the next of the others, which so become rare."""
    places = np.arange(step // 2, values.size, step)
    values = values.copy()
    values[places] = np.resize(np.array(others, dtype=values.dtype), places.size)
    return values


def side_tensors() -> dict[str, Stored]:
    """Tensors whose streams have four ways and a tail, or one way and rare symbols."""
    narrow = gaussian_codes(30, 300, 0.3, 1, seed=12).ravel()
    codes = {
        "tail": gaussian_codes(50, 200, 2.41, 31, seed=11),
        "rare": with_rare(narrow, range(2, 32), 449).reshape(30, 300),
    }
    return {
        name: QuantizedTensor(
            shape=matrix.shape,
            dtype=np.dtype(np.float16),
            grid=Grid(lo=-31, hi=31),
            codes=matrix,
            scales=(np.arange(1, len(matrix) + 1, dtype=np.float16) / 64)[:, None],
        )
        for name, matrix in codes.items()
    }


def side_streams() -> dict[str, tuple[Symbols, int | None]]:
    """Symbols of streams, the first of mode 1, the others of mode 2, and how many ways to force.

    The alphabet ends the name.
    """
    bell = (gaussian_codes(1, 10_000, 2.41, 31, seed=13).ravel() + 31).astype(np.uint8)
    narrow = (gaussian_codes(1, 9_000, 0.3, 1, seed=14).ravel() + 1).astype(np.uint8)
    return {
        "table-3": (narrow[:500], None),
        "tail-63": (bell, None),  # four ways
        "rare-255": (with_rare(narrow, range(3, 255), 37), None),  # words at the end
        "rare-tail-64-ways-63": (with_rare(bell[:9_001], range(60, 63), 3_000), 64),
        "all-tail-64-ways-63": (bell[:40], 64),  # hidden words that are not needed
    }


def damaged(good: dict[str, bytes]) -> dict[str, bytes]:
    """Streams that break one rule each; before the first dot is the stream they were made from."""
    table, tail, rare, short = (
        good[name] for name in ("table-3", "tail-63", "rare-255", "all-tail-64-ways-63")
    )
    at = len(short) - 4 * 64  # the states end the stream, the tail count is before them
    return {
        "rare-255.truncated-by-a-word": rare[:-2],
        "rare-255.truncated-by-a-byte": rare[:-1],
        "rare-255.word-too-many": rare + bytes(2),
        "tail-63.word-too-many": tail + bytes(2),
        "tail-63.truncated-by-a-word": tail[:-2],
        "all-tail-64-ways-63.padding-not-zero": short[:-4] + b"\x01" + short[-3:],
        "all-tail-64-ways-63.state-not-at-the-bound": short[:-2] + b"\x02" + short[-1:],
        "all-tail-64-ways-63.tail-too-long": short[: at - 1] + bytes([41]) + short[at:],
        "all-tail-64-ways-63.tail-too-short": short[: at - 1] + bytes([39]) + short[at:],
        "all-tail-64-ways-63.side-state-below-the-bound": short[: at + 4]
        + bytes(2)
        + short[at + 6 :],
        "table-3.mode-3": bytes([table[0] | 0xC0]) + table[1:],
        "all-tail-64-ways-63.128-ways": bytes([short[0] | 0x38]) + short[1:],
    }


def write_side_words(folder: Path) -> None:
    """Streams of mode 2, good and bad, and a file of them."""
    good = {}
    for name, (symbols, ways) in side_streams().items():
        alphabet = int(name.rpartition("-")[2])
        choose = reference_ans.choose_ways if ways is None else lambda _, ways=ways: ways
        with patch.object(reference_ans, "choose_ways", choose):
            good[name] = reference_ans.ans_encode(symbols, alphabet_size=alphabet)
        (folder / f"{name}.symbols").write_bytes(symbols.tobytes())
        (folder / f"{name}.ans").write_bytes(good[name])
    for name, stream in damaged(good).items():
        (folder / f"{name}.bad").write_bytes(stream)
    stored = side_tensors()
    (folder / "side-words.fly").write_bytes(write_container(stored, codec="ans")[0])
    expected = {name: tensor.dequantize() for name, tensor in stored.items()}
    write_safetensors(folder / "side-words.safetensors", expected)


def write_example_stream(folder: Path) -> None:
    """The stream of mode 2 in docs/format.md: too short for an encoder to choose that mode."""
    symbols = np.array([0, 1, 0, 0, 3, 0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 1], dtype=np.uint8)
    table = encode_weights([256, 128, 1, 1], mantissa_bits=0)
    forced = {
        "PROB_BITS": 8,
        "choose_ways": lambda _: 2,
        "choose_weights": lambda counts, prob_bits: table,
    }
    with patch.multiple(reference_ans, **forced):
        stream = reference_ans.ans_encode(symbols, alphabet_size=4)
    (folder / "example-4.symbols").write_bytes(symbols.tobytes())
    (folder / "example-4.ans").write_bytes(stream)


def column_tensors() -> dict[str, Stored]:
    """Tensors with column scales: one scale a row, groups with zero-points, float32, three axes."""
    columns = np.resize(np.arange(3, 50, 2), 150) / 32
    scales = np.arange(1, 21) / 64
    wide = gaussian_codes(20, 150, 2.41, 127, seed=15)
    grouped = Grid(lo=-7, hi=7, group_size=24, is_symmetric=False, has_column_scales=True)
    return {
        "deep": QuantizedTensor(
            shape=(6, 8, 8),
            dtype=np.dtype(np.float16),
            grid=grouped,
            codes=gaussian_codes(6, 64, 1.5, 7, seed=16),
            scales=scales[:18].reshape(6, 3).astype(np.float16),
            zero_points=(scales[17::-1].reshape(6, 3) * 8).astype(np.float16),
            column_scales=columns[:64].astype(np.float16),
        ),
        "wide": QuantizedTensor(
            shape=(20, 150),
            dtype=np.dtype(ml_dtypes.bfloat16),
            grid=Grid(lo=-127, hi=127, has_column_scales=True),
            codes=wide,
            scales=scales[:, None].astype(np.float16),
            column_scales=columns.astype(np.float16),
        ),
        "wide32": QuantizedTensor(
            shape=(20, 150),
            dtype=np.dtype(np.float32),
            grid=Grid(lo=-127, hi=127, scale_dtype="float32", has_column_scales=True),
            codes=wide,
            # Thirds have no exact product: the order of operations shows.
            scales=(scales[:, None] / 3).astype(np.float32),
            column_scales=(columns / 3).astype(np.float32),
        ),
    }


def write_columns(folder: Path) -> None:
    """The file of column scales, which came after the others."""
    stored = column_tensors()
    (folder / "columns.fly").write_bytes(write_container(stored, codec="ans")[0])
    expected = {name: tensor.dequantize() for name, tensor in stored.items()}
    write_safetensors(folder / "columns.safetensors", expected)


def main(folder: Path) -> None:
    """Write every frozen file."""
    folder.mkdir(parents=True)
    write_side_words(folder)
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
    write_example_stream(Path(sys.argv[1]))
    write_columns(Path(sys.argv[1]))
