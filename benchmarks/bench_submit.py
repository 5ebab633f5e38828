"""Recipes from training to the scored artifact under a clock, and PR #585's script under the same.

    python benchmarks/bench_submit.py --data1024 FOLDER --data8192 FOLDER --script pr585.py

Each run trains for the given seconds (compilation outside), exports within the recipe's budget of
bytes, and scores what it exported in sliding windows without further training. The script is pull
request #585 of openai/parameter-golf in its one-GPU form: 262,144 tokens a step, a warm-down of
700 steps, a momentum warm-up of 300. Recipes of published systems, whose schedules are for eight
GPUs, have that form too: as many tokens, a warm-down over half of the clock, the same warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flyweight.cli.summary import run_facts
from flyweight.model.parameters import parameter_counts
from flyweight.recipes.load import load_recipe
from flyweight.recipes.schema import Recipe
from flyweight.stages import STAGES, run_stages
from harness import RESULTS, fingerprint, on_devices, write
from train_peers import run_script

RECIPES = ("pr578", "pr585", "pr1123", "pr1539", "pr1683", "flyweight")
SCRIPT = "script of #585"
ONE_GPU_TOKENS = 262_144
_ONE_GPU = {
    "TRAIN_BATCH_TOKENS": str(ONE_GPU_TOKENS),
    "WARMDOWN_ITERS": "700",
    "MUON_MOMENTUM_WARMUP_STEPS": "300",
    "EVAL_STRIDE": "64",
    "SEED": "1337",
}


def main() -> None:
    options = _parse()
    if options.ours:
        print(json.dumps(_run(options)))
        return
    import torch

    record: dict[str, Any] = {
        "fingerprint": fingerprint(options.commit),
        "settings": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
        },
        "rows": [],
    }
    if options.into:
        record["rows"] = json.loads(options.into.read_text(encoding="utf-8"))["rows"]
    jobs = [*options.recipes, *([SCRIPT] if options.script else [])]

    def measure(job: str, environment: dict[str, str]) -> Callable[[], dict[str, Any]]:
        commit = record["fingerprint"]["commit"]  # rows of a record may come from several
        row = {"system": job, "max_seconds": options.max_seconds, "commit": commit}
        if job == SCRIPT:
            found = _script(options, environment)
            return lambda: {**row, **found}
        folder = options.runs / Path(job).stem if options.runs else Path(tempfile.mkdtemp())
        failed = _recipe(options, job, folder, "train", environment)

        def finish() -> dict[str, Any]:
            try:
                return row | (failed or _recipe(options, job, folder, options.until, environment))
            finally:
                if not options.runs:
                    shutil.rmtree(folder)

        return finish

    for job, row in on_devices(jobs, options.devices, measure):
        same = (job, options.max_seconds)
        others = [r for r in record["rows"] if (r["system"], r["max_seconds"]) != same]
        record["rows"] = [*others, row]
        print(f"{job:14} {json.dumps(row)}", flush=True)
        write("submit", record, options.out)
    print(write("submit", record, options.out))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data1024", type=Path, help="shards of 1,024 token ids")
    parser.add_argument("--data8192", type=Path, help="shards of 8,192 token ids")
    parser.add_argument("--recipes", nargs="*", default=RECIPES, help="names, or TOML files")
    parser.add_argument("--script", type=Path, help="pull request #585's train_gpt.py")
    parser.add_argument("--max-seconds", type=float, default=180.0, help="training clock")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds of a whole run")
    parser.add_argument("--devices", nargs="*", default=["0"], help="GPUs, a run on each")
    parser.add_argument("--into", type=Path, help="a record whose other rows are kept")
    parser.add_argument("--until", choices=STAGES, default="audit", help="bundle spares the audit")
    parser.add_argument("--runs", type=Path, help="keeps what the recipes make, a folder for each")
    parser.add_argument("--commit", help="for a copy without a repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


def _recipe(
    options: argparse.Namespace, name: str, folder: Path, until: str, environment: dict[str, str]
) -> dict[str, Any]:
    """Stages of a recipe in a process of their own; nothing where only training was wanted."""
    arguments = [sys.executable, __file__, "--ours", name, "--run", str(folder), "--until", until]
    arguments += ["--max-seconds", str(options.max_seconds)]
    for data in ("data1024", "data8192"):
        if getattr(options, data):
            arguments += [f"--{data}", str(getattr(options, data))]
    done = subprocess.run(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=options.limit,
    )
    if done.returncode:
        return {"failed": done.returncode}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(options: argparse.Namespace) -> dict[str, Any]:
    """What the child process does."""
    recipe = for_one_gpu(load_recipe(options.ours))
    recipe = dataclasses.replace(recipe, score=dataclasses.replace(recipe.score, ttt=None))
    run = run_stages(
        recipe,
        out=options.run,
        data=options.data8192 if recipe.model.vocab_size == 8192 else options.data1024,
        max_seconds=options.max_seconds,
        stages=STAGES[: STAGES.index(options.until) + 1],
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if options.until == "train":
        return {}
    found = run_facts(run)
    return {
        "parameters": sum(parameter_counts(recipe.model).values()),
        "tokens": found["train"]["tokens"],
        "steps": found["train"]["steps"],
        "artifact_bytes": found["bytes"]["total"],
        "bpb": found["bpb"],
        "stage_seconds": found["seconds"],
        "compile_seconds": found["train"]["compile_seconds"],
        "audit_passed": found.get("audit", {}).get("passed"),
    }


def for_one_gpu(recipe: Recipe) -> Recipe:
    """A recipe with the schedule of one GPU, if it has that of eight."""
    train = recipe.train
    tokens = train.batch_sequences * recipe.model.seq_len
    if tokens <= ONE_GPU_TOKENS:
        return recipe
    train = dataclasses.replace(
        train,
        batch_sequences=ONE_GPU_TOKENS // recipe.model.seq_len,
        accumulation_steps=2,
        warmdown_steps=0,
        warmdown_fraction=0.5,
        optim=dataclasses.replace(train.optim, momentum_warmup_steps=300),
    )
    return dataclasses.replace(recipe, train=train)


def _script(options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    started = time.perf_counter()
    clock = {"MAX_WALLCLOCK_SECONDS": str(options.max_seconds)}
    with tempfile.TemporaryDirectory() as folder:
        found = run_script(
            options.script,
            Path(folder),
            data=options.data1024,
            tokenizer=min(options.data1024.glob("*.model")),
            settings=environment | clock | _ONE_GPU,
            max_seconds=options.limit,
            exports=True,
        )
    bpb = {"float": found.float_bpb, "sliding": found.sliding_bpb}
    if not any(bpb.values()):
        return {"failed": True, "tail": found.tail}
    steps = max(found.losses)
    return {
        "tokens": steps * ONE_GPU_TOKENS,
        "steps": steps,
        "artifact_bytes": found.artifact_bytes,
        "bpb": bpb,
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    main()
