"""What a score may depend on: the model, the text and the protocol, and on nothing else.

`BPB_TOLERANCE` is the tolerance stated for all of it (docs/decisions/0014); where arithmetic is the
same, there is none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from flyweight.data.byte_counts import ByteTable  # noqa: E402
from flyweight.evaluate.bpb import Score, score_targets  # noqa: E402
from flyweight.evaluate.config import AdaptConfig, ScoreConfig  # noqa: E402
from flyweight.evaluate.ledger import Ledger  # noqa: E402
from flyweight.evaluate.ttt import score_stream  # noqa: E402
from flyweight.submission.checks import BPB_TOLERANCE  # noqa: E402
from tiny_model import VOCAB, TinyModel  # noqa: E402

RNG = np.random.default_rng(21)
TOKENS = RNG.integers(0, VOCAB, 700).astype(np.uint16)
TABLE = ByteTable(
    base=RNG.integers(1, 8, VOCAB),
    has_space=RNG.random(VOCAB) < 0.3,
    is_boundary=np.zeros(VOCAB, dtype=bool),
)
CONFIG = ScoreConfig(
    protocol="sliding",
    seq_len=32,
    stride=8,
    batch_windows=4,
    chunk_targets=64,
)
ADAPT = AdaptConfig(learn=("blocks.*",), epochs=2, learning_rate=1e-2, sequences=3)


class Bigram(torch.nn.Module):
    """Logits that depend on the last token alone, so that no context and no batch can matter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator))

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.table[tokens_BT]


def run(
    folder: Path, model: torch.nn.Module, tokens: NDArray[Any] = TOKENS, **changes: Any
) -> NDArray[np.float64]:
    adapt = ADAPT if changes.get("protocol") == "score-first" else None
    path = folder / f"{len(list(folder.iterdir()))}.ledger"
    with Ledger(path, targets=tokens.size - 1, binding=bytes(32)) as ledger:
        return score_stream(model, tokens, ledger, replace(CONFIG, adapt=adapt, **changes)).nats


def score(nats: NDArray[np.float64]) -> Score:
    return score_targets(nats, TOKENS, TABLE)


@pytest.mark.parametrize("stride", [1, 5, 8, 31, 32])
@pytest.mark.parametrize(("batch_windows", "chunk_targets"), [(1, 1), (4, 64), (7, 100), (99, 999)])
def test_bookkeeping_of_strides_batches_and_chunks_changes_no_bit(
    tmp_path: Path, stride: int, batch_windows: int, chunk_targets: int
) -> None:
    expected = score(run(tmp_path, Bigram(), protocol="plain", batch_windows=1))
    found = run(
        tmp_path,
        Bigram(),
        stride=stride,
        batch_windows=batch_windows,
        chunk_targets=chunk_targets,
    )
    assert score(found) == expected  # nats, targets and bytes: the same float64 and integers
    assert expected.text_bytes == TABLE.total([TOKENS])


@pytest.mark.parametrize("protocol", ["plain", "sliding", "score-first"])
@pytest.mark.parametrize("batch_windows", [1, 3, 64])
def test_the_batch_size_changes_next_to_nothing(
    tmp_path: Path, protocol: str, batch_windows: int
) -> None:
    expected = run(tmp_path, TinyModel(), protocol=protocol)
    found = run(tmp_path, TinyModel(), protocol=protocol, batch_windows=batch_windows)
    assert abs(score(found).bpb - score(expected).bpb) < BPB_TOLERANCE["cpu"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_compilation_changes_next_to_nothing(tmp_path: Path) -> None:
    tokens = TOKENS[: 20 * 32 + 1]  # windows of one length, so one graph
    changes = {"protocol": "plain", "batch_windows": 20, "chunk_targets": 10_000}
    expected = run(tmp_path, TinyModel(depth=1), tokens, **changes)
    found = run(tmp_path, TinyModel(depth=1), tokens, compile=True, **changes)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    difference = abs(found.sum() - expected.sum()) / np.log(2) / TABLE.total([tokens])
    assert difference < BPB_TOLERANCE["cpu"]


@pytest.mark.cuda
@pytest.mark.filterwarnings("default")  # of the compiler: TF32 is off
def test_batch_size_and_compilation_on_a_gpu(tmp_path: Path) -> None:
    expected = score(run(tmp_path, TinyModel().cuda(), protocol="plain")).bpb
    batched = score(run(tmp_path, TinyModel().cuda(), protocol="plain", batch_windows=64)).bpb
    found = score(run(tmp_path, TinyModel().cuda(), protocol="plain", compile=True)).bpb
    assert abs(batched - expected) < BPB_TOLERANCE["cuda"]
    assert abs(found - expected) < BPB_TOLERANCE["cuda"]


def test_threads_change_next_to_nothing(tmp_path: Path) -> None:
    expected = score(run(tmp_path, TinyModel())).bpb
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = score(run(tmp_path, TinyModel())).bpb
    finally:
        torch.set_num_threads(threads)
    assert abs(found - expected) < BPB_TOLERANCE["cpu"]
