"""A context that rolls on: every target sees its last tokens in each layer, at one pass a token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flyweight.errors import DataError, InvalidArgumentError  # noqa: E402
from flyweight.evaluate.config import ScoreConfig  # noqa: E402
from flyweight.evaluate.ledger import Ledger  # noqa: E402
from flyweight.evaluate.rolling import RollingScorer  # noqa: E402
from flyweight.evaluate.scorer import nats_of  # noqa: E402
from flyweight.evaluate.ttt import score_stream  # noqa: E402
from flyweight.model.attention import Positions, document_ids  # noqa: E402
from flyweight.model.config import BOS_TOKEN  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.train.losses import fastest_operations  # noqa: E402
from tiny_model import VOCAB, TinyModel, tiny_transformer  # noqa: E402

LENGTH = 8
TOKENS = np.random.default_rng(5).integers(2, VOCAB, 150).astype(np.uint16)
TOKENS[[0, 31, 32, 70, 104]] = BOS_TOKEN
CONFIG = ScoreConfig(
    protocol="sliding", rolling=True, seq_len=LENGTH, stride=4, batch_windows=3, chunk_targets=1024
)


def run(path: Path, model: Any, tokens: Any = TOKENS, **changes: Any) -> Any:
    with Ledger(path, targets=tokens.size - 1, binding=bytes(32)) as ledger:
        return score_stream(model, tokens, ledger, replace(CONFIG, **changes)).nats


def in_one_row(model: Transformer, tokens: Any) -> Any:
    """The same without any rows: the whole stream at once, under a mask of all pairs."""
    tokens_T = torch.from_numpy(tokens.astype(np.int64))
    inputs_BT = tokens_T[None, :-1]
    count = inputs_BT.shape[1]
    back_TT = torch.arange(count)[:, None] - torch.arange(count)
    sees_TT = (back_TT >= 0) & (back_TT < LENGTH)
    if model.config.document_mask:
        ids_T = document_ids(inputs_BT)[0]
        sees_TT &= ids_T[:, None] == ids_T
    rope = Positions(*model.rope_tables(count), sees_TT[None, None])
    with torch.inference_mode():
        hidden = model.eval().run_blocks(model.embed(inputs_BT), inputs_BT, rope)
        return nats_of(model.logits(hidden), tokens_T[None, 1:])[0].double().numpy()


FEATURES: dict[str, dict[str, Any]] = {
    "all that is one pass": {},
    "bigrams": {"bigram_buckets": 64, "bigram_dim": 8},
    "smear first": {"bigram_buckets": 64, "bigram_dim": 8, "smear_first": True},
    "documents": {"document_mask": True, "smear_document_mask": True},
    "recurrence": {"recur_first": 1, "recur_last": 3, "recur_passes": 1},
    "lanes": {"lanes_from": 2},
    "no rotation": {"rope_dims": 0},
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_scores_are_those_of_the_stream_in_one_row(
    tmp_path: Path, features: dict[str, Any]
) -> None:
    model = tiny_transformer(**features)
    expected = in_one_row(model, TOKENS)
    for batch in (1, 3, 64):
        found = run(tmp_path / f"{batch}", model, batch_windows=batch)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_the_context_is_what_a_window_of_full_length_has(tmp_path: Path) -> None:
    # In one layer a target sees nothing else, so windows of stride 1 must give the same.
    model = tiny_transformer(
        num_layers=1, ve_layers=1, xsa_layers=1, unet_skips=False, smear_gate=False
    )
    expected = run(tmp_path / "a", model, rolling=False, stride=1)
    np.testing.assert_allclose(run(tmp_path / "b", model), expected, rtol=0, atol=2e-5)


def test_chunks_change_nothing(tmp_path: Path) -> None:
    model = tiny_transformer()
    whole = run(tmp_path / "a", model)
    pieces = run(tmp_path / "b", model, chunk_targets=3 * LENGTH)  # of whole passes
    assert whole.tobytes() == pieces.tobytes()
    others = run(tmp_path / "c", model, chunk_targets=LENGTH)
    np.testing.assert_allclose(others, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("targets", [1, LENGTH - 1, LENGTH, LENGTH + 1])
def test_short_streams(tmp_path: Path, targets: int) -> None:
    model, tokens = tiny_transformer(), TOKENS[: targets + 1]
    np.testing.assert_allclose(
        run(tmp_path / "x", model, tokens), in_one_row(model, tokens), rtol=0, atol=2e-5
    )


def test_a_deadline_scores_the_rest_in_plain_blocks(tmp_path: Path) -> None:
    model = tiny_transformer()
    plain = run(tmp_path / "a", model, protocol="plain", rolling=False)
    with Ledger(tmp_path / "b", targets=TOKENS.size - 1, binding=bytes(32)) as ledger:
        config = replace(CONFIG, chunk_targets=3 * LENGTH)
        found = score_stream(model, TOKENS, ledger, config, deadline=0.0)
    assert found.plain_chunks == 7
    np.testing.assert_allclose(found.nats, plain, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("chunk_targets", "rows"), [(1, 1), (3 * LENGTH + 1, 4), (1 << 20, 92)])
def test_a_pass_is_no_longer_than_a_chunk(tmp_path: Path, chunk_targets: int, rows: int) -> None:
    model = tiny_transformer()
    config = replace(CONFIG, batch_windows=0, chunk_targets=chunk_targets)
    assert RollingScorer(model, torch.from_numpy(TOKENS), config).batch_windows == rows
    found = run(tmp_path / "x", model, batch_windows=0, chunk_targets=chunk_targets)
    np.testing.assert_allclose(found, in_one_row(model, TOKENS), rtol=0, atol=2e-5)


def test_other_models(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="needs a Transformer, got TinyModel"):
        run(tmp_path / "x", TinyModel())


def test_a_model_that_gives_nan_is_named(tmp_path: Path) -> None:
    model = tiny_transformer()
    with torch.no_grad():
        model.blocks[1].mlp.fc.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"the model's loss is nan at token 1 .*blocks\.1"):
        run(tmp_path / "x", model)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_with_fused_operations(tmp_path: Path) -> None:
    model = tiny_transformer(bigram_buckets=64, bigram_dim=8)
    expected = in_one_row(model, TOKENS)
    model.cuda()
    model.use(fastest_operations(model))
    found = run(tmp_path / "a", model, compile="auto")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    rough = run(tmp_path / "b", model, precision="bfloat16")
    assert abs(rough.mean() - expected.mean()) < 0.01
