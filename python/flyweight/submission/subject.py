"""What the auditor looks at: a folder, read once, by whatever name its parts have."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flyweight.data.facts import DataInfo
from flyweight.errors import DataError
from flyweight.submission.bundle import RECORD_FILE, SCRIPT_FILE, log_name
from flyweight.submission.claim import ARTIFACT_FILE
from flyweight.submission.decoder import decode_fly
from flyweight.submission.model_size import check_model_size
from flyweight.submission.named_files import files_named_by
from flyweight.submission.published import LogFacts, SeedClaim, read_claims, read_log
from flyweight.submission.script import read_claim, write_script
from flyweight.submission.unpack_script import (
    Source,
    parse_source,
    read_source,
    unpack_script,
)

__all__ = [
    "RESULT",
    "NotCheckedError",
    "Status",
    "Subject",
    "Verdict",
    "parse_object",
    "value_at",
]

Status: TypeAlias = Literal["PASS", "WARN", "FAIL"]
Verdict: TypeAlias = tuple[Status, str]

RESULT = "the script's result"
_LOG = re.compile(r"(^train.*|.*log.*)\.(log|txt)$|.*\.log$")
_MAX_LOG_BYTES = 50_000_000


class NotCheckedError(Exception):
    """A check lacks what it needs, and the message says what; nothing was found, good or bad."""


class Subject:
    """What the checks look at, read once when first asked for.

    Parameters
    ----------
    root : the submission folder
    data : validation shards and their facts, if any
    budget_bytes : what code and model may have together
    timeout_seconds : after which the scoring is stopped
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
        self.root, self.ledgers = root, ledgers
        self._data = data
        self.budget_bytes, self.timeout_seconds = budget_bytes, timeout_seconds

    @property
    def data(self) -> DataInfo:
        """The validation shards; a check that asks for them is not done where there are none."""
        if self._data is None:
            raise NotCheckedError("no validation data was given (--data)")
        return self._data

    def read(self, name: str) -> bytes:
        """A file's bytes; a missing file is a `DataError`."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise DataError(f"{name} is missing") from None

    @cached_property
    def record(self) -> dict[str, Any]:
        """``submission.json``."""
        return parse_object(self.read(RECORD_FILE), RECORD_FILE)

    def recorded(self, name: str, *kinds: type) -> Any:
        """One field of the record; scores of a contaminated one have a name of their own."""
        named = f"contaminated_{name}"
        found = named if self.record.get("contaminated") and named in self.record else name
        return value_at(self.record, RECORD_FILE, found, kinds=kinds)

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
        return parse_source(read_source(self.read(SCRIPT_FILE), SCRIPT_FILE), SCRIPT_FILE)

    @cached_property
    def own_script(self) -> bytes:
        """The script that flyweight writes for the claim in ``train_gpt.py``."""
        return write_script(read_claim(self.script))

    @cached_property
    def sources(self) -> list[Source]:
        """All layers of ``train_gpt.py``, the shipped file first."""
        return unpack_script(self.root / SCRIPT_FILE)

    @cached_property
    def helpers(self) -> list[Source]:
        """All layers of other Python files that the script, or one of these, names or imports."""
        found: list[Source] = []
        waiting = list(self.sources)
        seen = {source.name.rpartition(" > ")[2] for source in waiting if not source.packed}
        while waiting:
            source = waiting.pop(0)
            with suppress(DataError):  # not Python: then its problems say so
                names = [n for n in files_named_by(source, self.root) if n.endswith(".py")]
                for name in names:
                    if name not in seen:
                        seen.add(name)
                        layers = self._layers(name)
                        found += layers
                        waiting += layers
        return found

    def _layers(self, name: str) -> list[Source]:
        try:
            return unpack_script(self.root / name)
        except DataError as error:
            return [Source(name=name, text="", packed=False, problems=(str(error),))]

    @property
    def is_bundle(self) -> bool:
        """Whether flyweight wrote it, so that its artifact can be read and scored."""
        if (self.root / ARTIFACT_FILE).is_file():
            return True
        try:
            return "weights_sha256" in self.record
        except DataError:
            return False

    @cached_property
    def published_logs(self) -> dict[str, LogFacts]:
        """File name to facts of every log of a folder that flyweight did not write."""
        paths = sorted(p for p in self.root.rglob("*") if p.is_file() and _LOG.match(p.name))
        return {
            path.relative_to(self.root).as_posix(): read_log(path.read_text(errors="replace"))
            for path in paths
            if path.name != "requirements.txt" and path.stat().st_size <= _MAX_LOG_BYTES
        }

    @cached_property
    def claims(self) -> list[SeedClaim]:
        """What the record says of each seed."""
        return read_claims(self.record)

    def logs_of(self, seed: str) -> dict[str, LogFacts]:
        """The logs of a seed, by their file names; a rerun has one of its own."""
        pattern = re.compile(rf"(?<![0-9]){re.escape(seed)}(?![0-9])")
        return {n: facts for n, facts in self.published_logs.items() if pattern.search(n)}

    @cached_property
    def result(self) -> dict[str, Any]:
        """What the model scores on the data, in a process and a folder of its own.

        The folder has what is counted and nothing else: the artifact, and the script that flyweight
        writes for the claim. The shipped script runs if it is the same, byte for byte; what others
        wrote or changed never does, and cannot say which number it would like.
        """
        data = self.data.folder.resolve()
        device = "cpu" if self.record.get("device") == "cpu" else "auto"
        check_model_size(*decode_fly(self.read(ARTIFACT_FILE)))
        with tempfile.TemporaryDirectory() as scratch:
            folder, out = Path(scratch, "counted"), Path(scratch, "result.json")
            folder.mkdir()
            (folder / SCRIPT_FILE).write_bytes(self.own_script)
            (folder / ARTIFACT_FILE).write_bytes(self.read(ARTIFACT_FILE))
            options = ["--data", str(data), "--device", device]
            self._run([SCRIPT_FILE, *options, "--out", str(out)], folder)
            return parse_object(out.read_bytes() if out.exists() else b"", RESULT)

    def _run(self, command: list[str], folder: Path) -> None:
        # -P and no PYTHON* variables: neither the folder nor a source tree can be imported.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        try:
            done = subprocess.run(
                [sys.executable, "-P", *command],
                cwd=folder,
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


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a file; ``name`` is what messages call it.

    Raises
    ------
    DataError
        It is no JSON, no object, nested too deeply, or has a field twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, value in pairs:
            if key in fields:  # some readers take the first, others the last
                raise DataError(f"{name}: field {key} is there twice")
            fields[key] = value
        return fields

    try:
        found = json.loads(data, object_pairs_hook=once)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{name}: not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{name}: nested too deeply to be read") from error
    if not isinstance(found, dict):
        raise DataError(f"{name}: expected a JSON object, got {type(found).__name__}")
    return found


def value_at(facts: Any, source: str, *path: str, kinds: tuple[type, ...] = (int, float)) -> Any:
    """A field of nested objects, of the kinds expected; anything else is a `DataError`."""
    for key in path:
        if not isinstance(facts, dict) or key not in facts:
            raise DataError(f"{source}: field {'.'.join(path)} is missing")
        facts = facts[key]
    if not isinstance(facts, kinds):
        raise DataError(f"{source}: field {'.'.join(path)} is {facts!r}")
    return facts
