"""Window plans by hand, and the scorer against a plain loop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flyweight.errors import DataError, InvalidArgumentError  # noqa: E402
from flyweight.evaluate.window import (  # noqa: E402
    Windows,
    plain_windows,
    score_windows,
    sliding_windows,
    split_chunks,
    window_batches,
)
from tiny_model import VOCAB, TinyModel  # noqa: E402

TOKENS = np.random.default_rng(5).integers(0, VOCAB, 101).astype(np.int32)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for threads, long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def triples(windows: Windows) -> list[tuple[int, int, int]]:
    return list(
        zip(windows.begin.tolist(), windows.first.tolist(), windows.end.tolist(), strict=True)
    )


def test_plain_blocks_keep_the_ragged_tail() -> None:
    assert triples(plain_windows(10, seq_len=4)) == [(0, 0, 4), (4, 4, 8), (8, 8, 10)]
    assert triples(plain_windows(3, seq_len=4)) == [(0, 0, 3)]


def test_sliding_windows_score_only_what_is_new() -> None:
    assert triples(sliding_windows(11, seq_len=4, stride=2)) == [
        (0, 0, 4),
        (2, 4, 6),
        (4, 6, 8),
        (6, 8, 10),
        (7, 10, 11),  # the tail reaches back for a full context
    ]
    assert triples(sliding_windows(3, seq_len=4, stride=2)) == [(0, 0, 3)]
    assert triples(sliding_windows(4, seq_len=4, stride=4)) == [(0, 0, 4)]


def test_chunks_cut_where_the_stream_says() -> None:
    chunks = split_chunks(sliding_windows(100, seq_len=8, stride=4), chunk_targets=16)
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [
        (start, min(start + 16, 100)) for start in range(0, 100, 16)
    ]


def test_batches_have_one_shape() -> None:
    windows = sliding_windows(101, seq_len=8, stride=4)
    batches = list(window_batches(windows, batch_windows=5))
    assert [len(batch) for batch in batches] == [1, 5, 5, 5, 5, 3, 1]
    assert [window for batch in batches for window in triples(batch)] == triples(windows)


@pytest.mark.parametrize(
    "windows",
    [
        plain_windows(100, seq_len=16),
        sliding_windows(100, seq_len=16, stride=3),
        sliding_windows(100, seq_len=16, stride=1)[20:70],
        sliding_windows(9, seq_len=16, stride=4),
    ],
    ids=["plain", "sliding", "part", "short"],
)
@pytest.mark.parametrize("batch_windows", [1, 7])
def test_scores_equal_a_plain_loop(windows: Windows, batch_windows: int) -> None:
    model = TinyModel().eval()
    expected = []
    with torch.no_grad():
        for begin, first, end in triples(windows):
            logits = model(torch.from_numpy(TOKENS[None, begin:end]).long())[0].double()
            nats = -torch.log_softmax(logits, dim=-1)
            expected += [float(nats[i - begin, TOKENS[i + 1]]) for i in range(first, end)]
    got = score_windows(
        model.train(), torch.from_numpy(TOKENS), windows, batch_windows=batch_windows
    )
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert not model.training


def test_bfloat16_stays_close() -> None:
    windows = sliding_windows(100, seq_len=16, stride=8)
    scores = [
        score_windows(TinyModel(), torch.from_numpy(TOKENS), windows, precision=precision)
        for precision in ("float32", "bfloat16")
    ]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.1


class NanAfterSeven(TinyModel):
    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens_BT).masked_fill((tokens_BT == 7)[..., None], torch.nan)


def test_a_nan_names_its_token() -> None:
    tokens = np.where(TOKENS == 7, 8, TOKENS)
    tokens[60] = 7
    windows = sliding_windows(100, seq_len=16, stride=8)
    with pytest.raises(DataError, match="loss is nan at token 61 of the stream"):
        score_windows(NanAfterSeven(), torch.from_numpy(tokens), windows)


@pytest.mark.parametrize(
    ("targets", "seq_len", "stride"), [(0, 4, 2), (5, 0, 1), (5, 4, 0), (5, 4, 5)]
)
def test_plans_that_cannot_be(targets: int, seq_len: int, stride: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"targets={targets}"):
        sliding_windows(targets, seq_len=seq_len, stride=stride)


def test_sizes_below_one() -> None:
    windows = plain_windows(10, seq_len=4)
    with pytest.raises(InvalidArgumentError, match="chunk_targets=0"):
        split_chunks(windows, chunk_targets=0)
    with pytest.raises(InvalidArgumentError, match="batch_windows=0"):
        list(window_batches(windows, batch_windows=0))
    with pytest.raises(InvalidArgumentError, match="seq_len=0"):
        plain_windows(10, seq_len=0)
