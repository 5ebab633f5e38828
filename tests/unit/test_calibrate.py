"""Hessians of every matrix against activations recomputed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from flyweight.errors import InvalidArgumentError
from flyweight.model.config import ModelConfig

torch = pytest.importorskip("torch")

from flyweight.model.transformer import Transformer, rms_norm  # noqa: E402
from flyweight.train.calibrate import collect_hessians  # noqa: E402


def build(*, tied: bool = True) -> Transformer:
    config = ModelConfig(
        vocab_size=16,
        num_layers=2,
        model_dim=8,
        num_heads=2,
        num_kv_heads=1,
        mlp_hidden=12,
        seq_len=8,
        rope_dims=4,
        ln_scale=True,
        smear_gate=True,
        tied_embeddings=tied,
    )
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(16, (rows, 8), generator=generator) for rows in (3, 2)]


def outer_mean(rows: torch.Tensor) -> np.ndarray:
    flat = rows.detach().double().reshape(-1, rows.shape[-1])
    return (flat.mT @ flat / len(flat)).numpy()


@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_gets_the_mean_outer_product_of_its_inputs(tied: bool) -> None:
    model = build(tied=tied)
    result = collect_hessians(model, batches())
    assert result.n_tokens == 40
    weights = {name: p for name, p in model.named_parameters() if name.endswith(".weight")}
    if not tied:
        del weights["tok_emb.weight"]  # only a lookup
    assert set(result.matrices) == set(weights)
    for name, matrix in result.matrices.items():
        assert matrix.dtype == np.float32
        assert matrix.shape == (weights[name].shape[1],) * 2
        assert np.array_equal(matrix, matrix.T)

    tokens = torch.cat(batches())
    embedded = model.smear(rms_norm(model.tok_emb(tokens)), tokens)
    head = "tok_emb.weight" if tied else "lm_head.weight"
    for name, rows in (
        ("blocks.0.attn.c_q.weight", rms_norm(embedded)),
        (head, model.hidden(tokens)),
    ):
        np.testing.assert_allclose(result.matrices[name], outer_mean(rows), atol=1e-5)


def test_inputs_of_the_second_linears_are_what_the_first_made() -> None:
    model = build()
    result = collect_hessians(model, batches())
    captured: list[torch.Tensor] = []
    handle = model.blocks[1].mlp.proj.register_forward_pre_hook(
        lambda module, inputs: captured.append(inputs[0])
    )
    model(torch.cat(batches()))
    handle.remove()
    expected = outer_mean(captured[0])
    np.testing.assert_allclose(
        result.matrices["blocks.1.mlp.proj.weight"], expected, rtol=1e-4, atol=1e-4
    )


def test_result_does_not_depend_on_the_batches_and_leaves_no_hook() -> None:
    model = build()
    one = collect_hessians(model, [torch.cat(batches())])
    two = collect_hessians(model, iter(batches()))
    for name, matrix in one.matrices.items():
        np.testing.assert_allclose(matrix, two.matrices[name], rtol=1e-4, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_matmul_precision_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        collect_hessians(build(), batches())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_batches() -> None:
    with pytest.raises(InvalidArgumentError, match="no calibration batches"):
        collect_hessians(build(), [])
