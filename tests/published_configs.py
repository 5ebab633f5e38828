"""The models of five pull requests of openai/parameter-golf, and what they are made of.

Where a bug left a part without gradient (the bigrams of #1123 and #1683), it has its shape here
and a start that learns.
"""

from __future__ import annotations

from flyweight.model.config import ModelConfig

_COMMON = {
    "vocab_size": 1024,
    "num_layers": 11,
    "model_dim": 512,
    "num_heads": 8,
    "num_kv_heads": 4,
    "mlp_hidden": 1536,
    "seq_len": 2048,
    "rope_dims": 16,
    "rope_base": 10000.0,
    "rope_train_length": 1024,
    "qk_gain_init": 1.5,
    "softcap": 30.0,
    "smear_gate": True,
    "unet_skips": True,
    "resid_mix": True,
    "ln_scale": True,
    "branch_scales": True,
    "embed_init_std": 0.005,
}
_BIGRAM = {"bigram_buckets": 2048, "bigram_dim": 128}


def pr578() -> ModelConfig:
    return ModelConfig(**{**_COMMON, **_BIGRAM, "xsa_layers": 4, "ve_layers": 2, "ve_dim": 128})


def pr585() -> ModelConfig:
    changes = {
        "num_kv_heads": 8,
        "mlp_hidden": 1792,
        "bigram_buckets": 8192,
        "bigram_dim": 128,
        "xsa_layers": 11,
        "ve_layers": 2,
        "ve_dim": 128,
    }
    return ModelConfig(**{**_COMMON, **changes})


def pr1123() -> ModelConfig:
    changes = {
        "mlp_hidden": 2048,
        "seq_len": 1024,
        "rope_train_length": 0,
        "qk_gain_init": 2.0,
        "softcap": 15.0,
        "leaky_slope": 0.5,
        "skip_init": 0.1,
        "xsa_layers": 11,
        "value_residual": True,
        "ve_layers": 2,
        "ve_dim": 128,
        "ve_zero_init": True,
    }
    return ModelConfig(**{**_COMMON, **_BIGRAM, **changes})


def pr1539() -> ModelConfig:
    changes = {
        "vocab_size": 8192,
        "mlp_hidden": 2048,
        "qk_gain_init": 5.25,
        "leaky_slope": 0.5,
        "xsa_layers": 11,
        "ve_layers": 2,
        "ve_dim": 44,
        "ve_zero_init": True,
        "recur_first": 3,
        "recur_last": 5,
        "recur_passes": 1,
        "lanes_from": 7,
    }
    return ModelConfig(**{**_COMMON, **changes})


def pr1683() -> ModelConfig:
    changes = {
        "num_layers": 13,
        "qk_gain_init": 5.25,
        "leaky_slope": 0.5,
        "smear_first": True,
        "value_residual": True,
        "gated_attention": True,
        "ve_layers": 2,
        "ve_dim": 96,
        "ve_own_proj": True,
    }
    return ModelConfig(**{**_COMMON, **_BIGRAM, **changes})


PUBLISHED = {config.__name__: config for config in (pr578, pr585, pr1123, pr1539, pr1683)}
TOTALS = {
    "pr578": 26_993_756,
    "pr585": 33_580_124,
    "pr1123": 32_760_946,
    "pr1539": 36_311_132,
    "pr1683": 31_753_965,
}
_Q_AND_O = ("blocks.attn.c_q.weight", "blocks.attn.proj.weight")
_K_AND_V = ("blocks.attn.c_k.weight", "blocks.attn.c_v.weight")
_VECTORS = tuple(f"blocks.{n}" for n in ("attn_scale", "mlp_scale", "resid_mix", "attn.q_gain"))
_BIGRAM_PARTS = {("bigram.embed.weight",): 262_144, ("bigram.proj.weight",): 65_536}
_VE_SCALES = ("ve_shared.scale", "ve_layer_scales")

COMPONENTS: dict[str, dict[tuple[str, ...], int]] = {
    "pr578": {
        ("tok_emb.weight",): 524_288,
        **_BIGRAM_PARTS,
        ("bigram.scale",): 1,
        ("ve_shared.embed.weight",): 131_072,
        ("ve_shared.proj.weight",): 32_768,
        _VE_SCALES: 3,
        ("smear.gate",): 512,
        ("skip_weights",): 2_560,
        ("blocks.attn.c_q.weight",): 11 * 262_144,
        ("blocks.attn.c_k.weight",): 11 * 131_072,
        ("blocks.attn.c_v.weight",): 11 * 131_072,
        ("blocks.attn.proj.weight",): 11 * 262_144,
        ("blocks.mlp.fc.weight",): 11 * 786_432,
        ("blocks.mlp.proj.weight",): 11 * 786_432,
        _VECTORS: 11 * 2_056,
    },
    "pr585": {
        ("tok_emb.weight",): 524_288,
        ("bigram.embed.weight",): 1_048_576,
        ("bigram.proj.weight",): 65_536,
        ("bigram.scale",): 1,
        ("ve_shared.embed.weight",): 131_072,
        ("ve_shared.proj.weight",): 65_536,
        _VE_SCALES: 3,
        ("smear.gate",): 512,
        ("skip_weights",): 2_560,
        (*_Q_AND_O, *_K_AND_V): 11 * 4 * 262_144,
        ("blocks.mlp.fc.weight", "blocks.mlp.proj.weight"): 11 * 2 * 917_504,
        _VECTORS: 11 * 2_056,
    },
    "pr1123": {
        ("tok_emb.weight",): 524_288,
        **_BIGRAM_PARTS,
        ("bigram.scale",): 1,
        ("ve_shared.embed.weight",): 131_072,
        ("ve_shared.proj.weight",): 32_768,
        _VE_SCALES: 3,
        ("smear.gate",): 512,
        ("skip_weights",): 2_560,
        ("blocks.attn.c_q.weight",): 11 * 262_144,
        ("blocks.attn.c_k.weight",): 11 * 131_072,
        ("blocks.attn.c_v.weight",): 11 * 131_072,
        ("blocks.attn.proj.weight",): 11 * 262_144,
        ("blocks.mlp.fc.weight",): 11 * 1_048_576,
        ("blocks.mlp.proj.weight",): 11 * 1_048_576,
        (*_VECTORS, "blocks.attn.value_mix"): 11 * 2_058,
    },
    "pr1539": {
        _Q_AND_O: 5_767_168,
        _K_AND_V: 2_883_584,
        ("blocks.mlp.fc.weight",): 11_534_336,
        ("blocks.mlp.proj.weight",): 11_534_336,
        ("tok_emb.weight",): 4_194_304,
        ("ve_shared.embed.weight",): 360_448,
        ("ve_shared.proj.weight",): 11_264,
        _VE_SCALES: 3,
        _VECTORS: 22_616,
        ("skip_weights",): 2_560,
        ("smear.gate",): 512,
        ("lane_merge",): 1,
    },
    "pr1683": {
        _Q_AND_O: 6_815_744,
        _K_AND_V: 3_407_872,
        ("blocks.mlp.fc.weight",): 10_223_616,
        ("blocks.mlp.proj.weight",): 10_223_616,
        ("tok_emb.weight",): 524_288,
        **_BIGRAM_PARTS,
        ("bigram.scale",): 1,
        ("ve_shared.embed.weight",): 98_304,
        ("ve_shared.projs.weight",): 49_152,
        ("ve_layer_scales",): 2,
        ("blocks.attn.gate_weight", "blocks.attn.gate_bias"): 53_352,
        _VECTORS[:3]: 26_624,
        ("blocks.attn.q_gain",): 104,
        ("blocks.attn.value_mix",): 26,
        ("skip_weights",): 3_072,
        ("smear.gate",): 512,
    },
}
"""Parameters by component as the pull requests count them: our tensors' names, blocks added up."""
