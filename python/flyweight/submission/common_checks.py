"""Checks of the auditor that are the same for every folder: answers, statistics, static scan."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from statistics import fmean, stdev

from flyweight.errors import DataError
from flyweight.submission.bundle import RECORD_FILE
from flyweight.submission.named_files import opened_files
from flyweight.submission.paid_prefix import TEXT_PIECE, TOKEN_PIECE, index_validation
from flyweight.submission.published import read_runs
from flyweight.submission.scan import Finding, scan_source
from flyweight.submission.statistics import count_seeds
from flyweight.submission.subject import Subject, Verdict

__all__ = ["COMMON_CHECKS"]


def _check_statistics(subject: Subject) -> Verdict:
    """How many seeds there are and how much they vary; a comparison needs a second record."""
    runs = read_runs(subject.record, name=RECORD_FILE)
    if not runs.bpb:
        return "WARN", f"{RECORD_FILE} has no val_bpb that is a number"
    evidence = f"{count_seeds(len(runs.bpb))}, mean {fmean(runs.bpb):.8f} bpb"
    mean = subject.record.get("val_bpb")
    if isinstance(mean, float) and len(runs.bpb) > 1:
        evidence += f", standard deviation {stdev(runs.bpb):.6f}, recorded {mean!r}"
        if abs(mean - fmean(runs.bpb)) > 1e-5:
            best = " (the best seed)" if mean == min(runs.bpb) else ""
            return "WARN", f"{evidence}: the record is not the mean of its seeds{best}"
    if len(runs.bpb) < 3:
        return "WARN", f"{evidence}; the rules want 3"
    return "PASS", f"{evidence}; compare records with `flyweight stats`"


def _check_scan(subject: Subject) -> Verdict:
    """Every layer of the script and of what it imports, not run, searched for known mistakes."""
    findings: list[Finding] = []
    problems: list[str] = []
    sources = [*subject.sources, *subject.helpers]
    for source in sources:
        problems += source.problems
        with suppress(DataError):  # not Python: then the problems say so, of an inner layer
            findings += scan_source(source)
    layers = " then ".join(
        f"{source.name.rpartition(' > ')[2]} ({len(source.text):,})" for source in sources
    )
    said = "; ".join(map(str, sorted(findings, key=lambda each: each.status)))
    evidence = "; ".join(filter(None, [f"scanned {layers}", *problems, said]))
    if any(finding.status == "FAIL" for finding in findings):
        return "FAIL", evidence
    if findings or problems:
        return "WARN", evidence
    names = sorted({name for source in subject.sources for name in opened_files(source)})
    return "PASS", f"{evidence}; no finding; names of files in it: {', '.join(names) or 'none'}"


def _check_paid_prefix(subject: Subject) -> Verdict:
    """No file of the folder, counted or not, has the text that is to be predicted."""
    indexes = index_validation(subject.data)
    paths = sorted(path for path in subject.root.rglob("*") if path.is_file())
    for path in paths:
        for index in indexes:
            if (place := index.find(path)) is not None:
                name = path.relative_to(subject.root).as_posix()
                return "FAIL", f"a paid prefix: {name} has {index.kind} at byte {place:,}"
    return "PASS", (
        f"{len(paths)} files: no run of {2 * TOKEN_PIECE} validation tokens as 16-bit ids nor of "
        f"{2 * TEXT_PIECE} bytes of their text; what is compressed would not be seen"
    )


COMMON_CHECKS: dict[str, Callable[[Subject], Verdict]] = {
    "paid prefix": _check_paid_prefix,
    "statistics": _check_statistics,
    "static scan": _check_scan,
}
