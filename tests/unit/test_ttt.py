"""Protocols: the order is forced, later tokens change nothing, a killed run goes on bit for bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from flyweight.errors import DataError, InvalidArgumentError  # noqa: E402
from flyweight.evaluate.adapters import ScoreFirst  # noqa: E402
from flyweight.evaluate.config import AdaptConfig, LoraConfig, NgramConfig, ScoreConfig  # noqa: E402
from flyweight.evaluate.engine import (  # noqa: E402
    ScoredChunk,
    ScoringEngine,
)
from flyweight.evaluate.ledger import Ledger, read_ledger  # noqa: E402
from flyweight.evaluate.stream import StreamResult, score_binding  # noqa: E402
from flyweight.evaluate.ttt import ENGINES, score_stream  # noqa: E402
from tiny_model import VOCAB, TinyModel, tiny_transformer  # noqa: E402

TOKENS = np.random.default_rng(7).integers(0, VOCAB, 331).astype(np.uint16)
LORA = LoraConfig(match=("blocks.*.qkv",), step_targets=8, documents=3, learning_rate=1e-2)
ADAPT = AdaptConfig(learn=("blocks.1.*", "blocks.2.*"), epochs=2, learning_rate=1e-2, sequences=3)
CONFIG = ScoreConfig(
    protocol="score-first",
    seq_len=16,
    stride=8,
    batch_windows=4,
    chunk_targets=64,
    adapt=ADAPT,
)
CHUNKS = 6


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for threads, long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_of(protocol: str) -> Any:
    return tiny_transformer() if "rolling" in protocol else TinyModel()


def config_of(protocol: str, **changes: Any) -> ScoreConfig:
    """A method of `ScoreConfig`, such as ``sliding with hints``."""
    name, _, addition = protocol.partition(" with ")
    tables = {
        "adapt": CONFIG.adapt if name == "score-first" else None,
        "lora": LORA if name == "per-document" else None,
        "ngram": NgramConfig(table_bits=10) if addition == "hints" else None,
        "rolling": addition == "rolling context",
    }
    return replace(CONFIG, protocol=name, **{**tables, **changes})  # type: ignore[arg-type]


def open_ledger(path: Path, tokens: NDArray[Any] = TOKENS) -> Ledger:
    return Ledger(path, targets=tokens.size - 1, binding=bytes(32))


def run(
    path: Path,
    protocol: str = "score-first",
    tokens: NDArray[Any] = TOKENS,
    **changes: Any,
) -> StreamResult:
    config = config_of(protocol, **changes)
    with open_ledger(path, tokens) as ledger:
        return score_stream(model_of(protocol), tokens, ledger, config)


def engine(path: Path, protocol: str = "score-first") -> ScoringEngine:
    config = config_of(protocol)
    return ENGINES[protocol](TinyModel(), TOKENS, open_ledger(path), config)


@pytest.mark.parametrize("protocol", ENGINES)
def test_every_target_gets_one_finite_score(tmp_path: Path, protocol: str) -> None:
    result = run(tmp_path / "x.ledger", protocol)
    assert result.nats.shape == (330,)
    assert np.isfinite(result.nats).all()
    chunks = CHUNKS if protocol != "per-document" else result.new_chunks  # whole documents
    assert (result.new_chunks, result.recorded_chunks) == (chunks, 0)
    known = read_ledger(tmp_path / "x.ledger")
    assert len(known.records) == chunks
    assert known.chain.hex() == result.chain


def test_the_order_is_forced(tmp_path: Path) -> None:
    protocol = engine(tmp_path / "x.ledger")
    with pytest.raises(InvalidArgumentError, match="expected chunk 0"):
        protocol.score(1)
    scored = protocol.score(0)
    with pytest.raises(InvalidArgumentError, match="expected chunk 1"):
        protocol.score(0)
    newest = protocol.score(1)
    with pytest.raises(InvalidArgumentError, match="newest"):
        protocol.adapt(scored)
    protocol.adapt(newest)
    with pytest.raises(InvalidArgumentError, match="not yet used"):
        protocol.adapt(newest)
    for index in range(2, CHUNKS):
        protocol.score(index)
    with pytest.raises(InvalidArgumentError, match=f"chunk {CHUNKS} of {CHUNKS}"):
        protocol.score(CHUNKS)


def test_adapt_takes_nothing_that_it_did_not_hand_out(tmp_path: Path) -> None:
    ours, other = engine(tmp_path / "a.ledger"), engine(tmp_path / "b.ledger")
    for forged in (None, 0, TOKENS):
        with pytest.raises(InvalidArgumentError, match="adapt: expected the ScoredChunk"):
            ours.adapt(forged)  # type: ignore[arg-type]
    scored = ours.score(0)
    for wrong in (other.score(0), copy.copy(scored)):
        with pytest.raises(InvalidArgumentError, match="adapt: expected the ScoredChunk"):
            ours.adapt(wrong)
    with pytest.raises(InvalidArgumentError, match="cannot be made"):
        ScoredChunk(0, 0, 64, scored.nats, False, object())


@pytest.mark.parametrize("protocol", ENGINES)
def test_a_later_token_changes_no_earlier_score(tmp_path: Path, protocol: str) -> None:
    before = run(tmp_path / "a.ledger", protocol).nats
    for position in (1, 40, 64, 65, 200, 330):
        tokens = TOKENS.copy()
        tokens[position] = (tokens[position] + 1) % VOCAB
        after = run(tmp_path / f"{position}.ledger", protocol, tokens).nats
        assert after[: position - 1].tobytes() == before[: position - 1].tobytes()
        assert after[position - 1] != before[position - 1]


def test_a_chunk_scores_as_in_a_twin_that_never_saw_the_rest(tmp_path: Path) -> None:
    nats = run(tmp_path / "x.ledger").nats
    for seen in range(1, CHUNKS):
        twin_tokens = TOKENS.copy()
        twin_tokens[64 * seen + 1 :] = 0
        with open_ledger(tmp_path / f"{seen}.ledger") as ledger:
            twin = ScoreFirst(TinyModel(), twin_tokens, ledger, CONFIG)
            for index in range(seen):
                scored = twin.score(index)
                if index < seen - 1:
                    twin.adapt(scored)
        expected = nats[64 * (seen - 1) : 64 * seen]
        np.testing.assert_array_equal(scored.nats, expected)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_after", range(1, CHUNKS + 1))
def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path: Path, killed_after: int) -> None:
    def kill(scored: ScoredChunk) -> None:
        if scored.index == killed_after - 1:
            raise KilledError

    whole = run(tmp_path / "whole.ledger")
    path = tmp_path / "killed.ledger"
    with open_ledger(path) as ledger, pytest.raises(KilledError):
        score_stream(TinyModel(), TOKENS, ledger, CONFIG, progress=kill)
    with path.open("ab") as file:
        file.write(bytes.fromhex("0102030405"))  # a torn record
    again = run(path)
    assert (again.new_chunks, again.recorded_chunks) == (CHUNKS - killed_after, killed_after)
    assert again.nats.tobytes() == whole.nats.tobytes()
    assert again.chain == whole.chain
    assert path.read_bytes() == (tmp_path / "whole.ledger").read_bytes()


def test_what_is_recorded_is_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "x.ledger")
    monkeypatch.setattr(TinyModel, "forward", None)  # neither scored nor learned from
    again = run(tmp_path / "x.ledger")
    assert (again.new_chunks, again.recorded_chunks) == (0, CHUNKS)
    assert again.nats.tobytes() == whole.nats.tobytes()


def test_adapting_lowers_the_loss_on_text_that_repeats(tmp_path: Path) -> None:
    tokens = np.tile(np.arange(16, dtype=np.uint16), 40)
    frozen = run(tmp_path / "a.ledger", "sliding", tokens).nats
    adapted = run(tmp_path / "b.ledger", "score-first", tokens).nats
    np.testing.assert_array_equal(frozen[:64], adapted[:64])
    assert adapted[-64:].mean() < frozen[-64:].mean() - 0.5


@pytest.mark.parametrize("protocol", ENGINES)
def test_the_model_is_left_as_it_was(tmp_path: Path, protocol: str) -> None:
    model = model_of(protocol)
    before = copy.deepcopy(model.state_dict())
    with open_ledger(tmp_path / "x.ledger") as ledger:
        score_stream(model, TOKENS, ledger, config_of(protocol))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_a_loss_that_learning_broke_says_so(tmp_path: Path) -> None:
    adapt = replace(ADAPT, learning_rate=1e30)
    message = "at token 65 of the stream, .*; chunk 0 was learned from, lower adapt.learning_rate"
    with pytest.raises(DataError, match=message):
        run(tmp_path / "x.ledger", adapt=adapt)


def test_only_the_last_blocks_learn(tmp_path: Path) -> None:
    protocol = engine(tmp_path / "x.ledger")
    before = copy.deepcopy(protocol.model.state_dict())
    protocol.adapt(protocol.score(0))
    changed = {
        name
        for name, value in protocol.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    expected = {name for name in before if name.startswith(("blocks.1.", "blocks.2."))}
    assert changed == expected


@pytest.mark.parametrize("protocol", ["plain", "sliding", "sliding with rolling context"])
def test_chunks_and_batches_do_not_change_a_frozen_model(tmp_path: Path, protocol: str) -> None:
    scores = [
        run(tmp_path / f"{k}.ledger", protocol, chunk_targets=chunk, batch_windows=batch).nats
        for k, (chunk, batch) in enumerate([(64, 1), (330, 1), (7, 1), (64, 9), (1000, 64)])
    ]
    for other in scores[1:3]:  # the same batches, other chunks
        assert other.tobytes() == scores[0].tobytes()
    for other in scores[3:]:
        np.testing.assert_allclose(other, scores[0], rtol=0, atol=1e-5)


def test_the_learning_rate_falls_on_a_cosine(tmp_path: Path) -> None:
    protocol = engine(tmp_path / "x.ledger")
    assert isinstance(protocol, ScoreFirst)
    rates = []
    for index in range(CHUNKS):
        protocol.adapt(protocol.score(index))
        rates.append(protocol._optimizer.param_groups[0]["lr"])
    expected = [0.5e-2 * (1 + np.cos(np.pi * index / (CHUNKS - 1))) for index in range(CHUNKS)]
    np.testing.assert_allclose(rates, expected, atol=1e-15)


def test_a_ledger_of_another_stream_or_other_chunks(tmp_path: Path) -> None:
    with (
        open_ledger(tmp_path / "x.ledger") as ledger,
        pytest.raises(InvalidArgumentError, match="330 targets for 100 tokens"),
    ):
        score_stream(TinyModel(), TOKENS[:100], ledger, CONFIG)
    run(tmp_path / "x.ledger")
    (tmp_path / "x.ledger").write_bytes((tmp_path / "x.ledger").read_bytes()[:-200])
    with pytest.raises(DataError, match="written with other chunks"):
        run(tmp_path / "x.ledger", chunk_targets=48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learn": ("blocks.3.*",)}, r"'blocks.3.\*' matches no parameter"),
        ({"freeze": ("tok_emb",)}, "'tok_emb' matches no parameter"),
        ({"freeze": ("blocks.*",)}, "leaves nothing"),
    ],
)
def test_patterns_that_choose_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        run(tmp_path / "x.ledger", adapt=replace(ADAPT, **change))


def test_the_binding_changes_with_what_fixes_the_scores() -> None:
    other = TOKENS.copy()
    other[5] += 1
    bindings = [
        score_binding(TOKENS, CONFIG, model_sha256="ab"),
        score_binding(other, CONFIG, model_sha256="ab"),
        score_binding(TOKENS, replace(CONFIG, stride=4), model_sha256="ab"),
        score_binding(TOKENS, CONFIG, model_sha256="cd"),
    ]
    assert len(set(bindings)) == len(bindings)
    assert bindings[0] == score_binding(TOKENS.astype(np.int64), CONFIG, model_sha256="ab")
    assert {len(binding) for binding in bindings} == {32}


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "backwards"},
        {"precision": "float16"},
        {"seq_len": 0},
        {"stride": 17},
        {"batch_windows": -1},
        {"adapt": None},
        {"protocol": "sliding"},
        {"compile": "sometimes"},
        {"rolling": True, "ngram": NgramConfig()},
        {"rolling": True, "protocol": "plain", "adapt": None},
    ],
    ids=str,
)
def test_configs_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(change))}"):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "muon"},
        {"schedule": "linear"},
        {"epochs": 0},
        {"learning_rate": float("nan")},
        {"ema_decay": 1.0},
        {"momentum": -0.1},
        {"max_chunks": -1},
    ],
    ids=str,
)
def test_adapt_tables_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"adapt.{next(iter(change))}="):
        replace(ADAPT, **change)


def test_a_config_survives_json() -> None:
    table = json.loads(json.dumps(asdict(CONFIG)))
    assert ScoreConfig.from_table(table) == CONFIG
    assert ScoreConfig.from_table(asdict(config_of("plain"))) == config_of("plain")


def test_plain_blocks_need_no_stride() -> None:
    assert ScoreConfig(protocol="plain", seq_len=16, stride=64).seq_len == 16
