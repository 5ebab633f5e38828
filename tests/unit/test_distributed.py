"""Two processes on the CPU: the same training as in one, and one end for both."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flyweight.errors import InvalidArgumentError, PeerError
from flyweight.interop import read_safetensors

torch = pytest.importorskip("torch")

import distributed_cases  # noqa: E402
from distributed_cases import CUT, run, run_until_cut, write_data  # noqa: E402
from flyweight.train.distributed import World, join  # noqa: E402
from flyweight.train.gradients import passes  # noqa: E402

CPU = torch.device("cpu")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def start(case: str, folder: Path) -> subprocess.Popen[str]:
    command = [*TORCHRUN, distributed_cases.__file__, case, str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def said(stderr: str) -> list[str]:
    """What the processes said; torchrun has much more to say."""
    return [line for line in stderr.splitlines() if line.startswith("flyweight: ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The runs of one process, and those of two."""
    run(folder, "one")
    run(folder, "one-accumulated", accumulation_steps=4)
    run_until_cut(folder, "one-then-two")
    assert steps_of(folder / "one-then-two") == CUT
    with start("agree", folder) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert steps_of(folder / "two-then-one") == CUT
    run(folder, "two-then-one")
    return folder


def steps_of(run: Path) -> int:
    """Steps done when the state was saved."""
    return int(read_safetensors(run / "state.safetensors")[0]["counters"][0])


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    return [line["loss"] for line in lines] + [line["grad_norm"] for line in lines]


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("two", "one"),
        ("two-accumulated", "one-accumulated"),
        ("one-then-two", "one"),
        ("two-then-one", "one"),
    ],
)
def test_two_processes_train_like_one(name: str, like: str, trained: Path) -> None:
    assert losses(trained / name) == pytest.approx(losses(trained / like), rel=1e-5)
    for file in ("model", "state"):
        found, expected = (
            read_safetensors(trained / run / f"{file}.safetensors")[0] for run in (name, like)
        )
        assert found.keys() == expected.keys()
        for key in found.keys() - {"counters"}:
            np.testing.assert_allclose(found[key], expected[key], atol=1e-5, err_msg=key)


# --- one end for both ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("error", "a bad shard"),
        ("kill", "another process of this run ended without a message"),
        ("kill-unnoticed", "another process of this run ended without a message"),
        ("nan", "training diverged at step 5: loss nan, gradient norm nan: 8 rows were looked at"),
    ],
)
def test_all_end_with_one_message(case: str, message: str, folder: Path) -> None:
    with start(case, folder) as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert len(said(err)) == 1, err
    assert message in said(err)[0]
    assert steps_of(folder / case) in (3, 4)
    assert not (folder / case / "model.safetensors").exists()


def test_an_interrupt_saves(folder: Path) -> None:
    with start("interrupt", folder) as process:
        log = folder / "interrupt" / "log.jsonl"
        while not (log.exists() and log.stat().st_size):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    assert len(said(err)) == 1, err
    state, steps = folder / "interrupt/state.safetensors", steps_of(folder / "interrupt")
    assert 1 <= steps < 200
    kept = f"{state} holds step {steps}; the same command goes on"
    assert said(err) == [f"flyweight: interrupted: {kept}"]


# --- alone --------------------------------------------------------------------------------------


def test_alone_nothing_is_sent_or_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as world:
        assert (world.rank, world.size, world.device) == (0, 1, CPU)
        values = torch.arange(3.0)
        for move in (world.mean, world.total, world.scatter_mean, world.gather):
            assert move(values).land() is values
        assert world.agree(1.5, 2.0) == [1.5, 2.0]
        assert not torch.distributed.is_initialized()


def test_a_lack_of_memory_is_not_blamed_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [torch.OutOfMemoryError("no room"), RuntimeError("connection closed by peer")]

    def fails(*values: object, **options: object) -> None:
        raise found.pop(0)

    monkeypatch.setattr(torch.distributed, "all_reduce", fails)
    for expected in (torch.OutOfMemoryError, PeerError):
        with pytest.raises(expected):
            World(device=CPU, size=2).total(torch.zeros(3))


def test_rows_are_shared_in_order() -> None:
    shares = [World(device=CPU, rank=rank, size=4).share(8) for rank in range(4)]
    assert np.concatenate([np.arange(8)[share] for share in shares]).tolist() == list(range(8))
    with pytest.raises(InvalidArgumentError, match="batch_sequences=8 is not a multiple of the 3"):
        World(device=CPU, size=3).share(8)


@pytest.mark.parametrize(
    ("rows", "accumulation_steps", "size", "expected"),
    [
        (8, 1, 1, 1),
        (8, 4, 1, 4),
        (8, 4, 2, 2),
        (8, 4, 8, 1),
        (8, 1, 8, 1),
        (48, 3, 2, 2),  # 16 rows alone, here 12
        (30, 3, 2, 3),  # 10 rows alone, here 5: 15 do not divide by 2
    ],
)
def test_passes_are_few_and_no_larger_than_alone(
    rows: int, accumulation_steps: int, size: int, expected: int
) -> None:
    assert passes(rows, accumulation_steps, World(device=CPU, size=size)) == expected
