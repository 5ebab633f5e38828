"""docs/benchmarks.md from the recorded results; ``--check`` fails where the page is out of date."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import report_models
from reach import bitpack_goals, fit_goals, goals, gptq_goals
from report_tables import goal_table, table

__all__ = ["page"]

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
INTRODUCTION = """# Benchmarks

Generated from `benchmarks/results/` by `python benchmarks/report.py`; do not edit. How each figure
is taken, and how to take it again: [benchmarks/README.md](../benchmarks/README.md). MB/s are
millions of symbols a second, one byte each before coding. Overhead is size over order-0 information
content under each tensor's own histogram; below zero, a coder found structure that order-0 cannot
see.
"""
Record = dict[str, Any]


def page(folder: Path) -> str:
    """The whole page: the newest record of each topic and machine."""
    newest: dict[tuple[str, str], Record] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem.rpartition("_")[2]):
        topic, hardware, _ = path.stem.split("_")
        newest[topic, hardware] = json.loads(path.read_text(encoding="utf-8"))
    blocks = [INTRODUCTION]
    for (topic, _), record in sorted(newest.items(), key=lambda item: item[0]):
        if topic in TOPICS:
            blocks += TOPICS[topic](record)
    if len(blocks) == 1:
        blocks.append("No result is recorded yet.\n")
    return "\n".join(blocks)


def _codec(record: Record) -> Iterable[str]:
    """Entropy coders on one machine."""
    machine = record["fingerprint"]
    streams = record["streams"]
    names = [stream["name"] for stream in streams]
    yield f"## Entropy coders on {machine['cpu']['name']}\n"
    yield _provenance(record)
    if record["absent"]:
        absent = ", ".join(f"{each['name']} ({each['why']})" for each in record["absent"])
        yield f"Absent: {absent}.\n"
    yield "### What was to be reached\n"
    yield goal_table(goals(record))
    yield "### Streams\n"
    yield table(
        ("stream", "what", "tensors", "symbols", "order-0 bits"),
        [
            (
                stream["name"],
                stream["about"],
                len(stream["tensors"]),
                f"{stream['symbols']:,}",
                f"{stream['order0_bits_per_symbol']:.4f}",
            )
            for stream in streams
        ],
    )
    yield "### Bits a symbol, and overhead\n"
    yield _by_coder(streams, _size, ("sizes", "contenders"), names)
    yield "### One thread: encode / decode, MB/s of processor time\n"
    yield _by_coder(streams, _speed, ("contenders",), names)
    yield "Coders too slow for every round, encoded once on a part of the stream:\n"
    yield _by_coder(streams, _speed, ("slow",), names)
    yield "### Two threads: encode / decode, MB/s of wall time, and times as fast as one\n"
    yield _by_coder(streams, _two_threads, ("two_threads",), names)
    yield "### Sections of 1,000,000 symbols: overhead, median and largest\n"
    yield _by_coder(streams, _section, ("sections",), names)
    if record["artifact"]:
        yield "### A whole .fly file: bytes, seconds to choose codecs, seconds in plain Python\n"
        yield _artifact(record["artifact"])


def _bitpack(record: Record) -> Iterable[str]:
    """Bit-packing on one machine; a row a task, a column a size."""
    yield f"## Bit-packing on {record['fingerprint']['cpu']['name']}\n"
    yield _provenance(record)
    yield goal_table(bitpack_goals(record))
    yield (
        "Millions of codes a second on one thread, and the share of memcpy, or of memset for "
        "float32 output; task / bits / by whom:\n"
    )
    sizes = record["sizes"]
    limits = {"pack": "memcpy", "unpack": "memcpy", "dequantize": "memset"}

    def cell(size: Record, task: str) -> str:
        if task not in size["results"]:
            return ""
        rate = _digits(size["results"][task]["cpu_msymbols_per_second"])
        share = size["ratios"].get(f"{task} to {limits.get(task.partition('/')[0])}")
        return f"{rate} ({share['median']:.2f}x)" if share else rate

    tasks = dict.fromkeys(task for size in sizes for task in size["results"])
    rows = [(task, *(cell(size, task) for size in sizes)) for task in tasks]
    yield table(("task", *(f"{size['name']} codes" for size in sizes)), rows)


def _gptq(record: Record) -> Iterable[str]:
    """GPTQ on one machine; a row a contender, a column a matrix."""
    yield f"## GPTQ on {record['fingerprint']['cpu']['name']}\n"
    yield _provenance(record)
    matrices = record["matrices"]
    absent = {f"{each['name']} ({each['why']})" for each in matrices[0]["absent"]}
    if absent:
        yield f"Absent: {', '.join(sorted(absent))}.\n"
    yield goal_table(gptq_goals(record))
    yield (
        "Milliseconds of processor time (of wall time for two threads) and times the floor: "
        f"{record['settings']['floor']}, in the same rounds. Rows by columns:\n"
    )

    def cell(matrix: Record, name: str) -> str:
        if name not in matrix["results"]:
            return ""
        clock = "wall_seconds" if "2 threads" in name or "beside" in name else "cpu_seconds"
        time = f"{matrix['results'][name][clock]['median'] * 1e3:.3g}"
        floor = matrix["times_the_floor"].get(name)
        return f"{time} ({floor['median']:.2f}x)" if floor else time

    names = dict.fromkeys(name for matrix in matrices for name in matrix["results"])
    rows = [(name, *(cell(matrix, name) for matrix in matrices)) for name in names]
    yield table(("what", *(matrix["name"] for matrix in matrices)), rows)


def _fit(record: Record) -> Iterable[str]:
    """``fit`` beside published exports."""
    settings = record["settings"]
    yield f"## `fit` beside published exports on {settings['device']}\n"
    yield (
        f"Taken on {record['date']} at commit {record['fingerprint']['commit']}: "
        f"{settings['checkpoint']}, {settings['elements']:,} weights, "
        f"{settings['calibration_tokens']:,} calibration tokens "
        f"({settings['peer_calibration_tokens']:,} for pr585), torch {settings['torch']}. "
        f"Plain blocks of {settings['targets']:,} targets, {settings['text_bytes']:,} bytes; the "
        f"float weights have {record['float_bpb']:.5f} bits per byte. The tax is what is added.\n"
    )
    yield goal_table(fit_goals(record))
    yield table(
        ("export", "bytes", "tax, bpb", "predicted", "seconds"),
        [
            (
                row["name"],
                f"{row['bytes']:,}",
                f"{row['tax']:.5f}",
                f"{row['predicted']:.5f}" if "predicted" in row else "",
                f"{row['seconds']:.1f}" if "seconds" in row else "",
            )
            for row in record["rows"]
        ],
    )


def _minilm(record: Record) -> Iterable[str]:
    """``fit`` of a sentence encoder."""
    settings = record["settings"]
    yield "## `fit` of all-MiniLM-L6-v2, from its weights alone\n"
    yield (
        f"Taken on {record['date']} at commit {record['fingerprint']['commit']}. Distances between "
        f"the embeddings of {settings['sentences']} texts of at most {settings['max_tokens']} "
        "tokens before and after; similarities are dot products of pairs of texts.\n"
    )
    yield table(
        ("file", "bytes", "below the budget", "1 - cosine", "worst", "error of similarities"),
        [
            (
                row["name"],
                f"{row['bytes']:,}",
                f"{1 - row['bytes'] / row['budget']:.4%}" if "budget" in row else "",
                f"{row['one_minus_cosine']:.4f}",
                f"{row['worst_one_minus_cosine']:.4f}",
                f"{row['mean_similarity_error']:.4f}",
            )
            for row in record["rows"]
        ],
    )


def _provenance(record: Record) -> str:
    machine = record["fingerprint"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"Taken on {record['date']} at commit {machine['commit']}: family "
        f"{machine['cpu']['family']} model {machine['cpu']['model']}, {machine['processors']} "
        f"processors, kernels {', '.join(machine['tiers'])}; {', '.join(machine['compiler'])}; "
        f"Python {machine['python']}, {packages}. Medians of {record['settings']['rounds']} "
        f"interleaved rounds, pinned to one processor; {record['settings']['buffers']}.\n"
    )


def _by_coder(
    streams: Sequence[Record],
    cell: Callable[[Record], str],
    lists: Sequence[str],
    names: Sequence[str],
) -> str:
    """One row a coder, one column a stream."""
    found: dict[str, dict[str, str]] = {}
    for stream in streams:
        for key in reversed(lists):
            for entry in stream[key]:
                if cell is _size and entry["name"] == "memcpy":
                    continue
                found.setdefault(entry["name"], {})[stream["name"]] = cell(entry)
    rows = [(coder, *(cells.get(name, "") for name in names)) for coder, cells in found.items()]
    return table(("coder", *names), rows)


def _size(entry: Record) -> str:
    return f"{entry['bits_per_symbol']:.4f} ({entry['overhead_percent']:+.3f} %)"


def _speed(entry: Record) -> str:
    speeds = (entry[way]["cpu_msymbols_per_second"] for way in ("encode", "decode"))
    return " / ".join(_digits(speed) for speed in speeds)


def _two_threads(entry: Record) -> str:
    ways = (entry["encode"], entry["decode"])
    return " / ".join(
        f"{_digits(way['wall_msymbols_per_second'])} ({way['speedup']['median']:.2f}x)"
        for way in ways
    )


def _section(entry: Record) -> str:
    percent = entry["overhead_percent"]
    return f"{percent['median']:+.4f} %, {percent['max']:+.4f} %"


def _artifact(entries: Sequence[Record]) -> str:
    header = ("codec", "weights", "bytes", "overhead", "codes alone", "s to code", "s in Python")
    rows = [
        (
            entry["codec"],
            f"{entry['weights']:,}",
            f"{entry['bytes']:,}",
            f"{entry['overhead_percent']:+.4f} %",
            f"{entry['codes_overhead_percent']:+.4f} %",
            f"{entry['code_wall_seconds']:.2f}",
            f"{entry['decoder_wall_seconds']:.2f}",
        )
        for entry in entries
    ]
    return table(header, rows)


def _digits(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


TOPICS: dict[str, Callable[[Record], Iterable[str]]] = {
    "bitpack": _bitpack,
    "codec": _codec,
    "fit": _fit,
    "fit-minilm": _minilm,
    "gptq": _gptq,
    "protocols": report_models.protocols,
    "score": report_models.score,
    "submit": report_models.submit,
    "train": report_models.train,
}
"""Sections by topic, the first part of a record's name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if out of date")
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    text = page(options.results)
    if not options.check:
        options.page.write_text(text, encoding="utf-8")
    elif not options.page.exists() or options.page.read_text(encoding="utf-8") != text:
        sys.exit(f"{options.page} is out of date: run python benchmarks/report.py")


if __name__ == "__main__":
    main()
