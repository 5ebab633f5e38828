"""The manifest of a RUN folder: what it may hold, what it says of files and machines, its lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import flyweight
from flyweight.errors import DataError

__all__ = [
    "locked",
    "machine",
    "read_entries",
    "read_limits",
    "sha256",
    "to_json",
    "tree_hash",
    "versions",
]

LOCK = ".lock"


def read_entries(path: Path, stages: Sequence[str]) -> dict[str, Any]:
    """The entries of the stages done, by name; none where there is no manifest yet."""
    if not path.exists():
        return {}
    entries = _read(path).get("stages")
    if not isinstance(entries, dict):
        raise DataError(f"{path}: not the manifest of a run: it has no table of stages")
    for name, entry in entries.items():
        if name not in stages or not _is_entry(entry):
            raise DataError(f"{path}: not the manifest of a run: stage {name!r} is not an entry")
    return entries


def read_limits(path: Path) -> tuple[int, int, float] | None:
    """Seed, steps and seconds that the stage train was given, 0 for no limit; None before it."""
    manifest = _read(path) if path.exists() else {}
    stages = manifest.get("stages")
    if not isinstance(stages, dict) or "train" not in stages:
        return None
    try:
        budget = manifest["recipe"]["train"]
        seed, steps, seconds = manifest["seed"], budget["max_steps"], budget["max_seconds"]
        is_usable = type(seed) is type(steps) is int and min(seed, steps) >= 0
        if is_usable and 0 <= seconds < math.inf and (steps or seconds):
            return seed, steps, seconds
    except (KeyError, TypeError):
        pass
    raise DataError(
        f"{path}: not the manifest of a run: it does not say with which seed and budget stage "
        "train was run; run it again"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not the manifest of a run: {error}") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: not the manifest of a run: it is not an object")
    return manifest


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    tables = (entry.get("inputs"), entry.get("outputs"), entry.get("facts"))
    return (
        all(isinstance(table, dict) for table in tables)
        and isinstance(entry.get("seconds"), (int, float))
        and isinstance(entry.get("key", 0), (str, type(None)))
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a RUN folder against other processes; the lock ends with the process at the latest."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{folder}: another process is running in this folder") from error
        yield
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    """Versions of what a result may depend on."""
    found = {"flyweight": flyweight.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "brotli", "zstandard", "sentencepiece"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What a result was made on."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpus": gpus,
    }


def tree_hash(path: Path) -> str:
    """SHA-256 of a file, or over the names and hashes of all files below a folder.

    Names that begin with a dot are temporaries that a kill left behind.
    """
    if not path.is_dir():
        return sha256(path)
    lines = [
        f"{file.relative_to(path).as_posix()} {sha256(file)}\n"
        for file in sorted(path.rglob("*"))
        if file.is_file() and not _is_hidden(file.relative_to(path))
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the stage that makes it") from None


def to_json(value: Any) -> bytes:
    """The bytes that are written, and hashed, for a value."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
