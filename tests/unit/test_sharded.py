"""Two processes score like one: a frozen model bit for bit, one that learns within a tolerance."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import scoring_cases  # noqa: E402
from flyweight.data.byte_counts import ByteSidecar  # noqa: E402
from flyweight.evaluate.bpb import score_targets  # noqa: E402
from flyweight.evaluate.ledger import read_ledger  # noqa: E402
from flyweight.evaluate.sharded import share_windows  # noqa: E402
from flyweight.evaluate.window import sliding_windows, window_batches  # noqa: E402
from flyweight.submission.checks import BPB_TOLERANCE  # noqa: E402
from flyweight.train.distributed import World  # noqa: E402
from scoring_cases import CONFIGS, CUT, TOKENS, score  # noqa: E402

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ALONE = World(device=torch.device("cpu"))


def run(case: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, scoring_cases.__file__, case, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process wrote, and what two did, who found some ledgers half written."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for name in CONFIGS:
        score(one, name, ALONE)
    for name in CUT:
        whole = (one / f"{name}.ledger").read_bytes()
        (two / f"{name}.ledger").write_bytes(whole[: len(whole) * 2 // 3])
        shutil.copy(one / f"{name}.ledger.journal", two)
    done = run("all", two)
    assert done.returncode == 0, done.stderr
    return one, two


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_score_like_one(name: str, folders: tuple[Path, Path]) -> None:
    one, two = (read_ledger(folder / f"{name}.ledger") for folder in folders)
    assert one.records == two.records
    if CONFIGS[name].protocol == "score-first":
        counter = ByteSidecar(counts=np.ones(TOKENS.size, dtype=np.uint8))
        first, second = (score_targets(each.nats, TOKENS, counter) for each in (one, two))
        assert abs(first.bpb - second.bpb) < BPB_TOLERANCE["cpu"]
        np.testing.assert_allclose(two.nats, one.nats, atol=1e-4)
    else:
        assert one.chain == two.chain
        assert one.nats.tobytes() == two.nats.tobytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_process_has_all_scores(name: str, folders: tuple[Path, Path]) -> None:
    nats = read_ledger(folders[1] / f"{name}.ledger").nats
    for rank in range(2):
        np.testing.assert_array_equal(np.load(folders[1] / f"{name}-{rank}.npy"), nats)


def test_learning_changed_scores(folders: tuple[Path, Path]) -> None:
    frozen, learned = (
        read_ledger(folders[1] / f"{name}.ledger").nats for name in ("sliding", "score-first")
    )
    np.testing.assert_array_equal(frozen[:64], learned[:64])
    assert np.abs(frozen[64:] - learned[64:]).max() > 0.01


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nan", "the model's loss is nan at token"),
        ("forged", "the processes ended with different ledgers"),
    ],
)
def test_all_end_with_one_message(case: str, message: str, tmp_path: Path) -> None:
    done = run(case, tmp_path)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("flyweight: ")]
    assert len(said) == 1, done.stderr
    assert message in said[0]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("targets", [5, 100, 1003])
def test_shares_are_whole_batches_in_order(size: int, targets: int) -> None:
    windows = sliding_windows(targets, seq_len=16, stride=3)
    shares = [share_windows(windows, batch_windows=4, rank=rank, size=size) for rank in range(size)]
    batches = [b for share in shares for b in window_batches(share, batch_windows=4)]
    expected = list(window_batches(windows, batch_windows=4))
    assert [b.end.tolist() for b in batches] == [b.end.tolist() for b in expected]
    counts = [len(list(window_batches(share, batch_windows=4))) for share in shares]
    assert max(counts) - min(counts) <= 1
