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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flyweight.artifact import load_stored, quantize, save_stored
from flyweight.data.build import build_data
from flyweight.data.embedded import EmbeddedCorpus
from flyweight.data.facts import DataInfo
from flyweight.data.info import load_data_info
from flyweight.data.overlap import remembered_overlap
from flyweight.errors import DataError, InvalidArgumentError
from flyweight.fitting import fit
from flyweight.format.container import open as open_fly
from flyweight.format.container import write_container
from flyweight.format.inspect import inspect
from flyweight.interop import atomic_write, read_safetensors, write_safetensors
from flyweight.manifest import (
    locked,
    machine,
    read_entries,
    sha256,
    to_json,
    tree_hash,
    versions,
)
from flyweight.quant.grid import QuantizedTensor
from flyweight.recipes.load import resolve
from flyweight.recipes.schema import Recipe
from flyweight.submission.audit import audit_folder
from flyweight.submission.bundle import script_bytes, write_bundle
from flyweight.submission.digest import weights_sha256
from flyweight.train.config import CONTAMINATED

__all__ = ["STAGES", "Run", "run_stages"]

STAGES = ("train", "contaminate", "hessian", "quantize", "code", "score", "bundle", "audit")
"""In order; ``contaminate`` only where the recipe enables it."""
MANIFEST = "run.json"
CHECKPOINT = "train/model.safetensors"
TRAIN_STATE = "train/state.safetensors"
TRAIN_LOG = "train/log.jsonl"
TRAIN_KEY = "train/.key"
CONTAMINATED_CHECKPOINT = "contaminate/model.safetensors"
CONTAMINATE_LOG = "contaminate/log.jsonl"
HESSIANS = "hessian/hessian.safetensors"
SENSITIVITIES = "hessian/sensitivity.safetensors"
CODES = "quantize/codes.safetensors"
MODEL = "code/model.fly"
OVERLAP = "overlap.json"

Report = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Run:
    """One execution of a recipe: what it is made of, where it lies, what is done."""

    recipe: Recipe
    """The complete recipe, limits of the command line applied."""
    seed: int
    """Of weights and data order."""
    folder: Path
    """The RUN folder."""
    data: DataInfo
    """The token shards."""
    report: Report
    """Told one line when a stage begins, ends or is skipped."""
    deadline: float | None = None
    """Seconds that each protocol of the stage score may take; None is no end."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """What ``run.json`` holds."""
    world: Any = None
    """The processes of torchrun while they train or score together; the rest of the time this one
    is alone, and most stages do without PyTorch."""

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.folder / name

    @property
    def weights(self) -> str:
        """The checkpoint that is quantized and scored."""
        return CONTAMINATED_CHECKPOINT if self.recipe.is_contaminated else CHECKPOINT

    def say(self, line: str) -> None:
        """Report a line, labelled where the run is contaminated."""
        self.report(f"{CONTAMINATED}: {line}" if self.recipe.is_contaminated else line)


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
    seed : instead of the recipe's
    max_steps, max_seconds : budget of the training, instead of the recipe's
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
        A stage is unknown or, alone, not in the recipe; or data is missing.
    DataError
        A stage before was not run, or was run with another recipe, seed or data; the data does not
        fit the recipe; a file was changed; another process is running in the folder.
    SystemExit
        In the processes of torchrun but the first, once they have helped to train and to score; it
        does the rest.
    """
    if list(stages) == ["contaminate"] and not recipe.is_contaminated:
        raise InvalidArgumentError(f"recipe {recipe.name} has no contaminate.enabled = true")
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise InvalidArgumentError(f"no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    if max_steps is not None or max_seconds is not None:
        budget = {"max_steps": max_steps or 0, "max_seconds": max_seconds or 0.0}
        recipe = replace(recipe, train=replace(recipe.train, **budget))  # type: ignore[arg-type]
    folder, seed = Path(out), recipe.seed if seed is None else seed
    several = _is_several() and any(stage in stages for stage in _TOGETHER)
    if _is_several() and os.environ["RANK"] != "0":
        if several:
            shards = folder / "data" if data is None else Path(data)
            _assist(recipe, seed, folder, shards, deadline)
        raise SystemExit
    with locked(folder):
        run = Run(
            recipe=recipe,
            seed=seed,
            folder=folder,
            data=_prepare_data(recipe, folder, data, report),
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
            with _joined(recipe) as world:
                world.agree(len(_TOGETHER))
    return run


# --- stages ---------------------------------------------------------------------------------------


def _train(run: Run) -> dict[str, Any]:
    _refuse_overlap(run)
    _drop_foreign_state(run)
    facts = asdict(_together(run, "train"))
    return {name: value for name, value in facts.items() if not isinstance(value, Path)}


def _train_model(run: Run) -> Any:
    from flyweight.train.trainer import train

    return train(
        run.recipe.model,
        run.recipe.train,
        run.data.folder,
        run.path("train"),
        seed=run.seed,
        quantize=run.recipe.quantize,
        world=run.world,
    )


def _contaminate(run: Run) -> dict[str, Any]:
    return asdict(_together(run, "contaminate"))


def _contaminate_model(run: Run) -> Any:
    from flyweight.evaluate.score import read_validation
    from flyweight.model.checkpoint import load_model, save_model
    from flyweight.train.contaminate import train_on_validation

    assert run.recipe.contaminate is not None  # the stage is of recipes that enable it
    model = load_model(run.path(CHECKPOINT)).to(run.world.device)
    result = train_on_validation(
        model,
        read_validation(run.data),
        run.recipe.contaminate,
        train=run.recipe.train,
        log=run.path(CONTAMINATE_LOG),
        world=run.world,
    )
    if run.world.is_first:
        weights = dict(model.named_parameters())
        path = run.path(CONTAMINATED_CHECKPOINT)
        save_model(path, model.config, weights, labels={"contaminated": "true"})
    return result


def _drop_foreign_state(run: Run) -> None:
    """Keep a training state only if it was made under this key.

    The schedule follows the budget, so the state of a run with another one is not on the way to
    the weights that this run is to give, even where it could be loaded.
    """
    key, path = _key(run, "train", {}), run.path(TRAIN_KEY)
    if path.exists() and path.read_bytes() == key.encode():
        return
    if run.path(TRAIN_STATE).exists():
        run.report("train: the state is of another recipe, seed or data; training starts anew")
    run.path(TRAIN_STATE).unlink(missing_ok=True)
    run.path(TRAIN_LOG).unlink(missing_ok=True)
    atomic_write(path, key.encode())


def _hessian(run: Run) -> dict[str, Any]:
    import torch

    from flyweight.evaluate.scorer import autocast
    from flyweight.train.calibrate import collect_hessians, collect_in_sequence

    recipe, config = run.recipe, run.recipe.calibrate
    model = _load_checkpoint(run)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(run.seed)
    batches = _calibration_batches(run, model, generator)
    with autocast(device, recipe.score.plain.precision):
        if config.sequential:
            found = collect_in_sequence(model, list(batches), _rounding(run))
        else:
            found = collect_hessians(
                model,
                batches,
                sensitivities=config.sensitivities,
                generator=generator,
                max_seconds=config.max_seconds or None,
            )
    metadata = {"n_tokens": str(found.n_tokens)}
    write_safetensors(run.path(HESSIANS), found.matrices, metadata)
    run.path(SENSITIVITIES).unlink(missing_ok=True)
    if found.row_sensitivities is not None:
        write_safetensors(run.path(SENSITIVITIES), found.row_sensitivities, metadata)
    return {"tokens": found.n_tokens, "matrices": len(found.matrices)}


def _rounding(run: Run) -> Callable[[Sequence[str], Mapping[str, Any]], dict[str, Any]]:
    """What :func:`_quantize` will make of weights, given their Hessians."""
    tensors, _ = read_safetensors(run.path(run.weights))
    config = run.recipe.quantize
    assert config is not None  # a recipe that fits is not sequential

    def rounded(names: Sequence[str], hessians: Mapping[str, Any]) -> dict[str, Any]:
        stored, _ = quantize({name: tensors[name] for name in names}, config, hessians=hessians)
        found = {n: t for n, t in stored.items() if isinstance(t, QuantizedTensor)}
        return {name: tensor.dequantize() for name, tensor in found.items()}

    return rounded


def _calibration_batches(run: Run, model: Any, generator: Any) -> Iterator[Any]:
    """Token ids (sequences, seq_len) of each batch, made when it is asked for."""
    import torch

    from flyweight.model.generate import generate
    from flyweight.train.data import TokenStream

    config, seq_len = run.recipe.calibrate, run.recipe.model.seq_len
    if config.source == "generate":
        for _ in range(config.batches):
            yield generate(
                model,
                sequences=config.batch_sequences,
                length=seq_len,
                temperature=config.temperature,
                generator=generator,
            )
        return
    stream = TokenStream(
        run.data.folder,
        batch_sequences=config.batch_sequences,
        seq_len=seq_len,
        vocab_size=run.recipe.model.vocab_size,
        shuffle_seed=run.seed,
    )
    for index in range(config.batches):
        yield torch.from_numpy(stream.batch(index)[:, :-1])


def _quantize(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    tensors, _ = read_safetensors(run.path(run.weights))
    hessians, _ = read_safetensors(run.path(HESSIANS))
    if recipe.quantize is not None:
        stored, reports = quantize(tensors, recipe.quantize, hessians=hessians)
        for line in reports:
            if line.method == "rtn" and line.name in hessians:
                run.report(
                    f"warning: {line.name}: its Hessian could not be factored, rounded instead"
                )
        facts: dict[str, Any] = {"tensors": [asdict(line) for line in reports]}
    else:
        assert recipe.fit is not None  # a recipe has one of the two
        sensitive = run.path(SENSITIVITIES).exists()
        found = fit(
            tensors,
            recipe.budget_bytes - _code_bytes(run),
            hessians=hessians,
            sensitivities=read_safetensors(run.path(SENSITIVITIES))[0] if sensitive else None,
            config=recipe.model.to_fields(),
            min_elements=recipe.fit.min_elements,
            codec=recipe.code.codec,
            effort=recipe.code.effort,
            report=run.report,
        )
        stored = dict(found.stored)
        facts = {
            "objective": found.objective,
            "damage": found.damage,
            "damage_per_kilobyte": found.damage_per_kilobyte,
            "tensors": [asdict(line) for line in found.tensors],
        }
    save_stored(run.path(CODES), stored)
    return facts


def _code_bytes(run: Run) -> int:
    """What the script that is shipped beside the model will take."""
    return script_bytes(
        resolve(run.recipe.score), run.data, contaminated=run.recipe.is_contaminated
    )


def _code(run: Run) -> dict[str, Any]:
    stored = load_stored(run.path(CODES))
    code = run.recipe.code
    data, _ = write_container(
        stored, config=run.recipe.model.to_fields(), codec=code.codec, effort=code.effort
    )
    atomic_write(run.path(MODEL), data)
    report = inspect(data)
    return {"model_bytes": report.total_bytes, "by_class": report.by_class}


def _score(run: Run) -> dict[str, Any]:
    _refuse_overlap(run)
    facts: dict[str, Any] = _together(run, "score")
    return facts


def _score_models(run: Run) -> dict[str, Any]:
    from flyweight.evaluate.score import score_data
    from flyweight.evaluate.sharded import Together
    from flyweight.train.losses import fastest_operations

    suite = run.recipe.score
    floating = _load_checkpoint(run)
    quantized, digest = _load_artifact(run)
    for model in (floating, quantized):
        model.use(fastest_operations(model))
    jobs = [
        ("float", floating, suite.plain, run.weights),
        ("quantized", quantized, suite.plain, MODEL),
        ("sliding", quantized, suite.sliding, MODEL),
    ]
    if suite.ttt is not None:
        jobs.append(("ttt", quantized, suite.ttt, MODEL))
    results = {}
    for name, model, config, source in jobs:
        results[name] = score_data(
            model,
            run.data,
            config,
            name=name,
            model_sha256=sha256(run.path(source)),
            folder=run.path("score"),
            contaminated=run.recipe.is_contaminated,
            deadline=run.deadline,
            peers=Together(run.world) if run.world.size > 1 else None,
        )
        if run.world.is_first:
            atomic_write(run.path(f"score/{name}.json"), to_json(results[name]))
        run.report(f"{name}: {results[name]['text']}")
    column = "contaminated_bpb" if run.recipe.is_contaminated else "bpb"
    return {
        "results": results,
        column: {name: result["bpb"] for name, result in results.items()},
        "weights_sha256": digest,
    }


def _bundle(run: Run) -> dict[str, Any]:
    facts: dict[str, Any] = write_bundle(
        run.path("bundle"),
        artifact=run.path(MODEL),
        data=run.data,
        manifest=run.manifest,
        train_logs=[
            run.path(TRAIN_LOG),
            *([run.path(CONTAMINATE_LOG)] if run.recipe.is_contaminated else []),
        ],
    )
    return facts


def _audit(run: Run) -> dict[str, Any]:
    report = audit_folder(
        run.path("bundle"),
        data=run.data.folder,
        budget_bytes=run.recipe.budget_bytes,
        ledgers=run.path("score"),
    )
    facts = report.to_json()
    atomic_write(run.path("audit/audit.json"), to_json(facts))
    return facts


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
        work=_train,
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
        work=_contaminate,
        inputs=(CHECKPOINT,),
        outputs=(CONTAMINATED_CHECKPOINT, CONTAMINATE_LOG),
        config=lambda run: {
            "contaminate": resolve(run.recipe.contaminate),
            "data": [shard.sha256 or shard.tokens for shard in run.data.val.shards],
        },
    ),
    "hessian": _Stage(
        work=_hessian,
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
        work=_quantize,
        inputs=(CHECKPOINT, "hessian"),
        outputs=(CODES,),
        config=lambda run: {
            "quantize": resolve(run.recipe.quantize),
            "fit": run.recipe.fit
            and {
                **resolve(run.recipe.fit),
                "budget_bytes": run.recipe.budget_bytes,
                "code_bytes": _code_bytes(run),
                "code": resolve(run.recipe.code),
            },
        },
    ),
    "code": _Stage(
        work=_code,
        inputs=(CODES,),
        outputs=(MODEL,),
        config=lambda run: {"code": resolve(run.recipe.code), "model": resolve(run.recipe.model)},
    ),
    "score": _Stage(
        work=_score,
        inputs=(CHECKPOINT, MODEL),
        outputs=("score",),
        config=lambda run: {
            "score": resolve(run.recipe.score),
            "data": [shard.sha256 for shard in run.data.val.shards],
            "tokenizer": run.data.tokenizer_sha256,
        },
    ),
    "bundle": _Stage(
        work=_bundle,
        inputs=(MODEL, "score"),
        outputs=("bundle",),
        config=lambda run: {"recipe": resolve(run.recipe), "seed": run.seed},
    ),
    "audit": _Stage(work=_audit, inputs=("bundle",), outputs=("audit",), config=_no_config),
}


# --- processes ------------------------------------------------------------------------------------

_TOGETHER = {
    "train": _train_model,
    "contaminate": _contaminate_model,
    "score": _score_models,
}
"""What all processes of torchrun do, by stage; the first one does the rest alone."""


def _is_several() -> bool:
    """Whether torchrun started more than this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _joined(recipe: Recipe) -> AbstractContextManager[Any]:
    from flyweight.train.distributed import join

    return join(recipe.train.device)


def _together(run: Run, stage: str) -> Any:
    """Do the work of a stage in all processes; what it came to in this one."""
    with _joined(run.recipe) as run.world:
        run.world.agree(list(_TOGETHER).index(stage))
        result = _TOGETHER[stage](run)
    run.world = None
    return result


def _assist(recipe: Recipe, seed: int, folder: Path, data: Path, deadline: float | None) -> None:
    """What the other processes do: whatever the first one calls for, until it has no more."""
    while True:
        with _joined(recipe) as world:
            called = int(world.agree(0)[0])
            if called == len(_TOGETHER):
                return
            run = Run(
                recipe=recipe,
                seed=seed,
                folder=folder,
                data=load_data_info(data),
                report=lambda line: None,
                deadline=deadline,
                world=world,
            )
            list(_TOGETHER.values())[called](run)


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
    """Refuse to go on from stages that another recipe, seed or data were given to."""
    for earlier in STAGES[: STAGES.index(name)]:
        entry = run.manifest["stages"].get(earlier)
        if entry is None:
            continue
        is_other = set(entry["inputs"]) != set(_inputs(run, earlier))
        if is_other or entry["key"] != _key(run, earlier, entry["inputs"]):
            raise DataError(
                f"{run.folder}: stage {earlier} was run with another recipe, seed or data; "
                "run it again"
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


def _prepare_data(
    recipe: Recipe, folder: Path, data: str | os.PathLike[str] | None, report: Report
) -> DataInfo:
    if data is not None:
        info = load_data_info(data)
    elif recipe.data.source == "embedded":
        report("data: the prose that Python carries")
        info = build_data(EmbeddedCorpus(), folder / "data", vocab_size=recipe.data.vocab_size)
    else:
        raise InvalidArgumentError(f"recipe {recipe.name} needs a data folder: give --data")
    if info.vocab_size != recipe.data.vocab_size:
        raise DataError(
            f"{info.folder}: its tokenizer has {info.vocab_size} ids, recipe {recipe.name} is for "
            f"{recipe.data.vocab_size}"
        )
    return info


def _refuse_overlap(run: Run) -> None:
    """Refuse training documents that are scored, and validation documents that were trained on."""
    if run.data.train.shards:
        overlap = remembered_overlap(run.data, run.path(OVERLAP), report=run.say)
        overlap.refuse_above(run.recipe.data.max_overlap, run.data.folder)


def _load_checkpoint(run: Run) -> Any:
    from flyweight.model.checkpoint import load_model

    return load_model(run.path(run.weights)).to(_device(run)).eval()


def _load_artifact(run: Run) -> tuple[Any, str]:
    """The model that a .fly file holds, and the digest of its weights."""
    from flyweight.model.checkpoint import load_weights
    from flyweight.model.config import ModelConfig
    from flyweight.model.transformer import Transformer

    file = open_fly(run.path(MODEL))
    file.verify()
    tensors = {name: file[name] for name in file}
    model = Transformer(ModelConfig.from_fields(file.config()))
    load_weights(model, tensors, source=str(run.path(MODEL)))
    return model.to(_device(run)).eval(), weights_sha256(tensors)


def _device(run: Run) -> Any:
    """Where this process computes."""
    from flyweight.train.distributed import pick_device

    return pick_device(run.recipe.train.device) if run.world is None else run.world.device
