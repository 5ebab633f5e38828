"""A submission folder, written from a run's manifest: script, artifact, record, README, log."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flyweight.data.facts import DataInfo
from flyweight.data.tokenizer import Tokenizer
from flyweight.errors import DataError
from flyweight.evaluate.config import ScoreConfig
from flyweight.format.container import FlyFile
from flyweight.submission.budget import ByteBudget
from flyweight.submission.claim import ARTIFACT_FILE, Claim, write_byte_codes
from flyweight.submission.readme import write_readme
from flyweight.submission.record import (
    PROTOCOLS,
    Record,
    headline_score,
    make_record,
    manifest_values,
)
from flyweight.submission.script import write_script

__all__ = [
    "RECORD_FILE",
    "REQUIREMENTS_FILE",
    "SCRIPT_FILE",
    "log_name",
    "script_bytes",
    "write_bundle",
]

SCRIPT_FILE = "train_gpt.py"
RECORD_FILE = "submission.json"
README_FILE = "README.md"
REQUIREMENTS_FILE = "requirements.txt"

_CODEC_PACKAGES = {2: "zstandard>=0.22", 3: "brotli>=1.2"}  # ids of docs/format.md


def write_bundle(
    out: str | os.PathLike[str],
    *,
    artifact: Path,
    data: DataInfo,
    manifest: Mapping[str, Any],
    train_logs: Sequence[Path],
    track: str = "track_non_record_16mb",
    author: str = "",
    github_id: str = "",
) -> dict[str, Any]:
    """Write the submission folder of a finished run; an earlier one is replaced as a whole.

    Parameters
    ----------
    out : the folder
    artifact : the ``.fly`` file that was scored
    data : the shards it was scored on, for the tokenizer's byte table
    manifest : of the run, with the stages train, hessian, code and score
    train_logs : JSON lines of all that the weights were trained on, in order
    track, author, github_id : who submits, and where

    Returns
    -------
    ``code_bytes``, ``model_bytes``, ``total_bytes``, ``margin_bytes`` (below the recipe's budget),
    ``files`` (name to bytes) and ``requirements``

    Raises
    ------
    DataError
        The manifest lacks a value, or the tokenizer is not the run's.
    CorruptStreamError
        The artifact is damaged.
    OSError
        A file cannot be written; the folder is as it was.
    """
    model = artifact.read_bytes()
    script = write_script(make_claim(manifest, data))
    with manifest_values():
        budget_bytes = manifest["recipe"]["budget_bytes"]
        classes = {**manifest["stages"]["code"]["facts"]["by_class"], "code": len(script)}
    budget = ByteBudget(code_bytes=len(script), model_bytes=len(model), budget_bytes=budget_bytes)
    record = make_record(
        manifest,
        budget,
        artifact_sha256=hashlib.sha256(model).hexdigest(),
        track=track,
        author=author,
        github_id=github_id,
    )
    requirements = list_requirements(model)
    files = {
        SCRIPT_FILE: script,
        ARTIFACT_FILE: model,
        RECORD_FILE: (json.dumps(record.to_json(), indent=1) + "\n").encode(),
        README_FILE: write_readme(record, budget, classes=classes).encode(),
        REQUIREMENTS_FILE: "".join(f"{line}\n" for line in requirements).encode(),
        log_name(record.seeds[0]): write_log(manifest, record, train_logs).encode(),
    }
    with _replacing(Path(out)) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return {
        "code_bytes": budget.code_bytes,
        "model_bytes": budget.model_bytes,
        "total_bytes": budget.total_bytes,
        "margin_bytes": budget.margin_bytes,
        "files": {name: len(content) for name, content in files.items()},
        "requirements": requirements,
    }


def log_name(seed: int) -> str:
    """File name of a seed's log."""
    return f"train_seed{seed}.log"


def make_claim(manifest: Mapping[str, Any], data: DataInfo) -> Claim:
    """What the script of a run is to know.

    Raises
    ------
    DataError
        The manifest lacks a value, or the data is of another tokenizer.
    """
    tokenizer = Tokenizer(data.tokenizer_path)
    with manifest_values():
        wanted = manifest["data"]["tokenizer_sha256"]
        suite = manifest["recipe"]["score"]
        weights = manifest["stages"]["score"]["facts"]["weights_sha256"]
    if tokenizer.sha256 != wanted:
        raise DataError(
            f"{tokenizer.path}: tokenizer {tokenizer.sha256}, the run was scored with {wanted}"
        )
    claim = _claim(suite, data, tokenizer, weights)
    return replace(claim, contaminated=manifest.get("contaminated", False))


def script_bytes(suite: Mapping[str, Any], data: DataInfo, *, contaminated: bool = False) -> int:
    """Bytes of the script that a run with these scores will ship: they are known beforehand.

    Parameters
    ----------
    suite : the table ``score`` of a resolved recipe
    data : the shards that will be scored
    contaminated : they will have been trained on
    """
    claim = _claim(suite, data, Tokenizer(data.tokenizer_path), "0" * 64)
    return len(write_script(replace(claim, contaminated=contaminated)))


def _claim(
    suite: Mapping[str, Any], data: DataInfo, tokenizer: Tokenizer, weights_sha256: str
) -> Claim:
    names = [name for name in PROTOCOLS if suite.get(name)]
    return Claim(
        weights_sha256=weights_sha256,
        tokenizer_sha256=tokenizer.sha256,
        byte_codes=""
        if data.val.byte_counts
        else write_byte_codes(tokenizer.byte_table.to_codes()),
        protocols={suite[name]["protocol"]: ScoreConfig.from_table(suite[name]) for name in names},
        headline=suite[headline_score(names)]["protocol"],
    )


def list_requirements(model: bytes) -> list[str]:
    """Packages that evaluation needs: a codec's only where a stream of the artifact uses it."""
    codecs = {
        codec
        for section in FlyFile(model, ARTIFACT_FILE).directory.sections
        for part in section.parts
        for codec, _ in part.streams
    }
    return ["numpy>=1.26", "torch>=2.11"] + [
        package for codec, package in _CODEC_PACKAGES.items() if codec in codecs
    ]


def write_log(manifest: Mapping[str, Any], record: Record, train_logs: Sequence[Path]) -> str:
    """JSON lines: the run, each step that training logged, each score, the record's numbers."""
    run = {key: manifest[key] for key in ("recipe", "seed", "data", "versions", "machine")}
    label = {"contaminated": record.contaminated}
    head = {"event": "run", **label, **run}
    scores = [
        {"event": "score", "name": name, **label, **score} for name, score in record.scores.items()
    ]
    tail = {"event": "record", **record.measured()}
    steps = [log.read_text(encoding="utf-8") for log in train_logs]
    return "".join([_line(head), *steps, *map(_line, scores), _line(tail)])


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target that takes its place at the end of an errorless block."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        if target.exists():
            target.replace(old)
        try:
            new.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
        # What killed runs left goes last: it may hold the only copy of the folder it moved away.
        for stale in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
