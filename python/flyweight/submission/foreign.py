"""What the auditor checks in folders of others, of which only script, logs and record are known.

References
----------
openai/parameter-golf: README (sizes, clocks), PR #1412, #1835 and #1855 (how code was counted),
PR #1945 (602.048 s), PR #701, #1804, #1850 and #1915 (bytes of the validation text), issue #2127
(training documents among the validation documents).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

from flyweight.errors import DataError
from flyweight.submission.budget import CodeReadings
from flyweight.submission.bundle import README_FILE, RECORD_FILE, REQUIREMENTS_FILE, SCRIPT_FILE
from flyweight.submission.named_files import files_named_by
from flyweight.submission.published import LogFacts, SeedClaim
from flyweight.submission.record import CLOCK_SECONDS
from flyweight.submission.subject import NotCheckedError, Subject, Verdict

__all__ = ["ANCHORS", "FOREIGN_CHECKS"]

ANCHORS = {
    "SP1024": (62_021_845, 151_080_891),
    "SP4096": (45_514_752, 151_080_891),
    "SP8192": (40_540_802, 151_080_891),
    "CaseOps": (47_853_343, 151_080_891),
}
"""Tokenizer to targets and bytes of the whole validation text; a stream that is cut to whole rows
has up to 1e-4 less."""
_CUT = 2e-4
_OVERSHOOT_SECONDS = 1.0
_LEAK_SHARDS = 1499
_LEAK_TOKENS = (9_600_000, 9_720_000)
_NOT_RUN = "foreign code is only read; flyweight.evaluate.probes takes any callable"


def _check_files(subject: Subject) -> Verdict:
    """README, record, script and at least one log; what else there is may be read at evaluation."""
    names = sorted(
        path.relative_to(subject.root).as_posix()
        for path in subject.root.rglob("*")
        if path.is_file()
    )
    wanted = [README_FILE, RECORD_FILE, SCRIPT_FILE]
    missing = [name for name in wanted if name not in names]
    if not subject.published_logs:
        missing.append("a log")
    if missing:
        return "FAIL", f"missing: {', '.join(missing)}"
    known = {*wanted, REQUIREMENTS_FILE, *subject.published_logs}
    other = [n for n in names if n not in known]
    if other:
        size = sum((subject.root / name).stat().st_size for name in other)
        return "WARN", f"not counted by the entry: {', '.join(other)} ({size:,} bytes)"
    return "PASS", f"{len(names)} files, none surplus"


def _check_sizes(subject: Subject) -> Verdict:
    """Every way to count the code, each with the largest model, against the cap."""
    logs = list(subject.published_logs.values())
    readings = _code_readings(subject, logs)
    models = [log.model_bytes for log in logs if log.model_bytes is not None]
    claimed = [c.artifact_bytes for c in subject.claims if c.artifact_bytes is not None]
    logged = [log.total_bytes for log in logs if log.total_bytes is not None]
    totals = {"as logged": max(logged)} if logged else {}
    if claimed:
        totals["as recorded"] = max(claimed)
    if models:
        totals["model and code as shipped"] = max(models) + readings.shipped
    over = [name for name, size in totals.items() if size > subject.budget_bytes]
    said = ", ".join(
        f"{name} {size:,} ({subject.budget_bytes - size:+,} to the cap)"
        for name, size in totals.items()
    )
    evidence = f"{readings}; largest seed: {said or 'no sizes in logs or record'}"
    files = _read_at_evaluation(subject)
    if files:
        evidence += f"; read by the script, not counted: {', '.join(files)}"
    if "as logged" in over or "as recorded" in over:
        return "FAIL", f"over the cap {', '.join(over)}; {evidence}"
    if over:
        return "WARN", f"over the cap if the {over[0]} count; {evidence}"
    return ("PASS" if totals and readings.agree and not files else "WARN"), evidence


def _code_readings(subject: Subject, logs: list[LogFacts]) -> CodeReadings:
    shipped = len(subject.read(SCRIPT_FILE))
    computed = [log.code_compressed_bytes or log.code_bytes for log in logs]
    known = [size for size in computed if size is not None]
    is_wrapped = any(source.packed for source in subject.sources[1:])
    return CodeReadings(
        shipped=shipped,
        wrapped=shipped if is_wrapped else None,
        computed=max(known) if known else None,
    )


def _read_at_evaluation(subject: Subject) -> list[str]:
    """Files of the folder that the script names or imports."""
    root, found = subject.root, set()
    for source in subject.sources:
        if not source.packed and source.name != SCRIPT_FILE:
            found.add(source.name.rpartition(" > ")[2])
        with suppress(DataError):
            found.update(files_named_by(source, root))
    return sorted(found - {SCRIPT_FILE, README_FILE, RECORD_FILE, REQUIREMENTS_FILE})


def _check_record(subject: Subject) -> Verdict:
    """Scores and sizes of each seed are those of its log, to the last digit."""
    problems, seen = [], 0
    for claim in subject.claims:
        logs = subject.logs_of(claim.seed)
        if not logs:
            problems.append(f"no log of seed {claim.seed}")
            continue
        seen += 1
        found = [_disagreements(claim, name, log) for name, log in logs.items()]
        closest: list[str] = min(found, key=len)  # of the original and its reruns one must agree
        problems += closest
    if not subject.claims:
        return _check_mean(subject)
    if any("no log" not in problem for problem in problems):
        return "FAIL", "; ".join(problems)
    if problems:
        return "WARN", "; ".join(problems)
    return "PASS", f"{seen} seeds of {RECORD_FILE} equal their logs"


def _disagreements(claim: SeedClaim, name: str, log: LogFacts) -> list[str]:
    problems = []
    bpb = claim.val_bpb
    if bpb is not None and log.scores and not any(_rounds_to(x, bpb) for _, _, x in log.scores):
        problems.append(f"val_bpb {bpb} of seed {claim.seed} is not in {name}")
    ours, logged = claim.artifact_bytes, log.total_bytes
    if ours is not None and logged is not None and ours != logged:
        problems.append(
            f"seed {claim.seed} has {ours:,} bytes in {RECORD_FILE}, {logged:,} in {name}"
        )
    return problems


def _check_mean(subject: Subject) -> Verdict:
    """A record without seeds: its score is in a log, or the mean of all logs."""
    bpb = subject.record.get("val_bpb")
    logged = [log.val_bpb for log in subject.published_logs.values() if log.val_bpb is not None]
    if type(bpb) is not float or not logged:
        return "WARN", f"{RECORD_FILE} has val_bpb {bpb!r}, logs have {len(logged)} scores"
    if any(_rounds_to(value, bpb) for value in [*logged, sum(logged) / len(logged)]):
        return "PASS", f"val_bpb {bpb} is in a log or their mean; no scores by seed"
    return "FAIL", f"val_bpb {bpb} is neither in a log nor their mean: {logged}"


def _rounds_to(value: float, claimed: float) -> bool:
    """Whether a value is the claimed one, to the digits that are claimed."""
    digits = len(repr(claimed).partition(".")[2])
    return abs(value - claimed) <= 10.0**-digits * (0.5 + 1e-9) or value == claimed


def _check_clocks(subject: Subject) -> Verdict:
    """Training data untouched after 600 s, evaluation in 600 s, on each seed."""
    late, close, unknown, said = [], [], [], []
    for name, log in subject.published_logs.items():
        trained, evaluated = log.data_seconds, log.eval_seconds
        if trained is None or evaluated is None:
            unknown.append(name)
        if trained is not None:
            parts = (
                f" ({log.train_seconds:.3f} + {log.hessian_seconds:.1f} Hessians)"
                if log.hessian_seconds
                else ""
            )
            said.append(f"{name}: training data until {trained:.3f} s{parts}")
            if trained > CLOCK_SECONDS + _OVERSHOOT_SECONDS:
                late.append(f"{name} reads training data until {trained:.3f} s")
            elif trained > CLOCK_SECONDS:
                close.append(f"{trained:.3f} s in {name}")
        if evaluated is not None:
            said.append(f"evaluation {evaluated:.1f} s")
            if evaluated > CLOCK_SECONDS:
                late.append(f"{name} evaluates for {evaluated:.3f} s")
    if late:
        return "FAIL", f"over {CLOCK_SECONDS:.0f} s: {'; '.join(late)}"
    if close:
        note = "within a second, a step or a batch; merged entries have it"
        return "WARN", f"training ends after {CLOCK_SECONDS:.0f} s, {note}: {'; '.join(close)}"
    if unknown or not said:
        return "WARN", f"no clock in {', '.join(unknown) or 'any log'}; {'; '.join(said)}"
    return "PASS", "; ".join(said)


def _check_bytes(subject: Subject) -> Verdict:
    """``bytes = val_loss / ln 2 * tokens / val_bpb`` of each log is that of the text."""
    wrong, strange, good = [], [], []
    for name, log in subject.published_logs.items():
        if log.val_loss is None or not log.val_bpb or not log.val_tokens:
            strange.append(f"{name} lacks val_loss, val_bpb or tokens")
            continue
        found = log.val_loss / math.log(2.0) * log.val_tokens / log.val_bpb
        anchor = next(
            ((n, b) for n, (t, b) in ANCHORS.items() if abs(log.val_tokens / t - 1) < _CUT), None
        )
        if anchor is None:
            strange.append(
                f"{name}: {found:,.0f} bytes of {log.val_tokens:,} tokens, no known text"
            )
            continue
        ratio = found / anchor[1]
        # four printed digits are 1e-4 of the loss
        said = f"{name}: {found:,.0f} bytes, {anchor[0]} has {anchor[1]:,}"
        if abs(ratio - 1) > _CUT:
            wrong.append(f"{said}: x{ratio:.4f}, corrected {log.val_bpb * ratio:.6f} bpb")
        else:
            good.append(said)
    if wrong:
        return "FAIL", "; ".join(wrong)
    return ("WARN" if strange or not good else "PASS"), "; ".join(strange + good) or "no logs"


def _check_data(subject: Subject) -> Verdict:
    """Fingerprints of known leaks; without the shards hashes of documents cannot be compared."""
    leaks, said = [], []
    for name, log in subject.published_logs.items():
        if log.train_shards is not None:
            said.append(f"{name}: {log.train_shards} train shards, {log.val_tokens} val tokens")
        if log.train_shards == _LEAK_SHARDS:
            leaks.append(f"{name}: {_LEAK_SHARDS} training shards")
        if log.val_tokens is not None and _LEAK_TOKENS[0] < log.val_tokens < _LEAK_TOKENS[1]:
            leaks.append(f"{name}: {log.val_tokens:,} validation tokens")
    if leaks:
        return "FAIL", f"as where training had validation documents: {'; '.join(leaks)}"
    note = "no fingerprint of a known leak; document hashes not checked"
    return "WARN", f"{note}{': ' if said else ''}{'; '.join(said)}"


def _not_run(subject: Subject) -> Verdict:
    raise NotCheckedError(_NOT_RUN)


def _round_trip(subject: Subject) -> Verdict:
    raise NotCheckedError("there is no model in the folder that flyweight can decode")


FOREIGN_CHECKS: dict[str, Callable[[Subject], Verdict]] = {
    "files": _check_files,
    "sizes": _check_sizes,
    "record": _check_record,
    "round trip": _round_trip,
    "clocks": _check_clocks,
    "probes": _not_run,
    "documents": _not_run,
    "byte accounting": _check_bytes,
    "data": _check_data,
}
