"""Weights rounded while training: the export's bits, bounded steps and slopes, one graph."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from flyweight.artifact import quantize
from flyweight.errors import InvalidArgumentError
from flyweight.model.config import ModelConfig
from flyweight.quant.config import QuantConfig, QuantRule
from flyweight.quant.grid import Grid, QuantizedTensor
from flyweight.quant.groups import stored

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.quant.qat import SHARPEST, SHARPEST_SLOPE, FakeQuant, round_weights  # noqa: E402
from flyweight.quant.qat_scales import StepRounding  # noqa: E402

MODEL = ModelConfig(
    vocab_size=48,
    num_layers=2,
    model_dim=24,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=40,
    seq_len=16,
    rope_dims=4,
    unet_skips=True,
    resid_mix=True,
    branch_scales=True,
)
INT4 = QuantConfig(rules=(QuantRule(match="*", bits=4, k=5.0),), min_elements=100)
RULES = {
    "sdclip int4": {"bits": 4, "k": 5.0},
    "sdclip int6": {"bits": 6, "k": 12.85},
    "sdclip int8": {"bits": 8, "k": 20.0},
    "sdclip clips": {"bits": 5, "k": 1.0},
    "sdclip of groups": {"bits": 4, "k": 4.0, "group_size": 7},
    "row-max int5": {"bits": 5, "scale": "row-max"},
    "row-max of groups": {"bits": 6, "scale": "row-max", "group_size": 8},
    "threshold, five levels": {"levels": "pentanary", "scale": "threshold"},
    "threshold, three levels": {"levels": "ternary", "scale": "threshold", "group_size": 5},
    "absmean, three levels": {"levels": "ternary", "scale": "absmean"},
    "absmean of groups": {"levels": "pentanary", "scale": "absmean", "group_size": 7},
}


def a_model(layers: int = 2) -> Transformer:
    """Rows of very unlike sizes, one of zeros, one so small that its step is subnormal."""
    model = Transformer(dataclasses.replace(MODEL, num_layers=layers))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(generator=generator)
                parameter *= torch.rand(len(parameter), 1, generator=generator) ** 4
        model.tok_emb.weight[3] = 0.0
        model.tok_emb.weight[4] *= 1e-7
        model.blocks[0].mlp.fc.weight[5] *= 1e-9
        model.blocks[-1].mlp.fc.weight[:, :7] = 0.0
    return model


def some_tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(MODEL.vocab_size, (2, MODEL.seq_len + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


# --- the export's weights -----------------------------------------------------------------------


@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rounded_weights_are_those_of_the_export(rule: dict[str, Any], is_soft: bool) -> None:
    config = QuantConfig(rules=(QuantRule(match="*", **rule),), min_elements=100)
    model = a_model()
    fake = FakeQuant(model, config, is_soft=is_soft)
    arrays = {name: p.detach().numpy() for name, p in model.named_parameters()}
    exported, _ = quantize(arrays, config)
    on_grids = {name for name, each in exported.items() if isinstance(each, QuantizedTensor)}
    assert set(fake.covered) == on_grids
    assert {"tok_emb.weight", "blocks.0.attn.c_q.weight", "blocks.1.mlp.proj.weight"} <= on_grids
    assert len(on_grids) < len(arrays)
    for name, weight in fake.weights().items():
        expected = exported[name].dequantize()
        assert weight.detach().numpy().tobytes() == expected.tobytes(), name


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_weights_on_cuda_have_the_same_bits(rule: dict[str, Any]) -> None:
    config = QuantConfig(rules=(QuantRule(match="*", **rule),), min_elements=100)
    on_cpu = FakeQuant(a_model(), config, is_soft=False).weights()
    for name, weight in FakeQuant(a_model().cuda(), config, is_soft=False).weights().items():
        assert torch.equal(weight.cpu(), on_cpu[name]), name


def test_the_first_rule_that_matches_counts() -> None:
    rules = (
        QuantRule(match="tok_emb.*", bits=8, scale="row-max"),
        QuantRule(match="blocks.*.mlp.*", bits=4, k=4.0),
    )
    fake = FakeQuant(a_model(), QuantConfig(rules=rules, min_elements=0), is_soft=False)
    assert fake.covered == (
        "tok_emb.weight",
        *(f"blocks.{layer}.mlp.{part}.weight" for layer in (0, 1) for part in ("fc", "proj")),
    )
    codes = fake.weights()["tok_emb.weight"] / fake.scales[: MODEL.vocab_size, None]
    assert codes[0].abs().max() == 127


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_steps_are_rounded_as_numpy_rounds_them(dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = np.exp2(rng.uniform(-30, 15.9, size=20_000))
    halves = values.astype(dtype)
    middles = (halves.astype(np.float64) + np.nextafter(halves, halves.dtype.type(np.inf))) / 2
    near = middles * (1 + rng.choice([-1e-9, -1e-15, 0, 1e-15, 1e-9], size=middles.shape))
    tiny = np.array([0.0, 5e-324, 1e-300, 2.0**-149, 2.0**-150, 2.0**-25, 2.0**-24, 65504.0])
    steps = np.concatenate([values, halves, near, tiny])
    steps = steps[steps <= 65504]
    grid = dataclasses.replace(Grid.symmetric(4), scale_dtype=dtype)
    rounded = StepRounding([grid], [len(steps)], device=torch.device("cpu"))
    found = rounded(torch.from_numpy(steps)).numpy()
    expected = stored(steps[:, None], (steps[:, None] > 0).astype(np.float32), grid)[:, 0]
    assert np.array_equal(found, expected.astype(np.float32))
    assert rounded(torch.full((len(steps),), 1e300, dtype=torch.float64)).isfinite().all()


def test_scales_follow_the_weights() -> None:
    model = a_model()
    fake = FakeQuant(model, INT4, is_soft=False)
    before = fake.scales.clone()
    with torch.no_grad():
        model.tok_emb.weight *= 2
    fake.refresh()
    rows = MODEL.vocab_size
    assert torch.equal(fake.scales[:2], before[:2] * 2)
    assert torch.equal(fake.scales[rows:], before[rows:])


def test_what_is_not_for_training_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no rule covers a parameter"):
        FakeQuant(a_model(), QuantConfig(rules=()), is_soft=False)
    rules = (QuantRule(match="*.mlp.*", bits=4, scale="hessian"),)
    with pytest.raises(InvalidArgumentError, match=r"'blocks\.0\.mlp\.fc\.weight': scale rule 'he"):
        FakeQuant(a_model(), QuantConfig(rules=rules, min_elements=0), is_soft=False)
    rules = (QuantRule(match="*", bits=4, scale="min-max", is_symmetric=False),)
    with pytest.raises(InvalidArgumentError, match="'min-max' of '\\*' is not for"):
        FakeQuant(a_model(), QuantConfig(rules=rules, min_elements=0), is_soft=False)


# --- gradients and soft rounding ----------------------------------------------------------------


def rounded_line(hardness: float, *, is_soft: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Levels from outside a grid of -7..7 to outside, what they become, and the gradient."""
    levels = torch.linspace(-9, 9, 3601).view(1, -1)
    used, slope = round_weights(
        levels, torch.ones(1, 1), Grid.symmetric(4), hardness, is_soft=is_soft
    )
    return levels, used, torch.ones_like(levels) if slope is None else slope


def test_straight_through_passes_the_gradient() -> None:
    levels, used, slope = rounded_line(1.0, is_soft=False)
    assert torch.equal(used, levels.round().clamp(-7, 7))
    assert torch.equal(slope, torch.ones_like(slope))


@pytest.mark.parametrize("is_soft", [False, True])
def test_off_is_the_weights_as_they_are(is_soft: bool) -> None:
    levels, used, slope = rounded_line(0.0, is_soft=is_soft)
    assert torch.equal(used, levels)
    assert torch.equal(slope, torch.ones_like(slope))


@pytest.mark.parametrize("hardness", [1e-6, 0.01, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0])
def test_soft_rounding_is_bounded(hardness: float) -> None:
    levels, used, slope = rounded_line(hardness, is_soft=True)
    moved = (used - levels).abs()
    inside = levels.abs() <= 7
    assert moved[inside].max() <= 0.5 + 1e-5
    assert (moved <= (levels.round().clamp(-7, 7) - levels).abs().clamp(min=0.5) + 1e-5).all()
    assert (used.diff() >= -1e-5).all()  # never the other way round
    assert slope.min() > 0.14
    assert slope.max() <= SHARPEST_SLOPE / 2 / math.tanh(SHARPEST_SLOPE / 2) + 1e-5 < 2.08
    one_step = slope[inside & (levels >= 2) & (levels < 3)]
    assert one_step.mean().item() == pytest.approx(1, abs=0.01)


def test_soft_rounding_hardens() -> None:
    levels, _, _ = rounded_line(0.0, is_soft=True)
    hard = levels.round().clamp(-7, 7)
    left = [
        (rounded_line(h, is_soft=True)[1] - hard).abs().mean().item()
        for h in (1e-6, 0.05, 0.2, 0.5, 0.8, 1.0)
    ]
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx((levels - hard).abs().mean().item(), rel=1e-3)
    assert left[-1] == 0.0
    near = rounded_line(0.999, is_soft=True)[1][(levels - levels.round()).abs() < 0.3]
    assert (near - near.round()).abs().max() < 0.01


def test_soft_rounding_has_the_slope_of_its_formula() -> None:
    """Up to the sharpest slope; beyond the grid the weight itself passes."""
    levels = torch.linspace(-6.9, 6.9, 500, dtype=torch.float64).view(1, -1).requires_grad_()
    alpha = 2.0
    offsets = levels - levels.detach().floor() - 0.5
    formula = levels.detach().floor() + 0.5 + torch.tanh(alpha * offsets) / (2 * math.tanh(1.0))
    (expected,) = torch.autograd.grad(formula.sum(), levels)
    used, slope = round_weights(
        levels.detach().float(),
        torch.ones(1, 1),
        Grid.symmetric(4),
        alpha / SHARPEST,
        is_soft=True,
    )
    torch.testing.assert_close(used, formula.detach().float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope, expected.float(), rtol=1e-4, atol=1e-5)


# --- in the place of parameters -----------------------------------------------------------------


@pytest.mark.parametrize("hardness", [0.3, 1.0])
@pytest.mark.parametrize("is_soft", [False, True])
def test_gradients_are_those_of_a_rounded_model(is_soft: bool, hardness: float) -> None:
    model = a_model()
    fake = FakeQuant(model, INT4, is_soft=is_soft)
    tokens, targets = some_tokens()
    latent = {name: p.detach().clone() for name, p in model.named_parameters()}
    rounded = Transformer(MODEL)
    rounded.load_state_dict(latent | fake.weights(hardness))
    with fake.applied(hardness):
        for own, other in zip(model.parameters(), rounded.parameters(), strict=True):
            assert torch.equal(own, other)
        for _ in range(2):  # gradients add up before the slope is taken
            model.loss(tokens, targets).backward()
    for _ in range(2):
        rounded.loss(tokens, targets).backward()
    for name, own in model.named_parameters():
        assert torch.equal(own, latent[name]), name
        expected = rounded.get_parameter(name).grad
        if name in fake.covered and is_soft:
            ratio = own.grad[expected != 0] / expected[expected != 0]
            assert 0.14 < ratio.min() < ratio.max() < 2.08
            assert ratio.std() > 0.1
        else:
            assert torch.equal(own.grad, expected), name


def test_scales_are_those_of_the_weights_at_the_beginning() -> None:
    model = a_model()
    fake = FakeQuant(model, INT4, is_soft=False)
    with torch.no_grad():
        model.tok_emb.weight *= 2
    expected = FakeQuant(model, INT4, is_soft=False).weights()
    with fake.applied(1.0):
        assert torch.equal(model.tok_emb.weight, expected["tok_emb.weight"])


def test_latent_weights_come_back_after_an_error() -> None:
    model = a_model()
    before = model.tok_emb.weight.detach().clone()
    with contextlib.suppress(KeyError), FakeQuant(model, INT4, is_soft=True).applied(0.5):
        assert not torch.equal(model.tok_emb.weight, before)
        raise KeyError
    assert torch.equal(model.tok_emb.weight, before)


# --- compiled -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_one_compiled_graph_serves_rounded_weights(backend: str, is_soft: bool) -> None:
    torch._dynamo.reset()
    is_small = backend == "inductor"  # which takes its time
    model = torch.nn.Linear(24, 16, bias=False) if is_small else a_model(layers=1)
    method, inputs = (
        (model.forward, (torch.ones(2, 24),)) if is_small else (model.loss, some_tokens())
    )
    fake = FakeQuant(model, INT4, is_soft=is_soft)
    compiled = torch.compile(method, backend=backend, fullgraph=True, dynamic=False)
    found = {0.0: compiled(*inputs).sum().item()}
    for hardness in (1.0, 0.5, 1.0):
        with fake.applied(hardness):
            loss = compiled(*inputs).sum()
            loss.backward()
            expected = method(*inputs).sum().item()
        assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert found.setdefault(hardness, loss.item()) == loss.item()
    assert compiled(*inputs).sum().item() == found[0.0]
    assert abs(found[1.0] - found[0.0]) > 1e-4
    assert (found[0.5] != found[1.0]) == is_soft
    torch._dynamo.reset()
