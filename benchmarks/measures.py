"""What is measured of a coder on a stream: bytes, speed on one thread and on two, overhead."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from contenders import Contender, general_contender
from harness import Sample, interleave, ratio, summary
from inputs import Plane, Stream, cut_sections, order0_bits, subset

__all__ = [
    "SECTION",
    "SETTINGS",
    "measure_all",
    "measure_part",
    "measure_sections",
    "measure_sizes",
    "measure_two_threads",
]

SECTION = 1_000_000
PART = 3_600_000
SIZES_OF = ("brotli-11", "zstd-22", "zstd-19", "zstd-9", "xz-9e")
WAYS = ("encode", "decode")
SETTINGS = {
    "call": "one per tensor; symbols are uint8, code minus lowest code",
    "buffers": "new output memory in every call, for peers as for flyweight; peers' is aligned",
    "clock": "processor time of the process and wall time; ratios within a round",
    "one_thread": "pinned to one processor",
    "two_threads": "whole tensors over two threads, largest first; wall time",
    "slow": f"timed once to encode, on the smallest tensors up to {PART:,} symbols",
    "bytes": "what a reader needs who knows count and alphabet",
}

Task = Callable[[], object]


def measure_all(stream: Stream, contenders: Sequence[Contender], rounds: int) -> dict[str, Any]:
    """Sizes and one-thread speeds on all of a stream, and ratios of flyweight to each peer."""
    coded = {contender.name: _verified(contender, stream) for contender in contenders}
    tasks: dict[str, Task] = {}
    for contender in contenders:
        tasks[f"{contender.name}/encode"] = _encoding(contender, stream)
        tasks[f"{contender.name}/decode"] = _decoding(contender, stream, coded[contender.name])
    samples = interleave(tasks, rounds)
    entries = []
    for contender in contenders:
        taken = {way: samples[f"{contender.name}/{way}"] for way in WAYS}
        speeds = {way: summary(taken[way], stream.count) for way in WAYS}
        entries.append(_entry(contender, stream, coded[contender.name]) | speeds)
    return {"contenders": entries, "ratios": _ratios(samples, [c.name for c in contenders])}


def measure_part(stream: Stream, contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """The same for slow coders: encoded once, on a part of the stream."""
    part = subset(stream, PART)
    entries = []
    for contender in contenders:
        coded: list[Any] = []
        first = interleave({"encode": partial(_encode_into, coded, contender, part)}, 1)
        _check(contender, part, coded)
        then = interleave({"decode": _decoding(contender, part, coded)}, 2)
        speeds = {way: summary(taken, part.count) for way, taken in (first | then).items()}
        entries.append(_entry(contender, part, coded) | speeds)
    return entries


def measure_two_threads(
    stream: Stream, contenders: Sequence[Contender], rounds: int
) -> list[dict[str, Any]]:
    """Wall time of two threads against one, both allowed the same processors."""
    planes = sorted(stream.planes, key=lambda plane: -plane.spec.count)
    tasks: dict[str, Task] = {}
    with ThreadPoolExecutor(2) as pool:
        for contender in contenders:
            for way, jobs in _jobs(contender, planes).items():
                tasks[f"{contender.name}/{way}/1"] = lambda jobs=jobs: [job() for job in jobs]
                tasks[f"{contender.name}/{way}/2"] = lambda jobs=jobs: list(pool.map(_call, jobs))
        samples = interleave(tasks, rounds)
    entries = []
    for contender in contenders:
        entry: dict[str, Any] = {"name": contender.name}
        for way in WAYS:
            one, two = (samples[f"{contender.name}/{way}/{threads}"] for threads in (1, 2))
            rates = summary(two, stream.count)
            entry[way] = {"speedup": ratio(two, one, "wall"), **rates}
        entries.append(entry)
    return entries


def measure_sections(stream: Stream, contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Overhead of sections of 1,000,000 symbols over their own information content."""
    sections = cut_sections(stream, SECTION)
    entries = []
    for contender in contenders if sections else ():
        overheads = []
        for section in sections:
            size = contender.size(contender.encode(section.symbols, section.spec))
            overheads.append(100 * (8 * size / order0_bits(section.symbols) - 1))
        percent = {"median": statistics.median(overheads), "max": max(overheads)}
        entry = {"name": contender.name, "sections": len(sections), "overhead_percent": percent}
        entries.append(entry)
    return entries


def measure_sizes(stream: Stream) -> list[dict[str, Any]]:
    """Bytes that general compressors make of every tensor; on all processors, nothing is timed."""
    jobs = [(name, plane) for name in SIZES_OF for plane in stream.planes]
    jobs.sort(key=lambda job: (SIZES_OF.index(job[0]), -job[1].spec.count))
    with ProcessPoolExecutor() as pool:
        sizes = list(pool.map(_size, jobs))
    found = {(name, plane.name): size for (name, plane), size in zip(jobs, sizes, strict=True)}
    return [
        _sized(name, stream, [found[name, plane.name] for plane in stream.planes])
        for name in SIZES_OF
    ]


def _size(job: tuple[str, Plane]) -> int:
    name, plane = job
    contender = general_contender(name)
    return contender.size(contender.encode(plane.symbols, plane.spec))


def _jobs(contender: Contender, planes: Sequence[Plane]) -> dict[str, list[Task]]:
    coded = [contender.encode(plane.symbols, plane.spec) for plane in planes]
    return {
        "encode": [lambda p=plane: contender.encode(p.symbols, p.spec) for plane in planes],
        "decode": [
            lambda c=one, p=plane: contender.decode(c, p.spec)
            for one, plane in zip(coded, planes, strict=True)
        ],
    }


def _call(job: Task) -> object:
    return job()


def _encoding(contender: Contender, stream: Stream) -> Callable[[], list[Any]]:
    return lambda: [contender.encode(p.symbols, p.spec) for p in stream.planes]


def _encode_into(coded: list[Any], contender: Contender, stream: Stream) -> None:
    coded += _encoding(contender, stream)()


def _decoding(contender: Contender, stream: Stream, coded: Sequence[Any]) -> Task:
    def decode_all() -> None:
        for one, plane in zip(coded, stream.planes, strict=True):
            contender.decode(one, plane.spec)

    return decode_all


def _verified(contender: Contender, stream: Stream) -> list[Any]:
    coded = _encoding(contender, stream)()
    _check(contender, stream, coded)
    return coded


def _check(contender: Contender, stream: Stream, coded: Sequence[Any]) -> None:
    """Refuse a coder that does not give every symbol back."""
    for one, plane in zip(coded, stream.planes, strict=True):
        if not np.array_equal(contender.decode(one, plane.spec), plane.symbols):
            raise SystemExit(f"{contender.name}: {stream.name}: {plane.name} comes back different")


def _entry(contender: Contender, stream: Stream, coded: Sequence[Any]) -> dict[str, Any]:
    return _sized(contender.name, stream, [contender.size(one) for one in coded])


def _sized(name: str, stream: Stream, sizes: Sequence[int]) -> dict[str, Any]:
    bits = sum(order0_bits(plane.symbols) for plane in stream.planes)
    return {
        "name": name,
        "symbols": stream.count,
        "bytes": sum(sizes),
        "bits_per_symbol": 8 * sum(sizes) / stream.count,
        "overhead_percent": 100 * (8 * sum(sizes) / bits - 1),
        "bytes_by_tensor": list(sizes),
    }


def _ratios(samples: dict[str, list[Sample]], names: Sequence[str]) -> list[dict[str, Any]]:
    """flyweight's codecs on each tier, against every peer."""
    ours = [name for name in names if name.startswith("flyweight")]
    return [
        {
            "name": name,
            "peer": peer,
            **{way: ratio(samples[f"{name}/{way}"], samples[f"{peer}/{way}"]) for way in WAYS},
        }
        for name in ours
        for peer in names
        if peer not in ours
    ]
