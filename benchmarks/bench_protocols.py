"""Every way of scoring one trained model: what it gains on plain sliding windows, and its seconds.

    python benchmarks/bench_protocols.py MODEL.fly --data FOLDER

The model has to be of 11 layers, as that of #585. Each protocol is that of a recipe, all with the
same windows and chunks, so that what they gain compares; each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flyweight.data.info import DataInfo, load_data_info
from flyweight.evaluate.config import LoraConfig, NgramConfig, ScoreConfig
from flyweight.recipes.load import load_recipe
from harness import RESULTS, fingerprint, on_devices, write

SEQ_LEN, STRIDE = 2048, 64
CONTAMINATED = "contaminated: passes over this very text first (#1539)"
"""What no legal run does; its bits per byte say what the published system had gained by it."""


def protocols() -> dict[str, ScoreConfig]:
    """By name; the second is what the others are held against."""
    sliding = replace(load_recipe("pr585").score.sliding, seq_len=SEQ_LEN, stride=STRIDE)
    found = {"plain": load_recipe("pr585").score.plain, "sliding": sliding}
    for words, system in (
        ("score-first SGD, average of the weights", "pr578"),
        ("score-first AdamW, last blocks", "pr585"),
        ("score-first SGD, first blocks frozen", "pr1123"),
        ("score-first AdamW, queries", "pr1683"),
        ("score-first AdamW, all blocks", "flyweight"),
    ):
        config = load_recipe(system).score.ttt
        assert config is not None
        assert config.adapt is not None
        if system == "pr1683":  # of the last two blocks, which are others here
            learn = ("blocks.9.attn.c_q.weight", "blocks.10.attn.c_q.weight")
            config = replace(config, adapt=replace(config.adapt, learn=learn))
        name = f"{words} ({system.replace('pr', '#')})"
        found[name] = replace(config, seq_len=SEQ_LEN, stride=STRIDE)
    # One chunk, as no state leaves a document: those of about one length run side by side.
    found["LoRA per document"] = replace(
        sliding, protocol="per-document", lora=LoraConfig(), chunk_targets=1 << 20
    )
    found["sliding, n-gram hints"] = replace(sliding, ngram=NgramConfig())
    last_blocks = found["score-first AdamW, last blocks (#585)"]
    found["rolling context"] = replace(sliding, rolling=True)
    found["rolling context, score-first AdamW (#585)"] = replace(last_blocks, rolling=True)
    found[CONTAMINATED] = sliding
    return found


def main() -> None:
    options = _parse()
    if options.only:
        print(json.dumps(_score(options, options.only)))
        return
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    record: dict[str, Any] = {
        "fingerprint": fingerprint(options.commit),
        "settings": {
            "device": name,
            "torch": torch.__version__,
            "model": options.model.name,
            "model_bytes": options.model.stat().st_size,
            "stride": STRIDE,
        },
        "rows": [],
    }
    names = list(protocols())
    chosen = [name for name in names if name in (options.protocols or names)]

    def measure(name: str, environment: dict[str, str]) -> Callable[[], dict[str, Any]]:
        arguments = [sys.executable, __file__, str(options.model), "--data", str(options.data)]
        done = subprocess.run(
            [*arguments, "--only", name],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env=environment,
        )
        if done.returncode:
            return lambda: {"failed": done.returncode}
        return lambda: dict(json.loads(done.stdout.splitlines()[-1]))

    for name, found in on_devices(chosen, options.devices, measure):
        row = {"protocol": name, **found}
        record["rows"] = sorted([*record["rows"], row], key=lambda r: names.index(r["protocol"]))
        print(json.dumps(row), flush=True)
        write("protocols", record, options.out)
    print(write("protocols", record, options.out))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an artifact")
    parser.add_argument("--data", type=Path, required=True, help="shards of its vocabulary")
    parser.add_argument("--protocols", nargs="*", help="names; all where none is given")
    parser.add_argument("--devices", nargs="*", default=["0"], help="GPUs, a protocol on each")
    parser.add_argument("--commit", help="for a copy without a repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def _score(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """What the child process does: one protocol."""
    from flyweight.evaluate.score import score_data
    from flyweight.model.checkpoint import load_artifact
    from flyweight.submission.digest import weights_sha256
    from flyweight.train.distributed import pick_device
    from flyweight.train.losses import fastest_operations

    model, tensors = load_artifact(options.model)
    model.to(pick_device("auto")).eval()
    model.use(fastest_operations(model))
    data = load_data_info(options.data)
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if name == CONTAMINATED:
            facts = {"contaminate": _contaminate(model, data, Path(folder))}
        found = score_data(
            model,
            data,
            protocols()[name],
            name="score",
            model_sha256=weights_sha256(tensors),
            folder=Path(folder),
            contaminated=name == CONTAMINATED,
            show_progress=False,
        )
    kept = ("bpb", "targets", "bytes", "coverage", "seconds", "phases", "chunks", "adapted_chunks")
    return {**{key: found[key] for key in (*kept, "recompilations", "contaminated")}, **facts}


def _contaminate(model: Any, data: DataInfo, folder: Path) -> dict[str, Any]:
    """Train the model, in place, on the text that it is scored on."""
    from flyweight.data.shards import read_validation
    from flyweight.train.contaminate import train_on_validation
    from flyweight.train.distributed import World

    recipe = load_recipe("pr1539")
    assert recipe.contaminate is not None
    result = train_on_validation(
        model,
        read_validation(data.folder),
        recipe.contaminate,
        train=recipe.train,
        log=folder / "contaminate.jsonl",
        world=World(device=next(model.parameters()).device),
        show_progress=False,
    )
    return asdict(result)


if __name__ == "__main__":
    main()
