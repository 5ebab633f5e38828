"""Every feature alone, and all together, against the formulas of the pull requests."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np
import pytest

from flyweight.model.config import BOS_TOKEN, ModelConfig
from plain_model import (
    PlainModel,
    bigram_bucket,
    exclusive,
    sigmoid,
    smeared,
    softmax_rows,
    turn,
)

torch = pytest.importorskip("torch")

from flyweight.model.attention import Positions  # noqa: E402
from flyweight.model.blocks import Attention, exclude_own_value, norm_rotate  # noqa: E402
from flyweight.model.embeddings import SmearGate, bigram_ids  # noqa: E402
from flyweight.model.generate import Continuation, generate  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.quant.config import QuantConfig, QuantRule  # noqa: E402
from flyweight.quant.qat import FakeQuant  # noqa: E402
from flyweight.submission.script import MODULES, compose  # noqa: E402
from flyweight.train.calibrate import collect_hessians  # noqa: E402

PLAIN: dict[str, Any] = {
    "vocab_size": 23,
    "num_layers": 5,
    "model_dim": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_hidden": 40,
    "seq_len": 12,
    "rope_dims": 4,
}
FAMILY: dict[str, Any] = {
    **PLAIN,
    "rope_train_length": 8,
    "softcap": 15.0,
    "leaky_slope": 0.5,
    "smear_gate": True,
    "unet_skips": True,
    "resid_mix": True,
    "ln_scale": True,
    "branch_scales": True,
    "xsa_layers": 4,
    "bigram_buckets": 19,
    "bigram_dim": 6,
    "embed_init_std": 0.1,
}
RECUR = {"recur_first": 1, "recur_last": 2, "recur_passes": 1}
SHARED_VE = {"ve_layers": 3, "ve_dim": 10}
OWN_VE = {**SHARED_VE, "ve_own_proj": True}
EVERYTHING: dict[str, Any] = {
    **FAMILY,
    **RECUR,
    **OWN_VE,
    "num_layers": 6,
    "smear_document_mask": True,
    "smear_first": True,
    "value_residual": True,
    "gated_attention": True,
    "skip_gates": True,
    "skip_init": 0.3,
    "lanes_from": 4,
}


def build(values: dict[str, Any], *, seed: int = 0) -> Transformer:
    """A model whose every parameter is random, so that no term of a formula drops out."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(ModelConfig(**values))
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(shape: tuple[int, ...], *, seed: int = 1) -> Any:
    ids = torch.randint(2, 23, shape, generator=torch.Generator().manual_seed(seed))
    ids[..., 5] = BOS_TOKEN
    return ids


def plain(model: Transformer) -> PlainModel:
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return PlainModel(model.config, weights)


@pytest.mark.parametrize("recur", [True, False])
@pytest.mark.parametrize(
    "values",
    [
        {**PLAIN, "value_residual": True},
        {**PLAIN, "gated_attention": True},
        {**PLAIN, **OWN_VE},
        {**PLAIN, "smear_gate": True, "smear_first": True},
        {**PLAIN, **RECUR},
        {**PLAIN, "unet_skips": True, "skip_gates": True},
        {**PLAIN, "lanes_from": 3},
        {**FAMILY, **SHARED_VE, "value_residual": True},  # embeddings before the mixing
        {**FAMILY, **OWN_VE, "value_residual": True},  # embeddings behind it
        {**FAMILY, **SHARED_VE, "ve_layers": 5, "value_residual": True},
        {**FAMILY, **RECUR, **SHARED_VE, "lanes_from": 3},
        {**FAMILY, **RECUR, "recur_first": 0, "recur_passes": 3, "value_residual": True},
        {**FAMILY, **RECUR, "recur_last": 4, "ve_layers": 2, "ve_dim": 4, "skip_gates": True},
        {**FAMILY, "smear_first": True, "smear_document_mask": True, "gated_attention": True},
        EVERYTHING,
        {**EVERYTHING, "num_kv_heads": 4, "xsa_layers": 6, "tied_embeddings": False},
    ],
)
def test_logits_match_the_formulas(values: dict[str, Any], recur: bool) -> None:
    model, ids = build(values), tokens((2, 12))
    found = model.logits(model.hidden(ids, recur=recur)).detach()
    if recur:
        assert torch.equal(found, model(ids))
    for row in range(2):
        expected = plain(model).logits(ids[row].numpy(), recur=recur)
        np.testing.assert_allclose(found[row], expected, rtol=3e-4, atol=3e-4)


def test_fields_round_trip() -> None:
    config = ModelConfig(**EVERYTHING)
    stored = config.to_fields()
    assert set(range(27, 37)) <= set(stored)
    assert ModelConfig.from_fields(stored) == config


def test_loss_recurs_unless_told_otherwise() -> None:
    model, ids = build(EVERYTHING), tokens((1, 13))
    for recur in (True, False):
        logits = plain(model).logits(ids[0, :-1].numpy(), recur=recur)
        expected = -np.log(softmax_rows(logits))[np.arange(12), ids[0, 1:].numpy()].mean()
        found = model.loss(ids[:, :-1], ids[:, 1:], recur=recur)
        assert found.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        model.loss(ids[:, :-1], ids[:, 1:]),
        model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None]).mean().neg(),
    )


def test_exclusive_attention_leaves_nothing_along_the_own_value() -> None:
    generator = torch.Generator().manual_seed(0)
    y_BHTK = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    v_BGTK = torch.randn(2, 2, 5, 6, generator=generator, dtype=torch.float64)
    v_BGTK[0, 0, 3] = 0  # has no direction
    found = exclude_own_value(y_BHTK.transpose(1, 2), v_BGTK.transpose(1, 2)).transpose(1, 2)
    for b in range(2):
        for h in range(4):
            own = v_BGTK[b, h // 2].numpy()
            expected = exclusive(y_BHTK[b, h].numpy(), own)
            np.testing.assert_allclose(found[b, h], expected, rtol=1e-12)
            np.testing.assert_allclose((found[b, h].numpy() * own).sum(-1), 0, atol=1e-12)


def test_heads_share_keys_and_values_by_twos() -> None:
    """Query head h uses head floor(h / 2): one value head at zero silences its two alone."""
    attention = Attention(ModelConfig(**{**PLAIN, "rope_dims": 0}), 0)
    x = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention.proj.weight.copy_(torch.eye(24))
        attention.c_v.weight[6:] = 0  # of the second of two heads, 6 wide
        out, raw = attention(x, Positions(torch.zeros(7, 0), torch.zeros(7, 0)))
    assert raw.shape == (1, 7, 12)
    assert out[..., :12].abs().amin() > 0
    assert not out[..., 12:].any()


def test_rotation_has_the_stretched_base() -> None:
    """Two tokens, and the angle between them at 22,081.8 in dims 0 to 15 of 64."""
    base = ModelConfig(
        **{**PLAIN, "model_dim": 128, "num_heads": 2, "seq_len": 2048, "rope_dims": 16},
        rope_train_length=1024,
    )
    model = Transformer(base)
    cos, sin = model.rope_tables(2048)
    head = np.random.default_rng(0).normal(size=(2048, 64))
    head /= np.sqrt((head**2).mean(1, keepdims=True))
    heads_BTNK = torch.tensor(head)[None, :, None]
    found = norm_rotate(heads_BTNK, cos.double(), sin.double(), None)[0, :, 0].numpy()
    few = [0, 1, 2, 700, 2047]
    expected = turn(head[: few[-1] + 1], 16, 22_081.8)
    np.testing.assert_allclose(found[few], expected[few], atol=2e-3)  # angles are float32
    np.testing.assert_allclose(found[:, 16:], head[:, 16:], rtol=1e-6)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("on_itself", [True, False])
def test_smearing_takes_the_position_before(mask: bool, on_itself: bool) -> None:
    features = {"smear_gate": True, "smear_document_mask": mask, "smear_first": on_itself}
    gate = SmearGate(ModelConfig(**PLAIN, **features)).double()
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(2, 12, 24, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        gate.gate.copy_(torch.randn(24, generator=generator))
        found = gate(x_BTD, tokens((2, 12)))
    weights = gate.gate.detach().numpy()
    for row in range(2):
        ids = tokens((2, 12))[row].numpy()
        expected = smeared(x_BTD[row].numpy(), ids, weights, mask=mask, on_itself=on_itself)
        np.testing.assert_allclose(found[row], expected, rtol=1e-12)


def test_pairs_are_hashed_as_published() -> None:
    ids = torch.randint(0, 8192, (2, 50), generator=torch.Generator().manual_seed(0))
    for row in range(2):
        assert bigram_ids(ids, 2048)[row].tolist() == bigram_bucket(ids[row].tolist(), 2048)


def test_gates_start_nearly_open() -> None:
    closed = Transformer(ModelConfig(**PLAIN, gated_attention=True))
    is_open = Transformer(ModelConfig(**PLAIN))
    for model in (closed, is_open):
        model.init_weights(torch.Generator().manual_seed(0))
    attention, x = closed.blocks[2].attn, torch.randn(1, 5, 24)
    with torch.no_grad():
        for one in (attention, is_open.blocks[2].attn):
            one.proj.weight.copy_(torch.eye(24))
        rope = Positions(*closed.rope_tables(5))
        ratio = attention(x, rope)[0] / is_open.blocks[2].attn(x, rope)[0]
    np.testing.assert_allclose(ratio, sigmoid(np.float64(4)), rtol=1e-4)


def test_the_first_block_mixes_its_values_with_themselves() -> None:
    values = {**PLAIN, "num_layers": 1}
    with_pair, without = (build({**values, "value_residual": on}) for on in (True, False))
    with torch.no_grad():
        with_pair.blocks[0].attn.value_mix.copy_(torch.tensor([0.75, 0.25]))
        for name, parameter in without.named_parameters():
            parameter.copy_(with_pair.get_parameter(name))
    ids = tokens((2, 12))
    np.testing.assert_allclose(with_pair(ids).detach(), without(ids).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", [1, 2, 5, 6, 11])
def test_later_tokens_never_change_earlier_logits(position: int) -> None:
    model, first = build(EVERYTHING), tokens((2, 12))
    second = first.clone()
    second[:, position:] = (second[:, position:] + 3) % 23
    with torch.inference_mode():
        before, after = model(first), model(second)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])


@pytest.mark.parametrize(
    "values",
    [
        EVERYTHING,
        {**EVERYTHING, "smear_first": False},
        {**EVERYTHING, **RECUR, "recur_first": 0, "recur_passes": 2, "lanes_from": 0},
        {**FAMILY, **SHARED_VE, "value_residual": True, "smear_first": True},
    ],
)
def test_generation_is_the_forward(values: dict[str, Any]) -> None:
    model, ids = build(values), tokens((3, 12))
    ids[:, 0] = BOS_TOKEN
    expected = model(ids).detach()
    text = Continuation(model, sequences=3, length=12)
    for t in range(12):
        np.testing.assert_allclose(text.append(ids[:, t]), expected[:, t], rtol=2e-4, atol=2e-4)
    drawn = generate(model, sequences=1, length=12, temperature=1e-4)
    assert torch.equal(model(drawn)[:, :-1].argmax(-1), drawn[:, 1:])


@pytest.mark.parametrize("recur", [True, False])
def test_both_orders_compile_into_one_graph(recur: bool) -> None:
    model, ids = build(EVERYTHING), tokens((2, 13))
    compiled = torch.compile(model.loss, backend="eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model.loss(ids[:, :-1], ids[:, 1:], recur=recur)
        assert torch.equal(compiled(ids[:, :-1], ids[:, 1:], recur=recur), expected)
        assert model.hidden(ids, recur=recur).dtype == torch.bfloat16


def test_the_shipped_script_holds_every_feature() -> None:
    sources = {name: inspect.getsource(importlib.import_module(name)) for name in MODULES}
    scope: dict[str, Any] = {}
    exec(compose(sources, entries=["Transformer", "ModelConfig"]), scope)
    model, ids = build(EVERYTHING), tokens((2, 12))
    shipped = scope["Transformer"](scope["ModelConfig"](**EVERYTHING))
    shipped.load_state_dict(model.state_dict())
    assert torch.equal(shipped(ids), model(ids))


def test_hessians_add_up_the_passes_of_a_block() -> None:
    model, ids = build({**PLAIN, **RECUR}), tokens((2, 12))
    inputs = []
    handle = model.blocks[1].mlp.proj.register_forward_pre_hook(
        lambda module, given: inputs.append(given[0].detach().double().flatten(0, 1))
    )
    model(ids)
    handle.remove()
    assert len(inputs) == 2
    expected = sum(x.mT @ x for x in inputs) / ids.numel()
    result = collect_hessians(model, [ids], sensitivities=True)
    found = result.matrices["blocks.1.mlp.proj.weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for layer in (1, 3):
        own = {name: result.matrices[f"blocks.{layer}.attn.c_{name}.weight"] for name in "qkv"}
        assert np.array_equal(own["q"], own["k"])
        assert np.array_equal(own["q"], own["v"])


def test_quantization_aware_loss_recurs_too() -> None:
    model, ids = build(EVERYTHING), tokens((2, 13))
    rules = (QuantRule(match="blocks.*.weight", bits=4, scale="sdclip", k=8.0),)
    fake = FakeQuant(model, QuantConfig(rules=rules, min_elements=1), is_soft=False)
    assert len(fake.covered) == 6 * 6
    with fake.applied(1.0):
        found = model.loss(ids[:, :-1], ids[:, 1:])
    rounded = build(EVERYTHING)
    with torch.no_grad():
        for name, weights in fake.weights().items():
            rounded.get_parameter(name).copy_(weights)
    assert torch.equal(found, rounded.loss(ids[:, :-1], ids[:, 1:]))
    assert not torch.equal(found, model.loss(ids[:, :-1], ids[:, 1:]))


def test_hessians_of_own_projections_share_the_table() -> None:
    model, ids = build(EVERYTHING), tokens((2, 12))
    result = collect_hessians(model, [ids], sensitivities=True)
    looked_up = model.ve_shared.embed(ids).detach().double().flatten(0, 1)
    expected = looked_up.mT @ looked_up / ids.numel()
    for i in range(3):
        found = result.matrices[f"ve_shared.projs.{i}.weight"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert result.row_sensitivities[f"ve_shared.projs.{i}.weight"].shape == (12,)
    assert not [name for name in result.matrices if "gate" in name]
