"""The checked-in inputs of the fuzz targets, replayed: what fuzzing found once stays found."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNEL_CORPUS = ROOT / "csrc" / "fuzz" / "corpus"
TARGETS = sorted(path.name for path in KERNEL_CORPUS.iterdir())
FILES = sorted((Path(__file__).parent / "corpus").iterdir())
COMPILER = os.environ.get("CXX", "c++")


def find_tool(name: str) -> str | None:
    """A command on the path, or beside the interpreter."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


@pytest.fixture(scope="module")
def replay_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fuzz target, built with the replay driver; the standard library's assertions are on."""
    cmake = find_tool("cmake")
    if cmake is None or find_tool(COMPILER) is None:
        pytest.skip(f"replaying the fuzz corpus needs cmake and a C++ compiler ({COMPILER})")
    folder = tmp_path_factory.mktemp("fuzz")
    for command in (
        [cmake, "-S", str(ROOT), "-B", str(folder), "-DFLYWEIGHT_FUZZ=REPLAY"],
        [cmake, "--build", str(folder), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "csrc" / "fuzz"


@pytest.mark.parametrize("target", TARGETS)
def test_kernels(target: str, replay_folder: Path) -> None:
    command = [replay_folder / f"fuzz_{target}", KERNEL_CORPUS / target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{len(list((KERNEL_CORPUS / target).iterdir()))} inputs replayed" in done.stdout


def test_every_target_has_a_corpus() -> None:
    sources = {path.stem.removeprefix("fuzz_") for path in KERNEL_CORPUS.parent.glob("fuzz_*.cpp")}
    assert set(TARGETS) == sources


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_container(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "fuzz_container", Path(__file__).parent / "fuzz_container.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tracemalloc.start()
    try:
        outcome = module.check(path.read_bytes())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcome in ("refused", "large", "read")
    assert peak < 1 << 28
