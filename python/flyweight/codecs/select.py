"""The choice per array: candidates (layout, codec) are coded, the smallest wins.

Ties go to the faster decoder, then to the lower layout id, so that the result is deterministic.
What a cheap look says cannot win is not coded (``codecs/candidates.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from flyweight.codecs.candidates import TRIALS, Looks, Trial
from flyweight.codecs.codec import codec_by_name, is_credible
from flyweight.codecs.layout import (
    BYTE_PLANES,
    FLOAT_PLANES,
    LAYOUT_NAMES,
    PACKED,
    PLAIN,
    TRANSPOSED,
    Plane,
    applicable_layouts,
    split_planes,
)
from flyweight.codecs.store import StoreCodec
from flyweight.errors import InvalidArgumentError, UnsupportedError
from flyweight.typing import AnyArray

__all__ = ["Candidate", "Choice", "Effort", "select"]

Effort = Literal["fast", "default", "max"]
SLOW_CODEC_LIMIT = 256_000
"""Bytes up to which slow codecs are tried at default effort."""
LARGE_ARRAY = 1 << 16
"""Bytes from which wide elements are not tried plain, nor floats in byte planes: where plain wins
it does so by bytes, and planes of whole exponents win over planes of a sign and most of it."""


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
class _Coded:
    trial: Trial
    stream: bytes

    @property
    def order(self) -> tuple[int, int]:
        return len(self.stream), self.trial.codec.decode_rank


def select(
    array: AnyArray,
    *,
    alphabet_size: int,
    codec: str = "auto",
    effort: Effort = "default",
    is_pruned: bool = True,
) -> Choice:
    """The smallest streams for one array.

    Parameters
    ----------
    array : (rows, cols); codes as uint8 symbols, anything else in its own dtype
    alphabet_size : of the grid for codes, 256 for everything else
    codec : ``auto``, or the name of the one codec to use
    effort : ``fast`` tries ans, ctx, store and fast zstd; ``default`` also brotli-11,
        zstd-19 and zstd-22 where they are quick; ``max`` tries everything on everything
    is_pruned : leave out what cannot win, as far as a cheap look tells; never at effort ``max``

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
    if effort not in get_args(Effort):
        expected = ", ".join(get_args(Effort))
        raise InvalidArgumentError(f"effort must be one of {expected}, got {effort!r}")
    trials = _trials(array.nbytes, codec, effort)
    if array.size == 0:
        return Choice(PLAIN, ((StoreCodec.codec_id, b""),), (Candidate("plain", "store", 0),))
    is_pruned = is_pruned and codec == "auto" and effort != "max"
    scored = []
    smallest = 0
    first: Looks | None = None
    for layout in _layouts(array, alphabet_size, is_pruned):
        planes = split_planes(layout, array, alphabet_size)
        bar = smallest if len(planes) == 1 else 0
        # Rows that repeat do so in every plane of every layout; columns do when transposed.
        looks = [Looks(planes[0], None if layout == TRANSPOSED else first)]
        first = first or looks[0]
        looks += [Looks(plane, first) for plane in planes[1:]]
        fitting = _fitting(trials, layout, codec, first if is_pruned else None)
        coded = [
            _code_plane(plane, fitting, bar, look if is_pruned else None)
            for plane, look in zip(planes, looks, strict=True)
        ]
        for entry in _combined(coded):
            size = sum(len(c.stream) for c in entry)
            rank = max(c.trial.codec.decode_rank for c in entry)
            found = Candidate(LAYOUT_NAMES[layout], "+".join(c.trial.label for c in entry), size)
            streams = tuple((c.trial.codec.codec_id, c.stream) for c in entry)
            scored.append(((size, rank, layout), streams, found))
        smallest = min((key[0] for key, _, _ in scored), default=0)
    if not scored:
        raise UnsupportedError(
            f"codec {codec} makes so few bytes of {array.size} elements that readers would refuse "
            "them; use codec auto or store"
        )
    scored.sort(key=lambda entry: entry[0])
    (_, _, layout), streams, _ = scored[0]
    return Choice(layout, streams, tuple(entry[2] for entry in scored))


def _trials(size: int, codec: str, effort: Effort) -> list[Trial]:
    """Candidates for an array of so many bytes."""
    slow = effort == "max" or (effort == "default" and size <= SLOW_CODEC_LIMIT)
    if codec == "auto":
        return [trial for trial in TRIALS if slow or not trial.is_slow]
    wanted = codec_by_name(codec).codec_id
    forced = [trial for trial in TRIALS if trial.codec.codec_id == wanted]
    # Forced, a codec codes what it would decline, and at its slow level where it has no other.
    forced = [replace(trial, attempt=None) for trial in forced]
    return [trial for trial in forced if slow or not trial.is_slow] or forced


def _layouts(array: AnyArray, alphabet_size: int, is_pruned: bool) -> list[int]:
    """Layouts to try."""
    layouts = applicable_layouts(array.itemsize, alphabet_size)
    if array.itemsize == 1:
        return layouts
    # bfloat16 is no float to NumPy.
    is_float = array.dtype.kind in "fV"
    if is_pruned and array.nbytes > LARGE_ARRAY:
        return [FLOAT_PLANES if is_float else BYTE_PLANES]
    # Planes first: mostly they win, and then slow codecs need not see the plain bytes.
    return [BYTE_PLANES, FLOAT_PLANES, PLAIN] if is_float else [BYTE_PLANES, PLAIN]


def _fitting(trials: list[Trial], layout: int, codec: str, looks: Looks | None) -> list[Trial]:
    """Those to which a layout may matter."""
    if layout == TRANSPOSED:  # order means nothing to the others
        return [trial for trial in trials if trial.is_matcher]
    if layout == PACKED and codec == "auto":  # the others only lose the alphabet of the codes
        stored = [trial for trial in trials if isinstance(trial.codec, StoreCodec)]
        is_open = looks is None or looks.has_repeats
        return stored + [trial for trial in trials if trial.is_matcher and is_open]
    return trials


def _code_plane(plane: Plane, trials: list[Trial], bar: int, looks: Looks | None) -> list[_Coded]:
    """Streams that a reader accepts, without those that looks say cannot win.

    Parameters
    ----------
    bar : bytes of the smallest stream of other layouts, 0 for none
    """
    coded: list[_Coded] = []
    for trial in trials:
        smallest = min([bar or plane.spec.count, *(len(each.stream) for each in coded)])
        matched = [len(each.stream) for each in coded if each.trial.is_matcher]
        if looks is not None and not looks.can_win(trial, matched, smallest):
            continue
        stream = (trial.attempt or trial.codec.encode)(plane.symbols, plane.spec)
        if stream is not None and is_credible(plane.spec.count, len(stream)):
            coded.append(_Coded(trial, stream))
    return coded


def _combined(coded: list[list[_Coded]]) -> list[list[_Coded]]:
    """Of one plane each stream is a candidate; of several the smallest of each, together."""
    if len(coded) == 1:
        return [[each] for each in coded[0]]
    return [[min(plane, key=lambda c: c.order) for plane in coded]] if all(coded) else []
