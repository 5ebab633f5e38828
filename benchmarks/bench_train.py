"""Recipes beside the published scripts that they reproduce, on one GPU.

    python benchmarks/bench_train.py --data1024 FOLDER --data8192 FOLDER --scripts FOLDER

Tokens per second over the last steps of a short run at the recipe's own batch, before recurrence
and rounding start, and with ``--kinds speed loss`` the training loss at equal tokens, 262,144 a
step. Both sides read the same shards in the same order and use torch's attention. The scripts are
pull requests of openai/parameter-golf, saved as ``pr585.py`` and so on in a folder of their own; a
system without one is run alone. Every run is a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flyweight.model.parameters import parameter_counts
from flyweight.recipes.load import load_recipe
from harness import RESULTS, fingerprint, on_devices, write
from train_peers import SETTINGS, PeerRun, run_script

SYSTEMS = ("pr578", "pr585", "pr1123", "pr1539", "pr1683")
WITH_LOSS = ("pr585", "pr1539")
LOSS_SEQUENCES = 128
"""Of 2,048 tokens: a step of the comparison of losses."""
LOSS_STEPS = (200, 500)
AVERAGED = 20
"""Steps whose losses are averaged, the last of which is the one named."""
FIRST_TIMED = 10
"""Steps that are not timed, of either side."""
SIDES = ("ours", "theirs")


def main() -> None:
    options = _parse()
    if options.ours:
        print(json.dumps(_train(options)))
        return
    record: dict[str, Any] = {
        "fingerprint": fingerprint(options.commit),
        "settings": {"steps": options.steps, "first_timed": FIRST_TIMED, **_device()},
        "speed": [],
        "loss": [],
    }
    if options.into:
        earlier = json.loads(options.into.read_text(encoding="utf-8"))
        record |= {kind: earlier[kind] for kind in ("speed", "loss")}
    jobs = [(kind, s) for kind in options.kinds for s in options.systems]
    jobs = [(kind, s) for kind, s in jobs if kind == "speed" or s in WITH_LOSS]

    def measure(job: tuple[str, str], environment: dict[str, str]) -> Callable[[], dict[str, Any]]:
        """Both sides on the same GPU: one after the other for speed, side by side for losses."""
        kind, system = job
        commit = record["fingerprint"]["commit"]  # rows of a record may come from several
        parameters = sum(parameter_counts(load_recipe(system).model).values())
        row: dict[str, Any] = {"system": system, "commit": commit, "parameters": parameters}
        sides = {"ours": _ours} if "ours" in options.sides else {}
        if "theirs" in options.sides and _script(options, system).exists() and system in SETTINGS:
            sides["theirs"] = _theirs
        before = next((old for old in record[kind] if old["system"] == system), {})
        row |= {side: before[side] for side in SIDES if side in before and side not in sides}

        def run(side: str) -> None:
            row[side] = sides[side](options, system, kind, environment)
            print(f"{kind} {system:8} {side:8} {json.dumps(row[side])}", flush=True)

        with ThreadPoolExecutor(1 if kind == "speed" else 2) as pool:
            list(pool.map(run, sides))
        return lambda: row

    for (kind, system), row in on_devices(jobs, options.devices, measure):
        rows = [old for old in record[kind] if old["system"] != system]
        record[kind] = sorted([*rows, row], key=lambda row: SYSTEMS.index(row["system"]))
        write("train", record, options.out)
    print(write("train", record, options.out))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data1024", type=Path, help="shards of 1,024 token ids")
    parser.add_argument("--data8192", type=Path, help="shards of 8,192 token ids")
    parser.add_argument("--scripts", type=Path, default=Path(), help="folder of pr578.py ...")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--kinds", nargs="*", choices=("speed", "loss"), default=["speed"])
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES, help="who is run")
    parser.add_argument("--devices", nargs="*", default=["0"], help="GPUs, a system on each")
    parser.add_argument("--max-seconds", type=float, default=900.0, help="of one run of a script")
    parser.add_argument("--into", type=Path, help="a record whose other rows and sides are kept")
    parser.add_argument("--commit", help="for a copy without a repository")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    return parser.parse_args()


def _data(options: argparse.Namespace, system: str) -> Path:
    is_large = load_recipe(system).model.vocab_size == 8192
    folder: Path | None = options.data8192 if is_large else options.data1024
    if folder is None:
        raise SystemExit(f"{system}: give --data{8192 if is_large else 1024}")
    return folder


def _script(options: argparse.Namespace, system: str) -> Path:
    path: Path = options.scripts / f"{system}.py"
    return path


def _ours(
    options: argparse.Namespace, system: str, kind: str, environment: dict[str, str]
) -> dict[str, Any]:
    arguments = [sys.executable, __file__, "--ours", system, "--kind", kind]
    arguments += ["--steps", str(options.steps)]
    for name in ("data1024", "data8192"):
        if getattr(options, name):
            arguments += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(
        arguments, stdout=subprocess.PIPE, text=True, check=False, env=environment
    )
    if done.returncode:
        return {"failed": done.returncode}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _train(options: argparse.Namespace) -> dict[str, Any]:
    """What the child process does: one training run of a recipe."""
    import torch

    from flyweight.train.trainer import train

    recipe, folder = load_recipe(options.ours), _data(options, options.ours)
    config = dataclasses.replace(
        recipe.train, max_steps=options.steps, max_seconds=0.0, log_steps=1, checkpoint_seconds=1e9
    )
    if options.kind == "speed":  # as the scripts are so soon: neither recurrent nor rounded
        last = 0.999 if recipe.model.recur_passes else 0.0
        config = dataclasses.replace(config, recur_start_fraction=last, qat=None)
    if options.kind == "loss":
        config = dataclasses.replace(
            config,
            batch_sequences=LOSS_SEQUENCES,
            max_steps=LOSS_STEPS[-1],
            warmdown_steps=0,
            warmdown_fraction=0.5,
            optim=dataclasses.replace(config.optim, momentum_warmup_steps=300),
        )
    with tempfile.TemporaryDirectory() as out:
        result = train(
            recipe.model, config, folder, out, seed=1337, quantize=recipe.quantize, progress=False
        )
        lines = [json.loads(line) for line in result.log_path.read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines}
    clock = {line["step"]: 1000 * line["seconds"] for line in lines}
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    tokens = config.batch_sequences * recipe.model.seq_len
    return {
        **_summary(losses, clock, tokens),
        "peak_bytes": peak,
        "compile_seconds": result.compile_seconds,
        "recompilations": result.recompilations,
    }


def _theirs(
    options: argparse.Namespace, system: str, kind: str, environment: dict[str, str]
) -> dict[str, Any]:
    data, settings = _data(options, system), dict(SETTINGS[system])
    steps, tokens = options.steps, 786_432
    if kind == "loss":
        steps, tokens = LOSS_STEPS[-1], LOSS_SEQUENCES * 2048
        settings |= {
            "TRAIN_BATCH_TOKENS": str(tokens),
            "WARMDOWN_ITERS": str(steps // 2),
            "WARMDOWN_FRAC": "0.5",
            "MUON_MOMENTUM_WARMUP_STEPS": "300",
            "RECUR_START_STEP": str(round(0.58 * steps)),
        }
    tokenizer = min(data.glob("*.model"))
    with tempfile.TemporaryDirectory() as folder:
        found: PeerRun = run_script(
            _script(options, system),
            Path(folder),
            data=data,
            tokenizer=tokenizer,
            settings=environment
            | {"ITERATIONS": str(steps), "MAX_WALLCLOCK_SECONDS": "0", "WARMUP_STEPS": "2"}
            | settings,
            max_seconds=options.max_seconds,
        )
    if len(found.losses) < 2:
        print("\n".join(found.tail), file=sys.stderr)
        return {"failed": True, "steps": len(found.losses)}
    return {
        **_summary(found.losses, found.milliseconds, tokens),
        "peak_bytes": found.peak_bytes,
        "start_seconds": found.start_seconds,
    }


def _summary(losses: dict[int, float], clock: dict[int, float], tokens: int) -> dict[str, Any]:
    """Speed over the steps behind the first ones, and losses where they are compared."""
    last = max(clock)
    first = min(FIRST_TIMED, last - 1)
    at = {
        str(step): statistics.fmean(losses[s] for s in range(step - AVERAGED + 1, step + 1))
        for step in LOSS_STEPS
        if all(s in losses for s in range(step - AVERAGED + 1, step + 1))
    }
    seconds = (clock[last] - clock[first]) / 1000
    return {"steps": last, "tokens_per_second": (last - first) * tokens / seconds, "loss_at": at}


def _device() -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": name, "torch": torch.__version__}


if __name__ == "__main__":
    main()
