"""The stages of a run and its manifest: every arrow from text to an audited submission.

A RUN folder holds ``run.json`` and one folder per stage. A stage is done when the manifest has it
under the same key, a hash over its config and the hashes of its inputs, and its outputs still have
the hashes that were recorded. So a second call goes on where the first one stopped, and a changed
recipe redoes exactly what depends on the change.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flyweight.data.info import load_data_info
from flyweight.errors import DataError, InvalidArgumentError
from flyweight.interop import atomic_write
from flyweight.manifest import (
    locked,
    machine,
    read_entries,
    read_limits,
    to_json,
    tree_hash,
    versions,
)
from flyweight.recipes.load import resolve
from flyweight.recipes.schema import Recipe
from flyweight.runs import (
    CHECKPOINT,
    CODES,
    CONTAMINATE_LOG,
    CONTAMINATED_CHECKPOINT,
    MANIFEST,
    MODEL,
    TRAIN_LOG,
    Report,
    Run,
    is_several,
    join_processes,
    prepare_data,
)
from flyweight.stage_work import (
    TOGETHER,
    code_bytes,
    do_audit,
    do_bundle,
    do_code,
    do_contaminate,
    do_hessian,
    do_quantize,
    do_score,
    do_train,
)

__all__ = ["STAGES", "Run", "run_stages"]

STAGES = ("train", "contaminate", "hessian", "quantize", "code", "score", "bundle", "audit")
"""In order; ``contaminate`` only where the recipe enables it."""


def run_stages(
    recipe: Recipe,
    *,
    out: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    deadline: float | None = None,
    stages: Sequence[str] = STAGES,
    report: Report = lambda line: None,
) -> Run:
    """Run stages of a recipe in a RUN folder, skipping what is done.

    Parameters
    ----------
    recipe : the complete recipe
    out : the RUN folder
    data : a data folder; may be left out where the recipe's data is embedded
    seed : instead of the recipe's; later stages, without ``train``, take that of the RUN folder
    max_steps, max_seconds : budget of the training, instead of the recipe's; as ``seed``
    deadline : seconds that each protocol may take; what does not fit falls back to plain blocks
    stages : which of :data:`STAGES`, in order; the ones before must be done
    report : told one line when a stage begins, ends or is skipped

    Returns
    -------
    Run
        Its manifest has an entry for each stage done.

    Raises
    ------
    InvalidArgumentError
        A stage is unknown or, alone, not in the recipe; a seed or budget is given without the stage
        ``train``; or data is missing.
    DataError
        A stage before was not run, or was run with another recipe or data; the data does not fit
        the recipe; a file was changed; another process is running in the folder.
    RecipeError
        A pattern of the recipe matches no tensor of its model; or it needs more memory than there
        is, with the number to lower.
    SystemExit
        In the processes of torchrun but the first, once they have helped to train and to score; it
        does the rest.
    """
    if list(stages) == ["contaminate"] and not recipe.is_contaminated:
        raise InvalidArgumentError(f"recipe {recipe.name} has no contaminate.enabled = true")
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise InvalidArgumentError(f"no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    folder, given = Path(out), (seed, max_steps, max_seconds)
    limits = given if "train" in stages else None
    if limits is None and any(limit is not None for limit in given):
        raise InvalidArgumentError("seed, max_steps and max_seconds are of the stage train")
    several = is_several() and any(stage in stages for stage in TOGETHER)
    if is_several() and os.environ["RANK"] != "0":
        if several:
            shards = folder / "data" if data is None else Path(data)
            _assist(recipe, limits, folder, shards, deadline)
        raise SystemExit
    with locked(folder):
        recipe, seed = _settle(recipe, folder, limits)
        run = Run(
            recipe=recipe,
            seed=seed,
            folder=folder,
            data=prepare_data(recipe, folder, data, report),
            report=report,
            deadline=deadline,
        )
        run.manifest = _open_manifest(run)
        if not recipe.is_contaminated:
            run.manifest["stages"].pop("contaminate", None)
        for stage in STAGES:
            if stage in stages and (stage != "contaminate" or recipe.is_contaminated):
                _do_stage(run, stage)
        if several:
            with join_processes(recipe) as world:
                world.agree(len(TOGETHER))
    return run


_Limits = tuple[int | None, int | None, float | None]
"""Seed, steps and seconds; None where the recipe says."""


def _settle(recipe: Recipe, folder: Path, limits: _Limits | None) -> tuple[Recipe, int]:
    """Recipe and seed under the limits given, or else those that the folder was trained under."""
    nothing = (None, None, None)
    seed, max_steps, max_seconds = limits or read_limits(folder / MANIFEST) or nothing
    if max_steps is not None or max_seconds is not None:
        budget = {"max_steps": max_steps or 0, "max_seconds": max_seconds or 0.0}
        recipe = replace(recipe, train=replace(recipe.train, **budget))  # type: ignore[arg-type]
    return recipe, recipe.seed if seed is None else seed


# --- stages ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    work: Callable[[Run], dict[str, Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    config: Callable[[Run], Any]


def _no_config(run: Run) -> None:
    return None


_WORK = {
    "train": _Stage(
        work=do_train,
        inputs=(),
        outputs=(CHECKPOINT, TRAIN_LOG),
        config=lambda run: {
            "model": resolve(run.recipe.model),
            "train": resolve(run.recipe.train),
            "seed": run.seed,
            "data": [shard.sha256 or shard.tokens for shard in run.data.train.shards],
            "quantize": run.recipe.quantize.grid_settings()
            if run.recipe.quantize and run.recipe.train.qat
            else None,
        },
    ),
    "contaminate": _Stage(
        work=do_contaminate,
        inputs=(CHECKPOINT,),
        outputs=(CONTAMINATED_CHECKPOINT, CONTAMINATE_LOG),
        config=lambda run: {
            "contaminate": resolve(run.recipe.contaminate),
            "data": [shard.sha256 or shard.tokens for shard in run.data.val.shards],
        },
    ),
    "hessian": _Stage(
        work=do_hessian,
        inputs=(CHECKPOINT,),
        outputs=("hessian",),
        config=lambda run: {
            "calibrate": resolve(run.recipe.calibrate),
            "quantize": resolve(run.recipe.quantize) if run.recipe.calibrate.sequential else None,
            "seed": run.seed,
            "precision": run.recipe.score.plain.precision,
        },
    ),
    "quantize": _Stage(
        work=do_quantize,
        inputs=(CHECKPOINT, "hessian"),
        outputs=(CODES,),
        config=lambda run: {
            "quantize": resolve(run.recipe.quantize),
            "fit": run.recipe.fit
            and {
                **resolve(run.recipe.fit),
                "budget_bytes": run.recipe.budget_bytes,
                "code_bytes": code_bytes(run),
                "code": resolve(run.recipe.code),
            },
        },
    ),
    "code": _Stage(
        work=do_code,
        inputs=(CODES,),
        outputs=(MODEL,),
        config=lambda run: {"code": resolve(run.recipe.code), "model": resolve(run.recipe.model)},
    ),
    "score": _Stage(
        work=do_score,
        inputs=(CHECKPOINT, MODEL),
        outputs=("score",),
        config=lambda run: {
            "score": resolve(run.recipe.score),
            "data": [shard.sha256 for shard in run.data.val.shards],
            "tokenizer": run.data.tokenizer_sha256,
        },
    ),
    "bundle": _Stage(
        work=do_bundle,
        inputs=(MODEL, "score"),
        outputs=("bundle",),
        config=lambda run: {"recipe": resolve(run.recipe), "seed": run.seed},
    ),
    "audit": _Stage(work=do_audit, inputs=("bundle",), outputs=("audit",), config=_no_config),
}


def _assist(
    recipe: Recipe, limits: _Limits | None, folder: Path, data: Path, deadline: float | None
) -> None:
    """What the other processes do: whatever the first one calls for, until it has no more."""
    while True:
        with join_processes(recipe) as world:
            called = int(world.agree(0)[0])
            if called == len(TOGETHER):
                return
            # The first process has read the manifest, and what it writes over it says the same.
            settled, seed = _settle(recipe, folder, limits)
            run = Run(
                recipe=settled,
                seed=seed,
                folder=folder,
                data=load_data_info(data),
                report=lambda line: None,
                deadline=deadline,
                world=world,
            )
            list(TOGETHER.values())[called](run)


# --- manifest -------------------------------------------------------------------------------------


def _do_stage(run: Run, name: str) -> None:
    stage = _WORK[name]
    done: dict[str, Any] = run.manifest["stages"]
    _check_earlier(run, name)
    inputs = {}
    for path in _inputs(run, name):
        maker = path.split("/", 1)[0]
        if maker not in done:
            raise DataError(f"{run.folder}: stage {name} needs stage {maker} first")
        inputs[path] = tree_hash(run.path(path))
        if inputs[path] != done[maker]["outputs"].get(path):
            raise DataError(f"{run.path(path)}: changed since stage {maker} wrote it; run it again")
    key = _key(run, name, inputs)
    if _is_done(run, name, key):
        run.say(f"{name}: done before")
        return
    run.say(f"{name} ...")
    for later in STAGES[STAGES.index(name) :]:
        done.pop(later, None)
    started = time.perf_counter()
    facts = stage.work(run)
    seconds = time.perf_counter() - started
    done[name] = {
        "key": key if facts.get("passed", True) else None,  # a failed audit is done again
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "inputs": inputs,
        "outputs": {path: tree_hash(run.path(path)) for path in stage.outputs},
        "versions": versions(),
        "machine": machine(),
        "facts": facts,
    }
    if name == "train":
        run.manifest |= {part: done[name][part] for part in ("versions", "machine")}
    atomic_write(run.path(MANIFEST), to_json(run.manifest))
    run.say(f"{name}: {seconds:.1f} s")


def _inputs(run: Run, name: str) -> list[str]:
    """What a stage reads; after ``contaminate`` its weights take the place of those trained."""
    inputs = _WORK[name].inputs
    if name == "contaminate":
        return list(inputs)
    return [run.weights if path == CHECKPOINT else path for path in inputs]


def _key(run: Run, name: str, inputs: dict[str, str]) -> str:
    """What a stage is recorded under: a hash over its config and the hashes of its inputs."""
    config = _WORK[name].config(run)
    return hashlib.sha256(to_json({"stage": name, "inputs": inputs, "config": config})).hexdigest()


def _check_earlier(run: Run, name: str) -> None:
    """Refuse to go on from stages that another recipe or other data were given to."""
    for earlier in STAGES[: STAGES.index(name)]:
        entry = run.manifest["stages"].get(earlier)
        if entry is None:
            continue
        is_other = set(entry["inputs"]) != set(_inputs(run, earlier))
        if is_other or entry["key"] != _key(run, earlier, entry["inputs"]):
            raise DataError(
                f"{run.folder}: stage {earlier} was run with another recipe or data; give those, "
                "or run it again"
            )


def _is_done(run: Run, name: str, key: str) -> bool:
    entry = run.manifest["stages"].get(name)
    if entry is None or entry["key"] != key:
        return False
    return all(
        run.path(path).exists() and tree_hash(run.path(path)) == found
        for path, found in entry["outputs"].items()
    )


def _open_manifest(run: Run) -> dict[str, Any]:
    """The manifest of the folder, brought up to date with this call, or a new one."""
    stages = read_entries(run.path(MANIFEST), STAGES)
    # The machine of a run is the one that trained, wherever later stages are done.
    trained = stages.get("train", {})
    return {
        "schema": 1,
        "contaminated": run.recipe.is_contaminated,
        "recipe": resolve(run.recipe),
        "seed": run.seed,
        "data": {
            "tokenizer_sha256": run.data.tokenizer_sha256,
            "vocab_size": run.data.vocab_size,
            "train_tokens": run.data.train.tokens,
            "val_targets": run.data.val.scored_targets,
            "val_bytes": run.data.val.scored_bytes,
            "val_shards": [shard.sha256 for shard in run.data.val.shards],
        },
        "versions": trained.get("versions") or versions(),
        "machine": trained.get("machine") or machine(),
        "stages": stages,
    }
