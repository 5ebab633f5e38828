"""The transformer against its formulas, and the configs it takes."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flyweight.errors import (
    CorruptStreamError,
    FlyweightError,
    InvalidArgumentError,
    UnsupportedError,
)
from flyweight.fitting import fit
from flyweight.model.config import BOS_TOKEN, ModelConfig

torch = pytest.importorskip("torch")

from flyweight.model.checkpoint import load_artifact  # noqa: E402
from flyweight.model.embeddings import bigram_ids  # noqa: E402
from flyweight.model.parameters import parameter_counts  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402
from plain_model import PlainModel  # noqa: E402

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
    "rope_train_length": 8,
    "leaky_slope": 0.5,
    "smear_gate": True,
    "smear_document_mask": True,
    "unet_skips": True,
    "resid_mix": True,
    "ln_scale": True,
    "branch_scales": True,
    "embed_init_std": 0.1,
}

LOOKUPS: dict[str, Any] = {
    **FULL,
    "xsa_layers": 3,
    "bigram_buckets": 19,
    "bigram_dim": 6,
    "ve_layers": 2,
    "ve_dim": 10,
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


def transcription(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """Logits (T, V) of one sequence by the formulas."""
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return PlainModel(model.config, weights).logits(ids)


@pytest.mark.parametrize(
    "values",
    [
        PLAIN,
        FULL,
        {**PLAIN, "num_kv_heads": 4, "softcap": 0.0, "tied_embeddings": False},
        {**PLAIN, "rope_dims": 0, "smear_gate": True},
        {**PLAIN, "xsa_layers": 3},
        {**PLAIN, "bigram_buckets": 19, "bigram_dim": 6, "softcap": 0.0},
        {**PLAIN, "ve_layers": 1, "ve_dim": 10},
        LOOKUPS,
        {**FULL, "num_layers": 4, "softcap": 3.0, "smear_document_mask": False},
    ],
)
def test_logits_match_the_transcription(values: dict[str, Any]) -> None:
    model, ids = build(values), tokens((2, 12))
    logits = model(ids).detach()
    assert logits.dtype == torch.float32
    for row in range(2):
        expected = transcription(model, ids[row].numpy())
        np.testing.assert_allclose(logits[row].numpy(), expected, rtol=2e-4, atol=2e-4)


def test_loss_is_the_mean_cross_entropy_in_nats() -> None:
    model, ids = build(FULL), tokens((1, 13))
    logits = transcription(model, ids[0, :-1].numpy())
    log_z = np.log(np.exp(logits).sum(-1))
    expected = (log_z - logits[np.arange(12), ids[0, 1:].numpy()]).mean()
    assert model.loss(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("position", [1, 5, 6, 11])
def test_later_tokens_never_change_earlier_logits(position: int) -> None:
    model = build(LOOKUPS)
    first = tokens((2, 12))
    second = first.clone()
    second[:, position:] = (second[:, position:] + 3) % 23
    with torch.inference_mode():
        before, after = model(first)[:, :position], model(second)[:, :position]
    assert torch.equal(before, after)


def test_document_mask_hides_the_token_before_a_document() -> None:
    model = build({**FULL, "num_layers": 1, "unet_skips": False})
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.zero_()  # leaves the gate as the only way between tokens
    first = tokens((1, 12))
    second = first.clone()
    second[0, 4] = (second[0, 4] + 1) % 23
    changed = (model(first) != model(second)).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [4]


def test_untrained_model_is_nearly_uniform_and_reproducible() -> None:
    config = ModelConfig(**{**LOOKUPS, "embed_init_std": 0.005})
    models = [Transformer(config) for _ in range(2)]
    for model in models:
        model.init_weights(torch.Generator().manual_seed(3))
    ids = tokens((4, 13))
    assert models[0].loss(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(np.log(23), abs=0.05)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_whole_loss_compiles_into_one_graph_and_follows_autocast() -> None:
    model, ids = build(LOOKUPS), tokens((2, 13))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager = model.loss(ids[:, :-1], ids[:, 1:])
        assert model.hidden(ids).dtype == torch.bfloat16  # so no block has widened the stream
    assert eager.dtype == torch.float32
    compiled = torch.compile(build(LOOKUPS).loss, backend="eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(ids[:, :-1], ids[:, 1:]), eager)


def test_lookups_start_as_the_digest_says() -> None:
    model = Transformer(ModelConfig(**LOOKUPS))
    model.init_weights(torch.Generator().manual_seed(0))
    assert not model.bigram.embed.weight.any()
    assert model.bigram.scale.item() == pytest.approx(0.05)
    assert model.ve_shared.scale.item() == pytest.approx(0.1)
    assert model.ve_shared.embed.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert [scale.item() for scale in model.ve_layer_scales] == [1.0, 1.0]
    for proj in (model.bigram.proj, model.ve_shared.proj):
        singular = torch.linalg.svdvals(proj.weight)
        np.testing.assert_allclose(singular.detach(), 10**-0.5, rtol=1e-5)  # 5 layers


def test_first_position_has_a_bucket_of_its_own() -> None:
    ids = torch.tensor([[1023, 0, 0], [5, 1023, 7]])
    found = bigram_ids(ids, 8192)
    assert found[:, 0].tolist() == [8191, 8191]
    assert found[0, 1].item() == (27191 * 1023) % 8191
    assert found[1, 2].item() == ((36313 * 7) ^ (27191 * 1023)) % 8191
    assert found[:, 1:].max() < 8191


def test_features_that_are_off_have_no_parameters() -> None:
    names = set(parameter_counts(ModelConfig(**PLAIN)))
    linears = {f"blocks.attn.{n}.weight" for n in ("c_q", "c_k", "c_v", "proj")}
    linears |= {"blocks.mlp.fc.weight", "blocks.mlp.proj.weight"}
    assert names == linears | {"tok_emb.weight", "blocks.attn.q_gain"}


@pytest.mark.parametrize("values", [PLAIN, FULL, LOOKUPS])
def test_fields_round_trip(values: dict[str, Any]) -> None:
    config = ModelConfig(**values)
    stored = config.to_fields()
    assert list(stored) == sorted(stored)
    assert ModelConfig.from_fields(stored) == config


def test_an_artifact_of_bfloat16_tensors_is_a_model(tmp_path: Path) -> None:
    config = ModelConfig(**PLAIN)
    weights = {n: p.detach().bfloat16() for n, p in build(PLAIN).named_parameters()}
    arrays = {n: p.float().numpy().astype(ml_dtypes.bfloat16) for n, p in weights.items()}
    (tmp_path / "model.fly").write_bytes(fit(arrays, 20_000, config=config.to_fields()).data)
    model, tensors = load_artifact(tmp_path / "model.fly")
    assert tensors["blocks.0.attn.q_gain"].dtype == ml_dtypes.bfloat16
    for name, parameter in model.named_parameters():
        kept = torch.tensor(tensors[name].astype(np.float32))
        torch.testing.assert_close(parameter.detach(), kept, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({3: None}, r"field model_dim \(id 3\) is missing"), ({999: 1}, "unknown field id 999")],
)
def test_an_artifact_of_a_bad_config_is_named(
    tmp_path: Path, changes: dict[int, Any], message: str
) -> None:
    fields = {**ModelConfig(**PLAIN).to_fields(), **changes}
    config = {key: value for key, value in fields.items() if value is not None}
    path = tmp_path / "model.fly"
    arrays = {n: p.detach().numpy() for n, p in build(PLAIN).named_parameters()}
    path.write_bytes(fit(arrays, 40_000, config=config).data)
    with pytest.raises(FlyweightError, match=rf"model\.fly: model config: {message}"):
        load_artifact(path)


def test_field_ids_and_defaults_are_frozen() -> None:
    known = {f.metadata["id"]: (f.name, f.default) for f in dataclasses.fields(ModelConfig)}
    assert list(known) == list(range(1, 39))
    assert [known[i][0] for i in range(1, 8)] == [
        *("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_hidden"),
        "seq_len",
    ]
    assert [known[i] for i in range(8, 39)] == [
        *(("rope_dims", 16), ("rope_base", 10000.0), ("rope_train_length", 0)),
        *(("qk_gain_init", 1.5), ("softcap", 30.0), ("leaky_slope", 0.0), ("smear_gate", False)),
        *(("smear_document_mask", False), ("unet_skips", False), ("resid_mix", False)),
        *(("ln_scale", False), ("branch_scales", False), ("tied_embeddings", True)),
        *(("embed_init_std", 0.005), ("xsa_layers", 0), ("bigram_buckets", 0)),
        *(("bigram_dim", 0), ("ve_layers", 0), ("ve_dim", 0)),
        *(("value_residual", False), ("gated_attention", False), ("recur_first", 0)),
        *(("recur_last", 0), ("recur_passes", 0), ("skip_gates", False), ("skip_init", 1.0)),
        *(("lanes_from", 0), ("smear_first", False), ("ve_own_proj", False)),
        *(("ve_zero_init", False), ("document_mask", False)),
    ]


def test_the_format_lists_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| (\d+) \| `(\w+)` \| (int|float|bool) \| (\S+) \| ", re.MULTILINE)
    expected = []
    for f in dataclasses.fields(ModelConfig):
        default = "required" if f.default is dataclasses.MISSING else str(f.default).lower()
        expected.append((str(f.metadata["id"]), f.name, f.type, default))
    assert row.findall(text) == expected


def test_stored_fields_are_checked() -> None:
    stored = ModelConfig(**PLAIN).to_fields()
    with pytest.raises(UnsupportedError, match="unknown field id 99"):
        ModelConfig.from_fields({**stored, 99: 1})
    with pytest.raises(CorruptStreamError, match="field mlp_hidden"):
        ModelConfig.from_fields({k: v for k, v in stored.items() if k != 6})
    with pytest.raises(CorruptStreamError, match="field softcap"):
        ModelConfig.from_fields({**stored, 12: 30})
    with pytest.raises(CorruptStreamError, match="num_layers=0"):
        ModelConfig.from_fields({**stored, 2: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "num_layers=0"),
        ({"model_dim": 25}, "not a multiple of num_heads=4"),
        ({"num_kv_heads": 3}, "not a multiple of num_kv_heads=3"),
        ({"vocab_size": 70_000}, "vocab_size=70000"),
        ({"rope_dims": 5}, "rope_dims=5"),
        ({"rope_dims": 8}, "head width 6"),
        ({"rope_dims": 2, "rope_train_length": 8}, "rope_dims of at least 4"),
        ({"rope_train_length": -1}, "rope_train_length=-1"),
        ({"rope_base": 1.0}, "rope_base=1.0"),
        ({"leaky_slope": 1.0}, "leaky_slope=1.0"),
        ({"softcap": -1.0}, "softcap=-1.0"),
        ({"smear_document_mask": True}, "needs smear_gate"),
        ({"xsa_layers": 4}, "xsa_layers=4, expected 0 to 3"),
        ({"ve_layers": -1}, "ve_layers=-1"),
        ({"ve_layers": 2}, "ve_layers=2 with ve_dim=0"),
        ({"ve_dim": 2}, "ve_layers=0 with ve_dim=2"),
        ({"bigram_buckets": 1, "bigram_dim": 4}, "bigram_buckets=1"),
        ({"bigram_buckets": 8, "bigram_dim": -4}, "bigram_dim=-4"),
        ({"recur_last": 1}, "recur_first=0, recur_last=1, recur_passes=0"),
        ({"recur_last": 3, "recur_passes": 1}, "blocks of the 3 in order"),
        ({"recur_first": 2, "recur_last": 1, "recur_passes": 1}, "1 pass or more"),
        ({"recur_passes": -1}, "recur_passes=-1"),
        ({"skip_init": float("nan")}, "skip_init=nan, expected a finite number"),
        ({"skip_gates": True}, "skip_gates=True needs unet_skips"),
        ({"lanes_from": 3}, r"second half \(1 to 2\)"),
        ({"lanes_from": -1}, "lanes_from=-1"),
        ({"smear_first": True}, "smear_first=True needs smear_gate"),
        ({"ve_own_proj": True}, "ve_own_proj=True needs ve_layers"),
        ({"ve_zero_init": True}, "ve_zero_init=True needs ve_layers"),
        (
            {"ve_layers": 1, "ve_dim": 4, "ve_own_proj": True, "ve_zero_init": True},
            "ve_zero_init=True is for a shared projection",
        ),
        ({"lanes_from": 2, "recur_last": 2, "recur_passes": 1}, "behind recur_last=2"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ModelConfig(**{**PLAIN, **change})


def test_configs_need_no_torch() -> None:
    code = "import sys, flyweight.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
