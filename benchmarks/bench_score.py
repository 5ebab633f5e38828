"""Scoring beside the published evaluation code: the same model, weights, tokens and stride.

    python benchmarks/bench_score.py --pr585 FILE --pr1683 FILE --data FOLDER

Sliding windows of #585 at stride 64, and the test-time training of #585 and #1683, each of our
protocols in the batch sizes of one GPU. The scripts are pull requests of openai/parameter-golf,
given by path; without one a case is run alone. Weights are random unless a checkpoint is given.
What is done once is timed apart: targets a second are those of code that is ready (of the script's
sliding windows, which compile inside, by the difference between two lengths of text), and
``wall_seconds`` of sliding windows go from the call in a new process to the last score. Sliding
windows run twice here: compiled as the script's are, and as ``compile = "auto"`` has them; beside
them stands a context that rolls, which gives targets as much of it and reads each token once.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flyweight.data.shards import list_shards, read_shard
from flyweight.evaluate.config import ScoreConfig
from flyweight.evaluate.ledger import Ledger
from flyweight.evaluate.ttt import score_stream
from flyweight.interop import read_safetensors
from flyweight.model.checkpoint import load_artifact, load_weights
from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer
from flyweight.recipes.load import load_recipe
from flyweight.train.losses import fastest_operations
from harness import RESULTS, fingerprint, write
from score_peers import Peer585, Peer1683, load_script

CASES = {
    "sliding": ("pr585", "sliding", 64),
    "pr585": ("pr585", "score-first", 64),
    "pr1683": ("pr1683", "score-first", 256),
}
"""Recipe, protocol and stride of each case."""
SEQUENCES = {"pr585": 32, "pr1683": 8}
"""Of an optimizer step on one GPU, where the scripts take one process's share of a batch."""


def main() -> None:
    options = _parse()
    for cache in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):  # of neither side is any filled
        os.environ[cache] = tempfile.mkdtemp()
    record: dict[str, Any] = {
        "fingerprint": fingerprint(options.commit),
        "settings": {**_device(options.device), "targets": options.targets, "short": options.short},
        "rows": [],
    }
    for case in options.cases:
        row = measure(case, options)
        record["rows"].append(row)
        print(case, row, flush=True)
        write("score", record, options.out)
    print(write("score", record, options.out))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pr585", type=Path, help="that system's train_gpt.py")
    parser.add_argument("--pr1683", type=Path, help="that system's train_gpt.py")
    parser.add_argument("--data", type=Path, help="folder of shards; without it tokens are drawn")
    parser.add_argument("--checkpoint585", type=Path, help="weights of #585: safetensors or .fly")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--targets", type=int, default=4 * 131_072, help="scored by each side")
    parser.add_argument("--short", type=int, default=131_072, help="taken off for sliding windows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", help="for a copy without a repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def measure(
    case: str, options: argparse.Namespace, change: Callable[[Any], Any] = lambda recipe: recipe
) -> dict[str, Any]:
    """Both sides of a case.

    Parameters
    ----------
    change : of the recipe, for a smaller model
    """
    name, protocol, stride = CASES[case]
    recipe = change(load_recipe(name))
    device = torch.device(options.device)
    model = build(recipe.model, options.checkpoint585 if name == "pr585" else None).to(device)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    tokens = read_tokens(options.data, options.targets + 1, recipe.model.vocab_size)
    suite = recipe.score.ttt if protocol == "score-first" else recipe.score.sliding
    config = dataclasses.replace(suite, stride=stride)
    if config.adapt is not None:
        adapt = dataclasses.replace(config.adapt, sequences=SEQUENCES[name])
        config = dataclasses.replace(config, adapt=adapt)
    row: dict[str, Any] = {"case": case}
    if case == "sliding":
        row["auto"] = ours(model, tokens, config)
        row["rolling"] = ours(model, tokens, dataclasses.replace(config, rolling=True))
        config = dataclasses.replace(config, compile=bool(config.compile))
    row["ours"] = ours(model, tokens, config)
    script = getattr(options, name)
    if script is not None:
        row["theirs"] = theirs(case, script, recipe.model, weights, tokens, config, options)
        row["ratio"] = row["ours"]["targets_per_second"] / row["theirs"]["targets_per_second"]
        if case == "sliding":
            row["wall_ratio"] = row["theirs"]["wall_seconds"] / row["auto"]["wall_seconds"]
            rolling = row["rolling"]
            rolling["ratio"] = rolling["targets_per_second"] / row["theirs"]["targets_per_second"]
            rolling["nats_above"] = rolling["nats_per_token"] - row["theirs"]["nats_per_token"]
        row["nats_above"] = row["ours"]["nats_per_token"] - row["theirs"]["nats_per_token"]
    return row


def build(config: ModelConfig, checkpoint: Path | None) -> Transformer:
    """The model, with weights from a file or random ones that make no layer idle."""
    model = Transformer(config)
    if checkpoint is not None and checkpoint.suffix == ".fly":
        return load_artifact(checkpoint)[0].eval()
    if checkpoint is not None:
        arrays, _ = read_safetensors(checkpoint)
        load_weights(model, arrays, source=str(checkpoint))
        return model.eval()
    generator = torch.Generator().manual_seed(7)
    model.init_weights(generator)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("proj.weight"):
                weight.normal_(std=0.02, generator=generator)
    return model.eval()


def read_tokens(folder: Path | None, count: int, vocab_size: int) -> NDArray[np.uint16]:
    """The first validation tokens, or drawn ones that are as uneven as text."""
    if folder is not None:
        return np.concatenate([read_shard(path) for path in list_shards(folder, "val")])[:count]
    ranks = np.random.default_rng(0).zipf(1.3, count)
    return (ranks % vocab_size).astype(np.uint16)


def ours(model: Transformer, tokens: NDArray[np.uint16], config: ScoreConfig) -> dict[str, Any]:
    """One pass over the stream."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger(Path(folder, "x"), targets=tokens.size - 1, binding=bytes(32)) as ledger,
    ):
        started = time.perf_counter()
        model.use(fastest_operations(model))
        result = score_stream(model, tokens, ledger, config)
        wall_seconds = time.perf_counter() - started
    seconds = sum(result.seconds.values()) - result.seconds["compile"]
    return {
        "wall_seconds": wall_seconds,
        "seconds": seconds,
        "targets_per_second": result.nats.size / seconds,
        "nats_per_token": float(result.nats.mean()),
        "phases": result.seconds,
        "recompilations": result.recompilations,
    }


def theirs(
    case: str,
    script: Path,
    model_config: ModelConfig,
    weights: dict[str, torch.Tensor],
    tokens: NDArray[np.uint16],
    config: ScoreConfig,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The same by a script."""
    kind = Peer585 if CASES[case][0] == "pr585" else Peer1683
    peer = kind(load_script(script), model_config, torch.device(options.device))
    stream = torch.from_numpy(tokens.astype(np.int64))

    def run(targets: int) -> tuple[float, float]:
        model = peer.build(weights)
        _wait(options.device)
        started = time.perf_counter()
        if case == "sliding":
            loss = peer.slide(model, stream[: targets + 1], config.stride)
        else:
            loss = peer.learn(model, stream[: targets + 1], config.stride, config.chunk_targets)
        _wait(options.device)
        return time.perf_counter() - started, loss

    if case != "sliding":  # nothing is compiled: a few targets take what is done once
        run(model_config.seq_len)
        seconds, loss = run(options.targets)
        speed = options.targets / seconds
        return {"seconds": seconds, "targets_per_second": speed, "nats_per_token": loss}
    wall_seconds, _ = run(options.targets)
    less, _ = run(options.short)
    seconds, loss = run(options.targets)
    return {
        "wall_seconds": wall_seconds,
        "seconds": seconds,
        "targets_per_second": (options.targets - options.short) / (seconds - less),
        "nats_per_token": loss,
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _device(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__}


if __name__ == "__main__":
    main()
