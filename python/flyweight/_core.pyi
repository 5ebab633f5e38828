"""The compiled extension; ``flyweight.kernels`` is its only importer and carries the documentation.

Functions have the names and the signatures of their twins in ``flyweight.reference``.
"""

import numpy as np
from numpy.typing import NDArray

from flyweight.typing import BytesLike, Codes, Counts, CudaInfo, Freqs, Symbols, Words

__version__: str

class ForcedCpuTier:
    def __init__(self, name: str) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *exception: object) -> None: ...

def cpu_tiers() -> list[str]: ...
def cuda_info() -> CudaInfo: ...
def packed_size(count: int, *, bits: int) -> int: ...
def pack_bits(
    symbols: Symbols | Codes,
    *,
    bits: int,
    lo: int | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]: ...
def unpack_bits(
    packed: BytesLike,
    *,
    bits: int,
    count: int,
    lo: int | None = None,
    out: Symbols | Codes | None = None,
) -> Symbols | Codes: ...
def unpack_dequantize(
    packed: BytesLike,
    scales: NDArray[np.float32] | NDArray[np.float16],
    *,
    bits: int,
    lo: int,
    shape: tuple[int, int],
    group_size: int = 0,
    dtype: str = "float32",
    out: NDArray[np.float32] | NDArray[np.uint16] | None = None,
) -> NDArray[np.float32] | NDArray[np.uint16]: ...
def histogram(symbols: Symbols, *, alphabet_size: int) -> Counts: ...
def normalize_counts(counts: Counts, *, prob_bits: int) -> Freqs: ...
def rans_bound(count: int, *, ways: int) -> int: ...
def rans_encode(
    symbols: Symbols,
    freqs: Freqs,
    *,
    prob_bits: int,
    ways: int,
    row_classes: Symbols | None = None,
    col_classes: Symbols | None = None,
    hidden: Words | None = None,
) -> bytes: ...
def rans_decode(
    stream: BytesLike,
    freqs: Freqs,
    *,
    count: int,
    prob_bits: int,
    ways: int,
    row_classes: Symbols | None = None,
    col_classes: Symbols | None = None,
    hidden: Words | None = None,
) -> Symbols: ...
def ans_encode(symbols: Symbols, *, alphabet_size: int) -> bytes: ...
def ans_decode(stream: BytesLike, *, count: int, alphabet_size: int) -> Symbols: ...
def choose_weights(counts: Counts, *, prob_bits: int) -> bytes: ...
def decode_weights(stream: BytesLike, *, alphabet_size: int) -> tuple[Counts, int]: ...
def gptq_quantize(
    weights: NDArray[np.float32],
    inverse_factor: NDArray[np.float32],
    scales: NDArray[np.float32],
    *,
    column_groups: NDArray[np.int32] | None = None,
    zero_points: NDArray[np.float32] | None = None,
    lo: int,
    hi: int,
    block_cols: int = 128,
    threads: int = 1,
) -> Codes: ...
