"""The choice per array: every candidate (layout, codec) is coded, the smallest wins.

Ties go to the faster decoder, then to the lower layout id, so that the result is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flyweight.codecs.ans import AnsCodec
from flyweight.codecs.brotli import BrotliCodec
from flyweight.codecs.codec import Codec, codec_by_name, is_credible
from flyweight.codecs.ctx import CtxCodec
from flyweight.codecs.layout import (
    BYTE_PLANES,
    LAYOUT_NAMES,
    PACKED,
    PLAIN,
    TRANSPOSED,
    Plane,
    applicable_layouts,
    split_planes,
)
from flyweight.codecs.store import StoreCodec
from flyweight.codecs.zstd import ZstdCodec
from flyweight.errors import InvalidArgumentError, UnsupportedError
from flyweight.typing import AnyArray

__all__ = ["Candidate", "Choice", "Effort", "select"]

Effort = Literal["default", "max"]
SLOW_CODEC_LIMIT = 256_000
"""Bytes up to which brotli-11 and zstd-22 are tried at default effort."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing that was tried."""

    layout: str
    """Name of the layout."""
    codec: str
    """Codecs of the planes, with their levels, joined by ``+``."""
    size: int
    """Bytes of all planes together."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one array, and what lost."""

    layout: int
    """Layout id."""
    streams: tuple[tuple[int, bytes], ...]
    """Codec id and bytes of each plane."""
    candidates: tuple[Candidate, ...]
    """Everything tried, smallest first; the first is the choice."""


@dataclass(frozen=True, slots=True)
class _Trial:
    label: str
    codec: Codec
    is_forced: bool = False
    """Whether it has to code what it cannot win."""


def select(
    array: AnyArray, *, alphabet_size: int, codec: str = "auto", effort: Effort = "default"
) -> Choice:
    """The smallest streams for one array.

    Parameters
    ----------
    array : (rows, cols); codes as uint8 symbols, anything else in its own dtype
    alphabet_size : of the grid for codes, 256 for everything else
    codec : ``auto``, or the name of the one codec to use
    effort : ``default`` tries ans, store and fast zstd on everything and brotli-11 and zstd-22
        where they are quick; ``max`` tries everything on everything; ctx is tried where moments
        of rows and columns say that it can win

    Returns
    -------
    Choice

    Raises
    ------
    InvalidArgumentError
        No codec has that name.
    UnsupportedError
        The one codec to use makes so few bytes of so many symbols that readers would refuse them.
    """
    if array.size == 0:
        return Choice(PLAIN, ((StoreCodec.codec_id, b""),), (Candidate("plain", "store", 0),))
    if effort not in ("default", "max"):
        raise InvalidArgumentError(f"effort must be default or max, got {effort!r}")
    scored = []
    for layout in applicable_layouts(array.itemsize, alphabet_size):
        planes = split_planes(layout, array, alphabet_size)
        for trials in _combinations(layout, array.nbytes, codec, effort):
            chosen = [_smallest(plane, trials) for plane in planes]
            coded = [(trial, stream) for trial, stream in chosen if trial is not None]
            if len(coded) < len(planes):
                continue
            size = sum(len(stream) for _, stream in coded)
            rank = max(trial.codec.decode_rank for trial, _ in coded)
            label = "+".join(trial.label for trial, _ in coded)
            streams = tuple((trial.codec.codec_id, stream) for trial, stream in coded)
            found = Candidate(LAYOUT_NAMES[layout], label, size)
            scored.append(((size, rank, layout), streams, found))
    if not scored:
        raise UnsupportedError(
            f"codec {codec} makes so few bytes of {array.size} elements that readers would refuse "
            "them; use codec auto or store"
        )
    scored.sort(key=lambda entry: entry[0])
    (_, _, layout), streams, _ = scored[0]
    return Choice(layout, streams, tuple(entry[2] for entry in scored))


def _smallest(plane: Plane, trials: list[_Trial]) -> tuple[_Trial | None, bytes]:
    """The smallest stream that a reader accepts, and what made it; None where there is none."""
    tried = [(trial, _encode(trial, plane)) for trial in trials]
    accepted = [(t, s) for t, s in tried if s and is_credible(plane.symbols.size, len(s))]
    return min(accepted, key=lambda t: (len(t[1]), t[0].codec.decode_rank), default=(None, b""))


def _encode(trial: _Trial, plane: Plane) -> bytes | None:
    """The stream, or None where a look at the symbols says that the codec cannot win."""
    if isinstance(trial.codec, CtxCodec) and not trial.is_forced:
        return trial.codec.encode_if_promising(plane.symbols, plane.spec)
    return trial.codec.encode(plane.symbols, plane.spec)


def _combinations(layout: int, size: int, codec: str, effort: Effort) -> list[list[_Trial]]:
    """Candidate lists for a layout: each alone on one plane, the best per plane on several."""
    trials = _trials(size, codec, effort)
    if layout == TRANSPOSED:  # order means nothing to store and ans, and next to nothing to ctx
        trials = [t for t in trials if not isinstance(t.codec, (AnsCodec, CtxCodec, StoreCodec))]
    if layout == PACKED and codec == "auto":  # ans on packed codes only loses their alphabet
        trials = [t for t in trials if not isinstance(t.codec, AnsCodec)]
    if layout == BYTE_PLANES:
        return [trials]
    return [[trial] for trial in trials]


def _trials(size: int, codec: str, effort: Effort) -> list[_Trial]:
    slow = effort == "max" or size <= SLOW_CODEC_LIMIT
    everything = [_Trial("ans", AnsCodec()), _Trial("ctx", CtxCodec(), is_forced=codec == "ctx")]
    everything.append(_Trial("store", StoreCodec()))
    everything += [_Trial(f"zstd-{n}", ZstdCodec(n)) for n in ((1, 3, 19, 22) if slow else (1, 3))]
    if slow or codec == "brotli":
        everything.append(_Trial("brotli-11", BrotliCodec(11)))
    if codec == "auto":
        return everything
    forced = codec_by_name(codec)
    return [trial for trial in everything if trial.codec.codec_id == forced.codec_id]
