"""Window plans by hand, and the scorer against a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from flyweight.errors import DataError, InvalidArgumentError  # noqa: E402
from flyweight.evaluate import adapters, scorer  # noqa: E402
from flyweight.evaluate.config import AdaptConfig, ScoreConfig  # noqa: E402
from flyweight.evaluate.ledger import Ledger  # noqa: E402
from flyweight.evaluate.scorer import WindowScorer, target_nats  # noqa: E402
from flyweight.evaluate.ttt import score_stream  # noqa: E402
from flyweight.evaluate.window import (  # noqa: E402
    Windows,
    plain_windows,
    sliding_windows,
    split_chunks,
    window_batches,
)
from flyweight.model.blocks import PLAIN  # noqa: E402
from flyweight.train.losses import fastest_operations  # noqa: E402
from tiny_model import VOCAB, TinyModel, tiny_transformer  # noqa: E402

TOKENS = np.random.default_rng(5).integers(0, VOCAB, 101).astype(np.int32)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for threads, long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def score_windows(
    model: Any, tokens: NDArray[Any], windows: Windows, **changes: Any
) -> NDArray[np.float64]:
    config = ScoreConfig(seq_len=16, stride=8, **changes)
    return WindowScorer(model, torch.from_numpy(tokens), config).score(windows)


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
    got = score_windows(model.train(), TOKENS, windows, batch_windows=batch_windows)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert not model.training


def test_bfloat16_stays_close() -> None:
    windows = sliding_windows(100, seq_len=16, stride=8)
    scores = [
        score_windows(TinyModel(), TOKENS, windows, precision=precision)
        for precision in ("float32", "bfloat16")
    ]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.1


class NanAfterSeven(TinyModel):
    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens_BT).masked_fill((tokens_BT == 7)[..., None], torch.nan)


def test_no_target_has_less_than_zero_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = torch.tensor([-1e-13, 2.0])  # what a GPU makes of a target that is sure

    def cross_entropy(*_: Any, **__: Any) -> torch.Tensor:
        return rounded

    monkeypatch.setattr("torch.nn.functional.cross_entropy", cross_entropy)
    found = target_nats(TinyModel(), torch.zeros(1, 3, dtype=torch.int64), 2)
    assert found.tolist() == [[0.0, 2.0]]


def test_a_nan_names_its_token() -> None:
    tokens = np.where(TOKENS == 7, 8, TOKENS)
    tokens[60] = 7
    windows = sliding_windows(100, seq_len=16, stride=8)
    with pytest.raises(DataError, match="loss is nan at token 61 of the stream"):
        score_windows(NanAfterSeven(), tokens, windows)


def test_a_nan_names_its_layer() -> None:
    model, windows = TinyModel(), sliding_windows(100, seq_len=16, stride=8)
    model.blocks[1].out.register_forward_hook(lambda *call: call[-1].log())
    with pytest.raises(DataError, match=r"token 1 of .* what layer blocks.1.out gives is not"):
        score_windows(model, TOKENS, windows)
    with torch.no_grad():
        model.blocks[2].mlp[0].bias[3] = torch.inf
    with pytest.raises(DataError, match=r"weight blocks.2.mlp.0.bias is not finite"):
        score_windows(model, TOKENS, windows)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lanes_from": 2},
        {"recur_first": 1, "recur_last": 3, "recur_passes": 1},
        {"document_mask": True},
    ],
    ids=str,
)
def test_the_last_block_runs_for_scored_positions_alone(changes: dict[str, Any]) -> None:
    model = tiny_transformer(**changes).eval()
    tokens = torch.from_numpy(TOKENS[:96]).long().view(6, 16)
    expected = model.hidden(tokens)
    for tail in (1, 5, 16):
        found = model.hidden(tokens, tail=tail)
        torch.testing.assert_close(found, expected[:, -tail:], rtol=1e-5, atol=1e-5)


def test_compiled_blocks_have_one_shape_the_last_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ScoreConfig(protocol="plain", seq_len=16, batch_windows=3)
    model, tokens_T = TinyModel(depth=1), torch.from_numpy(TOKENS)
    windows = plain_windows(TOKENS.size - 1, seq_len=16)
    assert windows.end[-1] - windows.first[-1] == 4
    expected = WindowScorer(model, tokens_T, config).score(windows)
    shapes = []

    def watched(model: Any, rows_BL: Any, positions: int) -> Any:
        shapes.append((*rows_BL.shape, positions))
        return target_nats(model, rows_BL, positions)

    monkeypatch.setattr(torch, "compile", lambda function, **options: watched)
    found = WindowScorer(model, tokens_T, replace(config, compile=True)).score(windows)
    assert set(shapes) == {(3, 17, 16)}
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("is_fused", "long", "many", "graphs"),
    [(True, 1000, 500, 0), (True, 10, 500, 1), (True, 1000, 5, 1), (False, 1000, 500, 2)],
)
def test_auto_compiles_what_ends_sooner_by_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_fused: bool,
    long: int,
    many: int,
    graphs: int,
) -> None:
    monkeypatch.setattr(scorer, "_LONG", long)
    monkeypatch.setattr(adapters, "_MANY_STEPS", many)
    watched = Mock(side_effect=lambda function, **options: Mock(side_effect=function))
    monkeypatch.setattr(torch, "compile", watched)
    model = tiny_transformer(num_layers=1, ve_layers=1, xsa_layers=1)
    if is_fused:  # in other functions than the plain ones, as Triton's kernels are
        model.use(replace(PLAIN, gate_heads=lambda *tensors: PLAIN.gate_heads(*tensors)))
    config = ScoreConfig(
        protocol="score-first",
        seq_len=16,
        stride=8,
        batch_windows=3,
        chunk_targets=32,
        adapt=AdaptConfig(sequences=2),
    )
    found = []
    for compile_ in (False, "auto"):
        with Ledger(tmp_path / str(compile_), targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
            changed = replace(config, compile=compile_)  # type: ignore[arg-type]
            found.append(score_stream(model, TOKENS, ledger, changed))
    assert watched.call_count == graphs  # of scores, of gradients
    assert found[1].seconds["compile"] > 0  # what is done once is outside of the clock anyway
    np.testing.assert_allclose(found[1].nats, found[0].nats, rtol=0, atol=1e-4)


def test_compiled_code_is_compiled_once_and_scores_the_same(tmp_path: Path) -> None:
    config = ScoreConfig(
        protocol="score-first",
        seq_len=16,
        stride=8,
        batch_windows=3,
        chunk_targets=32,
        adapt=AdaptConfig(learning_rate=1e-2, sequences=2, ema_decay=0.5),
    )
    model = tiny_transformer(num_layers=1, ve_layers=1, xsa_layers=1)
    found = []
    for is_compiled in (False, True):
        path = tmp_path / f"{is_compiled}"
        with Ledger(path, targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
            found.append(score_stream(model, TOKENS, ledger, replace(config, compile=is_compiled)))
    assert found[1].recompilations == 0
    assert found[1].adapted_chunks == 3
    np.testing.assert_allclose(found[1].nats, found[0].nats, rtol=0, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("protocol", ["sliding", "score-first"])
def test_on_a_gpu_the_fast_way_scores_the_same(tmp_path: Path, protocol: str) -> None:
    sizes = {"model_dim": 128, "mlp_hidden": 256, "rope_dims": 16, "seq_len": 256}
    config = ScoreConfig(
        protocol=protocol,  # type: ignore[arg-type]
        seq_len=256,
        stride=64,
        chunk_targets=1024,
        adapt=AdaptConfig(learning_rate=1e-3, sequences=2) if protocol != "sliding" else None,
    )
    tokens = np.random.default_rng(1).integers(0, VOCAB, 4100).astype(np.uint16)
    found = []
    for is_fast in (False, True):
        model = tiny_transformer(**sizes).cuda()
        changes: dict[str, Any] = {"compile": is_fast}
        if is_fast:
            model.use(fastest_operations(model))
            changes["precision"] = "bfloat16"
        with Ledger(tmp_path / f"{is_fast}", targets=4099, binding=bytes(32)) as ledger:
            found.append(score_stream(model, tokens, ledger, replace(config, **changes)))
    assert found[1].recompilations == 0
    assert abs(found[1].nats.mean() - found[0].nats.mean()) < 0.01
    assert np.abs(found[1].nats - found[0].nats).max() < 0.5


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
