"""What the auditor checks in a bundle.

A check is a function of a `Subject` that returns a status and what it saw, or raises: then it has
failed, and the message is the evidence. These are for folders that flyweight wrote.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Callable

import numpy as np

import flyweight
from flyweight.data.byte_counts import ByteTable
from flyweight.data.info import check_hashes
from flyweight.data.overlap import overlapping_documents
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
)
from flyweight.submission.check_ledgers import replay_scores
from flyweight.submission.check_logs import log_contradictions
from flyweight.submission.check_record import contradictions
from flyweight.submission.claim import ARTIFACT_FILE, read_byte_codes
from flyweight.submission.decoder import decode_fly
from flyweight.submission.digest import weights_sha256
from flyweight.submission.model_checks import MODEL_CHECKS
from flyweight.submission.record import CLOCK_SECONDS, MEASURED, headline_score
from flyweight.submission.script import changed_statements, read_claim, read_version
from flyweight.submission.subject import (
    RESULT,
    NotCheckedError,
    Status,
    Subject,
    Verdict,
    parse_object,
    value_at,
)
from flyweight.submission.unpack_script import parse_source
from flyweight.train.config import CONTAMINATED

__all__ = ["BPB_TOLERANCE", "BUNDLE_CHECKS"]

BPB_TOLERANCE = {"cpu": 1e-6, "cuda": 1e-4}
"""Largest difference in bits per byte of a repeated score. The same machine and versions give the
same bits on the CPU; other CPUs sum in another order, and CUDA's attention may do so in each run.
"""
MOST_REPEATED = 0.01
"""Share of validation documents in the training split that is taken for repeated pages."""
_MOST_NAMED = 8
_CODEC_IMPORTS = ("brotli", "zstandard")
_REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)\s*([<>=!~]=?\s*[\w.+*]+\s*(,\s*|$))*$")
"""A package and its versions, from where packages come by default."""


# --- checks ---------------------------------------------------------------------------------------


def _check_files(subject: Subject) -> Verdict:
    """Nothing is missing or elsewhere; what is surplus could be read, and is named."""
    if links := sorted(path.name for path in subject.root.rglob("*") if path.is_symlink()):
        return "FAIL", f"links to what is not in the folder and not counted: {', '.join(links)}"
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
        size = value_at(result, f"{RECORD_FILE} seed {seed}", "artifact_bytes", kinds=(int,))
        if size > subject.budget_bytes:
            return "FAIL", f"seed {seed} has {size:,} bytes; {evidence}"
    if budget.margin_bytes < 0:
        return "FAIL", evidence
    return ("PASS" if code.agree else "WARN"), evidence


def _check_record(subject: Subject) -> Verdict:
    """``submission.json``, the logs and arithmetic have the same numbers, to the last digit."""
    if subject.record.get("contaminated"):
        return "FAIL", f"{CONTAMINATED}: by its own record; no score of such a model is legal"
    seeds, results = subject.recorded("seeds", list), subject.recorded("seed_results", dict)
    if sorted(map(str, seeds)) != sorted(results):
        return "FAIL", f"{RECORD_FILE}: seed_results has {sorted(results)}, seeds is {seeds}"
    wrong: list[str] = []
    for seed, name in zip(seeds, subject.logs, strict=True):
        lines = [parse_object(line, name) for line in subject.read(name).splitlines()]
        logged = lines.pop() if lines else {}
        if logged.get("event") != "record":
            return "FAIL", f"{name}: its last line has no event 'record'"
        for field in MEASURED:
            ours, theirs = subject.recorded(field, object), logged.get(field)
            if ours != theirs:
                return "FAIL", f"{field} is {ours} in {RECORD_FILE}, {theirs} in {name}"
        wrong += log_contradictions(lines, subject.record, seed=seed, name=name)
    found = contradictions(subject.record, read_claim(subject.script))
    if wrong := [*wrong, *(f"{RECORD_FILE}: {each}" for each in found)]:
        return "FAIL", "; ".join(wrong)
    bpb = subject.recorded("val_bpb", float)
    return "PASS", (
        f"{len(MEASURED)} fields of {RECORD_FILE} equal the log, as do its run, steps and scores, "
        f"and each follows from the others, val_bpb {bpb!r}"
    )


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
    wanted = [text for line in lines if (text := line.partition("#")[0].strip())]
    packages = {text: found[1] if (found := _REQUIREMENT.match(text)) else "" for text in wanted}
    listed = set(packages.values())
    if unlisted := sorted(foreign - listed - set(_CODEC_IMPORTS)):
        return "WARN", f"{REQUIREMENTS_FILE} does not list {', '.join(unlisted)}"
    if surplus := [text for text, package in packages.items() if package not in foreign]:
        evidence = f"{REQUIREMENTS_FILE} lists what the script does not import, whose code and data"
        return "WARN", f"{evidence} are not counted: {', '.join(surplus)}"
    unused = sorted(foreign - listed)
    note = f"; {', '.join(unused)} for codecs that the artifact does not use" if unused else ""
    return "PASS", f"the standard library, {', '.join(sorted(foreign & listed))}{note}"


def _check_script(subject: Subject) -> Verdict:
    """The script is flyweight's own, so that it scores as its engines do; what differs is named."""
    shipped, version = subject.read(SCRIPT_FILE), flyweight.__version__
    writer = read_version(shipped)
    is_other = writer not in ("", version)
    other = f"flyweight {writer} wrote it, as it says, and this is {version}"
    try:
        own = subject.own_script
    except DataError as error:
        raise DataError(f"{other}: {error}" if is_other else str(error)) from error
    if shipped == own:
        return "PASS", f"byte for byte what flyweight {version} writes for its claim"
    tree = parse_source(own.decode(), "own")
    if ast.dump(subject.script) == ast.dump(tree):
        evidence = f"statement for statement what flyweight {version} writes for its claim, with "
        return "PASS", f"{evidence}other comments or layout"
    changed = changed_statements(subject.script, tree)
    found = ", ".join(changed[:_MOST_NAMED]) + (", ..." if len(changed) > _MOST_NAMED else "")
    if not is_other:
        other = f"{SCRIPT_FILE} is not what flyweight {version} writes for its claim"
    return "WARN", (
        f"{other}; other statements: {found or 'none, but their order or number'}. It was not run"
    )


def _check_round_trip(subject: Subject) -> Verdict:
    """A fresh process with the counted bytes alone decodes them and scores what was logged."""
    result, recorded = subject.result, subject.recorded("val_bpb", float)
    weights = value_at(result, RESULT, "weights_sha256", kinds=(str,))
    if weights != subject.recorded("weights_sha256", str):
        return "FAIL", f"weights {weights}, recorded {subject.record['weights_sha256']}"
    # Floats only: an int of 400 digits is JSON too, and does not fit the arithmetic below.
    coverage = value_at(result, RESULT, "coverage", kinds=(float,))
    if coverage != 1.0:
        return "FAIL", f"only {coverage:.6%} of the targets are scored"
    bpb = value_at(result, RESULT, "score", "bpb", kinds=(float,))
    device = value_at(result, RESULT, "device", kinds=(str,))
    on_cpu = device == subject.record.get("device") == "cpu"
    tolerance = BPB_TOLERANCE["cpu" if on_cpu else "cuda"]
    seconds = value_at(result, RESULT, "decode_seconds", kinds=(float,))
    difference = recorded - bpb
    evidence = (
        f"{bpb!r} bpb on {device}, recorded {recorded!r}: difference {abs(difference):.1e}, "
        f"tolerance {tolerance:.0e} (0 is expected on the same CPU); weights equal, coverage "
        f"100 %, decoded in {seconds:.2f} s"
    )
    agrees = abs(difference) <= tolerance
    if not agrees and (cut := _cut_by_deadline(subject)):
        agrees = difference > 0
        said = f"{cut} made it worse by as much" if agrees else f"better than without its {cut}"
        evidence += f"; {said}, and no clock can be repeated"
    if subject.read(SCRIPT_FILE) != subject.own_script:
        evidence += f"; by flyweight's script for its claim, not by {SCRIPT_FILE}"
    return ("PASS" if agrees else "FAIL"), evidence


def _cut_by_deadline(subject: Subject) -> str:
    """The deadline that took training or overlap from the recorded score; empty if none did."""
    scores = subject.recorded("scores", dict)
    source, name = f"{RECORD_FILE} scores", headline_score(scores)
    deadline = value_at(scores, source, name, "deadline", kinds=(int, float, type(None)))
    is_cut = any(
        value_at(scores, source, name, count) != value_at(subject.result, RESULT, count)
        for count in ("adapted_chunks", "plain_chunks")
    )
    return f"deadline of {deadline} s" if is_cut and deadline is not None else ""


def _check_bytes(subject: Subject) -> Verdict:
    """Byte table, bytes and targets are those of tokenizer and shards, counted anew."""
    data = subject.data
    codes = read_byte_codes(read_claim(subject.script).byte_codes)
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
    sources = {"data.json": facts, RESULT: value_at(subject.result, RESULT, "score", kinds=(dict,))}
    for name, score in subject.recorded("scores", dict).items():
        sources[f"{RECORD_FILE} {name}"] = score
    for source, numbers in sources.items():
        for key, expected in counted.items():
            found = value_at(numbers, source, key)
            if found != expected:
                return "FAIL", f"{source} has {found:,} {key}, the shards have {expected:,}"
    source = f"table of {codes.size} ids equals the tokenizer's" if codes.size else "byte sidecars"
    return "PASS", (
        f"{source}; {counted['bytes']:,} bytes and "
        f"{counted['targets']:,} targets in shards, data.json, script and record"
    )


def _check_ledgers(subject: Subject) -> Verdict:
    """Ledgers hold one final score for each target, and give the recorded scores again."""
    data = subject.data
    if subject.ledgers is None:
        raise NotCheckedError("no ledgers were given (--ledgers)")
    scores = subject.recorded("scores", dict)
    for name in scores:
        value_at(scores, RECORD_FILE, name, "chain", kinds=(str,))
    wrong, evidence = replay_scores(
        subject.ledgers,
        data,
        scores,
        claim=read_claim(subject.script),
        artifact_sha256=hashlib.sha256(subject.read(ARTIFACT_FILE)).hexdigest(),
    )
    return ("FAIL", wrong[0]) if wrong else ("PASS", evidence)


def _check_clocks(subject: Subject) -> Verdict:
    """Training data untouched and evaluation over after 600 s, on every seed."""
    said, late = [], []
    for seed, result in subject.recorded("seed_results", dict).items():
        for field in ("train_data_seconds", "eval_seconds"):
            seconds = value_at(result, f"{RECORD_FILE} seed {seed}", field, kinds=(int, float))
            said.append(f"seed {seed}: {field} {seconds:.3f}")
            if not 0 <= seconds <= CLOCK_SECONDS:
                late.append(said[-1])
    if late:
        return "FAIL", f"not from 0 to {CLOCK_SECONDS:.0f} s: {', '.join(late)}"
    return "PASS", f"{', '.join(said)}; decoding is outside of the clock"


def _check_data(subject: Subject) -> Verdict:
    """Validation files have their stored hashes, and no document that training has too."""
    data = subject.data
    check_hashes(data.folder, data.val.shards + data.val.byte_counts)
    if not data.train.shards:
        raise NotCheckedError("the data folder has no training shards")
    overlap = overlapping_documents(data.folder, data.folder)
    evidence = (
        f"{overlap.shared_val:,} of {overlap.val_documents:,} validation documents are training "
        "documents"
    )
    if not overlap.shared_val:
        return "PASS", evidence
    # Web text repeats a page now and then; a split that went wrong repeats most of them.
    found: Status = "FAIL" if overlap.share > MOST_REPEATED else "WARN"
    return found, f"{evidence}, the first as {overlap.first}"


BUNDLE_CHECKS: dict[str, Callable[[Subject], Verdict]] = {
    "files": _check_files,
    "sizes": _check_sizes,
    "record": _check_record,
    "container": _check_container,
    "imports": _check_imports,
    "script": _check_script,
    "round trip": _check_round_trip,
    "clocks": _check_clocks,
    **MODEL_CHECKS,
    "byte accounting": _check_bytes,
    "ledgers": _check_ledgers,
    "data": _check_data,
}
