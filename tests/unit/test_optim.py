"""Muon against its formula, and who is trained by what."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest

from flyweight.errors import InvalidArgumentError
from flyweight.model.config import ModelConfig
from flyweight.train.config import OptimConfig

torch = pytest.importorskip("torch")

from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.train.optim import (  # noqa: E402
    Muon,
    build_optimizers,
    set_schedule,
)
from flyweight.train.orthogonalize import orthogonalize  # noqa: E402

QUINTIC = ((3.4445, -4.7750, 2.0315),) * 5
EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def quintics(matrix: np.ndarray, table: tuple[tuple[float, ...], ...] = QUINTIC) -> np.ndarray:
    """The steps through the singular values: a polynomial acts on each of them alone."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.sqrt((s * s).sum()) + 1e-7)
    for a, b, c in table:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


def unit_rows(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def stack_of(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


SHAPES = [(1, 8, 8), (3, 6, 20), (2, 24, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_matches_the_polynomial_of_singular_values(shape: tuple[int, ...]) -> None:
    stack = stack_of(shape)
    result = orthogonalize(stack)
    for matrix, expected_from in zip(result, stack, strict=True):
        expected = quintics(expected_from.double().numpy())
        np.testing.assert_allclose(matrix.numpy(), expected, atol=2e-5)
    singular = torch.linalg.svdvals(result)
    assert float(singular.min()) > 0.3
    assert float(singular.max()) < 1.3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 4, 5])
def test_polar_express_has_a_quintic_for_each_step(shape: tuple[int, ...], steps: int) -> None:
    stack = stack_of(shape)
    result = orthogonalize(stack, method="polar-express", steps=steps)
    for matrix, expected_from in zip(result, stack, strict=True):
        expected = quintics(expected_from.double().numpy(), EXPRESS[:steps])
        np.testing.assert_allclose(matrix.numpy(), expected, atol=5e-5)
    if steps == 5:
        singular = torch.linalg.svdvals(result)
        assert float(singular.min()) > 0.8
        assert float(singular.max()) < 1.2


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_get_norm_one_as_stored_or_as_wide(shape: tuple[int, ...]) -> None:
    stack = stack_of(shape)
    stored, wide = (orthogonalize(stack, row_norm=norm) for norm in ("stored", "wide"))
    for i, matrix in enumerate(stack.double().numpy()):
        np.testing.assert_allclose(stored[i].numpy(), quintics(unit_rows(matrix)), atol=2e-5)
        is_tall = matrix.shape[0] > matrix.shape[1]
        rows = unit_rows(matrix.T).T if is_tall else unit_rows(matrix)
        np.testing.assert_allclose(wide[i].numpy(), quintics(rows), atol=2e-5)
    assert torch.equal(stored, wide) == (shape[1] <= shape[2])


def test_zeros_stay_zeros() -> None:
    for norm in ("none", "stored", "wide"):
        assert not orthogonalize(torch.zeros(2, 3, 4), row_norm=norm).any()


def test_muon_matches_its_formula_over_steps() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=generator) for shape in ((6, 4), (6, 4), (3, 9))]
    params = [torch.nn.Parameter(weight.clone()) for weight in weights]
    muon = Muon(params, lr=0.1, momentum=0.9, weight_decay=0.5)
    expected = [weight.double().numpy() for weight in weights]
    buffers = [np.zeros_like(weight) for weight in expected]
    for _ in range(3):
        for i, param in enumerate(params):
            param.grad = torch.randn(param.shape, generator=generator)
            gradient = param.grad.double().numpy()
            buffers[i] = 0.9 * buffers[i] + gradient
            rows, cols = gradient.shape
            direction = quintics(gradient + 0.9 * buffers[i])
            expected[i] = expected[i] * (1 - 0.1 * 0.5)
            expected[i] -= 0.1 * np.sqrt(max(1, rows / cols)) * direction
        muon.step()
    for param, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), value, atol=1e-4)


def test_muon_leaves_parameters_without_gradient_alone() -> None:
    param = torch.nn.Parameter(torch.ones(3, 3))
    Muon([param], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    assert torch.equal(param.detach(), torch.ones(3, 3))


def test_momentum_in_bfloat16_follows_that_in_float32() -> None:
    params = [torch.nn.Parameter(torch.zeros(6, 4)) for _ in range(2)]
    exact, rough = (
        Muon([param], lr=0.1, momentum=0.9, weight_decay=0.0, momentum_dtype=dtype)
        for param, dtype in zip(params, (torch.float32, torch.bfloat16), strict=True)
    )
    for seed in range(3):
        gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        for param, muon in zip(params, (exact, rough), strict=True):
            param.grad = gradient.clone()
            muon.step()
    assert rough.momentum()[params[1]].dtype == torch.bfloat16
    np.testing.assert_allclose(
        rough.momentum()[params[1]].float(), exact.momentum()[params[0]], atol=0.02
    )
    np.testing.assert_allclose(params[1].detach(), params[0].detach(), atol=0.02)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # inductor's own
def test_compiled_muon_takes_the_same_steps_and_compiling_changes_nothing() -> None:
    weights = [stack_of(shape) for shape in ((6, 4), (6, 4), (3, 9))]
    runs = []
    for is_compiled in (False, True):
        params = [torch.nn.Parameter(weight.clone()) for weight in weights]
        direction = partial(orthogonalize, method="polar-express", steps=3, row_norm="wide")
        muon = Muon(params, lr=0.1, momentum=0.9, weight_decay=0.5, direction=direction)
        if is_compiled:
            muon.compile()
            assert not any(momentum.any() for momentum in muon.momentum().values())
            torch.compiler.set_stance("fail_on_recompile")
        for seed in range(2):
            muon.param_groups[0]["momentum"] = 0.8 + 0.1 * seed
            for param in params:
                param.grad = torch.full_like(param, 0.1).add_(param.detach())
            muon.step()
        runs.append(params)
    torch.compiler.set_stance("default")
    for plain, compiled in zip(*runs, strict=True):
        np.testing.assert_allclose(compiled.detach(), plain.detach(), atol=1e-5)


CONFIG = ModelConfig(
    vocab_size=16,
    num_layers=2,
    model_dim=8,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=16,
    seq_len=8,
    rope_dims=4,
    smear_gate=True,
    unet_skips=True,
    resid_mix=True,
    branch_scales=True,
    bigram_buckets=32,
    bigram_dim=4,
    ve_layers=1,
    ve_dim=4,
)


def rates(model: Transformer, optim: OptimConfig) -> dict[str, float]:
    """Learning rate by parameter name; each parameter has one."""
    found: dict[torch.Tensor, float] = {}
    for optimizer in build_optimizers(model, optim):
        for group in optimizer.param_groups:
            for param in group["params"]:
                assert param not in found
                found[param] = group["lr"]
    return {name: found[param] for name, param in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("muon", ["linears", "blocks", "shapes"])
def test_every_parameter_has_one_optimizer(tied: bool, muon: str) -> None:
    model = Transformer(dataclasses.replace(CONFIG, tied_embeddings=tied))
    optim = OptimConfig(matrix_lr=0.1, embedding_lr=0.2, scalar_lr=0.3, muon=muon)
    for name, rate in rates(model, optim).items():
        is_head = name in ("tok_emb.weight", "lm_head.weight")
        is_embedding = is_head or "embed" in name
        is_matrix = name.endswith(".weight") and not is_embedding
        if muon == "blocks":
            is_matrix = is_matrix and name.startswith("blocks.")
        if muon == "shapes":
            is_matrix = model.get_parameter(name).ndim >= 2 and not is_head
        assert rate == (0.1 if is_matrix else 0.2 if is_embedding else 0.3), name


def test_schedule_scales_the_full_rates_and_sets_the_momentum() -> None:
    optim = OptimConfig(matrix_lr=0.1, embedding_lr=0.2, scalar_lr=0.3)
    muon, adamw = build_optimizers(Transformer(CONFIG), optim)
    set_schedule((muon, adamw), scale=0.5, momentum=0.7)
    set_schedule((muon, adamw), scale=0.25, momentum=0.8)
    assert muon.param_groups[0]["lr"] == pytest.approx(0.025)
    assert muon.param_groups[0]["momentum"] == 0.8
    assert [group["lr"] for group in adamw.param_groups] == pytest.approx([0.05, 0.075])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"muon": "all"}, "muon='all', expected linears or blocks or shapes"),
        ({"momentum_dtype": "float16"}, "momentum_dtype='float16'"),
        ({"orthogonalize": "svd"}, "orthogonalize='svd'"),
        ({"orthogonalize_steps": 0}, "orthogonalize_steps=0, expected 1 to 20"),
        ({"orthogonalize": "polar-express", "orthogonalize_steps": 6}, "expected 1 to 5"),
        ({"row_normalize": "yes"}, "row_normalize='yes'"),
    ],
)
def test_impossible_muon_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        OptimConfig(**values)
