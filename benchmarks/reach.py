"""What the codec core set out to reach, held against a record.

Speeds are those of flyweight's best tier over the peer named, on the real streams; the worst stream
decides. Where a peer or a measurement is missing, the goal is open.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

__all__ = [
    "Goal",
    "bitpack_goals",
    "fit_goals",
    "goals",
    "gptq_goals",
    "score_goals",
    "submit_goals",
    "train_goals",
]

Record = dict[str, Any]
MINILM = ("S6", "S5", "S4", "SD6")
S1_BITS = {"S6": 5.2542, "S5": 4.2079, "S4": 3.1206, "SD6": 3.3228}
"""Ideal code lengths of the better of one table and tables by row and column class, per tensor."""
S1_MARGIN_PERCENT = 0.05
LOOP_FACTORS = {"512x512": 10, "2048x512": 8, "512x2048": 3.5}
"""Times as fast as the classic column loop that GPTQ was to be."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table."""

    words: str
    """What is measured."""
    wanted: str
    """The bound."""
    found: str
    """What the record says, with the stream that decides."""
    verdict: str
    """``reached``, ``missed`` or ``open``."""


def goals(record: Record) -> list[Goal]:
    """Every goal, in the order in which they were set."""
    streams = [stream for stream in record["streams"] if stream["name"] in MINILM]
    tier = record["fingerprint"]["tiers"][-1]
    found = [
        _speed(streams, f"flyweight ans {tier}", way, peers, least)
        for way, peers, least in (
            ("decode", ("htscodecs 32x avx512", "htscodecs 32x avx2"), 1.5),
            ("encode", ("htscodecs 32x avx2",), 2.0),
        )
    ]
    found += [_two_threads(streams, way) for way in ("encode", "decode")]
    found += [_sections(streams), *_artifact(record), _every_tensor(streams), _s1(streams)]
    return [*found, *_seconds(record)]


def bitpack_goals(record: Record) -> list[Goal]:
    """Packing against what memory allows, on the largest size, which is beyond the caches."""
    largest = max(record["sizes"], key=lambda size: size["count"])
    tier = record["fingerprint"]["tiers"][-1]
    found = []
    for verb, limit, least in (
        ("pack", "memcpy", 0.9),
        ("unpack", "memcpy", 0.9),
        ("dequantize", "memset", 0.85),
    ):
        ending = f"/{tier} to {limit}"
        values = {
            f"{key.split('/')[1]} bits": ratio["median"]
            for key, ratio in largest["ratios"].items()
            if key.startswith(f"{verb}/") and key.endswith(ending)
        }
        words = f"{verb}: {tier} over {limit}, {largest['name']} codes"
        wanted = f"at least {least}x"
        found.append(_judged(words, wanted, values, min, partial(operator.le, least), "{:.2f}x"))
    return found


def gptq_goals(record: Record) -> list[Goal]:
    """The column updates against their arithmetic and against the classic loop."""
    matrices, tier = record["matrices"], record["fingerprint"]["tiers"][-1]
    floors = {
        matrix["name"]: matrix["times_the_floor"][f"flyweight {tier}"]["median"]
        for matrix in matrices
    }
    words = f"{tier}, one thread, over the floor"
    found = [_judged(words, "at most 3x", floors, max, lambda v: v <= 3, "{:.2f}x")]
    for matrix in matrices:
        least = LOOP_FACTORS.get(matrix["name"])
        if least is not None:
            values = {matrix["name"]: matrix["over_torch_loop"]["median"]}
            words = f"{tier}, one thread, times as fast as the torch loop"
            enough = partial(operator.le, least)
            found.append(_judged(words, f"at least {least}x", values, min, enough, "{:.1f}x"))
    twice = {matrix["name"]: matrix["over_one_thread"]["median"] for matrix in matrices}
    words = "two threads over one, wall"
    found.append(_judged(words, "more than 1x", twice, min, lambda v: v > 1, "{:.2f}x"))
    losses = {matrix["name"]: abs(matrix["loss_over_float64"]["ratio"] - 1) for matrix in matrices}
    words = "loss, relative difference to float64"
    found.append(_judged(words, "at most 1e-3", losses, max, lambda v: v <= 1e-3, "{:.1e}"))
    return found


def fit_goals(record: Record) -> list[Goal]:
    """``fit`` against each published export, and its clock."""
    found = []
    fits = [row for row in record["rows"] if row["name"].startswith("fit")]
    peers = {row["name"]: row for row in record["rows"] if row["name"].startswith("pr")}
    for peer, share in (("pr585", 0.15), ("pr1539", 0.05)):
        as_good = [fit["bytes"] for fit in fits if fit["tax"] <= peers.get(peer, fit)["tax"]]
        saved = {peer: 1 - min(as_good) / peers[peer]["bytes"]} if peer in peers else {}
        words, wanted = f"bytes saved at the bits per byte of {peer}", f"at least {share:.0%}"
        found.append(_judged(words, wanted, saved, min, partial(operator.le, share), "{:.1%}"))
    taxes = {}
    if "pr585" in peers:
        fitting = [fit for fit in fits if fit["bytes"] <= peers["pr585"]["bytes"]]
        taxes["pr585"] = min(fit["tax"] for fit in fitting) / peers["pr585"]["tax"]
    words = "tax over that of pr585 at its bytes"
    found.append(_judged(words, "at most 0.5x", taxes, max, lambda v: v <= 0.5, "{:.2f}x"))
    clocks = {fit["name"]: fit["seconds"] for fit in fits}
    words = f"fit, {record['settings']['fit_threads']} threads, seconds"
    found.append(_judged(words, "at most 180", clocks, max, lambda v: v <= 180, "{:.0f}"))
    clock = {"with sensitivities": record["seconds"]["calibrate"]}
    words = f"calibration, {record['settings']['calibration_tokens']:,} tokens, seconds"
    found.append(_judged(words, "at most 5", clock, max, lambda v: v <= 5, "{:.1f}"))
    return found


def submit_goals(record: Record) -> list[Goal]:
    """What people will use against the published script, and against the recipes of others."""
    rows = [row for row in record["rows"] if "bpb" in row]
    ours = [row for row in rows if row["system"] == "flyweight"]
    script, recipes, sizes = {}, {}, {}
    for row in ours:
        own, sizes[f"{row['max_seconds']:.0f} s"] = row["bpb"]["sliding"], row["artifact_bytes"]
        for other in rows:
            if other["bpb"]["sliding"] is None:  # its export did not end in time
                continue
            found = other["bpb"]["sliding"] - own
            if other["system"].startswith("script"):
                if other["max_seconds"] == row["max_seconds"]:
                    script[other["system"]] = found
            elif other["system"] != "flyweight":
                recipes[other["system"]] = found
    words = "bits per byte below the script at the same clock"
    goals = [_judged(words, "at least 0.05", script, min, lambda v: v >= 0.05, "{:.4f}")]
    words = "bits per byte below each of the recipes"
    goals.append(_judged(words, "more than 0", recipes, min, lambda v: v > 0, "{:.4f}"))
    words = "bytes of model and code"
    goals.append(
        _judged(words, "at most 16,000,000", sizes, max, lambda v: v <= 16_000_000, "{:,.0f}")
    )
    return goals


def train_goals(record: Record) -> list[Goal]:
    """Recipes against the scripts they reproduce."""
    speeds, memory, losses = {}, {}, {}
    for row in record["speed"]:
        ours, theirs = row["ours"], row.get("theirs", {})
        if "tokens_per_second" in ours and "tokens_per_second" in theirs:
            speeds[row["system"]] = ours["tokens_per_second"] / theirs["tokens_per_second"]
        if ours.get("peak_bytes") and theirs.get("peak_bytes"):
            memory[row["system"]] = ours["peak_bytes"] / theirs["peak_bytes"]
    for row in record["loss"]:
        theirs = row.get("theirs", {}).get("loss_at", {})
        for step, loss in row["ours"].get("loss_at", {}).items():
            if step in theirs:
                losses[f"{row['system']}, step {step}"] = loss - theirs[step]
    words = "tokens a second over those of the script"
    found = [_judged(words, "at least 1.25x", speeds, min, lambda v: v >= 1.25, "{:.2f}x")]
    words = "peak memory over that of the script"
    found.append(_judged(words, "at most 1x", memory, max, lambda v: v <= 1, "{:.2f}x"))
    words = "loss at equal tokens above that of the script, nats"
    found.append(_judged(words, "at most 0.01", losses, max, lambda v: v <= 0.01, "{:+.4f}"))
    return found


SCORE_FACTORS = {"sliding": 4.0, "pr585": 3.0, "pr1683": 4.0}
"""Times as fast as the published evaluation that scoring was to be."""


def score_goals(record: Record) -> list[Goal]:
    """Scoring against the published evaluation code."""
    rows = {row["case"]: row for row in record["rows"] if "ratio" in row}
    found = []
    for case, least in SCORE_FACTORS.items():
        ratios = {case: rows[case]["ratio"]} if case in rows else {}
        is_reached = partial(operator.le, least)
        words = f"targets a second over those of the script, {case}"
        found.append(_judged(words, f"at least {least:g}x", ratios, min, is_reached, "{:.2f}x"))
    walls = {case: row["wall_ratio"] for case, row in rows.items() if "auto" in row}
    words = "seconds of the script over ours, from the call in a new process to the last score"
    found.append(_judged(words, "at least 4x", walls, min, lambda v: v >= 4, "{:.2f}x"))
    nats = {case: abs(row["nats_above"]) for case, row in rows.items()}
    words = "nats per token apart from the script"
    return [*found, _judged(words, "at most 0.002", nats, max, lambda v: v <= 0.002, "{:.4f}")]


def _speed(
    streams: Sequence[Record], ours: str, way: str, peers: Sequence[str], least: float
) -> Goal:
    """Against the first of the peers that was there."""
    measured = {ratio["peer"] for stream in streams for ratio in stream["ratios"]}
    peer = next((peer for peer in peers if peer in measured), peers[0])
    values = {
        stream["name"]: ratio[way]["median"]
        for stream in streams
        for ratio in stream["ratios"]
        if (ratio["name"], ratio["peer"]) == (ours, peer)
    }
    words = f"{way}: {ours} over {peer}, one thread"
    return _judged(words, f"at least {least}x", values, min, lambda v: v >= least, "{:.2f}x")


def _two_threads(streams: Sequence[Record], way: str) -> Goal:
    values = {
        stream["name"]: entry[way]["speedup"]["median"]
        for stream in streams
        for entry in stream["two_threads"]
        if entry["name"] == "flyweight ans"
    }
    words = f"{way}: two threads over one"
    return _judged(words, "at least 1.6x", values, min, lambda v: v >= 1.6, "{:.2f}x")


def _sections(streams: Sequence[Record]) -> Goal:
    values = {
        stream["name"]: entry["overhead_percent"]["max"]
        for stream in streams
        for entry in stream["sections"]
        if entry["name"] == "flyweight ans"
    }
    words = "overhead of ans on a section of 1,000,000 symbols"
    return _judged(words, "at most 0.05 %", values, max, lambda v: v <= 0.05, "{:+.4f} %")


def _artifact(record: Record) -> list[Goal]:
    """The file as it is packed by default; and its codes by ans alone, as in the whole file a codec
    that finds structure could hide what ans costs.
    """
    files = {each["codec"]: each for each in record["artifact"] or []}
    cases = (
        ("a whole artifact of 33.6 M parameters", "auto", "overhead_percent"),
        ("its codes, all by ans", "ans", "codes_overhead_percent"),
    )
    return [
        _judged(
            f"overhead of {words}",
            "at most 0.1 %",
            {codec: files[codec][key]} if codec in files else {},
            max,
            lambda v: v <= 0.1,
            "{:+.4f} %",
        )
        for words, codec, key in cases
    ]


def _seconds(record: Record) -> list[Goal]:
    """Choosing codecs for the checkpoint, and the plain decoder, scaled to 16 MB of file."""
    files = {each["codec"]: each for each in record["artifact"] or [] if each["codec"] == "auto"}
    choosing = {name: each["code_wall_seconds"] for name, each in files.items()}
    decoding = {
        name: each["decoder_wall_seconds"] * 16e6 / each["bytes"] for name, each in files.items()
    }
    cases = (
        ("choosing codecs for 33.6 M parameters, two processors", choosing),
        ("16 MB in the decoder that ships with a submission, one processor", decoding),
    )
    return [
        _judged(words, "at most 5 s", values, max, lambda v: v <= 5, "{:.2f} s")
        for words, values in cases
    ]


def _every_tensor(streams: Sequence[Record]) -> Goal:
    """How far the smaller of ans and ctx is above the smallest of brotli-11 and all zstd levels."""
    values = {}
    for stream in streams:
        if not stream["sizes"]:
            continue
        theirs = _smallest(stream, lambda name: name.startswith(("brotli", "zstd")))
        pairs = zip(stream["tensors"], _ours(stream), theirs, strict=True)
        values |= {f"{stream['name']} {t}": 100 * (a / b - 1) for t, a, b in pairs}
    words = "the smaller of ans and ctx over brotli-11 and the best zstd level, worst tensor"
    return _judged(words, "below 0 %", values, max, lambda v: v < 0, "{:+.3f} %")


def _s1(streams: Sequence[Record]) -> Goal:
    values = {
        stream["name"]: 100 * (8 * sum(_ours(stream)) / stream["symbols"] / bits - 1)
        for stream in streams
        if (bits := S1_BITS.get(stream["name"])) and _has_ctx(stream)
    }
    words = "the smaller of ans and ctx per tensor over the ideal of class tables"
    wanted = f"at most {S1_MARGIN_PERCENT} %"
    return _judged(words, wanted, values, max, lambda v: v <= S1_MARGIN_PERCENT, "{:+.4f} %")


def _ours(stream: Record) -> list[int]:
    return _smallest(stream, lambda name: name.startswith("flyweight"))


def _has_ctx(stream: Record) -> bool:
    return any(entry["name"].startswith("flyweight ctx") for entry in stream["contenders"])


def _smallest(stream: Record, is_wanted: Callable[[str], bool]) -> list[int]:
    """Fewest bytes per tensor of the coders wanted that were measured on all of them."""
    lists = [
        entry["bytes_by_tensor"]
        for entry in stream["contenders"] + stream["sizes"]
        if is_wanted(entry["name"])
    ]
    return [min(sizes) for sizes in zip(*lists, strict=True)]


def _judged(
    words: str,
    wanted: str,
    values: dict[str, float],
    worst: Callable[[Iterable[float]], float],
    is_reached: Callable[[float], bool],
    form: str,
) -> Goal:
    if not values:
        return Goal(words, wanted, "not measured", "open")
    value = worst(values.values())
    name = next(name for name in values if values[name] == value)
    verdict = "reached" if is_reached(value) else "missed"
    return Goal(words, wanted, f"{form.format(value)} ({name})", verdict)
