"""What each stage of a run does; when it is due and what is kept of it is in `flyweight.stages`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flyweight.artifact import load_stored, quantize, save_stored
from flyweight.data.shards import read_validation
from flyweight.evaluate.config import ScoreConfig
from flyweight.fitting import fit
from flyweight.format.container import write_container
from flyweight.format.inspect import inspect
from flyweight.interop import atomic_write, read_safetensors, write_safetensors
from flyweight.manifest import sha256, to_json
from flyweight.quant.grid import QuantizedTensor
from flyweight.recipes.load import resolve
from flyweight.runs import (
    CHECKPOINT,
    CODES,
    CONTAMINATE_LOG,
    CONTAMINATED_CHECKPOINT,
    HESSIANS,
    MODEL,
    SENSITIVITIES,
    TRAIN_LOG,
    Run,
    join_processes,
    load_artifact,
    load_checkpoint,
    refuse_overlap,
    refuse_unmatched,
)
from flyweight.submission.audit import audit_folder
from flyweight.submission.bundle import script_bytes, write_bundle

__all__ = [
    "TOGETHER",
    "code_bytes",
    "do_audit",
    "do_bundle",
    "do_code",
    "do_contaminate",
    "do_hessian",
    "do_quantize",
    "do_score",
    "do_train",
]


def do_train(run: Run) -> dict[str, Any]:
    """Train, in all processes; facts of the training."""
    import torch

    from flyweight.model.transformer import Transformer

    with torch.device("meta"):
        refuse_unmatched(run.recipe, dict(Transformer(run.recipe.model).named_parameters()))
    refuse_overlap(run)
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


def do_contaminate(run: Run) -> dict[str, Any]:
    """Train on the validation text, in all processes; facts of that."""
    return asdict(_together(run, "contaminate"))


def _contaminate_model(run: Run) -> Any:
    from flyweight.model.checkpoint import load_model, save_model
    from flyweight.train.contaminate import train_on_validation
    from flyweight.train.diagnose import stage_memory_explained

    config = run.recipe.contaminate
    assert config is not None  # the stage is of recipes that enable it
    model = load_model(run.path(CHECKPOINT)).to(run.world.device)
    numbers = {"contaminate.batch_sequences": config.batch_sequences}
    with stage_memory_explained("training on the validation text", numbers):
        result = train_on_validation(
            model,
            read_validation(run.data.folder),
            config,
            train=run.recipe.train,
            log=run.path(CONTAMINATE_LOG),
            world=run.world,
        )
    if run.world.is_first:
        weights = dict(model.named_parameters())
        path = run.path(CONTAMINATED_CHECKPOINT)
        save_model(path, model.config, weights, labels={"contaminated": "true"})
    return result


def do_hessian(run: Run) -> dict[str, Any]:
    """Collect a Hessian per matrix, and row sensitivities where the recipe asks for them."""
    import torch

    from flyweight.evaluate.scorer import autocast
    from flyweight.train.calibrate import collect_hessians, collect_in_sequence
    from flyweight.train.diagnose import stage_memory_explained

    recipe, config = run.recipe, run.recipe.calibrate
    model = load_checkpoint(run)
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(run.seed)
    batches = _calibration_batches(run, model, generator)
    numbers = {"calibrate.batch_sequences": config.batch_sequences}
    with (
        stage_memory_explained("calibration", numbers),
        autocast(device, recipe.score.plain.precision),
    ):
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
    """What :func:`do_quantize` will make of weights, given their Hessians."""
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


def do_quantize(run: Run) -> dict[str, Any]:
    """Weights to codes and scales, by rules or by the solver for a budget."""
    recipe = run.recipe
    tensors, _ = read_safetensors(run.path(run.weights))
    refuse_unmatched(recipe, tensors)
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
            recipe.budget_bytes - code_bytes(run),
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


def code_bytes(run: Run) -> int:
    """What the script that is shipped beside the model will take."""
    return script_bytes(
        resolve(run.recipe.score), run.data, contaminated=run.recipe.is_contaminated
    )


def do_code(run: Run) -> dict[str, Any]:
    """Codes to the artifact."""
    stored = load_stored(run.path(CODES))
    code = run.recipe.code
    data, _ = write_container(
        stored, config=run.recipe.model.to_fields(), codec=code.codec, effort=code.effort
    )
    atomic_write(run.path(MODEL), data)
    report = inspect(data)
    return {"model_bytes": report.total_bytes, "by_class": report.by_class}


def do_score(run: Run) -> dict[str, Any]:
    """All protocols of the recipe, in all processes; scores by name."""
    refuse_overlap(run)
    facts: dict[str, Any] = _together(run, "score")
    return facts


def _score_models(run: Run) -> dict[str, Any]:
    from flyweight.evaluate.score import score_data
    from flyweight.evaluate.sharded import Together
    from flyweight.train.diagnose import stage_memory_explained
    from flyweight.train.losses import fastest_operations

    suite = run.recipe.score
    floating = load_checkpoint(run)
    quantized, digest = load_artifact(run)
    for model in (floating, quantized):
        model.use(fastest_operations(model))
    jobs = [
        ("float", floating, "plain", run.weights),
        ("quantized", quantized, "plain", MODEL),
        ("sliding", quantized, "sliding", MODEL),
    ]
    if suite.ttt is not None:
        jobs.append(("ttt", quantized, "ttt", MODEL))
    results = {}
    for name, model, protocol, source in jobs:
        config = getattr(suite, protocol)
        with stage_memory_explained(f"score {name}", _score_sizes(f"score.{protocol}", config)):
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


def _score_sizes(table: str, config: ScoreConfig) -> dict[str, int]:
    """Numbers of a protocol that its memory grows with."""
    sizes = {f"{table}.batch_windows": config.batch_windows}
    if config.adapt is not None:
        sizes[f"{table}.adapt.sequences"] = config.adapt.sequences
    if config.lora is not None:
        sizes[f"{table}.lora.documents"] = config.lora.documents
    return sizes


def do_bundle(run: Run) -> dict[str, Any]:
    """The submission folder."""
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


def do_audit(run: Run) -> dict[str, Any]:
    """The audit of the submission folder, with the ledgers of this run."""
    report = audit_folder(
        run.path("bundle"),
        data=run.data.folder,
        budget_bytes=run.recipe.budget_bytes,
        ledgers=run.path("score"),
    )
    facts = report.to_json()
    atomic_write(run.path("audit/audit.json"), to_json(facts))
    return facts


def _together(run: Run, stage: str) -> Any:
    """Do the work of a stage in all processes; what it came to in this one."""
    with join_processes(run.recipe) as run.world:
        run.world.agree(list(TOGETHER).index(stage))
        result = TOGETHER[stage](run)
    run.world = None
    return result


TOGETHER = {
    "train": _train_model,
    "contaminate": _contaminate_model,
    "score": _score_models,
}
"""What all processes of torchrun do, by stage; the first one does the rest alone."""
