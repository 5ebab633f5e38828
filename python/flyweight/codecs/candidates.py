"""What can be tried on a plane, and cheap looks that say what cannot win.

Byte compressors win where rows repeat or where neighbours tell of each other; on other codes they
lose to ans by what Huffman coding or a moving model costs, 1 to 3 %. So the slow ones are tried
where one of two looks finds such structure: a search for long repeats in the whole plane, and a
sample coded by the slow ones themselves. docs/experiments.md has the sizes that set the margins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import zstandard

from flyweight.codecs.ans import AnsCodec
from flyweight.codecs.brotli import BrotliCodec
from flyweight.codecs.codec import Codec, PlaneSpec
from flyweight.codecs.ctx import CtxCodec
from flyweight.codecs.layout import Plane
from flyweight.codecs.store import StoreCodec
from flyweight.codecs.zstd import ZstdCodec
from flyweight.kernels.rans import histogram
from flyweight.typing import Symbols

__all__ = ["TRIALS", "Looks", "Trial"]

SAMPLE = 1 << 14
"""Symbols of a sample: 25 ms of brotli-11."""
SAMPLE_MARGIN = 1.013
"""Planes on which brotli-11 beat ans had samples of at most 1.012 of their order-0 share, planes
without structure 1.014 to 1.025: headers weigh more in a sample."""
NEAR_MARGIN = 1.005
"""Where nothing repeats, zstd-3 is at most 0.4 % smaller than zstd-1."""
SMALL_PLANE = 1 << 15
"""Symbols up to which zstd is tried at every level, and only brotli, 1 ms a kB, is looked at."""
SMALL_MARGIN = 1.08
"""brotli-11 is up to 6 % smaller than zstd-22 on a kilobyte, less on more."""
SMALL_HEADER = 32
"""Bytes that headers may take more in zstd than in brotli."""
REPEATS_SHARE = 0.002
"""Share of a plane in long repeats from which it has structure."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A codec with its settings, as one candidate."""

    label: str
    """Name and level."""
    codec: Codec
    """Encoder; any of its settings decode alike."""
    is_matcher: bool = False
    """Finds repeats, so that the order of symbols and packing matter to it."""
    is_slow: bool = False
    """Some 1 MB/s: at default effort on small arrays only."""
    is_exhaustive: bool = False
    """Never smaller than the others by a share worth its time; tried where all is."""
    attempt: Callable[[Symbols, PlaneSpec], bytes | None] | None = None
    """The stream, or None where the codec sees at once that it cannot win; None: always encode."""


TRIALS = (
    Trial("ans", AnsCodec()),
    Trial("ctx", CtxCodec(), attempt=CtxCodec().encode_if_promising),
    Trial("store", StoreCodec()),
    Trial("zstd-1", ZstdCodec(1), is_matcher=True),
    Trial("zstd-3", ZstdCodec(3), is_matcher=True),
    Trial("zstd-19", ZstdCodec(19), is_matcher=True, is_slow=True, is_exhaustive=True),
    Trial("zstd-22", ZstdCodec(22), is_matcher=True, is_slow=True),
    Trial("brotli-11", BrotliCodec(11), is_matcher=True, is_slow=True),
)
"""In the order of their cost: what is later is tried only where it may beat what was before."""


class Looks:
    """Cheap looks at one plane, each taken once and only when asked for.

    Parameters
    ----------
    plane : what is to be coded
    first : looks at the first plane of the same array: what repeats, repeats in every plane
    """

    def __init__(self, plane: Plane, first: Looks | None = None) -> None:
        self._plane = plane
        self._first = first

    def can_win(self, trial: Trial, matched: list[int], smallest: int) -> bool:
        """Whether a candidate may be smaller than what is there.

        Parameters
        ----------
        trial : the next candidate, in the order of ``TRIALS``
        matched : sizes that faster matchers reached on this plane
        smallest : bytes of the smallest stream of the array so far
        """
        if not trial.is_matcher or not matched:
            return True
        if trial.is_exhaustive:
            return False
        best = min(matched)
        if self._plane.spec.count <= SMALL_PLANE:
            is_cheap = not isinstance(trial.codec, BrotliCodec)
            return is_cheap or best < SMALL_MARGIN * smallest + SMALL_HEADER
        if trial.is_slow:
            return self.has_repeats or self.is_promising
        return best < NEAR_MARGIN * smallest or self.has_repeats

    @cached_property
    def has_repeats(self) -> bool:
        """Whether runs of 32 symbols or more occur again, up to 16 MiB later."""
        if self._first is not None:
            return self._first.has_repeats
        # The lowest level finds next to nothing and leaves literals raw: long matches shrink it.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            -131072, window_log=24, enable_ldm=True, ldm_min_match=32, ldm_hash_log=16
        )
        symbols = self._plane.symbols
        coded = zstandard.ZstdCompressor(compression_params=parameters).compress(symbols.data)
        return len(coded) < (1 - REPEATS_SHARE) * symbols.size

    @cached_property
    def is_promising(self) -> bool:
        """Whether slow codecs code a sample in little more than its share of order-0 bits."""
        symbols, alphabet_size = self._plane.symbols, self._plane.spec.alphabet_size
        start = (symbols.size - SAMPLE) // 2
        sample = np.ascontiguousarray(symbols[start : start + SAMPLE])
        counts = histogram(symbols, alphabet_size=alphabet_size)
        bits = np.log2(symbols.size / np.maximum(counts, 1))
        share = float(histogram(sample, alphabet_size=alphabet_size) @ bits) / 8
        spec = PlaneSpec(SAMPLE, alphabet_size, SAMPLE)
        slow = (
            trial.codec.encode(sample, spec)
            for trial in TRIALS
            if trial.is_slow and not trial.is_exhaustive
        )
        return any(len(stream) < SAMPLE_MARGIN * share for stream in slow)
