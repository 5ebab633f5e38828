"""Published scripts are run, read and ended, and their figures stand beside ours."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks are not in packages")

SCRIPT = """\
import os, sys, time
import flash_attn_interface
steps = int(os.environ["ITERATIONS"])
for s in range(1, steps + 1):
    print(f"step:{s}/{steps} train_loss:{7 - s / 100:.4f} train_time:{s * 20}ms step_avg:20.00ms")
if os.environ["SEED"] == "hangs":
    time.sleep(600)
print("peak memory allocated: 100 MiB reserved: 200 MiB")
print("Total submission size int6+zstd: 11116983 bytes")
print("final_int6_sliding_window_exact val_loss:2.68000000 val_bpb:1.59420000")
time.sleep(600)
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and FOLDER.name in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def peer(
    peers: ModuleType, folder: Path, seed: str, max_seconds: float, *, exports: bool = False
) -> Any:
    (folder / "script.py").write_text(SCRIPT)
    return peers.run_script(
        folder / "script.py",
        folder / "run",
        data=folder,
        tokenizer=folder / "x.model",
        settings={**os.environ, "ITERATIONS": "30", "SEED": seed},
        max_seconds=max_seconds,
        exports=exports,
    )


def test_a_script_is_read_and_ended(module: Any, tmp_path: Path) -> None:
    started = time.perf_counter()
    found = peer(module("train_peers"), tmp_path, "0", 300)
    assert time.perf_counter() - started < 250
    assert found.losses[30] == pytest.approx(6.7)
    assert found.milliseconds[30] == 600
    assert found.peak_bytes == 100 << 20
    summary = module("bench_train")._summary(found.losses, found.milliseconds, 1000)
    assert summary["tokens_per_second"] == pytest.approx(50_000)


def test_a_script_that_exports_is_read_to_its_score(module: Any, tmp_path: Path) -> None:
    found = peer(module("train_peers"), tmp_path, "0", 300, exports=True)
    assert (found.artifact_bytes, found.sliding_bpb) == (11_116_983, 1.5942)


def test_devices_work_side_by_side_and_a_failure_takes_nothing_with_it(module: Any) -> None:
    begun: list[int] = []

    def work(job: int, environment: dict[str, str]) -> Callable[[], str]:
        begun.append(job)
        if job == 2:
            raise ValueError("broken")

        def rest() -> str:
            if job == 3:
                raise ValueError("broken behind")
            return environment["CUDA_VISIBLE_DEVICES"]

        return rest

    found = dict(module("harness").on_devices([1, 2, 3, 4, 5], ["5", "7"], work))
    assert found.keys() == {1, 4, 5}
    assert set(found.values()) <= {"5", "7"}
    assert dict(module("harness").on_devices([1, 4, 5], ["3"], work)) == dict.fromkeys(
        (1, 4, 5), "3"
    )
    assert begun[-3:] == [1, 4, 5]


def test_the_rest_of_a_job_runs_beside_the_next_one(module: Any) -> None:
    second_began = threading.Event()

    def work(job: int, environment: dict[str, str]) -> Callable[[], bool]:
        if job == 2:
            second_began.set()
        return lambda: second_began.wait(30)

    assert dict(module("harness").on_devices([1, 2], ["0"], work)) == {1: True, 2: True}


def test_goals_compare_what_both_have(module: Any) -> None:
    record: dict[str, Any] = {
        "date": "2026-01-01",
        "fingerprint": {"commit": "abc"},
        "settings": {"device": "a GPU", "torch": "2.11", "steps": 50, "first_timed": 10},
        "speed": [
            {
                "system": "pr585",
                "parameters": 33_580_124,
                "ours": {
                    "tokens_per_second": 1.2e6,
                    "peak_bytes": 23 << 30,
                    "compile_seconds": 41.0,
                    "recompilations": 0,
                },
                "theirs": {"tokens_per_second": 1e6, "peak_bytes": 26 << 30},
            },
            {"system": "pr1123", "ours": {"failed": 1}},
        ],
        "loss": [
            {
                "system": "pr585",
                "ours": {"loss_at": {"200": 2.5, "500": 2.25}},
                "theirs": {"loss_at": {"200": 2.51, "500": 2.21}},
            }
        ],
    }
    speed, memory, loss = module("reach").train_goals(record)
    assert (speed.found, speed.verdict) == ("1.20x (pr585)", "missed")
    assert (memory.found, memory.verdict) == ("0.88x (pr585)", "reached")
    assert (loss.found, loss.verdict) == ("+0.0400 (pr585, step 500)", "missed")
    page = "\n".join(module("report_models").train(record))
    assert "| pr585 | 33,580,124 | 1,200,000 | 1,000,000 | 1.20x | 23.0 | 26.0 | 41 | 0 |" in page
    assert "| pr1123 |  |  |  |  |  |  | failed |" in page


def test_submissions_are_held_against_script_and_recipes(module: Any) -> None:
    def row(system: str, seconds: float, bpb: float) -> dict[str, Any]:
        found = {"sliding": bpb, "float": 1.5, "quantized": 1.6}
        sizes = {"artifact_bytes": 15_999_990, "steps": 900, "tokens": 9_000_000}
        return {"system": system, "max_seconds": seconds, "bpb": found, **sizes}

    record = {
        "date": "2026-01-01",
        "fingerprint": {"commit": "abc"},
        "settings": {"device": "a GPU", "torch": "2.11"},
        "rows": [
            row("pr585", 180.0, 1.58),
            row("pr578", 180.0, 1.53),
            {"system": "pr1539", "max_seconds": 180.0, "failed": 1},
            row("flyweight", 240.0, 1.52),
            row("script of #585", 240.0, 1.59),
        ],
    }
    script, recipes, size = module("reach").submit_goals(record)
    assert (script.found, script.verdict) == ("0.0700 (script of #585)", "reached")
    assert (recipes.found, recipes.verdict) == ("0.0100 (pr578)", "reached")
    assert size.verdict == "reached"
    page = "\n".join(module("report_models").submit(record))
    assert (
        "| flyweight | 240 |  | 900 | 9,000,000 | 15,999,990 | 1.5000 | 1.6000 | 1.5200 |" in page
    )
    assert "| pr1539 | 180 | failed |" in page
    found = {"float": 1.57, "sliding": None}
    record["rows"][-1] |= {"bpb": found, "artifact_bytes": None}  # its export did not end in time
    script, *_ = module("reach").submit_goals(record)
    assert script.verdict == "open"  # float weights are not what the goal is of
    page = "\n".join(module("report_models").submit(record))
    assert "| script of #585 | 240 |  | 900 | 9,000,000 |  | 1.5700 |  |  |" in page


def test_schedules_for_eight_gpus_become_those_of_one(module: Any) -> None:
    load_recipe = importlib.import_module("flyweight.recipes.load").load_recipe
    for_one_gpu = module("bench_submit").for_one_gpu
    found = for_one_gpu(load_recipe("pr1123"))
    assert found.train.batch_sequences * found.model.seq_len == 262_144
    assert (found.train.warmdown_fraction, found.train.optim.momentum_warmup_steps) == (0.5, 300)
    ours = load_recipe("flyweight")
    assert for_one_gpu(ours) == ours


def test_records_grow_over_calls(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = module("bench_train")
    (tmp_path / "pr585.py").write_text("")
    monkeypatch.setattr(bench, "_ours", lambda *_: {"side": "ours"})
    monkeypatch.setattr(bench, "_theirs", lambda *_: {"side": "theirs"})
    common = ["--scripts", str(tmp_path), "--out", str(tmp_path), "--commit"]

    def call(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["bench_train.py", *arguments])
        bench.main()
        found: dict[str, Any] = json.loads(next(tmp_path.glob("train_*.json")).read_text())
        return found

    first = call("--systems", "pr585", *common, "abc")
    assert first["speed"] == [
        {
            "system": "pr585",
            "commit": "abc",
            "parameters": 33_580_124,
            "ours": {"side": "ours"},
            "theirs": {"side": "theirs"},
        }
    ]
    into = ["--into", str(next(tmp_path.glob("train_*.json")))]
    kinds = ["--kinds", "speed", "loss", "--devices", "0", "1"]
    second = call("--systems", "pr578", "pr585", *kinds, *into, *common, "def")
    assert [(r["system"], r["commit"], "theirs" in r) for r in second["speed"]] == [
        ("pr578", "def", False),
        ("pr585", "def", True),
    ]
    assert [r["system"] for r in second["loss"]] == ["pr585"]
    monkeypatch.setattr(bench, "_theirs", lambda *_: {"side": "theirs again"})
    third = call("--systems", "pr585", "--sides", "theirs", *into, *common, "def")
    assert third["speed"][1]["ours"] == {"side": "ours"}
    assert third["speed"][1]["theirs"] == {"side": "theirs again"}
