"""What every benchmark needs: who ran it, interleaved timing, and a JSON record.

A record says on what it was taken (commit, compiler, CPU, versions), so that a figure in the
documents can be traced. Contenders run in rounds, each once per round: what disturbs the machine
disturbs all of them, and ratios are taken within a round.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import queue
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flyweight import _core
from flyweight.kernels import cpu_tiers

__all__ = [
    "RESULTS",
    "Sample",
    "cpu_flags",
    "cpus",
    "fingerprint",
    "hash_of",
    "interleave",
    "on_devices",
    "ratio",
    "summary",
    "using_cpus",
    "write",
]

Job = TypeVar("Job")
Done = TypeVar("Done")

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("numpy", "brotli", "zstandard", "constriction")
RECORDED_FLAGS = ("avx2", "bmi2", "avx512f", "avx512bw", "avx512vbmi", "avx512_vbmi2")


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds that one call took."""

    cpu: float
    """Processor time of the whole process: a contender's own threads count too."""
    wall: float
    """Elapsed time."""


def interleave(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Sample]]:
    """Run each task once per round, starting one further each round; samples by task."""
    names = list(tasks)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for round_ in range(rounds):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            cpu, wall = time.process_time_ns(), time.perf_counter_ns()
            tasks[name]()
            elapsed = time.perf_counter_ns() - wall
            samples[name].append(Sample((time.process_time_ns() - cpu) / 1e9, elapsed / 1e9))
    return samples


def on_devices(
    jobs: Sequence[Job],
    devices: Sequence[str],
    work: Callable[[Job, dict[str, str]], Callable[[], Done]],
) -> Iterator[tuple[Job, Done]]:
    """Jobs as they end, one at a time on each GPU; one that raises is shown and left out.

    Parameters
    ----------
    work : does what is timed, in processes that get the environment that it is called with; what
        it returns does the rest, while the next job begins
    """
    free: queue.Queue[str] = queue.Queue()
    for device in devices:
        free.put(device)

    def run(job: Job) -> Future[Done]:
        device = free.get()
        try:
            rest = work(job, {**os.environ, "CUDA_VISIBLE_DEVICES": device})
        finally:
            free.put(device)
        return behind.submit(rest)

    ended: queue.Queue[tuple[Job, Future[Any]]] = queue.Queue()
    with ThreadPoolExecutor(len(devices)) as first, ThreadPoolExecutor(len(jobs) or 1) as behind:
        for job in jobs:
            first.submit(run, job).add_done_callback(partial(_pass_on, job, ended))
        for _ in jobs:
            job, future = ended.get()
            if error := future.exception():
                print(f"{job}: {error!r}", file=sys.stderr, flush=True)
            else:
                yield job, future.result()


def _pass_on(
    job: Job, ended: queue.Queue[tuple[Job, Future[Any]]], first: Future[Future[Any]]
) -> None:
    """Let a job end with what is behind its work, or with its work where that failed."""
    if first.exception():
        ended.put((job, first))
    else:
        first.result().add_done_callback(lambda future: ended.put((job, future)))


def summary(samples: Sequence[Sample], symbols: int) -> dict[str, Any]:
    """Repeats, minimum, median and spread of one task; rates in millions of symbols a second."""
    cpu = [sample.cpu for sample in samples]
    wall = [sample.wall for sample in samples]
    return {
        "repeats": len(samples),
        "cpu_seconds": _statistics(cpu),
        "wall_seconds": _statistics(wall),
        **_rounded(
            cpu_msymbols_per_second=symbols / statistics.median(cpu) / 1e6,
            wall_msymbols_per_second=symbols / statistics.median(wall) / 1e6,
            ns_per_symbol=1e9 * statistics.median(cpu) / symbols,
        ),
    }


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], clock: str = "cpu") -> dict[str, float]:
    """How many times as fast: median over the rounds, each round compared with itself."""
    pairs = zip(ours, theirs, strict=True)
    ratios = [getattr(b, clock) / getattr(a, clock) for a, b in pairs]
    return _rounded(median=statistics.median(ratios), min=min(ratios), max=max(ratios))


def _statistics(seconds: Sequence[float]) -> dict[str, float]:
    """Spread is the middle half of the samples over their median."""
    quarters = np.percentile(seconds, [25, 75])
    median = statistics.median(seconds)
    spread = float(quarters[1] - quarters[0]) / median
    return _rounded(min=min(seconds), median=median, max=max(seconds), spread=spread)


def _rounded(**values: float) -> dict[str, float]:
    """Five digits, more than any of these measurements has."""
    return {name: float(f"{value:.5g}") for name, value in values.items()}


def cpus(count: int) -> list[int]:
    """Processors to run on, of different cores where there are enough; the last ones, as
    interrupts tend to go to the first."""
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    chosen: list[int] = []
    taken: set[str] = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = path.read_text().strip() if path.exists() else str(cpu)
        if core not in taken:
            taken.add(core)
            chosen.append(cpu)
    chosen += [cpu for cpu in allowed if cpu not in chosen]
    return chosen[:count]


@contextlib.contextmanager
def using_cpus(chosen: Sequence[int]) -> Iterator[None]:
    """Keep this process on some processors inside the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def hash_of(arrays: Sequence[NDArray[Any]]) -> str:
    """SHA-256 of the arrays' bytes, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def fingerprint(commit: str | None = None) -> dict[str, Any]:
    """Commit, compiler, processor and versions; ``commit`` is for copies without a repository."""
    return {
        "commit": commit or _commit(),
        "compiler": _compiler(),
        "flags": _flags(),
        "cpu": _cpu(),
        "tiers": cpu_tiers(),
        "os": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "processors": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
    }


def write(topic: str, payload: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Record a result as ``<topic>_<hardware>_<date>.json``; one of the same day is replaced."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    cpu = payload["fingerprint"]["cpu"]
    hardware = "-".join(str(cpu[key]) for key in ("vendor", "family", "model")).lower()
    path = folder / f"{topic}_{hardware}_{date}.json"
    folder.mkdir(parents=True, exist_ok=True)
    record = {"schema": 1, "topic": topic, "date": date, **payload}
    text = json.dumps(record, indent=1, allow_nan=False)
    text = re.sub(r"\[[-\d.e,\s]*\]", lambda numbers: " ".join(numbers[0].split()), text)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _commit() -> str | None:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _compiler() -> list[str]:
    """What the extension says it was made by, libraries linked into it included."""
    found = re.findall(rb"(?:GCC: |clang version )[ -~]+", Path(_core.__file__).read_bytes())
    return sorted({text.decode() for text in found})


def _flags() -> dict[str, str]:
    """Extra flags of each instruction set, as the build file sets them."""
    path = ROOT / "CMakeLists.txt"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    flags = {"all": "CMake's Release"}
    for name, value in re.findall(r"set\(FLYWEIGHT_(\w+)_FLAGS ([^)]*)\)", text):
        flags[name.lower()] = " ".join(value.split())
    return flags


def cpu_flags() -> set[str]:
    """Instruction sets as Linux names them."""
    return set(_cpuinfo().get("flags", "").split())


def _cpu() -> dict[str, Any]:
    fields, flags = _cpuinfo(), cpu_flags()
    vendors = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}
    vendor = fields.get("vendor_id", platform.machine())
    return {
        "name": fields.get("model name", platform.processor()),
        "vendor": vendors.get(vendor, vendor),
        "family": int(fields.get("cpu family", 0)),
        "model": int(fields.get("model", 0)),
        "flags": [flag for flag in RECORDED_FLAGS if flag in flags],
    }


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    lines = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
