"""Muon against its formula, and who is trained by what."""

from __future__ import annotations

import numpy as np
import pytest

from flyweight.model.config import ModelConfig
from flyweight.train.config import OptimConfig

torch = pytest.importorskip("torch")

from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.train.optim import (  # noqa: E402
    Muon,
    build_optimizers,
    newton_schulz,
    set_schedule,
)


def quintic(matrix: np.ndarray) -> np.ndarray:
    """Newton-Schulz through the singular values: the polynomial acts on each of them alone."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.sqrt((s * s).sum()) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 20), (2, 24, 5)])
def test_newton_schulz_matches_the_polynomial_of_singular_values(
    shape: tuple[int, int, int],
) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = newton_schulz(stack)
    for matrix, expected_from in zip(result, stack, strict=True):
        expected = quintic(expected_from.double().numpy())
        np.testing.assert_allclose(matrix.numpy(), expected, atol=2e-5)
    singular = torch.linalg.svdvals(result)
    assert float(singular.min()) > 0.3
    assert float(singular.max()) < 1.3


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
            direction = quintic(gradient + 0.9 * buffers[i])
            expected[i] = expected[i] * (1 - 0.1 * 0.5)
            expected[i] -= 0.1 * np.sqrt(max(1, rows / cols)) * direction
        muon.step()
    for param, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), value, atol=1e-4)


def test_muon_leaves_parameters_without_gradient_alone() -> None:
    param = torch.nn.Parameter(torch.ones(3, 3))
    Muon([param], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    assert torch.equal(param.detach(), torch.ones(3, 3))


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_one_optimizer(tied: bool) -> None:
    config = ModelConfig(
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
        tied_embeddings=tied,
    )
    model = Transformer(config)
    optim = OptimConfig(matrix_lr=0.1, embedding_lr=0.2, scalar_lr=0.3)
    optimizers = build_optimizers(model, optim)
    rates = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for param in group["params"]:
                assert id(param) not in rates
                rates[id(param)] = group["lr"]
    by_name = {name: rates[id(param)] for name, param in model.named_parameters()}
    for name, rate in by_name.items():
        is_embedding = name in ("tok_emb.weight", "lm_head.weight") or "embed" in name
        is_linear = name.endswith(".weight") and not is_embedding
        assert rate == (0.1 if is_linear else 0.2 if is_embedding else 0.3), name

    set_schedule(optimizers, scale=0.5, momentum=0.7)
    set_schedule(optimizers, scale=0.25, momentum=0.8)
    muon, adamw = optimizers
    assert muon.param_groups[0]["lr"] == pytest.approx(0.025)
    assert muon.param_groups[0]["momentum"] == 0.8
    assert [group["lr"] for group in adamw.param_groups] == pytest.approx([0.05, 0.075])
