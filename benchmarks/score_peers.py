"""Published evaluation code of openai/parameter-golf, called as its scripts call it.

A script is loaded as a module from a path of the user. Every token is counted as one byte, so that
what it calls bits per byte are bits per token.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from flyweight.model.config import ModelConfig

__all__ = ["Peer585", "Peer1683", "load_script"]

BATCH = 32
"""Windows in a batch of #585, and sequences in one of its steps on one GPU."""


def load_script(path: Path, **settings: str) -> ModuleType:
    """A script as a module; what it reads from the environment is set before."""
    os.environ.update(settings)
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: no Python script")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class _Peer:
    """A model of a script on a device, and the tables that its evaluation asks for."""

    def __init__(self, script: ModuleType, config: ModelConfig, device: torch.device) -> None:
        self.script, self.config, self.device = script, config, device
        ids = config.vocab_size
        self.tables = (
            torch.ones(ids, dtype=torch.int16, device=device),
            torch.zeros(ids, dtype=torch.bool, device=device),
            torch.zeros(ids, dtype=torch.bool, device=device),
        )
        self.args = script.Hyperparameters()
        self.args.train_seq_len = config.seq_len

    def _ready(self, model: nn.Module) -> nn.Module:
        """On the device, its cosines made where gradients may meet them."""
        model.to(self.device)
        row = torch.zeros(1, self.config.seq_len, dtype=torch.int64, device=self.device)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
            model(row, row)
        return model

    def place(self, tokens: Tensor) -> tuple[Any, ...]:
        """Arguments that all of its evaluation functions begin with, behind the model."""
        return (0, 1, self.device, tokens, *self.tables)


class Peer585(_Peer):
    """Evaluation of pull request #585: sliding windows compiled, training not."""

    def build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Its model with these weights, which have its names."""
        c = self.config
        model: nn.Module = self.script.GPT(
            vocab_size=c.vocab_size,
            num_layers=c.num_layers,
            model_dim=c.model_dim,
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            mlp_mult=c.mlp_hidden / c.model_dim,
            tie_embeddings=True,
            tied_embed_init_std=c.embed_init_std,
            logit_softcap=c.softcap,
            rope_base=c.rope_base,
            qk_gain_init=c.qk_gain_init,
            bigram_vocab_size=c.bigram_buckets,
            bigram_dim=c.bigram_dim,
            xsa_last_n=c.xsa_layers,
            rope_dims=c.rope_dims,
            ln_scale=c.ln_scale,
            ve_enabled=c.ve_layers > 0,
            ve_dim=c.ve_dim,
            ve_layers=",".join(str(k) for k in range(c.num_layers - c.ve_layers, c.num_layers)),
        )
        model.load_state_dict(dict(weights))
        return self._ready(model)

    def slide(self, model: nn.Module, tokens: Tensor, stride: int) -> float:
        """Nats per token of its sliding evaluation."""
        loss, _ = self.script.eval_val_sliding(
            self.args,
            model,
            *self.place(tokens),
            stride,
            batch_seqs=BATCH,
            eval_seq_len=self.config.seq_len,
        )
        return float(loss)

    def learn(self, model: nn.Module, tokens: Tensor, stride: int, chunk: int) -> float:
        """Nats per token of its test-time training as it was run: three epochs of AdamW."""
        loss, _ = self.script.eval_val_sliding_ttt(
            self.args,
            model,
            *self.place(tokens),
            stride,
            ttt_epochs=3,
            ttt_lr=1e-4,
            ttt_freeze_blocks=2,
            batch_seqs=BATCH,
            eval_seq_len=self.config.seq_len,
            ttt_chunk_tokens=chunk,
            ttt_optimizer="adamw",
        )
        return float(loss)


class Peer1683(_Peer):
    """Evaluation of pull request #1683, without its mixture, which looks at the target."""

    def build(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Its model with these weights, under its own names and in its own types."""
        c = self.config
        model: nn.Module = self.script.GPT(
            vocab_size=c.vocab_size,
            num_layers=c.num_layers,
            model_dim=c.model_dim,
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            mlp_mult=c.mlp_hidden / c.model_dim,
            tie_embeddings=True,
            tied_embed_init_std=c.embed_init_std,
            logit_softcap=c.softcap,
            rope_base=c.rope_base,
            qk_gain_init=c.qk_gain_init,
            ve_dim=c.ve_dim,
            smear_gate=True,
            bigram_hash_dim=c.bigram_buckets,
            partial_rope_frac=c.rope_dims / c.head_dim,
            value_residual=True,
            gated_attention=True,
            ln_scale=True,
        ).bfloat16()
        renamed = {self._name(name): self._value(name, value) for name, value in weights.items()}
        banked = self.script._rebank_state_dict(renamed, c.num_layers, model.state_dict())
        for name, weight in model.named_parameters():
            kept = name.endswith("_bank") or "bigram_proj" in name or "ve_proj" in name
            weight.data = weight.data.float() if kept else weight.data
        self.script.restore_low_dim_params_to_fp32(model)
        model.load_state_dict(banked)
        return self._ready(model)

    def _name(self, name: str) -> str:
        """Its name of one of our tensors."""
        first = self.config.num_layers - self.config.ve_layers
        for ours, theirs in (
            ("smear.gate", "smear_gate"),
            ("bigram.embed.weight", "bigram_emb.weight"),
            ("bigram.proj.weight", "bigram_proj.weight"),
            ("bigram.scale", "bigram_scale"),
            ("ve_shared.embed.weight", "ve_emb.weight"),
            ("attn.value_mix", "attn.vr_lambda"),
            ("attn.gate_weight", "attn.gate_proj.weight"),
            ("attn.gate_bias", "attn.gate_proj.bias"),
        ):
            if name.endswith(ours):
                return name.removesuffix(ours) + theirs
        head, _, rest = name.partition(".")
        if head == "ve_layer_scales":
            return f"blocks.{first + int(rest)}.attn.ve_scale"
        if name.startswith("ve_shared.projs."):
            return f"blocks.{first + int(name.split('.')[2])}.attn.ve_proj.weight"
        return name

    def _value(self, name: str, value: Tensor) -> Tensor:
        """Its gate opens to the token itself, ours to the one before."""
        return -value if name == "smear.gate" else value

    def learn(self, model: nn.Module, tokens: Tensor, stride: int, chunk: int) -> float:
        """Nats per token of its training of queries fused with sliding windows."""
        os.environ["TTT_CHUNK_TOKENS"] = str(chunk)
        self.args.ngram_max_n = 0
        loss, _ = self.script.eval_val_fused_ttt_sliding(
            self.args, model, *self.place(tokens), stride=stride, log0=lambda line: None
        )
        return float(loss)
