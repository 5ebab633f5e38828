"""Which loss a step takes: recurrence and rounding start when the recipe says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from flyweight.errors import InvalidArgumentError  # noqa: E402
from flyweight.model.blocks import PLAIN  # noqa: E402
from flyweight.model.config import ModelConfig  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.quant.config import QuantConfig, QuantRule  # noqa: E402
from flyweight.train.config import QatConfig, TrainConfig  # noqa: E402
from flyweight.train.losses import Losses, Phase, fastest_operations  # noqa: E402

QUANTIZE = QuantConfig(rules=(QuantRule(match="*", bits=4, scale="row-max"),), min_elements=1)


def a_model(**features: Any) -> Transformer:
    config = ModelConfig(
        vocab_size=32,
        num_layers=3,
        model_dim=16,
        num_heads=2,
        num_kv_heads=1,
        mlp_hidden=32,
        seq_len=8,
        rope_dims=4,
        **features,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


RECURRING = {"recur_first": 1, "recur_last": 1, "recur_passes": 1}
TOKENS = torch.arange(16).view(2, 8)


def value(losses: Losses, spent: float) -> float:
    loss_function = losses.pick(spent)
    with losses.rounding():
        return loss_function(TOKENS, TOKENS).item()


def test_recurrence_and_rounding_start_on_their_own() -> None:
    model = a_model(**RECURRING)
    qat = QatConfig(start_fraction=0.7)
    config = TrainConfig(batch_sequences=2, max_steps=10, recur_start_fraction=0.4, qat=qat)
    losses = Losses(model, config, QUANTIZE)
    once, plain = (f(TOKENS, TOKENS).item() for f in (model.loss_once, model.loss))
    assert once != plain
    assert [value(losses, spent) for spent in (0.0, 0.39, 0.4, 0.69)] == [once, once, plain, plain]
    assert losses.hardness == 0
    rounded = value(losses, 0.7)
    assert rounded not in (once, plain)
    assert losses.hardness == 1


def test_rounding_may_start_before_recurrence() -> None:
    model = a_model(**RECURRING)
    config = TrainConfig(
        batch_sequences=2, max_steps=10, recur_start_fraction=0.6, qat=QatConfig(start_fraction=0.2)
    )
    losses = Losses(model, config, QUANTIZE)
    values = [value(losses, spent) for spent in (0.0, 0.2, 0.6)]
    assert values[0] == model.loss_once(TOKENS, TOKENS).item()
    assert len(set(values)) == 3


def test_a_start_means_nothing_without_layers_to_repeat() -> None:
    model = a_model()
    config = TrainConfig(batch_sequences=2, max_steps=10, recur_start_fraction=0.5)
    losses = Losses(model, config, None)
    assert len(losses.compile(0.0)) == 1
    assert losses.hardness is None


@pytest.mark.parametrize(("spent", "graphs"), [(0.0, 2), (0.3, 2), (0.4, 1), (0.8, 1)])
def test_what_is_compiled_is_what_is_still_to_come(spent: float, graphs: int) -> None:
    config = TrainConfig(
        batch_sequences=2, max_steps=10, recur_start_fraction=0.4, qat=QatConfig(start_fraction=0.7)
    )
    assert len(Losses(a_model(**RECURRING), config, QUANTIZE).compile(spent)) == graphs


def test_sequences_are_cut_into_pieces_at_first() -> None:
    model = a_model(**RECURRING)
    config = TrainConfig(
        batch_sequences=2,
        max_steps=10,
        short_seq_len=4,
        short_fraction=0.3,
        recur_start_fraction=0.6,
    )
    losses = Losses(model, config, None)
    pieces = TOKENS.view(4, 4)
    short, once, plain = (
        model.loss_once(pieces, pieces).item(),
        model.loss_once(TOKENS, TOKENS).item(),
        model.loss(TOKENS, TOKENS).item(),
    )
    assert len({short, once, plain}) == 3
    assert [value(losses, spent) for spent in (0.0, 0.29, 0.3, 0.6)] == [short, short, once, plain]
    assert losses.phase == Phase(recurs=True, seq_len=8)
    assert [len(Losses(model, config, None).compile(spent)) for spent in (0, 0.3, 0.6)] == [3, 2, 1]
    with pytest.raises(InvalidArgumentError, match="short_seq_len=3 does not divide seq_len=8"):
        Losses(model, dataclasses.replace(config, short_seq_len=3), None)


def test_recompilations_are_counted() -> None:
    losses = Losses(a_model(), TrainConfig(batch_sequences=2, max_steps=10), None)
    losses.start_counting()
    assert losses.recompilations == 0
    torch.compile(lambda x: x + 1, backend="eager")(TOKENS)
    assert losses.recompilations == 1


def test_a_model_on_the_cpu_has_plain_operations() -> None:
    assert fastest_operations(a_model()) is PLAIN


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_kernels_are_taken_where_they_fit() -> None:
    assert fastest_operations(a_model().cuda()) is not PLAIN
    config = ModelConfig(
        vocab_size=32,
        num_layers=1,
        model_dim=18,
        num_heads=3,
        num_kv_heads=3,
        mlp_hidden=8,
        seq_len=8,
        rope_dims=2,
    )
    assert fastest_operations(Transformer(config).cuda()) is PLAIN
