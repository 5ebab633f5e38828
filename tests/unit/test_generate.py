"""Generation with a cache against the full forward, position by position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flyweight.errors import InvalidArgumentError
from flyweight.model.config import BOS_TOKEN, ModelConfig

torch = pytest.importorskip("torch")

from flyweight.model.generate import Continuation, generate  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402

PLAIN: dict[str, Any] = {
    "vocab_size": 23,
    "num_layers": 3,
    "model_dim": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_hidden": 40,
    "seq_len": 12,
    "rope_dims": 4,
}
FULL: dict[str, Any] = {
    **PLAIN,
    "num_layers": 5,
    "smear_gate": True,
    "smear_document_mask": True,
    "unet_skips": True,
    "resid_mix": True,
    "ln_scale": True,
    "branch_scales": True,
    "xsa_layers": 3,
    "bigram_buckets": 19,
    "bigram_dim": 6,
    "ve_layers": 2,
    "ve_dim": 10,
}


def build(values: dict[str, Any]) -> Transformer:
    generator = torch.Generator().manual_seed(0)
    model = Transformer(ModelConfig(**values))
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    "values", [PLAIN, FULL, {**FULL, "tied_embeddings": False, "num_kv_heads": 4}]
)
def test_logits_are_those_of_the_full_forward(values: dict[str, Any]) -> None:
    model = build(values)
    tokens = torch.randint(2, 23, (3, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = tokens[1, 5] = BOS_TOKEN
    expected = model(tokens).detach().numpy()
    text = Continuation(model, sequences=3, length=12)
    for t in range(12):
        found = text.append(tokens[:, t]).numpy()
        np.testing.assert_allclose(found, expected[:, t], rtol=1e-4, atol=1e-4)
    assert torch.equal(text.tokens, tokens)
    with pytest.raises(InvalidArgumentError, match="already have their 12 tokens"):
        text.append(tokens[:, 0])


def test_autocast_keeps_its_dtype_in_the_cache() -> None:
    model, tokens = build(FULL), torch.full((2, 6), 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(tokens).detach().numpy()
        text = Continuation(model, sequences=2, length=6)
        found = [text.append(tokens[:, t]).numpy() for t in range(6)]
    np.testing.assert_allclose(np.stack(found, 1), expected, atol=0.15)


def test_the_generator_decides() -> None:
    model = build(FULL)

    def drawn(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, sequences=4, length=12, generator=generator)

    assert drawn(1).shape == (4, 12)
    assert drawn(1).dtype == torch.int64
    assert (drawn(1)[:, 0] == BOS_TOKEN).all()
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_tokens_follow_the_probabilities_of_the_model() -> None:
    model = build({**PLAIN, "softcap": 2.0})
    generator = torch.Generator().manual_seed(0)
    tokens = generate(model, sequences=4000, length=2, temperature=2.0, generator=generator)
    logits = model(torch.tensor([[BOS_TOKEN]])).detach()[0, 0]
    expected = torch.softmax(logits / 2, -1).numpy()
    found = np.bincount(tokens[:, 1].numpy(), minlength=23) / 4000
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_low_temperature_takes_the_likeliest() -> None:
    model = build(FULL)
    tokens = generate(model, sequences=1, length=12, temperature=1e-4)
    assert torch.equal(model(tokens)[:, :-1].argmax(-1), tokens[:, 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": 0}, "sequences=0"),
        ({"length": 0}, "length=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_impossible_requests_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        generate(build(PLAIN), **{"sequences": 1, "length": 4, **change})
