"""Calibration: Hessians without and with row sensitivities, and drawing the tokens.

    python benchmarks/bench_calibrate.py                      # on a GPU: 128 x 2048 tokens
    python benchmarks/bench_calibrate.py --size small         # on a CPU: the same code in seconds

Weights are those of initialization, perturbed: time does not depend on them. What is timed ends
with the matrices in memory as NumPy arrays. Tokens are drawn in one batch, and once per run: that
takes as many steps as a sequence has tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from flyweight.model.config import ModelConfig
from flyweight.model.generate import generate
from flyweight.model.transformer import Transformer
from flyweight.train.calibrate import collect_hessians
from harness import RESULTS, fingerprint, interleave, summary, write

FEATURES: dict[str, Any] = {
    "vocab_size": 1024,
    "smear_gate": True,
    "unet_skips": True,
    "resid_mix": True,
    "ln_scale": True,
    "branch_scales": True,
    "bigram_dim": 128,
    "ve_layers": 2,
    "ve_dim": 128,
}
SIZES: dict[str, dict[str, Any]] = {
    "pr585": {
        "num_layers": 11,
        "model_dim": 512,
        "num_heads": 8,
        "num_kv_heads": 8,
        "mlp_hidden": 1792,
        "seq_len": 2048,
        "xsa_layers": 11,
        "bigram_buckets": 8192,
    },
    "small": {
        "num_layers": 2,
        "model_dim": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "mlp_hidden": 128,
        "seq_len": 64,
        "xsa_layers": 2,
        "bigram_buckets": 512,
    },
}
GOAL_SECONDS = 5.0
"""For 128 x 2048 tokens of the pr585 model on an H100, sensitivities or not."""


def main() -> None:
    options = _parse()
    model = _model(options)
    config = model.config
    count = options.sequences * config.seq_len
    cpu = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(config.vocab_size, (options.sequences, config.seq_len), generator=cpu)
    batches = tokens_BT.split(options.batch)

    def collect(*, sensitivities: bool) -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bfloat16):
            collect_hessians(model, batches, sensitivities=sensitivities)

    def draw() -> None:
        generator = torch.Generator(options.device).manual_seed(0)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bfloat16):
            generate(
                model, sequences=options.sequences, length=config.seq_len, generator=generator
            ).cpu()

    tasks = {
        "hessians": lambda: collect(sensitivities=False),
        "hessians and sensitivities": lambda: collect(sensitivities=True),
    }
    for task in tasks.values():
        task()
    samples = interleave(tasks, options.rounds) | interleave({"generate": draw}, 1)
    results = {name: summary(taken, count) for name, taken in samples.items()}
    for name, result in results.items():
        print(f"{name:28} {result['wall_seconds']['median']:8.3f} s")
    record = {
        "fingerprint": fingerprint(options.commit),
        "settings": {
            "size": options.size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tokens": count,
            "batch_sequences": options.batch,
            "precision": "bfloat16" if options.bfloat16 else "float32",
            "device": _device_name(options.device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "goal_seconds": GOAL_SECONDS,
        },
        "peak_bytes": torch.cuda.max_memory_allocated() if options.device == "cuda" else None,
        "results": results,
    }
    print(write("calibrate", record, options.out))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="pr585")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="sequences at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", help="for a copy without a repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.bfloat16 = options.device == "cuda"
    return options


def _model(options: argparse.Namespace) -> Transformer:
    config = ModelConfig(**FEATURES, **SIZES[options.size])
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return model.to(options.device).eval()


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


if __name__ == "__main__":
    main()
