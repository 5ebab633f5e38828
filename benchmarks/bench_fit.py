"""``fit`` beside published exports: bits per byte at equal bytes, bytes at equal bits per byte.

    python benchmarks/bench_fit.py --checkpoint lm.safetensors --data FOLDER --pr585 train_gpt.py

The checkpoint has the architecture of PR #585 of openai/parameter-golf, whose own ``train_gpt.py``
is given by path and runs its own export code: calibration, GPTQ, int5, zstd. PR #1539's settings
(int6 with k = 12.85, int8 embeddings with k = 20, GPTQ, brotli-11) are set in this library. All are
scored by this library, on plain blocks of the folder's validation shard. Needs a GPU: that
script's calibration asks for one.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

from flyweight.artifact import pack, quantize, unpack
from flyweight.data.shards import list_shards, read_shard
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.ledger import Ledger
from flyweight.evaluate.stream import score_binding
from flyweight.evaluate.ttt import score_stream
from flyweight.fitting import fit
from flyweight.format.container import write_container
from flyweight.interop import read_safetensors
from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer
from flyweight.quant.config import QuantConfig, QuantRule
from flyweight.train.calibrate import Hessians, collect_hessians
from harness import RESULTS, fingerprint, write

CONFIG = ModelConfig(
    vocab_size=1024,
    num_layers=11,
    model_dim=512,
    num_heads=8,
    num_kv_heads=8,
    mlp_hidden=1792,
    seq_len=2048,
    rope_train_length=1024,
    smear_gate=True,
    unet_skips=True,
    resid_mix=True,
    ln_scale=True,
    branch_scales=True,
    xsa_layers=11,
    bigram_buckets=8192,
    bigram_dim=128,
    ve_layers=2,
    ve_dim=128,
)
CALIBRATION_SEQUENCES = 128
PEER_SEQUENCES = 256
"""As its script has it."""
BUDGETS = (16_000_000, 13_000_000, 10_000_000, 8_000_000, 6_500_000)
PR1539 = QuantConfig(
    rules=(
        QuantRule(match="*emb*", bits=8, k=20.0),
        QuantRule(match="*", bits=6, k=12.85),
    ),
    min_elements=65537,
)
Tensors = Mapping[str, NDArray[Any]]


class Scorer:
    """Plain scores of weights under one model and text."""

    def __init__(self, folder: Path, text_bytes: int, device: str) -> None:
        self.tokens = np.concatenate([read_shard(path) for path in list_shards(folder, "val")])
        self.model = Transformer(CONFIG).to(device).eval()
        self.text_bytes = text_bytes
        self.config = ScoreConfig(protocol="plain", seq_len=2048, precision="bfloat16")

    def load(self, tensors: Tensors) -> Transformer:
        """The model with these weights."""
        state = {
            name: torch.from_numpy(np.asarray(array, dtype=np.float32).reshape(array.shape))
            for name, array in tensors.items()
        }
        self.model.load_state_dict(state, strict=True)
        return self.model

    def bpb(self, tensors: Tensors) -> float:
        """Bits per byte of all targets."""
        binding = score_binding(self.tokens, self.config, model_sha256="0" * 64)
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(
                Path(folder) / "plain.ledger", targets=self.tokens.size - 1, binding=binding
            )
            with ledger:
                result = score_stream(self.load(tensors), self.tokens, ledger, self.config)
        return float(result.nats.sum(dtype=np.float64)) / math.log(2) / self.text_bytes


def main() -> None:
    options = _parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors, _ = read_safetensors(options.checkpoint)
    scorer = Scorer(options.data, options.val_bytes, device)
    base = scorer.bpb(tensors)
    print(f"float {base:.5f} bpb")
    seconds: dict[str, float] = {}
    hessians = _timed(seconds, "calibrate", lambda: _calibrate(scorer, tensors, options.data))
    rows: list[dict[str, Any]] = []
    record: dict[str, Any] = {
        "fingerprint": fingerprint(options.commit),
        "settings": {
            "checkpoint": options.checkpoint.name,
            "elements": sum(int(array.size) for array in tensors.values()),
            "calibration_tokens": hessians.n_tokens,
            "peer_calibration_tokens": PEER_SEQUENCES * CONFIG.seq_len,
            "targets": scorer.tokens.size - 1,
            "text_bytes": scorer.text_bytes,
            "fit_threads": options.threads,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "torch": torch.__version__,
        },
        "float_bpb": base,
        "seconds": seconds,
        "rows": rows,
    }

    def save() -> Path:
        """After every row: a run that is cut off leaves what it found."""
        return write("fit", record, options.out)

    def add(name: str, size: int, weights: Tensors, **more: Any) -> dict[str, Any]:
        row = {"name": name, "bytes": size, "tax": scorer.bpb(weights) - base, **more}
        rows.append(row)
        save()
        print(f"{name:36} {size:>12,} bytes  tax {row['tax']:.5f} bpb  {more}", flush=True)
        return row

    def add_fit(budget: int, label: str) -> dict[str, Any]:
        started = time.perf_counter()
        found = fit(
            tensors,
            budget,
            hessians=hessians.matrices,
            sensitivities=hessians.row_sensitivities,
            threads=options.threads,
        )
        took = time.perf_counter() - started
        predicted = found.damage / math.log(2) * (scorer.tokens.size - 1) / scorer.text_bytes
        return add(
            f"fit, {label}",
            len(found.data),
            unpack(found.data),
            budget=budget,
            predicted=predicted,
            rounds=found.rounds,
            seconds=took,
        )

    if options.pr585:
        peer, size = _timed(
            seconds, "pr585 export", lambda: _pr585(options.pr585, options.data, tensors, device)
        )
        add("pr585", size, peer)
    stored, _ = quantize(tensors, PR1539, hessians=hessians.matrices)
    data, _ = write_container(stored, codec="brotli", effort="max")
    add("pr1539", len(data), unpack(data))
    for bits in (4, 5, 6):
        packed = partial(pack, tensors, bits=bits, hessians=hessians.matrices)
        data = _timed(seconds, f"pack int{bits}", packed)
        add(f"int{bits}", len(data), unpack(data))
    fits = [add_fit(budget, f"{budget:,} bytes") for budget in options.budgets]
    for peer_row in [row for row in rows if row["name"].startswith("pr")]:
        fits.append(add_fit(peer_row["bytes"], f"bytes of {peer_row['name']}"))
        fits.append(add_fit(_bytes_at(fits, peer_row["tax"]), f"bpb of {peer_row['name']}"))
    print(save())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--val-bytes", type=int, default=1_217_898, help="bytes of its val text")
    parser.add_argument("--pr585", type=Path, help="that system's train_gpt.py")
    parser.add_argument("--budgets", type=int, nargs="*", default=BUDGETS)
    parser.add_argument("--threads", type=int, default=4, help="of fit")
    parser.add_argument("--commit", help="for a copy without a repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def _timed(seconds: dict[str, float], name: str, work: Any) -> Any:
    started = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - started
    print(f"{name}: {seconds[name]:.1f} s", flush=True)
    return result


def _calibrate(scorer: Scorer, tensors: Tensors, folder: Path) -> Hessians:
    """Second moments and sensitivities from the first training tokens."""
    model = scorer.load(tensors)
    device = model.tok_emb.weight.device
    count = CALIBRATION_SEQUENCES * CONFIG.seq_len
    tokens = read_shard(list_shards(folder, "train")[0])[:count].astype(np.int64)
    batches = torch.from_numpy(tokens).view(-1, CONFIG.seq_len).split(16)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return collect_hessians(
            model,
            batches,
            sensitivities=True,
            generator=torch.Generator(device).manual_seed(0),
        )


def _pr585(
    script: Path, folder: Path, tensors: Tensors, device: str
) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Weights and bytes after that system's own export code, called as its main() calls it."""
    os.environ["DATA_PATH"] = str(folder)
    theirs = _module(script)
    args = theirs.Hyperparameters
    model = theirs.GPT(
        vocab_size=args.vocab_size,
        num_layers=args.num_layers,
        model_dim=args.model_dim,
        num_heads=args.num_heads,
        num_kv_heads=args.num_kv_heads,
        mlp_mult=args.mlp_mult,
        tie_embeddings=args.tie_embeddings,
        tied_embed_init_std=args.tied_embed_init_std,
        logit_softcap=args.logit_softcap,
        rope_base=args.rope_base,
        qk_gain_init=args.qk_gain_init,
        bigram_vocab_size=args.bigram_vocab_size,
        bigram_dim=args.bigram_dim,
        xsa_last_n=args.xsa_last_n,
        rope_dims=args.rope_dims,
        ln_scale=args.ln_scale,
        ve_enabled=args.ve_enabled,
        ve_dim=args.ve_dim,
        ve_layers=args.ve_layers,
    ).to(device)
    state = {
        name: torch.from_numpy(np.asarray(array, dtype=np.float32).reshape(array.shape))
        for name, array in tensors.items()
    }
    model.load_state_dict(state, strict=True)
    pruned = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in pruned.values():
        if tensor.ndim == 2 and tensor.numel() > 65536:
            tensor[tensor.abs() < torch.quantile(tensor.abs(), args.prune_pct)] = 0.0
    hessians = theirs.gptq_calibrate(
        model, args.train_files, torch.device(device), n_samples=PEER_SEQUENCES, seq_len=2048
    )
    codes, kinds = theirs.mixed_quantize_int6_gptq(pruned, {"mlp", "attn"}, hessians)
    raw = io.BytesIO()
    torch.save({"w": codes, "m": kinds}, raw)
    blob = zstandard.ZstdCompressor(level=22).compress(raw.getvalue())
    weights = theirs.dequantize_mixed_int6(codes, kinds, pruned)
    return {name: tensor.float().numpy() for name, tensor in weights.items()}, len(blob)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("peer_train_gpt", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: no Python script")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _bytes_at(fits: list[dict[str, Any]], tax: float) -> int:
    """Bytes at which the fits reach a tax: the log of the tax is about linear between them."""
    known = sorted((row["tax"], row["bytes"]) for row in fits if row["tax"] > 0)
    logs = np.log([known_tax for known_tax, _ in known])
    return int(np.interp(math.log(tax), logs, [size for _, size in known]))


if __name__ == "__main__":
    main()
