"""The benchmarks run, and docs/benchmarks.md is what their records say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks are not in packages")


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_page_is_up_to_date() -> None:
    done = run("report.py", "--check")
    assert done.returncode == 0, done.stderr


def test_a_small_run_is_recorded_and_reported(tmp_path: Path) -> None:
    done = run(
        *("bench_codec.py", "--synthetic", 40_000, "--only", "G6", "--rounds", 2),
        *("--fse", tmp_path / "libnothing.so", "--commit", "abc", "--out", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.glob("codec_*.json")
    record = json.loads(path.read_text())
    assert record["fingerprint"]["commit"] == "abc"
    absent = {each["name"]: each["why"] for each in record["absent"]}
    assert absent["htscodecs"] == "no --htscodecs given"
    assert "cannot be loaded" in absent["fse"]
    [stream] = record["streams"]
    assert stream["name"] == "G6"
    by_name = {entry["name"]: entry for entry in stream["contenders"]}
    ans = by_name["flyweight ans scalar"]
    assert sum(ans["bytes_by_tensor"]) == ans["bytes"]
    assert 0 < ans["overhead_percent"] < 2
    assert ans["encode"]["repeats"] == 2
    assert {entry["name"] for entry in stream["slow"]} >= {"zstd-22", "brotli-11", "xz-9e"}
    page = tmp_path / "page.md"
    assert run("report.py", "--results", tmp_path, "--page", page).returncode == 0
    text = page.read_text()
    assert "| flyweight ans scalar |" in text
    assert "### What was to be reached" in text
    assert run("report.py", "--results", tmp_path, "--page", page, "--check").returncode == 0
    page.write_text(text.replace("flyweight", "featherweight"))
    stale = run("report.py", "--results", tmp_path, "--page", page, "--check")
    assert stale.returncode == 1
    assert "out of date" in stale.stderr


def test_calibration_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = run(
        *("bench_calibrate.py", "--size", "small", "--sequences", 4, "--batch", 2),
        *("--rounds", 2, "--device", "cpu", "--commit", "abc", "--out", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.glob("calibrate_*.json")
    record = json.loads(path.read_text())
    assert record["settings"]["tokens"] == 256
    names = {"hessians", "hessians and sensitivities", "generate"}
    assert set(record["results"]) == names
    assert record["results"]["hessians"]["wall_seconds"]["median"] > 0


def test_gptq_is_recorded_and_reported(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = run(
        *("bench_gptq.py", "--rounds", 2, "--shapes", "48x64", "33x130"),
        *("--commit", "abc", "--out", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.glob("gptq_*.json")
    record = json.loads(path.read_text())
    assert [matrix["name"] for matrix in record["matrices"]] == ["48x64", "33x130"]
    for matrix in record["matrices"]:
        assert matrix["loss_over_float64"]["ratio"] == pytest.approx(1, abs=1e-3)
        assert matrix["results"]["floor"]["repeats"] == 2
    page = tmp_path / "page.md"
    assert run("report.py", "--results", tmp_path, "--page", page).returncode == 0
    text = page.read_text()
    assert "| torch loop |" in text
    assert "loss, relative difference to float64" in text
