"""Typed entry points to the kernels; the only place that knows which backend runs."""

from __future__ import annotations

from flyweight.kernels.ans import ans_decode, ans_encode
from flyweight.kernels.bitpack import pack_bits, packed_size, unpack_bits, unpack_dequantize
from flyweight.kernels.dispatch import backend, cpu_tiers, cuda_info, current_backend
from flyweight.kernels.gptq import gptq_quantize
from flyweight.kernels.rans import (
    histogram,
    normalize_counts,
    rans_bound,
    rans_decode,
    rans_encode,
)

__all__ = [
    "ans_decode",
    "ans_encode",
    "backend",
    "cpu_tiers",
    "cuda_info",
    "current_backend",
    "gptq_quantize",
    "histogram",
    "normalize_counts",
    "pack_bits",
    "packed_size",
    "rans_bound",
    "rans_decode",
    "rans_encode",
    "unpack_bits",
    "unpack_dequantize",
]
