"""Sections of docs/benchmarks.md on whole models: training, submissions, scoring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reach import score_goals, submit_goals, train_goals
from report_tables import goal_table, table

__all__ = ["protocols", "score", "submit", "train"]

Record = dict[str, Any]


def _taken(record: Record, *kinds: str) -> str:
    """When, from which commits and with what."""
    rows = [row for kind in kinds for row in record[kind]]
    commits = {row.get("commit", record["fingerprint"]["commit"]) for row in rows}
    return (
        f"Taken until {record['date']}, at {', '.join(sorted(commits))}, with torch "
        f"{record['settings']['torch']}"
    )


def train(record: Record) -> Iterable[str]:
    """Recipes beside published scripts."""
    settings = record["settings"]
    yield f"## Training beside the published scripts on one {settings['device']}\n"
    yield (
        f"{_taken(record, 'speed', 'loss')}; both sides by torch's attention, each in a process of "
        "its own. "
        f"Speed over {settings['steps'] - settings['first_timed']} steps at the recipe's batch, "
        "compilation outside; losses are means over 20 steps of 262,144 tokens.\n"
    )
    yield goal_table(train_goals(record))
    losses = {row["system"]: row for row in record["loss"]}
    header = ("recipe", "parameters", "tokens/s", "of the script", "ratio", "GiB", "of the script")
    header += ("s to compile", "recompilations", "loss at 200, 500", "of the script")
    rows = [_train_row(row, losses.get(row["system"], {})) for row in record["speed"]]
    yield table(header, rows)


def _train_row(row: Record, losses: Record) -> list[str]:
    ours, theirs = row["ours"], row.get("theirs", {})
    speeds = [side.get("tokens_per_second", 0.0) for side in (ours, theirs)]
    ratio = f"{speeds[0] / speeds[1]:.2f}x" if all(speeds) else ""
    peaks = [side.get("peak_bytes") or 0 for side in (ours, theirs)]
    memory = [f"{peak / 2**30:.1f}" if peak else "" for peak in peaks]
    at = [losses.get(side, {}).get("loss_at", {}).values() for side in ("ours", "theirs")]
    return [
        row["system"],
        f"{row['parameters']:,}" if "parameters" in row else "",
        *(f"{speed:,.0f}" if speed else "" for speed in speeds),
        ratio,
        *memory,
        f"{ours['compile_seconds']:.0f}" if "compile_seconds" in ours else "failed",
        str(ours.get("recompilations", "")),
        *(", ".join(f"{loss:.4f}" for loss in values) for values in at),
    ]


def submit(record: Record) -> Iterable[str]:
    """From training to the scored artifact."""
    settings = record["settings"]
    yield f"## Submissions end to end on one {settings['device']}\n"
    yield (
        f"{_taken(record, 'rows')}; trained under the clock, exported, and scored in sliding "
        "windows without further training. Recipes slide by their published strides, and have the "
        "schedule of one GPU: 262,144 tokens a step, a warm-down over half of the clock. Where an "
        "export did not end in time, its cells are empty.\n"
    )
    yield goal_table(submit_goals(record))
    header = ("system", "clock, s", "parameters", "steps", "tokens", "bytes", "float bpb")
    header += ("artifact", "sliding", "s to compile")
    yield table(header, [_submit_row(row) for row in record["rows"]])


def _submit_row(row: Record) -> list[str]:
    name, clock = row["system"], f"{row['max_seconds']:.0f}"
    if "bpb" not in row:
        return [name, clock, "failed", *[""] * 7]
    bpb = [row["bpb"].get(key) for key in ("float", "quantized", "sliding")]
    return [
        name,
        clock,
        f"{row['parameters']:,}" if "parameters" in row else "",
        f"{row['steps']:,}",
        f"{row['tokens']:,}",
        "" if row["artifact_bytes"] is None else f"{row['artifact_bytes']:,}",
        *(f"{value:.4f}" if value is not None else "" for value in bpb),
        f"{row['compile_seconds']:.0f}" if "compile_seconds" in row else "",
    ]


def score(record: Record) -> Iterable[str]:
    """Scoring beside published evaluation code."""
    settings = record["settings"]
    yield f"## Scoring beside the published evaluation code on one {settings['device']}\n"
    yield (
        f"{_taken(record, 'rows')}; {settings['targets']:,} targets, the same model, weights, "
        "tokens and stride on both sides, what is done once outside. In a new process it is "
        "inside, and sliding windows run as recipes have them: not compiled. The scripts score the "
        "last targets of the text several times, with less context, which is in their nats.\n"
    )
    yield goal_table(score_goals(record))
    header = ("case", "targets/s", "of the script", "ratio", "nats per token above it")
    header += ("s to prepare", "recompilations", "s in a new process", "of the script")
    rows = [line for row in record["rows"] for line in (row, *_rolling_rows(row))]
    yield table(header, [_score_row(row) for row in rows])


def _rolling_rows(row: Record) -> list[Record]:
    """A row for the context that rolls, beside the script's sliding windows."""
    rolling = row.get("rolling")
    if rolling is None:
        return []
    return [{**row, **rolling, "case": "rolling context", "ours": rolling, "auto": rolling}]


def _score_row(row: Record) -> list[str]:
    theirs = row.get("theirs")
    walls = [row["auto"], theirs] if theirs and "auto" in row else []
    return [
        row["case"],
        f"{row['ours']['targets_per_second']:,.0f}",
        f"{theirs['targets_per_second']:,.0f}" if theirs else "",
        f"{row['ratio']:.2f}x" if theirs else "",
        f"{row['nats_above']:+.4f}" if theirs else "",
        f"{row['ours']['phases']['compile']:.0f}",
        str(row["ours"]["recompilations"]),
        *([f"{side['wall_seconds']:.1f}" for side in walls] or ["", ""]),
    ]


def protocols(record: Record) -> Iterable[str]:
    """Every way of scoring one trained model."""
    settings = record["settings"]
    yield "## Ways of scoring\n"
    yield (
        f"{_taken(record, 'rows')}: an artifact of {settings['model_bytes']:,} bytes, windows of "
        f"2,048 tokens that add {settings['stride']}; the gain is on sliding windows without "
        "training. Seconds are without preparation; scores of two kinds of GPU differ by 0.00004.\n"
    )
    base = next((r["bpb"] for r in record["rows"] if r["protocol"] == "sliding"), None)
    header = ("protocol", "bits per byte", "gain", "seconds", "coverage", "chunks learned from")
    header += ("s to prepare", "recompilations", "GPU")
    rows = ({"device": settings["device"], **row} for row in record["rows"])
    yield table(header, [_protocol_row(row, base) for row in rows])


def _protocol_row(row: Record, base: float | None) -> list[str]:
    if "bpb" not in row:
        return [row["protocol"], "failed", *[""] * 7]
    seconds = row["seconds"] - row["phases"]["compile"]
    seconds += row.get("contaminate", {}).get("seconds", 0.0)
    return [
        row["protocol"],
        f"{row['bpb']:.4f}",
        "" if base is None else f"{base - row['bpb']:+.4f}",
        f"{seconds:.1f}",
        f"{row['coverage']:.2%}",
        f"{row['adapted_chunks']} of {row['chunks']}",
        f"{row['phases']['compile']:.0f}",
        str(row["recompilations"]),
        row["device"],
    ]
