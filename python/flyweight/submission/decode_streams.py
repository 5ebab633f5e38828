"""The streams of .fly files, decoded by NumPy and the standard library only.

A submission ships this, so it imports nothing of flyweight, and it is held to the same golden
files as the package's own codecs. All ANS streams of a file are decoded at once: step ``i`` takes
symbol ``i`` of every way of every stream. See docs/format.md for every rule.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLY_DAMAGE", "FlyError", "FlyReader", "decode_planes"]

# What damage that no rule below catches ends in.
FLY_DAMAGE = (ArithmeticError, LookupError, MemoryError, StopIteration, ValueError, struct.error)
FlyPlane: TypeAlias = tuple[int, bytes, int, int, int]


class FlyError(ValueError):
    """The file is damaged or of a kind that this decoder does not read."""


class FlyReader:
    """A cursor over bytes."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self.data):
            raise FlyError("the file ends early")
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise FlyError("a varint has more than nine bytes")

    def zigzag(self) -> int:
        value = self.varint()
        return -(value + 1) // 2 if value & 1 else value // 2


def decode_planes(planes: list[FlyPlane]) -> list[NDArray[np.uint8]]:
    """Symbols of each plane, given its codec, stream, count, alphabet and symbols per row."""
    out: dict[int, NDArray[np.uint8]] = {}
    jobs, classed = list[AnsJob](), list[int]()
    for index, (codec, stream, count, alphabet, _) in enumerate(planes):
        mode = stream[0] >> 6 if codec in (1, 4) else None
        if codec == 4 and mode == 3:
            classed.append(index)
        elif mode:
            jobs.append(read_ans_header(index, stream, count, alphabet))
        elif mode == 0:
            out[index] = np.full(count, stream[1], dtype=np.uint8)
        else:
            out[index] = np.frombuffer(decompress(codec, stream, count), dtype=np.uint8)
    out.update(run_jobs(jobs))
    if classed:
        out.update(zip(classed, decode_classes([planes[k] for k in classed]), strict=True))
    for index, (_, _, count, alphabet, _) in enumerate(planes):
        if len(out[index]) != count or out[index].max(initial=0) >= alphabet:
            raise FlyError(f"a stream does not hold {count} symbols below {alphabet}")
    return [out[index] for index in range(len(planes))]


def decompress(codec: int, stream: bytes, count: int) -> bytes:
    """Symbols of a stream of codec store, zstd or brotli."""
    if codec == 0:
        return stream
    if codec == 2:
        import zstandard

        try:
            if zstandard.frame_content_size(stream) > count:
                raise FlyError("zstd: the frame says more than its symbols")
            return zstandard.ZstdDecompressor().decompress(
                stream, max_output_size=count, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise FlyError(f"zstd: {error}") from error
    if codec == 3:
        import brotli

        decoder, raw, more = brotli.Decompressor(), bytearray(), stream
        try:
            while len(raw) <= count and not decoder.is_finished():
                piece = decoder.process(more, output_buffer_limit=count + 1 - len(raw))
                if not piece and not more:
                    raise FlyError("brotli: the stream ends early")
                raw += piece
                more = b""
            return bytes(raw)
        except brotli.error as error:
            raise FlyError(f"brotli: {error}") from error
    raise FlyError(f"codec id {codec} is not known")


class AnsJob(NamedTuple):
    """One ANS stream behind its header, table and tail count; ``freqs`` has a row per table."""

    place: int
    symbols: int
    ways: int
    prob_bits: int
    freqs: NDArray[np.uint64]
    coded: bytes
    tail: int | None = None
    rare: NDArray[np.uint64] = np.zeros(0, np.uint64)
    contexts: NDArray[np.uint8] | None = None


def read_ans_header(index: int, stream: bytes, count: int, alphabet: int) -> AnsJob:
    """See "ANS" and "Frequency tables" in docs/format.md."""
    bits = int.from_bytes(stream[1 : 2 + 4 * alphabet], "little")
    at, mode, ways, prob_bits = 0, stream[0] >> 6, 1 << (stream[0] >> 3 & 7), 8 + (stream[0] & 7)
    if mode == 3 or ways > 64:
        raise FlyError(f"an ANS stream with header {stream[0]:#x} is not defined")

    def take(width: int) -> int:
        nonlocal at
        at += width
        return bits >> (at - width) & ((1 << width) - 1)

    first, last, mantissa = take(8), take(8), take(4)
    if not first <= last < alphabet:
        raise FlyError(f"a frequency table is of symbols {first} to {last} of {alphabet}")
    weights, size_class = [0] * alphabet, 0
    for symbol in range(first, last + 1):
        zeros = 0
        while not take(1):
            zeros += 1
            if zeros > 5 or at > 8 * len(stream):
                raise FlyError("a frequency table ends early or changes class by more than 16")
        gamma = (1 << zeros) + take(zeros)
        size_class += gamma // 2 * (1 if gamma % 2 else -1)
        if not 0 <= size_class <= 16:
            raise FlyError(f"a frequency table has class {size_class}")
        stored = min(size_class - 1, mantissa)
        if size_class:
            weights[symbol] = ((1 << stored) + take(stored)) << size_class - 1 - stored
    if not weights[first] or not weights[last]:
        raise FlyError(f"a frequency table has no weight for symbol {first} or {last}")
    rare, reader, tail = [0] * alphabet, FlyReader(stream, 1 + -(-at // 8)), None
    if mode == 2:
        tail, total = reader.varint(), sum(weights)
        if tail > count:
            raise FlyError(f"a tail of {tail} symbols, but there are {count}")
        rare = [w if w << prob_bits < total else 0 for w in weights]
        weights = [w - r for w, r in zip(weights, rare, strict=True)]
        if any(rare):  # the lowest of them is the escape
            weights[min(s for s, w in enumerate(rare) if w)] = sum(rare)
    freqs, rare_freqs = (normalize(each, 1 << prob_bits) for each in (weights, rare))
    main, coded = count - (tail or 0), stream[reader.at :]
    return AnsJob(index, main, ways, prob_bits, freqs[None], coded, tail, rare_freqs)


def decode_side(
    job: AnsJob, symbols: NDArray[np.uint8], words: NDArray[np.uint64]
) -> NDArray[np.uint8]:
    """The tail behind the symbols, and rare symbols where there are escapes."""
    queue = iter(words.tolist())
    state = next(queue) | next(queue) << 16
    if state < 1 << 16:
        raise FlyError("ANS: the state of the side words is below 2^16")

    def pop(freqs: list[int], cums: list[int]) -> int:
        nonlocal state
        slot = state & (1 << job.prob_bits) - 1
        symbol = bisect_right(cums, slot) - 1
        state = freqs[symbol] * (state >> job.prob_bits) + slot - cums[symbol]
        if state < 1 << 16:
            state = state << 16 | next(queue)
        return symbol

    tables = [(f.tolist(), (np.cumsum(f) - f).tolist()) for f in (job.freqs[0], job.rare)]
    symbols = np.append(symbols, np.zeros(job.tail or 0, np.uint8))
    for at in range(job.symbols, len(symbols)):
        symbols[at] = pop(*tables[0])
    if job.rare.any():
        for at in np.flatnonzero(symbols == (job.rare > 0).argmax()).tolist():
            symbols[at] = pop(*tables[1])
    rest = list(queue)
    if state != 1 << 16 or any(rest) or (rest and len(words) > job.ways):
        raise FlyError("ANS: the side words do not end where they should")
    return symbols


def normalize(weights: list[int], total: int) -> NDArray[np.uint64]:
    """Frequencies that sum to ``total``; see "Normalization" in docs/format.md."""
    mass = sum(weights) or 1
    freqs = [max(1, w * total // mass) if w else 0 for w in weights]
    spare = total - sum(freqs)
    seen = [s for s, w in enumerate(weights) if w]
    for symbol in sorted(seen, key=lambda s: (-(weights[s] * total % mass), s))[: max(spare, 0)]:
        freqs[symbol] += 1
    for _ in range(-spare):
        freqs[freqs.index(max(freqs))] -= 1
    return np.array(freqs, dtype=np.uint64)


def run_jobs(jobs: list[AnsJob]) -> list[tuple[int, NDArray[np.uint8]]]:
    """Place and symbols of each job; those of the same kind are decoded together."""
    queues: dict[tuple[int, bool], list[AnsJob]] = {}
    for job in sorted(jobs, key=lambda job: -job.symbols):
        queues.setdefault((job.ways, job.contexts is not None), []).append(job)
    return [
        (job.place, symbols)
        for queue in queues.values()
        for job, symbols in zip(queue, decode_ans(queue), strict=True)
    ]


def slot_table(freqs: NDArray[np.uint64], prob_bits: int) -> NDArray[np.uint64]:
    """Per slot: frequency << 32 | (slot - cumulative) << 8 | symbol."""
    symbol = np.repeat(np.arange(len(freqs), dtype=np.uint64), freqs.astype(np.int64))
    bias = np.arange(1 << prob_bits, dtype=np.uint64)
    bias -= (np.cumsum(freqs) - freqs)[symbol]
    return freqs[symbol] << np.uint64(32) | bias << np.uint64(8) | symbol


def decode_ans(jobs: list[AnsJob]) -> list[NDArray[np.uint8]]:
    """All streams of the same number of ways in lockstep; they come longest first."""
    ways = jobs[0].ways
    counts = np.array([job.symbols for job in jobs])
    steps = -(-counts // ways)
    tables, words = [], []
    for job in jobs:
        tables.append(np.concatenate([slot_table(freqs, job.prob_bits) for freqs in job.freqs]))
        words.append(np.frombuffer(job.coded[4 * ways :], dtype="<u2").astype(np.uint64))
    starts = np.cumsum([0] + [len(w) for w in words])[:, None]
    table = np.concatenate(tables)
    word = np.concatenate([*words, [np.uint64(0)]])  # a damaged stream reads past the end
    base = np.cumsum([0] + [len(t) for t in tables])[:-1, None].astype(np.uint64)
    bits = np.array([[job.prob_bits] for job in jobs], dtype=np.uint64)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    lanes = [np.frombuffer(job.coded, dtype="<u4", count=ways) for job in jobs]
    state, at = np.stack(lanes).astype(np.uint64), starts[:-1] - 1
    if (state < 1 << 16).any():
        raise FlyError("ANS: a state is below 2^16")
    finals, ends = [*state], starts[:-1, 0].tolist()
    parts = [[np.zeros(0, np.uint8)] for _ in jobs]
    begin = 0
    for end in sorted({*steps.tolist()} - {0}):  # where the shortest of the live streams ends
        live = int((steps > begin).sum())
        state, at, bits, mask, base = (a[:live] for a in (state, at, bits, mask, base))
        out = np.zeros((end - begin, live, ways), dtype=np.uint8)
        for k, job in enumerate(jobs[:live]):  # tables first, then the symbols in their place
            if job.contexts is not None:
                out[:, k] = np.resize(job.contexts, (steps[k], ways))[begin:end]
        for row in out:
            earlier = state
            slot = (state & mask) + base
            if jobs[0].contexts is not None:
                slot += row.astype(np.uint64) << bits
            entry = table.take(slot)
            row[:] = entry
            state = (entry >> 32) * (state >> bits) + (entry >> 8 & 0xFFFF)
            low = state < 1 << 16
            rank = low.cumsum(axis=1)
            state = np.where(low, state << 16 | word.take(at + rank, mode="clip"), state)
            at = at + rank[:, -1:]
        for k in range(live):
            parts[k].append(out[:, k].ravel())
            if steps[k] == end:  # in its last row, way by way
                rest = counts[k] - (end - 1) * ways
                finals[k] = np.append(state[k, :rest], earlier[k, rest:])
                ends[k] = int(at[k, 0] - rank[k, -1] + rank[k, rest - 1]) + 1
        begin = end
    decoded = []
    for k, job in enumerate(jobs):
        symbols = np.concatenate(parts[k])[: job.symbols]
        side = np.append(finals[k] & 0xFFFF, word[ends[k] : starts[k + 1, 0]])
        is_done = (finals[k] >> 16 == 1).all() and ends[k] <= starts[k + 1, 0]
        if not is_done or (job.tail is None and len(side) > ways):
            raise FlyError("ANS: a stream does not end where it should")
        if job.tail is not None:
            symbols = decode_side(job, symbols, side)
        elif job.contexts is not None:  # with the bytes that are hidden in the states
            symbols = np.append(symbols, side.astype("<u2").view(np.uint8))
        elif side.any():
            raise FlyError("ANS: the states do not end where they should")
        decoded.append(symbols)
    return decoded


def decode_classes(planes: list[FlyPlane]) -> list[NDArray[np.uint8]]:
    """Symbols of streams with tables by row and column; see "CTX" in docs/format.md."""
    jobs, maps, escaped = list[AnsJob](), list[FlyPlane](), list[tuple[int, bytes]]()
    for index, (_, stream, count, alphabet, columns) in enumerate(planes):
        freqs, at = class_tables(stream, alphabet)
        reader = FlyReader(stream, at)
        lines = (count // columns, stream[1]), (columns, stream[1]), (columns, stream[2])
        for length, classes in lines:
            maps.append((1, reader.take(reader.varint()), length, classes, length))
        ways, size = 1 << (stream[0] >> 3 & 7), reader.varint()
        escaped.append((size, reader.take(max(size - 2 * ways, 0))))
        jobs.append(AnsJob(index, count, ways, 12, freqs, stream[reader.at :]))
    decoded = iter(decode_planes(maps))
    for index, job in enumerate(jobs):
        factor = np.uint8(planes[index][1][2])
        row, col = next(decoded) * factor, next(decoded) * factor + next(decoded)
        tables = np.minimum(np.add.outer(row, col), len(job.freqs) - 1).ravel()
        jobs[index] = job._replace(contexts=tables)
    out = dict(run_jobs(jobs))
    for index, (size, rest) in enumerate(escaped):
        _, _, count, alphabet, _ = planes[index]
        symbols, hidden = np.split(out[index], [count])
        out[index] = symbols
        rare = hidden.tobytes()[:size] + rest
        places = np.flatnonzero(symbols == alphabet)
        if len(places):
            symbols[places] = decode_planes([(1, rare, len(places), alphabet, len(places))])[0]
        elif rare:
            raise FlyError("escaped symbols, but no escape")
    return [out[index] for index in range(len(planes))]


def class_tables(stream: bytes, alphabet: int) -> tuple[NDArray[np.uint64], int]:
    """Frequencies of every table, the escape last; and the bytes up to the maps."""
    deviations, means, center, top, step, tail = struct.unpack("<BBHHBB", stream[1:9])
    is_small = 1 <= deviations * means <= 64 and alphabet <= 255 and top <= 384
    is_header = stream[0] in range(0xC4, 0xFC, 8)  # 12 bits, at most 64 ways
    if not is_header or not is_small or center > 64 * (alphabet - 1):
        raise FlyError("a stream of classes has a field that is out of range")
    powers = [1 << 31]
    for _ in range(255):
        powers.append(powers[-1] * 4283353945 >> 32)

    def halved(y: int) -> int:
        return powers[y & 255] >> min(y >> 8, 63)

    tables = []
    for s in range(deviations):
        e = max(0, top - step * (deviations - 1 - s))
        for level in struct.unpack(f"<{means}b", stream[9 : 9 + means]):
            middle = center + (level * (halved(8 * (512 - e)) >> 11) >> 5)
            curvature = halved(16 * e) * 47274 >> 16
            ys = [(64 * k - middle) ** 2 * curvature >> 31 for k in range(alphabet)]
            weights = [
                (16 - tail % 16) * halved(y) + tail % 16 * halved(y >> tail // 16) for y in ys
            ]
            total = sum(weights)
            kept = [w if w << 12 >= total else 0 for w in weights]
            escape = max(total - sum(kept), 1) if 0 in kept else 0
            tables.append(normalize([*kept, escape], 4096))
    return np.stack(tables), 9 + means
