"""The auditor of submission folders: independent checks, each with a verdict and its evidence."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flyweight.data.info import load_data_info
from flyweight.errors import DataError, FlyweightError
from flyweight.submission.budget import CAP_BYTES
from flyweight.submission.bundle import RECORD_FILE, SCRIPT_FILE
from flyweight.submission.checks import BUNDLE_CHECKS
from flyweight.submission.claim import ARTIFACT_FILE
from flyweight.submission.common_checks import COMMON_CHECKS
from flyweight.submission.decode_streams import FlyError
from flyweight.submission.foreign import FOREIGN_CHECKS
from flyweight.submission.readme import markdown_table
from flyweight.submission.subject import NotCheckedError, Status, Subject

__all__ = ["AuditItem", "AuditReport", "audit_folder"]


_NOT_CHECKED = "not checked: "


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditItem:
    """One check."""

    name: str
    """What was checked."""
    status: Status
    """``WARN`` is for what a person should look at, or what could not be checked."""
    evidence: str
    """What was found, or why nothing was looked for."""
    was_checked: bool = True
    """False where something that the check needs was not there; then it is a ``WARN``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """All checks of a folder."""

    folder: Path
    """What was audited."""
    items: tuple[AuditItem, ...]
    """One for each check."""

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [item.name for item in self.items if item.status == "FAIL"]

    @property
    def unchecked(self) -> list[str]:
        """Names of the checks that could not be done."""
        return [item.name for item in self.items if not item.was_checked]

    @property
    def verdict(self) -> str:
        """One line: passed or failed, and how many items were not checked, and why."""
        head = "passed" if self.passed else f"FAILED {', '.join(self.failed)}"
        if not self.unchecked:
            return f"{head}; all {len(self.items)} items were checked"
        reasons: dict[str, list[str]] = {}
        for item in self.items:
            if not item.was_checked:
                reasons.setdefault(item.evidence.removeprefix(_NOT_CHECKED), []).append(item.name)
        said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        return f"{head}; {len(self.unchecked)} of {len(self.items)} items not checked ({said})"

    def to_json(self) -> dict[str, Any]:
        """``passed``, ``verdict``, ``unchecked`` and ``items``."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "unchecked": self.unchecked,
            "items": [asdict(item) for item in self.items],
        }

    def to_markdown(self) -> str:
        """A table to paste, and below it the verdict."""
        rows = [(item.name, item.status, item.evidence) for item in self.items]
        table = markdown_table(("check", "status", "evidence"), rows)
        return f"{table}\n\n{self.verdict}"


def audit_folder(
    folder: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    budget_bytes: int = CAP_BYTES,
    timeout_seconds: float = 3600.0,
    ledgers: str | os.PathLike[str] | None = None,
) -> AuditReport:
    """Check a submission folder; scores the model of a bundle where validation data is given.

    What others wrote is read and never executed: a bundle is scored by the script that flyweight
    writes for its claim.

    Parameters
    ----------
    folder : what `write_bundle` wrote, or an entry of openai/parameter-golf
    data : folder of the validation shards and their tokenizer; without it nothing is scored
    budget_bytes : what code and model may have together
    timeout_seconds : after which the scoring is stopped
    ledgers : folder with a ledger for each score, ``score`` of a RUN folder; without it, and
        without data, none is replayed

    Raises
    ------
    DataError
        The folder is no submission at all or has a pipe or device in it, or the data folder is
        unusable.
    """
    root = Path(folder)
    parts = (SCRIPT_FILE, ARTIFACT_FILE, RECORD_FILE)
    if not any((root / name).is_file() for name in parts):
        raise DataError(f"{root}: no submission folder: there is none of {', '.join(parts)}")
    for path in root.rglob("*"):  # reading a pipe or device would never end
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{path}: neither a file nor a folder; no submission has such a thing")
    subject = Subject(
        root,
        data=load_data_info(data) if data is not None else None,
        budget_bytes=budget_bytes,
        timeout_seconds=timeout_seconds,
        ledgers=Path(ledgers) if ledgers is not None else None,
    )
    items: list[AuditItem] = []
    checks = BUNDLE_CHECKS if subject.is_bundle else FOREIGN_CHECKS
    for name, check in (checks | COMMON_CHECKS).items():
        was_checked = True
        try:
            status, evidence = check(subject)
        except NotCheckedError as reason:
            status, evidence, was_checked = "WARN", f"{_NOT_CHECKED}{reason}", False
        except (FlyweightError, FlyError, OSError) as error:
            status, evidence = "FAIL", str(error)
        except RecursionError:  # comparing or printing what was just shallow enough to be read
            status, evidence = "FAIL", "a file of the folder is nested too deeply"
        items.append(
            AuditItem(name=name, status=status, evidence=evidence, was_checked=was_checked)
        )
    return AuditReport(folder=root, items=tuple(items))
