"""Low-rank additions per document: beside a plain loop, reset at every BOS, in the forced order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from flyweight.errors import DataError, InvalidArgumentError  # noqa: E402
from flyweight.evaluate.config import LoraConfig, ScoreConfig  # noqa: E402
from flyweight.evaluate.engine import ScoredChunk  # noqa: E402
from flyweight.evaluate.ledger import Ledger  # noqa: E402
from flyweight.evaluate.lora import DocumentRows, PerDocument, ScoredRows  # noqa: E402
from flyweight.evaluate.stream import StreamResult, run_engine  # noqa: E402
from flyweight.model.config import BOS_TOKEN  # noqa: E402
from tiny_model import VOCAB, TinyModel  # noqa: E402

RNG = np.random.default_rng(23)
LENGTHS = (37, 5, 90, 12, 61, 1, 44, 28, 70)
DOCUMENTS = [np.r_[BOS_TOKEN, RNG.integers(2, VOCAB, n)].astype(np.uint16) for n in LENGTHS]
LORA = LoraConfig(
    match=("blocks.*.qkv", "blocks.2.mlp.*"),
    rank=3,
    learning_rate=0.02,
    momentum=0.5,
    weight_decay=0.1,
    step_targets=8,
    documents=4,
)
CONFIG = ScoreConfig(protocol="per-document", seq_len=32, chunk_targets=100, lora=LORA)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(
    path: Path,
    documents: list[NDArray[np.uint16]],
    config: ScoreConfig = CONFIG,
    deadline: float | None = None,
    progress: Callable[[ScoredChunk], None] | None = None,
) -> StreamResult:
    tokens = np.concatenate(documents)
    with Ledger(path, targets=tokens.size - 1, binding=bytes(32)) as ledger:
        engine = PerDocument(TinyModel(), tokens, ledger, config)
        return run_engine(engine, deadline=deadline, progress=progress)


def transcribed(document: NDArray[np.uint16], following: int | None) -> NDArray[np.float64]:
    """One document by itself: additions as matrices, AdamW by formula."""
    model = TinyModel().eval()
    tokens = torch.from_numpy(document.astype(np.int64))
    if following is not None:
        tokens = torch.cat((tokens, torch.tensor([following])))
    generator = torch.Generator().manual_seed(0)
    low: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if name.endswith("qkv") or (name.startswith("blocks.2.mlp.") and hasattr(module, "weight")):
            bound = module.in_features**-0.5
            a = torch.empty(3, module.in_features).uniform_(-bound, bound, generator=generator)
            low[name] = [a.requires_grad_(), torch.zeros(module.out_features, 3).requires_grad_()]
    for name, (a, b) in low.items():
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, out, a=a, b=b: out + LORA.scale * inputs[0] @ a.T @ b.T
        )
    weights = [weight for pair in low.values() for weight in pair]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    targets, nats = len(tokens) - 1, []
    for step, start in enumerate(range(0, targets, LORA.step_targets), start=1):
        stop = min(start + LORA.step_targets, targets)
        begin = max(start + LORA.step_targets - CONFIG.seq_len, 0)
        logs = model(tokens[None, begin:stop])[0, start - begin :].log_softmax(-1)
        losses = -logs.gather(-1, tokens[start + 1 : stop + 1, None])[:, 0]
        nats += losses.tolist()
        grads = torch.autograd.grad(losses.mean(), weights)
        for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            first[i] = 0.5 * first[i] + 0.5 * grad
            second[i] = 0.99 * second[i] + 0.01 * grad**2
            mean, square = first[i] / (1 - 0.5**step), second[i] / (1 - 0.99**step)
            weight.data *= 1 - 0.02 * 0.1
            weight.data -= 0.02 * mean / (square.sqrt() + 1e-10)
    return np.array(nats)


def test_scores_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    nats = run(tmp_path / "x", DOCUMENTS).nats
    at = 0
    for index, document in enumerate(DOCUMENTS):
        following = BOS_TOKEN if index < len(DOCUMENTS) - 1 else None
        expected = transcribed(document, following)
        np.testing.assert_allclose(nats[at : at + expected.size], expected, rtol=0, atol=1e-3)
        at += expected.size
    assert at == nats.size


def test_documents_know_nothing_of_each_other(tmp_path: Path) -> None:
    nats = run(tmp_path / "a", DOCUMENTS).nats
    ends = np.cumsum([document.size for document in DOCUMENTS])
    order = [4, 2, 7, 0, 1, 5, 3, 6]  # the last one stays: it scores no BOS behind it
    shuffled = run(tmp_path / "b", [DOCUMENTS[k] for k in order] + DOCUMENTS[-1:]).nats
    at = 0
    for k in order:
        own = nats[ends[k] - DOCUMENTS[k].size : ends[k]]
        np.testing.assert_allclose(shuffled[at : at + own.size], own, rtol=0, atol=1e-4)
        at += own.size


@pytest.mark.parametrize("position", [20, 60, 200, 355])
def test_a_later_token_changes_no_earlier_score(tmp_path: Path, position: int) -> None:
    before = run(tmp_path / "a", DOCUMENTS).nats
    tokens = np.concatenate(DOCUMENTS)
    assert tokens[position] != BOS_TOKEN
    tokens[position] = 2 + (tokens[position] - 1) % (VOCAB - 2)
    after = run(tmp_path / "b", [tokens]).nats
    assert after[: position - 1].tobytes() == before[: position - 1].tobytes()
    assert after[position - 1] != before[position - 1]


def test_text_that_repeats_gets_cheaper_within_its_document(tmp_path: Path) -> None:
    phrase = np.r_[BOS_TOKEN, np.tile(np.arange(2, 10), 12)].astype(np.uint16)
    learned = run(tmp_path / "a", [phrase, phrase]).nats
    frozen = run(
        tmp_path / "b", [phrase, phrase], replace(CONFIG, lora=replace(LORA, learning_rate=1e-9))
    ).nats
    np.testing.assert_allclose(learned[:8], frozen[:8], rtol=0, atol=1e-6)
    assert learned[64:96].mean() < frozen[64:96].mean() - 0.5
    np.testing.assert_allclose(learned[97:105], learned[:8], rtol=0, atol=1e-5)


def test_compiled_windows_give_the_same_scores(tmp_path: Path) -> None:
    expected = run(tmp_path / "a", DOCUMENTS)
    found = run(tmp_path / "b", DOCUMENTS, replace(CONFIG, compile=True))
    np.testing.assert_allclose(found.nats, expected.nats, rtol=0, atol=1e-4)
    assert found.recompilations == 0
    assert found.seconds["compile"] > 0.1  # it was compiled at all


def test_a_loss_that_is_not_finite_names_token_and_layer(tmp_path: Path) -> None:
    model = TinyModel()
    tokens = np.concatenate(DOCUMENTS)
    model.blocks[1].out.register_forward_hook(
        lambda module, inputs, out: out / (torch.arange(out.shape[1]) < 16)[:, None]
    )
    with Ledger(tmp_path / "x", targets=tokens.size - 1, binding=bytes(32)) as ledger:
        engine = PerDocument(model, tokens, ledger, CONFIG)
        match = r"loss is nan at token 17 of the stream.* what layer blocks\.1\.out gives is not"
        with pytest.raises(DataError, match=match):
            run_engine(engine)
    assert ledger.scored == 0


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_and_a_deadline_covers_all(tmp_path: Path) -> None:
    def kill(scored: ScoredChunk) -> None:
        if scored.index == 1:
            raise KilledError

    whole = run(tmp_path / "whole", DOCUMENTS)
    assert whole.adapted_chunks == whole.new_chunks > 2
    with pytest.raises(KilledError):
        run(tmp_path / "x", DOCUMENTS, progress=kill)
    again = run(tmp_path / "x", DOCUMENTS)
    assert again.recorded_chunks == 2
    assert again.nats.tobytes() == whole.nats.tobytes()
    late = run(tmp_path / "late", DOCUMENTS, deadline=0.0)
    assert np.isfinite(late.nats).all()
    assert (late.adapted_chunks, late.plain_chunks) == (0, late.new_chunks)


def test_the_order_within_documents_is_forced(tmp_path: Path) -> None:
    tokens = np.concatenate(DOCUMENTS)
    with Ledger(tmp_path / "x", targets=tokens.size - 1, binding=bytes(32)) as ledger:
        engine = PerDocument(TinyModel(), tokens, ledger, CONFIG)
    windows = engine.chunks[0]
    sizes = (
        torch.from_numpy(np.resize(windows.first, 4)),
        torch.from_numpy(np.resize(windows.end, 4)),
    )
    rows = DocumentRows(engine._added, engine._additions, engine.tokens_T, *sizes, CONFIG, LORA)
    with pytest.raises(InvalidArgumentError, match="expected step 0"):
        rows.score(1)
    scored = rows.score(0)
    newest = rows.score(1)
    for wrong in (scored, None, newest.nats):
        with pytest.raises(InvalidArgumentError, match="expected the ScoredRows"):
            rows.adapt(wrong)  # type: ignore[arg-type]
    rows.adapt(newest)
    with pytest.raises(InvalidArgumentError, match="not yet used"):
        rows.adapt(newest)
    with pytest.raises(InvalidArgumentError, match="cannot be made"):
        ScoredRows(0, newest.nats, newest.counts, object())


def test_documents_that_have_ended_cost_nothing(tmp_path: Path) -> None:
    tokens = np.concatenate(DOCUMENTS)
    with Ledger(tmp_path / "x", targets=tokens.size - 1, binding=bytes(32)) as ledger:
        engine = PerDocument(TinyModel(), tokens, ledger, CONFIG)
    first_R = torch.tensor([0, 0, 0, 0])
    end_R = torch.tensor([40, 25, 12, 12])
    rows = DocumentRows(
        engine._added, engine._additions, engine.tokens_T, first_R, end_R, CONFIG, LORA
    )
    sizes = []
    for step in range(rows.steps):
        scored = rows.score(step)
        sizes.append(len(scored.nats))
        rows.adapt(scored)
    assert sizes == [4, 4, 2, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "lora.rank=0"),
        ({"second_beta": 1.0}, "lora.second_beta=1.0"),
        ({"step_targets": 64}, "lora.step_targets=64, expected at most"),
        ({"match": ("blocks.*.c_q",)}, r"'blocks.\*.c_q' matches no linear"),
    ],
    ids=str,
)
def test_tables_that_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        run(tmp_path / "x", DOCUMENTS, replace(CONFIG, lora=replace(LORA, **change)))
    with pytest.raises(InvalidArgumentError, match="belongs to per-document"):
        replace(CONFIG, protocol="plain")
