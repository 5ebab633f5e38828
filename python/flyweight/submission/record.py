"""``submission.json``: what a submission claims, from the values that its run measured.

References
----------
Field names are those in use in the records of openai/parameter-golf.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from flyweight.errors import DataError
from flyweight.submission.budget import CAP_BYTES, ByteBudget

__all__ = [
    "MEASURED",
    "PROTOCOLS",
    "Record",
    "describe_score",
    "headline_score",
    "make_record",
    "manifest_values",
]

CLOCK_SECONDS = 600.0
"""What training may take, and again what evaluation may take."""
PROTOCOLS = ("plain", "sliding", "ttt")
"""Scores of a recipe that a script can repeat."""
MEASURED = (
    "contaminated",
    "val_bpb",
    "val_loss",
    "pre_quant_val_bpb",
    "bytes_total",
    "bytes_code",
    "bytes_model",
    "artifact_sha256",
    "weights_sha256",
    "seed_results",
    "scores",
)
"""Fields that log and ``submission.json`` must have in common, to the last digit."""
_SCORE_FIELDS = (
    *("bpb", "bits", "bytes", "nats", "targets", "seconds", "chain"),
    *("method", "deadline", "chunks", "adapted_chunks", "plain_chunks"),
)
_WAYS = {
    "plain": "plain blocks",
    "sliding": "sliding windows",
    "score-first": "score-first TTT",
    "per-document": "per-document TTT",
}
_SCORED = ("val_bpb", "val_loss", "pre_quant_val_bpb", "seed_results", "scores")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The fields of ``submission.json``."""

    name: str
    """Of the recipe."""
    author: str
    """Who submits; empty until someone does."""
    github_id: str
    """Their account; empty until someone submits."""
    date: str
    """ISO day on which the scores were made."""
    track: str
    """Folder below ``records/``."""
    blurb: str
    """What it is."""
    contaminated: bool
    """The model was trained on the scored text; :meth:`to_json` then renames what was scored."""
    val_bpb: float
    """Bits per byte under the headline protocol."""
    val_loss: float
    """Nats per token under the headline protocol."""
    val_protocol: str
    """The headline protocol."""
    pre_quant_val_bpb: float
    """Bits per byte of the float model, plain blocks."""
    bytes_total: int
    """Code and model."""
    bytes_code: int
    """Of ``train_gpt.py``."""
    bytes_model: int
    """Of ``model.fly``."""
    artifact_sha256: str
    """Of ``model.fly``."""
    weights_sha256: str
    """Of the weights it decodes to; see `flyweight.submission.digest`."""
    tokenizer_sha256: str
    """Of the SentencePiece model that made the shards."""
    hardware: str
    """What the run used."""
    device: str
    """``cpu`` or ``cuda``."""
    pytorch_version: str
    """Of the run."""
    seeds: list[int]
    """Every seed that was run."""
    seed_results: dict[str, dict[str, float]]
    """Seed to its measured values."""
    scores: dict[str, dict[str, Any]]
    """Score name (``float``, ``quantized``, ``sliding``, ``ttt``) to bpb, its numerator (bits) and
    denominator (bytes), nats, targets, seconds and the chain of its ledger; the method, the
    deadline, and how many chunks there are, were learned from, and are in plain blocks for it."""
    compliance: dict[str, bool]
    """Rules of the challenge that can be decided from measured values."""

    def to_json(self) -> dict[str, Any]:
        """What ``submission.json`` holds."""
        return self._labelled(asdict(self))

    def measured(self) -> dict[str, Any]:
        """The `MEASURED` fields, for the log."""
        return self._labelled({name: getattr(self, name) for name in MEASURED})

    def _labelled(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields with scores get another name where these mean nothing beside those of others."""
        if not self.contaminated:
            return fields
        return {f"contaminated_{n}" if n in _SCORED else n: value for n, value in fields.items()}


def make_record(
    manifest: Mapping[str, Any],
    budget: ByteBudget,
    *,
    artifact_sha256: str,
    track: str,
    author: str,
    github_id: str,
) -> Record:
    """The record of one run.

    Parameters
    ----------
    manifest : of the run, with the stages train, hessian, code and score
    budget : measured sizes
    artifact_sha256 : of the file that is shipped

    Raises
    ------
    DataError
        The manifest lacks a value.
    """
    with manifest_values():
        return _make_record(manifest, budget, artifact_sha256, track, author, github_id)


def headline_score(names: Collection[str]) -> str:
    """The score that a submission claims, of those it has: ``ttt`` before ``sliding``."""
    return "ttt" if "ttt" in names else "sliding"


def describe_score(name: str, score: Mapping[str, Any]) -> str:
    """What was scored and how, for people; what a deadline took away is said.

    Parameters
    ----------
    name : ``float``, or of a score of the artifact
    score : with ``method``, ``deadline``, ``chunks``, ``adapted_chunks`` and ``plain_chunks``
    """
    protocol, _, hints = score["method"].partition(" ")
    said = f"{'float weights' if name == 'float' else 'artifact'}, {_WAYS[protocol]}"
    said += f" {hints}" if hints else ""
    if score["deadline"] is None or protocol == "plain":
        return said
    chunks, plain = score["chunks"], score["plain_chunks"]
    said += f"; deadline {score['deadline']:g} s: {plain / chunks:.0%} of it in plain blocks"
    if protocol != "sliding":
        said += f", {score['adapted_chunks'] / chunks:.0%} learned from"
    return said


@contextmanager
def manifest_values() -> Iterator[None]:
    """Turns a value that a manifest lacks into a `DataError` that names it."""
    try:
        yield
    except KeyError as error:
        raise DataError(
            f"run manifest: {error} is missing; run all stages before the bundle"
        ) from error


def _make_record(
    manifest: Mapping[str, Any],
    budget: ByteBudget,
    artifact_sha256: str,
    track: str,
    author: str,
    github_id: str,
) -> Record:
    stages, recipe = manifest["stages"], manifest["recipe"]
    train = stages["train"]["facts"]
    scores = {
        name: {key: result[key] for key in _SCORE_FIELDS}
        for name, result in stages["score"]["facts"]["results"].items()
    }
    headline = headline_score(scores)
    best = scores[headline]
    loss = best["nats"] / best["targets"]
    # The clock of a resumed scoring does not know what a killed run did behind its last chunk.
    was_resumed = stages["score"]["facts"]["results"][headline]["was_resumed"]
    contaminated = manifest.get("contaminated", False)
    data_seconds = train["seconds"]
    if recipe["calibrate"]["source"] != "generate":  # which reads no training text
        data_seconds += stages["hessian"]["seconds"]
    if contaminated:
        data_seconds += stages["contaminate"]["facts"]["seconds"]
    return Record(
        name=recipe["name"],
        author=author,
        github_id=github_id,
        date=stages["score"]["finished"][:10],
        track=track,
        blurb=recipe["description"],
        contaminated=contaminated,
        val_bpb=best["bpb"],
        val_loss=loss,
        val_protocol=stages["score"]["facts"]["results"][headline]["protocol"],
        pre_quant_val_bpb=scores["float"]["bpb"],
        bytes_total=budget.total_bytes,
        bytes_code=budget.code_bytes,
        bytes_model=budget.model_bytes,
        artifact_sha256=artifact_sha256,
        weights_sha256=stages["score"]["facts"]["weights_sha256"],
        tokenizer_sha256=manifest["data"]["tokenizer_sha256"],
        hardware=_hardware(manifest["machine"], train["device"]),
        device=train["device"],
        pytorch_version=manifest["versions"]["torch"],
        seeds=[manifest["seed"]],
        seed_results={
            str(manifest["seed"]): {
                "val_bpb": best["bpb"],
                "val_loss": loss,
                "artifact_bytes": budget.total_bytes,
                "steps": train["steps"],
                "train_seconds": train["seconds"],
                "train_data_seconds": data_seconds,
                "eval_seconds": best["seconds"],
            }
        },
        scores=scores,
        compliance={
            "artifact_under_16mb": budget.total_bytes <= CAP_BYTES,
            "train_under_600s": data_seconds <= CLOCK_SECONDS,
            "eval_under_600s": best["seconds"] <= CLOCK_SECONDS and not was_resumed,
            "full_coverage": best["targets"] == manifest["data"]["val_targets"],
            "score_first_ttt": headline == "ttt",
            "no_pre_quant_ttt": not contaminated,
            "three_seeds": False,
        },
    )


def _hardware(machine: Mapping[str, Any], device: str) -> str:
    gpus = machine["gpus"]
    if device == "cuda" and gpus:
        return f"{len(gpus)} x {gpus[0]}"
    return f"{machine['cores']} CPU cores, {machine['processor']}"
