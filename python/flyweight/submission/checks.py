"""What the auditor checks.

A check is a function of a `Subject` that returns a status and what it saw, or raises: then it has
failed, and the message is the evidence. `CHECKS` lists them in the order of the report.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flyweight.data.byte_counts import ByteTable
from flyweight.data.facts import DataInfo
from flyweight.data.shards import iter_chunks, read_shard
from flyweight.data.sidecar import validation_counter
from flyweight.errors import DataError
from flyweight.format.container import FlyFile
from flyweight.submission.budget import ByteBudget, read_code
from flyweight.submission.bundle import (
    README_FILE,
    RECORD_FILE,
    REQUIREMENTS_FILE,
    SCRIPT_FILE,
    log_name,
)
from flyweight.submission.check_ledgers import replay_scores
from flyweight.submission.claim import ARTIFACT_FILE, read_byte_codes
from flyweight.submission.decoder import decode_fly
from flyweight.submission.digest import weights_sha256
from flyweight.submission.record import MEASURED
from flyweight.train.config import CONTAMINATED

__all__ = ["BPB_TOLERANCE", "CHECKS", "Status", "Subject"]

Status: TypeAlias = Literal["PASS", "WARN", "FAIL"]
Verdict: TypeAlias = tuple[Status, str]

BPB_TOLERANCE = {"cpu": 1e-6, "cuda": 1e-4}
"""Largest difference in bits per byte of a repeated score. The same machine and versions give the
same bits on the CPU; other CPUs sum in another order, and CUDA's attention may do so in each run.
"""
_RESULT = "the script's result"
_CODEC_IMPORTS = ("brotli", "zstandard")


class Subject:
    """What the checks look at, read once when first asked for.

    Parameters
    ----------
    root : the submission folder
    data : validation shards and their facts, if any
    budget_bytes : what code and model may have together
    timeout_seconds : after which the script is stopped
    ledgers : folder with a ledger for each recorded score, if any
    """

    def __init__(
        self,
        root: Path,
        *,
        data: DataInfo | None,
        budget_bytes: int,
        timeout_seconds: float,
        ledgers: Path | None = None,
    ) -> None:
        self.root, self.data, self.ledgers = root, data, ledgers
        self.budget_bytes, self.timeout_seconds = budget_bytes, timeout_seconds

    def read(self, name: str) -> bytes:
        """A file's bytes; a missing file is a `DataError`."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise DataError(f"{name} is missing") from None

    @cached_property
    def record(self) -> dict[str, Any]:
        """``submission.json``."""
        return _parse(self.read(RECORD_FILE), RECORD_FILE)

    def recorded(self, name: str, *kinds: type) -> Any:
        """One field of the record."""
        return _value(self.record, RECORD_FILE, name, kinds=kinds)

    @property
    def logs(self) -> list[str]:
        """File names of the logs that there must be, at least one."""
        seeds = self.recorded("seeds", list)
        if not seeds or any(type(seed) is not int for seed in seeds):
            raise DataError(f"{RECORD_FILE}: field seeds is {seeds!r}, expected one or more ints")
        return [log_name(seed) for seed in seeds]

    @cached_property
    def script(self) -> ast.Module:
        """``train_gpt.py``, parsed but not run."""
        try:
            return ast.parse(self.read(SCRIPT_FILE))
        except (SyntaxError, ValueError) as error:
            raise DataError(f"{SCRIPT_FILE}: not Python that can be read: {error}") from error
        except (RecursionError, MemoryError) as error:  # the latter is the parser's own stack
            raise DataError(f"{SCRIPT_FILE}: nested too deeply to be read") from error

    @cached_property
    def result(self) -> dict[str, Any]:
        """What the script finds when it runs on the data, in a process of its own."""
        assert self.data is not None
        self.read(SCRIPT_FILE)
        device = "cpu" if self.record.get("device") == "cpu" else "auto"
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch, "result.json")
            options = ["--data", str(self.data.folder.resolve()), "--device", device]
            self._run([SCRIPT_FILE, *options, "--out", str(out)])
            return _parse(out.read_bytes() if out.exists() else b"", _RESULT)

    def _run(self, command: list[str]) -> None:
        # -P and no PYTHON* variables: neither the folder nor a source tree can be imported.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        try:
            done = subprocess.run(
                [sys.executable, "-P", *command],
                cwd=self.root,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            limit = f"{self.timeout_seconds:.0f} s"
            raise DataError(f"{command[0]} did not end within {limit}") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
            raise DataError(f"{command[0]} ended with exit code {done.returncode}: {last}")


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError(f"{name}: not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{name}: nested too deeply to be read") from error
    if not isinstance(found, dict):
        raise DataError(f"{name}: expected a JSON object, got {type(found).__name__}")
    return found


def _value(facts: Any, source: str, *path: str, kinds: tuple[type, ...] = (int, float)) -> Any:
    """A field of nested objects, of the kinds expected; anything else is a `DataError`."""
    for key in path:
        if not isinstance(facts, dict) or key not in facts:
            raise DataError(f"{source}: field {'.'.join(path)} is missing")
        facts = facts[key]
    if not isinstance(facts, kinds):
        raise DataError(f"{source}: field {'.'.join(path)} is {facts!r}")
    return facts


# --- checks ---------------------------------------------------------------------------------------


def _check_files(subject: Subject) -> Verdict:
    """Nothing is missing; what is surplus could be read by the script, and is named."""
    known = {SCRIPT_FILE, ARTIFACT_FILE, RECORD_FILE, README_FILE, REQUIREMENTS_FILE}
    known.update(subject.logs)
    paths = [path for path in subject.root.rglob("*") if path.is_file()]
    sizes = {path.relative_to(subject.root).as_posix(): path.stat().st_size for path in paths}
    if missing := sorted(known - sizes.keys()):
        return "FAIL", f"missing: {', '.join(missing)}"
    if surplus := sorted(sizes.keys() - known):
        size = sum(sizes[name] for name in surplus)
        return "WARN", f"not counted in the total: {', '.join(surplus)} ({size:,} bytes)"
    return "PASS", f"{len(known)} files, none surplus"


def _check_sizes(subject: Subject) -> Verdict:
    """Code and model fit the budget, and the record has their sizes."""
    script = subject.read(SCRIPT_FILE)
    budget = ByteBudget(
        code_bytes=len(script),
        model_bytes=len(subject.read(ARTIFACT_FILE)),
        budget_bytes=subject.budget_bytes,
    )
    code = read_code(subject.script, size=len(script), recorded=subject.recorded("bytes_code", int))
    evidence = f"{budget}; {code}"
    for part in ("code", "model", "total"):
        recorded, found = subject.recorded(f"bytes_{part}", int), getattr(budget, f"{part}_bytes")
        if recorded != found:
            return "FAIL", f"{RECORD_FILE}: bytes_{part} is {recorded:,}, found {found:,}"
    for seed, result in subject.recorded("seed_results", dict).items():
        size = _value(result, f"{RECORD_FILE} seed {seed}", "artifact_bytes", kinds=(int,))
        if size > subject.budget_bytes:
            return "FAIL", f"seed {seed} has {size:,} bytes; {evidence}"
    if budget.margin_bytes < 0:
        return "FAIL", evidence
    return ("PASS" if code.agree else "WARN"), evidence


def _check_record(subject: Subject) -> Verdict:
    """``submission.json`` and the logs have the same numbers, to the last digit."""
    if subject.record.get("contaminated"):
        return "FAIL", f"{CONTAMINATED}: by its own record; no score of such a model is legal"
    seeds, results = subject.recorded("seeds", list), subject.recorded("seed_results", dict)
    if sorted(map(str, seeds)) != sorted(results):
        return "FAIL", f"{RECORD_FILE}: seed_results has {sorted(results)}, seeds is {seeds}"
    for name in subject.logs:
        lines = [_parse(line, name) for line in subject.read(name).splitlines()]
        logged = next((line for line in reversed(lines) if line.get("event") == "record"), None)
        if logged is None:
            return "FAIL", f"{name}: no line with the event 'record'"
        for field in MEASURED:
            ours, theirs = subject.recorded(field, object), logged.get(field)
            if ours != theirs:
                return "FAIL", f"{field} is {ours} in {RECORD_FILE}, {theirs} in {name}"
    bpb = subject.recorded("val_bpb", float)
    return "PASS", f"{len(MEASURED)} fields of {RECORD_FILE} equal the log, val_bpb {bpb!r}"


def _check_container(subject: Subject) -> Verdict:
    """Every section is intact, and two independent readers agree on every bit."""
    data = subject.read(ARTIFACT_FILE)
    file = FlyFile(data, ARTIFACT_FILE)
    file.verify()
    tensors = {name: file[name] for name in file}
    inlined, _ = decode_fly(data)
    for name in sorted(tensors.keys() | inlined.keys()):
        ours, theirs = ({k: v for k, v in t.items() if k == name} for t in (tensors, inlined))
        if weights_sha256(ours) != weights_sha256(theirs):
            return "FAIL", f"{ARTIFACT_FILE}: tensor {name!r}: the two decoders differ"
    weights = weights_sha256(tensors)
    found = {"artifact_sha256": hashlib.sha256(data).hexdigest(), "weights_sha256": weights}
    for name, digest in found.items():
        if subject.recorded(name, str) != digest:
            return "FAIL", f"{RECORD_FILE}: {name} is {subject.record[name]}, found {digest}"
    return "PASS", f"{len(tensors)} tensors intact, two decoders agree bit for bit: {weights}"


def _check_imports(subject: Subject) -> Verdict:
    """The script imports the standard library and what it lists, and nothing of flyweight."""
    names: set[str] = set()
    for node in ast.walk(subject.script):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or ".").partition(".")[0])
    foreign = names - set(sys.stdlib_module_names)
    if "flyweight" in foreign:
        return "FAIL", f"{SCRIPT_FILE} imports flyweight, whose code is not counted"
    lines = subject.read(REQUIREMENTS_FILE).decode(errors="replace").splitlines()
    listed = {line.split(">")[0].split("=")[0].strip() for line in lines}
    if unlisted := sorted(foreign - listed - set(_CODEC_IMPORTS)):
        return "WARN", f"{REQUIREMENTS_FILE} does not list {', '.join(unlisted)}"
    unused = sorted(foreign - listed)
    note = f"; {', '.join(unused)} for codecs that the artifact does not use" if unused else ""
    return "PASS", f"the standard library, {', '.join(sorted(foreign & listed))}{note}"


def _check_round_trip(subject: Subject) -> Verdict:
    """A fresh process decodes the shipped bytes and scores what was logged."""
    if subject.data is None:
        return "WARN", "not run: no validation data was given"
    result, recorded = subject.result, subject.recorded("val_bpb", float)
    weights = _value(result, _RESULT, "weights_sha256", kinds=(str,))
    if weights != subject.recorded("weights_sha256", str):
        return "FAIL", f"weights {weights}, recorded {subject.record['weights_sha256']}"
    # Floats only: an int of 400 digits is JSON too, and does not fit the arithmetic below.
    coverage = _value(result, _RESULT, "coverage", kinds=(float,))
    if coverage != 1.0:
        return "FAIL", f"only {coverage:.6%} of the targets are scored"
    bpb = _value(result, _RESULT, "score", "bpb", kinds=(float,))
    device = _value(result, _RESULT, "device", kinds=(str,))
    on_cpu = device == subject.record.get("device") == "cpu"
    tolerance = BPB_TOLERANCE["cpu" if on_cpu else "cuda"]
    seconds = _value(result, _RESULT, "decode_seconds", kinds=(float,))
    difference = abs(bpb - recorded)
    evidence = (
        f"{bpb!r} bpb on {device}, recorded {recorded!r}: difference {difference:.1e}, tolerance "
        f"{tolerance:.0e} (0 is expected on the same CPU); weights equal, coverage 100 %, decoded "
        f"in {seconds:.2f} s"
    )
    return ("PASS" if difference <= tolerance else "FAIL"), evidence


def _check_bytes(subject: Subject) -> Verdict:
    """Byte table, bytes and targets are those of tokenizer and shards, counted anew."""
    data = subject.data
    if data is None:
        return "WARN", "not checked: no validation data was given"
    codes = _claimed_codes(subject.script)
    counter = validation_counter(data)
    rebuilt = counter.to_codes() if isinstance(counter, ByteTable) else np.empty(0)
    if codes.shape != rebuilt.shape or (codes != rebuilt).any():
        return "FAIL", f"the script's byte table is not that of {data.tokenizer_path.name}"
    shards = [data.folder / shard.name for shard in data.val.shards]
    counted = {
        "bytes": counter.total(iter_chunks(shards)),
        "targets": sum(read_shard(path).size for path in shards) - 1,
    }
    facts = {"bytes": data.val.scored_bytes, "targets": data.val.scored_targets}
    sources = {"data.json": facts, _RESULT: _value(subject.result, _RESULT, "score", kinds=(dict,))}
    for name, score in subject.recorded("scores", dict).items():
        sources[f"{RECORD_FILE} {name}"] = score
    for source, numbers in sources.items():
        for key, expected in counted.items():
            found = _value(numbers, source, key)
            if found != expected:
                return "FAIL", f"{source} has {found:,} {key}, the shards have {expected:,}"
    source = f"table of {codes.size} ids equals the tokenizer's" if codes.size else "byte sidecars"
    return "PASS", (
        f"{source}; {counted['bytes']:,} bytes and "
        f"{counted['targets']:,} targets in shards, data.json, script and record"
    )


def _check_ledgers(subject: Subject) -> Verdict:
    """Ledgers hold one final score for each target, and give the recorded scores again."""
    if subject.data is None or subject.ledgers is None:
        return "WARN", "not replayed: no validation data or no ledgers were given"
    scores = subject.recorded("scores", dict)
    for name in scores:
        _value(scores, RECORD_FILE, name, "chain", kinds=(str,))
    wrong, evidence = replay_scores(subject.ledgers, subject.data, scores)
    return ("FAIL", wrong[0]) if wrong else ("PASS", evidence)


def _claimed_codes(script: ast.Module) -> NDArray[np.uint16]:
    """The byte table in a script, ``(vocab,)``."""
    for node in ast.walk(script):
        if isinstance(node, ast.keyword) and node.arg == "byte_codes":
            text = node.value.value if isinstance(node.value, ast.Constant) else None
            if not isinstance(text, str):
                raise DataError(f"{SCRIPT_FILE}: its byte table is not a string")
            return read_byte_codes(text)
    raise DataError(f"{SCRIPT_FILE}: no byte table found in it")


CHECKS: dict[str, Callable[[Subject], Verdict]] = {
    "files": _check_files,
    "sizes": _check_sizes,
    "record": _check_record,
    "container": _check_container,
    "imports": _check_imports,
    "round trip": _check_round_trip,
    "byte accounting": _check_bytes,
    "ledgers": _check_ledgers,
}
