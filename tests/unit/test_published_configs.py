"""The published models are expressible: their parts, their initial values, their layer orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from published_configs import COMPONENTS, PUBLISHED, TOTALS

torch = pytest.importorskip("torch")

from flyweight.model.config import ModelConfig  # noqa: E402
from flyweight.model.parameters import parameter_counts  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.recipes.load import load_recipe  # noqa: E402


def small(name: str, **changes: Any) -> ModelConfig:
    """A published config with less width, same structure."""
    config = PUBLISHED[name]()
    stored = {f: getattr(config, f) for f in config.__dataclass_fields__}
    sizes = {"vocab_size": 23, "model_dim": 32, "num_heads": 4, "mlp_hidden": 24, "seq_len": 16}
    sizes["num_kv_heads"] = 4 if config.num_kv_heads == config.num_heads else 2
    sizes |= {"rope_dims": 4, "ve_dim": 12}
    if config.rope_train_length:
        sizes["rope_train_length"] = 8
    if config.bigram_buckets:
        sizes |= {"bigram_buckets": 19, "bigram_dim": 6}
    return ModelConfig(**{**stored, **sizes, **changes})


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_component_has_the_published_number_of_parameters(name: str) -> None:
    counts = parameter_counts(PUBLISHED[name]())
    for parts, expected in COMPONENTS[name].items():
        assert sum(counts.pop(part) for part in parts) == expected, parts
    assert not counts
    assert sum(COMPONENTS[name].values()) == TOTALS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_models(name: str) -> None:
    assert load_recipe(name).model == PUBLISHED[name]()


@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_are_the_published_ones(name: str) -> None:
    config = PUBLISHED[name]()
    base = 10000.0 if name == "pr1123" else 22_081.8
    assert config.stretched_rope_base == pytest.approx(base, abs=0.1)
    with torch.device("meta"):
        assert Transformer(config).rope_tables(100)[0].shape == (100, 8)


def test_stretched_frequencies_are_those_of_the_table() -> None:
    model = Transformer(small("pr578", seq_len=2048, rope_train_length=1024, rope_dims=8))
    expected = (10000 * 2 ** (8 / 6)) ** (-np.arange(4) / 4)
    turns_by_one = np.arcsin(model.rope_tables(2)[1][1].numpy())
    np.testing.assert_allclose(turns_by_one, expected, rtol=1e-6)
    base = PUBLISHED["pr578"]().stretched_rope_base
    table = [1, 0.2864, 0.08203, 0.02350, 0.00673, 0.00193, 0.000552, 0.000158]
    np.testing.assert_allclose(base ** (-np.arange(8) / 8), table, rtol=3e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_fields_round_trip(name: str) -> None:
    config = PUBLISHED[name]()
    assert ModelConfig.from_fields(config.to_fields()) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_parameter_learns(name: str) -> None:
    """None is dead: each has a gradient after a few steps from the initial weights."""
    model = Transformer(small(name))
    model.init_weights(torch.Generator().manual_seed(0))
    ids = torch.randint(2, 23, (4, 17), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def start(name: str) -> dict[str, Any]:
    model = Transformer(small(name))
    model.init_weights(torch.Generator().manual_seed(0))
    return {key: value.detach() for key, value in model.named_parameters()}


def test_pr1123_starts_as_published() -> None:
    weights = start("pr1123")
    assert (weights["skip_weights"] == 0.1).all()
    assert not weights["ve_shared.proj.weight"].any()
    assert weights["ve_shared.embed.weight"].std().item() == pytest.approx(0.01, rel=0.15)
    for layer in range(11):
        assert weights[f"blocks.{layer}.attn.value_mix"].tolist() == [0.5, 0.5]
        assert (weights[f"blocks.{layer}.attn.q_gain"] == 2).all()


def test_pr1539_starts_as_published() -> None:
    weights = start("pr1539")
    assert weights["lane_merge"].item() == 0.5
    assert (weights["skip_weights"] == 1).all()
    assert not weights["ve_shared.proj.weight"].any()
    assert weights["ve_shared.scale"].item() == pytest.approx(0.1)
    assert [weights[f"ve_layer_scales.{i}"].item() for i in range(2)] == [1, 1]


def test_pr1683_starts_as_published() -> None:
    weights = start("pr1683")
    assert weights["ve_shared.embed.weight"].std().item() == pytest.approx(1, rel=0.15)
    assert [weights[f"ve_layer_scales.{i}"].item() for i in range(2)] == [0, 0]
    bound = 12**-0.5  # what a linear of 12 inputs starts with by default
    for i in range(2):
        proj = weights[f"ve_shared.projs.{i}.weight"]
        assert 0.9 * bound < proj.abs().max().item() <= bound
        assert proj.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    for layer in range(13):
        assert not weights[f"blocks.{layer}.attn.gate_weight"].any()
        assert (weights[f"blocks.{layer}.attn.gate_bias"] == 4).all()
    assert weights["bigram.proj.weight"].any()  # published at zero, where it never learns


class Tag(torch.nn.Module):
    """In place of a block: notes its input, and gives a unit vector that tells the step."""

    def __init__(self, inputs: list[Any]) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, x_BTD: Any, *others: Any) -> Any:
        step = len(self.inputs)
        self.inputs.append(x_BTD)
        out = torch.zeros_like(x_BTD)
        out[..., step] = 1
        return out, None, out


def skip_sources(config: ModelConfig, *, recur: bool) -> dict[int, int]:
    """Step that receives a skip to the step whose output it is."""
    model, inputs = Transformer(config), []
    model.blocks = torch.nn.ModuleList(Tag(inputs) for _ in model.blocks)
    with torch.no_grad():
        model.skip_weights.copy_(torch.arange(1.0, config.num_skips + 1)[:, None])
        model.hidden(torch.zeros(1, 1, dtype=torch.int64), recur=recur)
    found = {}
    for step, x_BTD in enumerate(inputs[1:], start=1):
        added = x_BTD[0, 0].clone()
        added[step - 1] -= 1
        for source in added.nonzero().flatten().tolist():
            found[step] = source
            half = len(inputs) // 2
            assert added[source] == step - half + 1  # the weight of the decoder's step
    return found


def test_pr1539_recurs_and_skips_by_both_tables() -> None:
    config = small("pr1539", lanes_from=0)
    order = config.layer_order()
    assert order == (0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10)
    assert config.layer_order(recur=False) == tuple(range(11))
    inactive = skip_sources(config, recur=False)
    assert inactive == {5: 4, 6: 3, 7: 2, 8: 1, 9: 0}
    active = skip_sources(config, recur=True)
    # Steps 7 to 11 are layers 4 to 8; encoder steps 0 to 6 are layers 0 to 5 and 3 again.
    assert active == {7: 6, 8: 5, 9: 4, 10: 3, 11: 2}
    assert {order[i]: order[j] for i, j in active.items()} == {4: 3, 5: 5, 6: 4, 7: 3, 8: 2}


def test_pr1683_skips_by_its_table() -> None:
    sources = skip_sources(small("pr1683"), recur=True)
    assert sources == {6: 5, 7: 4, 8: 3, 9: 2, 10: 1, 11: 0}


def test_more_passes_follow_each_other() -> None:
    config = small("pr1539", recur_passes=2)
    assert config.layer_order() == (0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10)
