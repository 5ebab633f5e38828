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
from flyweight.submission.subject import Status, Subject

__all__ = ["AuditItem", "AuditReport", "audit_folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditItem:
    """One check."""

    name: str
    """What was checked."""
    status: Status
    """``WARN`` is for what a person should look at, or what could not be checked."""
    evidence: str
    """What was found."""


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

    def to_json(self) -> dict[str, Any]:
        """``passed`` and ``items``."""
        return {"passed": self.passed, "items": [asdict(item) for item in self.items]}

    def to_markdown(self) -> str:
        """A table to paste."""
        rows = [(item.name, item.status, item.evidence) for item in self.items]
        return markdown_table(("check", "status", "evidence"), rows)


def audit_folder(
    folder: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    budget_bytes: int = CAP_BYTES,
    timeout_seconds: float = 3600.0,
    ledgers: str | os.PathLike[str] | None = None,
) -> AuditReport:
    """Check a submission folder; **runs its script** where validation data is given.

    Only the script of a bundle is run: what others wrote is read and never executed.

    Parameters
    ----------
    folder : what `write_bundle` wrote, or an entry of openai/parameter-golf
    data : folder of the validation shards and their tokenizer; without it nothing is scored
    budget_bytes : what code and model may have together
    timeout_seconds : after which the script is stopped
    ledgers : folder with a ledger for each score, ``score`` of a RUN folder; without it, and
        without data, none is replayed

    Raises
    ------
    DataError
        The folder is no submission at all, or the data folder is unusable.
    """
    root = Path(folder)
    parts = (SCRIPT_FILE, ARTIFACT_FILE, RECORD_FILE)
    if not any((root / name).is_file() for name in parts):
        raise DataError(f"{root}: no submission folder: there is none of {', '.join(parts)}")
    subject = Subject(
        root,
        data=load_data_info(data) if data is not None else None,
        budget_bytes=budget_bytes,
        timeout_seconds=timeout_seconds,
        ledgers=Path(ledgers) if ledgers is not None else None,
    )
    items = []
    checks = BUNDLE_CHECKS if subject.is_bundle else FOREIGN_CHECKS
    for name, check in (checks | COMMON_CHECKS).items():
        try:
            status, evidence = check(subject)
        except (FlyweightError, FlyError, OSError) as error:
            status, evidence = "FAIL", str(error)
        except RecursionError:  # comparing or printing what was just shallow enough to be read
            status, evidence = "FAIL", "a file of the folder is nested too deeply"
        items.append(AuditItem(name=name, status=status, evidence=evidence))
    return AuditReport(folder=root, items=tuple(items))
