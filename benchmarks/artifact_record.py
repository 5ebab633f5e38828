"""A whole checkpoint as one .fly file: bytes, overhead, and seconds to choose codecs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from flyweight.artifact import quantize
from flyweight.format.container import write_container
from flyweight.format.inspect import inspect
from flyweight.quant.config import QuantConfig
from flyweight.submission.decoder import decode_fly
from harness import cpus, using_cpus

__all__ = ["measure_artifact"]


def measure_artifact(tensors: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Files with the default choice of codecs and with ans alone, int6 SDClip as ``pack`` makes it.

    The overhead of a file is its size, header and directory included, over the order-0 information
    content of all that it holds: codes, scales and the tensors that are kept. Codecs are chosen on
    two processors, quantizing not included; the decoder is the one in plain Python that ships with
    a submission, on one processor.
    """
    stored, _ = quantize(tensors, QuantConfig.uniform(6))
    entries = []
    for codec in ("auto", "ans"):
        with using_cpus(cpus(2)):
            start = time.perf_counter()
            data, _ = write_container(stored, codec=codec)
            seconds = time.perf_counter() - start
        with using_cpus(cpus(1)):
            start = time.perf_counter()
            decode_fly(data)
            decoder_seconds = time.perf_counter() - start
        report = inspect(data)
        parts = [part for section in report.sections for part in section.parts]
        codes = [part for part in parts if part.role == "codes"]
        code_bits = sum(part.information_bits for part in codes)
        bits = sum(part.information_bits for part in parts)
        entries.append(
            {
                "codec": codec,
                "weights": sum(array.size for array in tensors.values()),
                "bytes": len(data),
                "bytes_by_class": report.by_class,
                "information_bytes": bits / 8,
                "overhead_percent": 100 * (8 * len(data) / bits - 1),
                "codes_overhead_percent": 100
                * (8 * sum(part.stored_bytes for part in codes) / code_bits - 1),
                "code_wall_seconds": seconds,
                "decoder_wall_seconds": decoder_seconds,
            }
        )
    return entries
