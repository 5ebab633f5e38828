"""Triton kernels against the plain operations, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA only")
from flyweight.model import blocks, fused
from flyweight.model.attention import Positions
from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer
from flyweight.train.calibrate import collect_hessians

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE).requires_grad_()


def outputs_and_gradients(operation: Callable[..., Any], inputs: list[Any]) -> list[Tensor]:
    results = operation(*inputs)
    results = [results] if isinstance(results, Tensor) else list(results)
    weights = [drawn(*result.shape, seed=7).detach() for result in results]
    total = torch.stack([(r * w).sum() for r, w in zip(results, weights, strict=True)]).sum()
    learned = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return [*results, *torch.autograd.grad(total, learned)]


def check(name: str, inputs: list[Any]) -> None:
    expected = outputs_and_gradients(getattr(blocks, name), inputs)
    found = outputs_and_gradients(getattr(fused, name), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("width", [64, 96])
@pytest.mark.parametrize("mixes", [False, True])
def test_add_norm(width: int, mixes: bool) -> None:
    x, y = drawn(3, 7, width), drawn(3, 7, width, seed=1)
    check("add_norm", [x, y, drawn(2, width) if mixes else None, 0.5 if mixes else None])


def test_add_norm_in_more_rows_than_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_PROGRAMS", 2)
    check("add_norm", [drawn(5, 5, 64), drawn(5, 5, 64, seed=1), drawn(2, 64), 0.7])


def projected(
    module: Any,
    x: Tensor,
    linears: Any,
    gate: tuple[Tensor, Tensor] | None,
    gain: Tensor,
    angles: Tensor,
    *,
    compiles: bool = False,
) -> list[Tensor]:
    """Outputs and gradients of ``project`` for heads of 32 dimensions."""
    operation = torch.compile(module.project, fullgraph=True) if compiles else module.project
    rope = Positions(angles.cos(), angles.sin())
    learned = [x, gain, *(linear.weight for linear in linears), *(gate or ())]

    def run(x: Tensor, gain: Tensor, *_: Tensor) -> list[Tensor]:
        return [y for y in operation(x, *linears, gate, rope, gain, 32) if y is not None]

    return outputs_and_gradients(run, learned)


def some_linears(heads: int, groups: int, width: int) -> nn.ModuleList:
    linears = nn.ModuleList(nn.Linear(width, n * 32, bias=False) for n in (heads, groups, groups))
    for seed, linear in enumerate(linears):
        linear.weight = nn.Parameter(drawn(*linear.weight.shape, seed=seed).detach())  # type: ignore[arg-type, operator]
    return linears


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 2), (6, 3), (8, 8)])
@pytest.mark.parametrize("rope_dims", [4, 16, 32])
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("has_gate", [False, True])
def test_project(
    heads: int, groups: int, rope_dims: int, per_sequence: bool, has_gate: bool
) -> None:
    shape = (2, 9, rope_dims // 2) if per_sequence else (9, rope_dims // 2)
    x, gain, angles = drawn(2, 9, 48), drawn(heads), drawn(*shape).detach()
    gate = (drawn(heads, 48), drawn(heads, seed=3)) if has_gate else None
    linears = some_linears(heads, groups, 48)
    found, expected = (projected(m, x, linears, gate, gain, angles) for m in (fused, blocks))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-4)


def test_a_gain_of_zero_has_a_finite_gradient() -> None:
    x, gain, angles = drawn(1, 5, 48), torch.zeros(2, device=DEVICE), drawn(5, 8).detach()
    found = projected(fused, x, some_linears(2, 1, 48), None, gain.requires_grad_(), angles)
    assert all(torch.isfinite(tensor).all() for tensor in found)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("has_gate", [False, True])
def test_project_in_compiled_bfloat16(has_gate: bool) -> None:
    x, gain, angles = drawn(4, 128, 512), drawn(8), drawn(128, 8).detach()
    gate = (drawn(8, 512), drawn(8, seed=3)) if has_gate else None
    linears = some_linears(8, 4, 512)
    expected = projected(blocks, x, linears, gate, gain, angles)
    narrow = x.detach().bfloat16().requires_grad_()
    if gate is not None:
        gate = (gate[0].detach().bfloat16().requires_grad_(), gate[1])
    found = projected(fused, narrow, linears.bfloat16(), gate, gain, angles, compiles=True)
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other).norm() < 0.02 * other.norm()


def test_gate_heads() -> None:
    check("gate_heads", [drawn(3, 7, 4, 32), drawn(3, 7, 4)])


@pytest.mark.parametrize("has_scale", [False, True])
def test_scaled_linear(has_scale: bool) -> None:
    linear = some_linears(2, 1, 48)[0].requires_grad_()
    scale = drawn(64) if has_scale else None
    inputs = [drawn(2, 9, 48), linear.weight, *([] if scale is None else [scale])]
    found, expected = (
        outputs_and_gradients(lambda x, *_, m=m: m.scaled_linear(x, linear, scale), inputs)
        for m in (fused, blocks)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("rows", [5, 200])
def test_squared_linear(slope: float, rows: int) -> None:
    linear, scale = nn.Linear(136, 48, bias=False), drawn(48)
    linear.weight = nn.Parameter(drawn(48, 136, seed=1).detach())
    inputs = [drawn(2, rows, 136), linear.weight, scale]
    found, expected = (
        outputs_and_gradients(lambda h, *_, m=m: m.squared_linear(h, linear, slope, scale), inputs)
        for m in (fused, blocks)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("compiles", [False, True])
def test_squared_linear_in_bfloat16(compiles: bool) -> None:
    linear, scale = nn.Linear(1536, 512, bias=False), drawn(512)
    linear.weight = nn.Parameter(drawn(512, 1536, seed=1).detach())
    hidden = drawn(4, 1000, 1536)

    def run(module: Any, hidden: Tensor) -> list[Tensor]:
        def squared(h: Tensor, *_: Tensor) -> Tensor:
            result: Tensor = module.squared_linear(h, linear, 0.5, scale)
            return result

        is_plain = module is blocks or not compiles
        operation = squared if is_plain else torch.compile(squared, fullgraph=True)
        return outputs_and_gradients(operation, [hidden, linear.weight, scale])

    expected = run(blocks, hidden)
    with torch.autocast("cuda", torch.bfloat16):
        found = run(fused, hidden.detach().bfloat16().requires_grad_())
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_exclude_own_value(groups: int) -> None:
    check("exclude_own_value", [drawn(2, 9, 4, 32), drawn(2, 9, groups, 32)])


def test_a_value_of_zero_takes_nothing_away() -> None:
    y, v = drawn(1, 3, 2, 32), torch.zeros(1, 3, 2, 32, device=DEVICE)
    assert torch.equal(fused.exclude_own_value(y, v), y)


def some_model(**sizes: int) -> Transformer:
    """Every operation, and weights that leave no term out."""
    config = ModelConfig(
        vocab_size=50,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        seq_len=16,
        rope_dims=8,
        resid_mix=True,
        branch_scales=True,
        ln_scale=True,
        unet_skips=True,
        xsa_layers=2,
        value_residual=True,
        gated_attention=True,
        **sizes,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(0.05 * noise)
    return model.to(DEVICE)


def loss_and_gradients(
    model: Transformer, operations: blocks.Operations, *, is_narrow: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    model.use(operations)
    model.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=is_narrow):
        loss = model.loss(tokens, tokens.roll(-1, 1))
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_whole_model_uncompiled_in_bfloat16() -> None:
    model = some_model(model_dim=128, mlp_hidden=192)
    loss, gradients = loss_and_gradients(model, blocks.PLAIN)
    narrow_loss, narrow_gradients = loss_and_gradients(model, fused.FUSED, is_narrow=True)
    torch.testing.assert_close(narrow_loss, loss, rtol=0, atol=0.02)
    for name, gradient in gradients.items():
        assert (narrow_gradients[name] - gradient).norm() < 0.1 * gradient.norm(), name


def test_whole_model_has_the_same_loss_and_gradients() -> None:
    model = some_model(model_dim=64, mlp_hidden=96)
    loss, gradients = loss_and_gradients(model, blocks.PLAIN)
    fused_loss, fused_gradients = loss_and_gradients(model, fused.FUSED)
    torch.testing.assert_close(fused_loss, loss, rtol=1e-5, atol=1e-5)
    assert fused_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused_gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["add_norm", "exclude_own_value", "gate_heads"])
def test_in_compiled_bfloat16(name: str) -> None:
    x, y = drawn(4, 128, 512).bfloat16(), drawn(4, 128, 512, seed=1).bfloat16()
    heads = x.detach().view(4, 128, 8, 64).requires_grad_()
    arguments: dict[str, list[Any]] = {
        "add_norm": [x, y, drawn(2, 512), 0.5],
        "exclude_own_value": [heads, y.detach().view(4, 128, 8, 64).requires_grad_()],
        "gate_heads": [heads, drawn(4, 128, 8).bfloat16()],
    }
    inputs = [
        i.detach().requires_grad_() if isinstance(i, Tensor) and i.requires_grad else i
        for i in arguments[name]
    ]
    wide = [
        i.detach().float().requires_grad_(i.requires_grad) if isinstance(i, Tensor) else i
        for i in inputs
    ]
    compiled = torch.compile(getattr(fused, name), fullgraph=True)
    found = outputs_and_gradients(compiled, inputs)
    for one, other in zip(found, outputs_and_gradients(getattr(blocks, name), wide), strict=True):
        error = (one.float() - other).norm() / other.norm()
        assert error < 0.01


def test_hessians_are_those_of_the_plain_operations() -> None:
    config = ModelConfig(
        vocab_size=50,
        num_layers=1,
        model_dim=32,
        num_heads=2,
        num_kv_heads=1,
        mlp_hidden=32,
        seq_len=16,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(DEVICE)
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(3))
    expected = collect_hessians(model, [tokens]).matrices
    model.use(fused.FUSED)
    found = collect_hessians(model, [tokens]).matrices
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
    assert model.operations is fused.FUSED
