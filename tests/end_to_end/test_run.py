"""The whole path on a tiny scale: text to an audited submission, resumed, changed and damaged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training is in the extra [train]")
pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")

from click.testing import CliRunner

import flyweight
from flyweight.cli.main import flyweight as cli
from flyweight.cli.summary import run_text
from flyweight.data.build import build_data
from flyweight.data.info import load_data_info
from flyweight.data.shards import BOS_ID, read_shard, write_shard
from flyweight.data.text import FileCorpus
from flyweight.errors import DataError, InvalidArgumentError, RecipeError
from flyweight.interop import read_safetensors
from flyweight.quant.config import QuantRule
from flyweight.recipes.load import load_recipe, resolve
from flyweight.recipes.schema import Recipe
from flyweight.stages import STAGES, Run, run_stages
from flyweight.submission.bundle import script_bytes
from flyweight.submission.checks import BPB_TOLERANCE
from flyweight.submission.digest import weights_sha256
from flyweight.train.config import CONTAMINATED

RECIPE = """
name = "test"
description = "As small as it gets."
seed = 1
[data]
source = "folder"
vocab_size = 320
[model]
vocab_size = 320
num_layers = 2
model_dim = 32
num_heads = 2
num_kv_heads = 1
mlp_hidden = 64
seq_len = 64
rope_dims = 8
smear_gate = true
unet_skips = true
resid_mix = true
[train]
batch_sequences = 4
max_steps = 3
device = "cpu"
[calibrate]
batches = 2
batch_sequences = 4
[quantize]
min_elements = 1000
[[quantize.rules]]
match = "tok_emb.weight"
bits = 8
k = 20.0
[[quantize.rules]]
match = "blocks.*.weight"
bits = 6
k = 12.85
[score.plain]
protocol = "plain"
seq_len = 64
[score.sliding]
protocol = "sliding"
seq_len = 64
stride = 32
chunk_targets = 256
[score.ttt]
protocol = "score-first"
seq_len = 64
stride = 32
chunk_targets = 512
[score.ttt.adapt]
epochs = 1
sequences = 8
"""
LEGAL = tuple(stage for stage in STAGES if stage != "contaminate")
WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while"),
    *("seven", "wizards", "mix", "quartz", "jelly"),
)


def text(documents: int, seed: int) -> str:
    """JSON lines of made-up sentences, all different."""
    lines = []
    for number in range(documents):
        words = [WORDS[(seed + number * 7 + i * i) % len(WORDS)] for i in range(60)]
        lines.append(json.dumps({"text": f"Story {seed + number}. " + " ".join(words)}))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "train.jsonl").write_text(text(60, 0))
    (folder / "val.jsonl").write_text(text(6, 1000))
    corpus = FileCorpus([folder / "train.jsonl"], [folder / "val.jsonl"])
    build_data(corpus, folder / "shards", vocab_size=320)
    return folder / "shards"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "test.toml"
    path.write_text(RECIPE)
    return load_recipe(str(path))


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, data: Path
) -> tuple[Run, list[str]]:
    lines: list[str] = []
    out = tmp_path_factory.mktemp("run")
    return run_stages(recipe, out=out, data=data, report=lines.append), lines


def test_every_stage_is_done_and_the_audit_passes(finished: tuple[Run, list[str]]) -> None:
    run, lines = finished
    assert list(run.manifest["stages"]) == list(LEGAL)
    audit = run.manifest["stages"]["audit"]["facts"]
    assert audit["passed"], audit
    bpb = run.manifest["stages"]["score"]["facts"]["bpb"]
    assert set(bpb) == {"float", "quantized", "sliding", "ttt"}
    assert all(1.0 < value < 9.0 for value in bpb.values())
    assert sum("done before" in line for line in lines) == 0
    assert json.loads(run.path("run.json").read_text()) == run.manifest


def test_methods_are_what_the_recipe_asks(finished: tuple[Run, list[str]]) -> None:
    run, _ = finished
    facts = {t["name"]: t for t in run.manifest["stages"]["quantize"]["facts"]["tensors"]}
    assert facts["tok_emb.weight"]["bits"] == 8
    assert facts["blocks.1.mlp.proj.weight"]["bits"] == 6
    for name in ("tok_emb.weight", "blocks.0.attn.c_q.weight", "blocks.1.mlp.proj.weight"):
        assert facts[name]["method"] == "gptq"
        assert 0 < facts[name]["relative_error"] < 0.05
    assert facts["smear.gate"]["method"] == "float"


def test_a_fresh_process_loads_the_weights_that_were_scored(
    finished: tuple[Run, list[str]],
) -> None:
    run, _ = finished
    code = (
        "import sys, flyweight; from flyweight.submission.digest import weights_sha256\n"
        "f = flyweight.open(sys.argv[1]); print(weights_sha256({n: f[n] for n in f}))"
    )
    path = str(run.path("code/model.fly"))
    found = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == run.manifest["stages"]["score"]["facts"]["weights_sha256"]
    file = flyweight.open(path)
    assert weights_sha256({name: file[name] for name in file}) == found.stdout.strip()


def test_a_second_call_does_nothing(
    finished: tuple[Run, list[str]], recipe: Recipe, data: Path
) -> None:
    run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    lines: list[str] = []
    again = run_stages(recipe, out=run.folder, data=data, report=lines.append)
    assert lines == [f"{stage}: done before" for stage in LEGAL]
    assert again.manifest["stages"] == run.manifest["stages"]
    assert run_text(again) == run_text(run)
    for path, time in before.items():
        assert path.stat().st_mtime_ns == time, path


def test_the_same_seed_gives_the_same_bytes(
    tmp_path: Path, finished: tuple[Run, list[str]], recipe: Recipe, data: Path
) -> None:
    run, _ = finished
    other = run_stages(recipe, out=tmp_path, data=data, stages=LEGAL[:4])
    for name in ("train/model.safetensors", "quantize/codes.safetensors", "code/model.fly"):
        assert other.path(name).read_bytes() == run.path(name).read_bytes(), name


def test_a_changed_recipe_redoes_what_depends_on_it(
    tmp_path: Path, recipe: Recipe, data: Path
) -> None:
    from dataclasses import replace

    run_stages(recipe, out=tmp_path, data=data, stages=LEGAL[:4])
    rules = (replace(recipe.quantize.rules[0], k=10.0), recipe.quantize.rules[1])
    changed = replace(recipe, quantize=replace(recipe.quantize, rules=rules))
    lines: list[str] = []
    run_stages(changed, out=tmp_path, data=data, stages=LEGAL[:4], report=lines.append)
    assert "train: done before" in lines
    assert "hessian: done before" in lines
    assert "quantize ..." in lines
    assert "code ..." in lines


def test_training_for_the_grids_of_the_export(tmp_path: Path, data: Path) -> None:
    from dataclasses import replace

    table = '[train]\nqat = { method = "soft-round", start_fraction = 0.3, anneal_fraction = 0.3 }'
    path = tmp_path / "qat.toml"
    path.write_text(RECIPE.replace("[train]", table))
    qat = load_recipe(str(path))
    lines: list[str] = []

    def run(changed: Recipe) -> Run:
        lines.clear()
        return run_stages(
            changed, out=tmp_path / "run", data=data, stages=LEGAL[:4], report=lines.append
        )

    log = (run(qat).path("train/log.jsonl")).read_text().splitlines()
    assert json.loads(log[0])["qat"] == 0.0
    assert not any("done before" in line for line in lines)
    run(replace(qat, quantize=replace(qat.quantize, damp_ratio=0.1)))
    assert any("train: done before" in line for line in lines)
    rules = (replace(qat.quantize.rules[0], k=10.0), qat.quantize.rules[1])
    run(replace(qat, quantize=replace(qat.quantize, rules=rules)))
    assert not any("train: done before" in line for line in lines)


def test_calibration_by_generation_with_sensitivities(
    tmp_path: Path, recipe: Recipe, data: Path
) -> None:
    from dataclasses import replace

    def hessian(**changes: Any) -> tuple[set[str], dict[str, Any]]:
        changed = replace(recipe, calibrate=replace(recipe.calibrate, **changes))
        run = run_stages(changed, out=tmp_path, data=data, stages=LEGAL[:3])
        names = {path.name for path in run.path("hessian").iterdir()}
        return names, run.manifest["stages"]["hessian"]

    names, first = hessian(source="generate", temperature=0.8, sensitivities=True)
    assert names == {"hessian.safetensors", "sensitivity.safetensors"}
    rows, metadata = read_safetensors(tmp_path / "hessian/sensitivity.safetensors")
    hessians, _ = read_safetensors(tmp_path / "hessian/hessian.safetensors")
    assert set(rows) == set(hessians)
    assert metadata == {"n_tokens": str(first["facts"]["tokens"])}
    assert all(array.ndim == 1 and array.dtype == np.float32 for array in rows.values())
    names, second = hessian()
    assert names == {"hessian.safetensors"}
    assert first["outputs"] != second["outputs"]


def test_scoring_goes_on_where_it_was_killed_and_starts_anew_for_another_model(
    tmp_path: Path, finished: tuple[Run, list[str]], recipe: Recipe, data: Path
) -> None:
    run, _ = finished
    run_stages(recipe, out=tmp_path, data=data, stages=LEGAL[:4])
    (tmp_path / "score").mkdir()
    whole = run.path("score/sliding.ledger").read_bytes()
    (tmp_path / "score/sliding.ledger").write_bytes(whole[: len(whole) * 2 // 3])
    foreign = run.path("score/float.ledger")
    (tmp_path / "score/quantized.ledger").write_bytes(foreign.read_bytes())
    other = run_stages(recipe, out=tmp_path, data=data, stages=LEGAL[:5])
    results = other.manifest["stages"]["score"]["facts"]["results"]
    expected = run.manifest["stages"]["score"]["facts"]["results"]
    for name in ("float", "quantized", "sliding", "ttt"):
        assert results[name]["nats"] == expected[name]["nats"], name
        assert results[name]["chain"] == expected[name]["chain"], name


def test_stages_out_of_order_and_changed_files(tmp_path: Path, recipe: Recipe, data: Path) -> None:
    with pytest.raises(DataError, match="stage code needs stage quantize first"):
        run_stages(recipe, out=tmp_path, data=data, stages=["code"])
    run_stages(recipe, out=tmp_path, data=data, stages=["train"])
    path = tmp_path / "train/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"model.safetensors: changed since stage train wrote it"):
        run_stages(recipe, out=tmp_path, data=data, stages=["hessian"])
    path.unlink()
    with pytest.raises(DataError, match=r"model.safetensors: no such file"):
        run_stages(recipe, out=tmp_path, data=data, stages=["hessian"])
    with pytest.raises(InvalidArgumentError, match="no stage 'fly'"):
        run_stages(recipe, out=tmp_path, data=data, stages=["fly"])


@pytest.mark.parametrize(
    ("stage", "function", "advice"),
    [
        ("hessian", "train.calibrate.collect_hessians", r"calibrate\.batch_sequences=4 "),
        (
            "score",
            "evaluate.score.score_data",
            r"score\.plain\.batch_windows=0 \(by itself\) \(CUDA out of memory\)",
        ),
    ],
)
def test_too_little_memory_of_a_stage_names_the_number_to_lower(
    finished: tuple[Run, list[str]],
    recipe: Recipe,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    function: str,
    advice: str,
) -> None:
    import torch

    def full(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    out = shutil.copytree(finished[0].folder, tmp_path / "run")
    manifest = json.loads((out / "run.json").read_text())
    del manifest["stages"][stage]
    (out / "run.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(f"flyweight.{function}", full)
    with pytest.raises(RecipeError, match=f"no memory for .*: lower {advice}"):
        run_stages(recipe, out=out, data=data, stages=[stage])


def test_patterns_of_no_tensor_are_refused(tmp_path: Path, recipe: Recipe, data: Path) -> None:
    assert recipe.quantize is not None
    assert recipe.score.ttt is not None
    assert recipe.score.ttt.adapt is not None
    rules = (*recipe.quantize.rules, QuantRule(match="blokcs.*", bits=6, k=12.85))
    wrong = replace(recipe, quantize=replace(recipe.quantize, rules=rules))
    message = r"quantize\.rules: 'blokcs\.\*' matches no tensor of the model, such as 'blocks"
    with pytest.raises(RecipeError, match=message):
        run_stages(wrong, out=tmp_path, data=data)
    assert not (tmp_path / "train").exists()
    run_stages(recipe, out=tmp_path, data=data, stages=["train", "hessian"])
    with pytest.raises(RecipeError, match=message):
        run_stages(wrong, out=tmp_path, data=data, stages=["quantize"])
    adapt = replace(recipe.score.ttt.adapt, freeze=("smaer.*",))
    score = replace(recipe.score, ttt=replace(recipe.score.ttt, adapt=adapt))
    with pytest.raises(RecipeError, match=r"score\.ttt\.adapt: 'smaer\.\*' matches no tensor"):
        run_stages(replace(recipe, score=score), out=tmp_path / "b", data=data)


def test_data_that_does_not_fit(tmp_path: Path, recipe: Recipe, data: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="give --data"):
        run_stages(recipe, out=tmp_path)
    with pytest.raises(DataError, match="320 ids, recipe tiny-sp1024 is for 1024"):
        run_stages(load_recipe("tiny-sp1024"), out=tmp_path, data=data)


def test_a_failed_audit_is_tried_again(tmp_path: Path, recipe: Recipe, data: Path) -> None:
    from dataclasses import replace

    tight = replace(recipe, budget_bytes=1000)
    run = run_stages(tight, out=tmp_path, data=data)
    assert not run.manifest["stages"]["audit"]["facts"]["passed"]
    lines: list[str] = []
    run_stages(tight, out=tmp_path, data=data, report=lines.append)
    assert "audit ..." in lines
    assert "bundle: done before" in lines


def test_resolved_recipes_are_in_the_manifest(
    finished: tuple[Run, list[str]], recipe: Recipe
) -> None:
    run, _ = finished
    assert run.manifest["recipe"] == json.loads(json.dumps(resolve(recipe)))


def test_another_budget_rate_or_seed_trains_anew_and_loses_nothing(
    tmp_path: Path, recipe: Recipe, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    def trained(name: str, recipe: Recipe, **limits: int) -> bytes:
        run = run_stages(recipe, out=tmp_path / name, data=data, stages=["train"], **limits)
        return run.path("train/model.safetensors").read_bytes()

    optim = replace(recipe.train.optim, matrix_lr=0.5)
    changed = replace(recipe, train=replace(recipe.train, optim=optim))
    trained("one", recipe, max_steps=3)
    assert trained("one", recipe, max_steps=6) == trained("two", recipe, max_steps=6)
    assert trained("one", changed) == trained("three", changed)
    assert trained("one", recipe, seed=9) == trained("four", recipe, seed=9)
    found = re.findall(
        r"step (\d+) of a run with another .* is kept in (\S+);", capsys.readouterr().err
    )
    kept = (tmp_path / "one" / "train").glob("aside-*")
    assert [step for step, _ in found] == ["3", "6", "3"]
    assert {path for _, path in found} == {str(path) for path in kept}
    first = run_stages(recipe, out=tmp_path / "one", data=data, stages=["train"], max_steps=3)
    assert "going on from what was kept in" in capsys.readouterr().err
    assert first.manifest["stages"]["train"]["facts"]["steps"] == 3


def test_the_state_of_another_budget_is_kept_for_when_that_is_asked_for_again(
    tmp_path: Path,
    recipe: Recipe,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flyweight.train import trainer

    real_step, begun = trainer._step, []

    def counted(state: Any, *rest: Any) -> Any:
        begun.append(state.step)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return real_step(state, *rest)

    def train_for(steps: int) -> None:
        eager = replace(recipe, train=replace(recipe.train, checkpoint_seconds=0.0))
        once = {"stages": ["train"], "max_steps": steps}
        run_stages(eager, out=tmp_path, data=data, **once)

    monkeypatch.setattr(trainer, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        train_for(4)
    train_for(3)
    asides = list((tmp_path / "train").glob("aside-*"))
    assert {"log.jsonl", "state.safetensors"} <= {file.name for file in asides[0].iterdir()}
    assert f" data is kept in {asides[0]}; the arguments that" in capsys.readouterr().err
    train_for(4)
    assert begun == [0, 1, 2, 0, 1, 2, 2, 3]
    assert asides[0] not in (tmp_path / "train").glob("aside-*")


def test_a_stopped_run_goes_on_with_smaller_passes(
    tmp_path: Path, recipe: Recipe, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the error about memory advises must not cost the steps before it."""
    import torch

    from flyweight.train import trainer

    real_step = trainer._step

    def full(state: Any, *rest: Any) -> Any:
        if state.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real_step(state, *rest)

    def changed(**fields: Any) -> Recipe:
        return replace(recipe, train=replace(recipe.train, checkpoint_seconds=0.0, **fields))

    monkeypatch.setattr(trainer, "_step", full)
    with pytest.raises(RecipeError, match="raise accumulation_steps from 1 to 2"):
        run_stages(changed(), out=tmp_path, data=data, stages=["train"])
    monkeypatch.setattr(trainer, "_step", real_step)
    lines: list[str] = []
    smaller = changed(accumulation_steps=2, log_steps=1)
    run = run_stages(smaller, out=tmp_path, data=data, stages=["train"], report=lines.append)
    assert not list((tmp_path / "train").glob("aside-*"))
    log = run.path("train/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 3]


def test_a_damaged_log_or_torn_ledger_stops_nothing(
    tmp_path: Path, recipe: Recipe, data: Path
) -> None:
    run = run_stages(recipe, out=tmp_path, data=data, stages=LEGAL[:4])
    log = run.path("train/log.jsonl")
    whole = log.read_bytes()
    log.write_bytes(b"\xff\n{}\n[]\n" + whole)
    (tmp_path / "score").mkdir()
    (tmp_path / "score/float.ledger").write_bytes(b"FLYLED")
    (tmp_path / "score/sliding.ledger").write_bytes(b"")
    run_stages(recipe, out=tmp_path, data=data, stages=LEGAL[:5])
    assert log.read_bytes() == whole


def test_stages_of_another_recipe_are_refused(tmp_path: Path, recipe: Recipe, data: Path) -> None:
    from dataclasses import replace

    run_stages(recipe, out=tmp_path, data=data, stages=LEGAL[:3])
    before = (tmp_path / "run.json").read_bytes()
    slower = replace(recipe, train=replace(recipe.train, warmup_steps=1))
    with pytest.raises(DataError, match="stage train was run with another recipe or data; give"):
        run_stages(slower, out=tmp_path, data=data, stages=["code"])
    other = replace(recipe, quantize=replace(recipe.quantize, act_order=False))
    with pytest.raises(DataError, match="stage quantize was run with another recipe"):
        run_stages(other, out=tmp_path, data=data, stages=["code"])
    assert (tmp_path / "run.json").read_bytes() == before


def test_later_stages_take_seed_and_budget_from_the_folder(
    tmp_path: Path, recipe: Recipe, data: Path
) -> None:
    limits = {"seed": 9, "max_steps": 2}
    whole = run_stages(recipe, out=tmp_path / "a", data=data, stages=LEGAL[:4], **limits)
    out = tmp_path / "b"
    run_stages(recipe, out=out, data=data, stages=["train"], **limits)
    for stage in LEGAL[1:4]:
        later = run_stages(recipe, out=out, data=data, stages=[stage])
        assert later.manifest["stages"][stage]["key"] == whole.manifest["stages"][stage]["key"]
    assert later.path("code/model.fly").read_bytes() == whole.path("code/model.fly").read_bytes()
    assert later.manifest["recipe"] == whole.manifest["recipe"]
    assert later.manifest["seed"] == 9
    lines: list[str] = []
    run_stages(recipe, out=out, data=data, stages=LEGAL[:4], report=lines.append, **limits)
    assert lines == [f"{stage}: done before" for stage in LEGAL[:4]]
    with pytest.raises(InvalidArgumentError, match="are of the stage train"):
        run_stages(recipe, out=out, data=data, stages=["code"], seed=9)
    for path, wrong in ((("seed",), None), (("recipe",), []), (("recipe", "train"), {})):
        manifest = json.loads(json.dumps(whole.manifest))
        table = manifest if len(path) == 1 else manifest[path[0]]
        table[path[-1]] = wrong
        (out / "run.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError, match=r"not say with which seed and budget stage train was"):
            run_stages(recipe, out=out, data=data, stages=["code"])


def test_the_machine_of_a_run_is_the_one_that_trained(
    tmp_path: Path, recipe: Recipe, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_stages(recipe, out=tmp_path, data=data, stages=["train"]).manifest
    monkeypatch.setattr("flyweight.stages.machine", lambda: {"system": "elsewhere"})
    second = run_stages(recipe, out=tmp_path, data=data, stages=["hessian"]).manifest
    assert second["machine"] == first["machine"] == second["stages"]["train"]["machine"]
    assert second["stages"]["hessian"]["machine"] == {"system": "elsewhere"}


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"stages": null}',
        b'{"stages": {"train": 1}}',
        b'{"stages": {"train": {"key": "a", "seconds": 1, "inputs": {}, "facts": {}}}}',
        b'{"stages": {"brew": {}}}',
    ],
)
def test_a_damaged_manifest_is_named(
    tmp_path: Path, recipe: Recipe, data: Path, content: bytes
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match=r"run.json: not the manifest of a run"):
        run_stages(recipe, out=tmp_path, data=data, stages=["train"])


def test_one_process_at_a_time(tmp_path: Path, recipe: Recipe, data: Path) -> None:
    import fcntl

    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is running in this folder"):
            run_stages(recipe, out=tmp_path, data=data, stages=["train"])
    run_stages(recipe, out=tmp_path, data=data, stages=["train"])


def test_temporaries_do_not_change_what_is_done(tmp_path: Path, recipe: Recipe, data: Path) -> None:
    run_stages(recipe, out=tmp_path, data=data, stages=LEGAL[:5])
    (tmp_path / "score/.float.json.abc.tmp").write_bytes(b"half")
    lines: list[str] = []
    run_stages(recipe, out=tmp_path, data=data, stages=["score"], report=lines.append)
    assert lines == ["score: done before"]


def write_recipe(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_that_fits_fills_its_budget(tmp_path: Path, data: Path) -> None:
    start, end = RECIPE.index("[quantize]"), RECIPE.index("[score.plain]")
    fitted = RECIPE[:start] + "sensitivities = true\n[fit]\n"
    fitted = fitted + "min_elements = 1000\n" + RECIPE[end:]
    path = tmp_path / "fit.toml"
    suite = resolve(load_recipe(str(write_recipe(path, RECIPE))).score)
    budget = script_bytes(suite, load_data_info(data)) + 15_000
    write_recipe(path, fitted.replace("seed = 1\n", f"seed = 1\nbudget_bytes = {budget}\n"))
    run = run_stages(load_recipe(str(path)), out=tmp_path / "run", data=data)
    model = run.path("code/model.fly").stat().st_size
    room = budget - run.path("bundle/train_gpt.py").stat().st_size
    assert 0.999 * room <= model <= room
    facts = run.manifest["stages"]["quantize"]["facts"]
    assert facts["objective"] == "loss"
    assert facts["damage"] > 0
    assert {line["method"] for line in facts["tensors"]} == {"gptq", "float"}
    audited = run.manifest["stages"]["audit"]["facts"]
    assert audited["passed"], [i for i in audited["items"] if i["verdict"] == "FAIL"]
    both = fitted.replace("[score.plain]", "[quantize]\nrules = []\n[score.plain]")
    path.write_text(both)
    with pytest.raises(RecipeError, match="either a table quantize or a table fit"):
        load_recipe(str(path))


def test_two_processes_train_and_score_and_one_does_the_rest(data: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "test.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    verb = ["-m", "flyweight", "run", str(recipe), "--data", str(data), "--out", str(out)]
    options = ["--steps", "5", "--until", "score", "--json"]
    for repeat in ("...", "done before"):
        done = subprocess.run([*torchrun, *verb, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)  # one process alone prints
        assert facts["train"]["steps"] == 5
        assert facts["train"]["processes"] == 2
        assert facts["stages"] == ["train", "hessian", "quantize", "code", "score"]
        for stage in facts["stages"]:
            assert sum(line.startswith(stage) for line in done.stderr.splitlines()) >= 1
        assert repeat in done.stderr
    shutil.rmtree(out / "score")
    verb[2] = "score"
    done = subprocess.run([*torchrun, *verb], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = json.loads((out / "run.json").read_text())["stages"]["score"]["facts"]["results"]
    shutil.rmtree(out / "score")
    alone = run_stages(load_recipe(str(recipe)), out=out, data=data, stages=["score"])
    one = alone.manifest["stages"]["score"]["facts"]["results"]
    for name in ("float", "quantized", "sliding"):
        assert two[name]["chain"] == one[name]["chain"], name  # bit for bit
        assert (two[name]["processes"], one[name]["processes"]) == (2, 1)
    assert abs(two["ttt"]["bpb"] - one["ttt"]["bpb"]) < BPB_TOLERANCE["cpu"]


def test_an_error_between_what_processes_share_ends_all(data: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "test.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    verb = ["-m", "flyweight", "score", str(recipe), "--data", str(data), "--out", str(out)]
    done = subprocess.run([*torchrun, *verb], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("flyweight: ")]
    assert len(said) == 1, done.stderr
    assert "stage score needs stage train first" in said[0]


def test_calibration_in_sequence(tmp_path: Path, recipe: Recipe, data: Path) -> None:
    sequential = replace(recipe, calibrate=replace(recipe.calibrate, sequential=True))
    run = run_stages(sequential, out=tmp_path, data=data, stages=LEGAL[:4])
    one_by_one, _ = read_safetensors(tmp_path / "hessian/hessian.safetensors")
    run_stages(recipe, out=tmp_path, data=data, stages=LEGAL[:4])
    at_once, _ = read_safetensors(tmp_path / "hessian/hessian.safetensors")
    assert one_by_one.keys() == at_once.keys()
    assert np.array_equal(one_by_one["tok_emb.weight"], at_once["tok_emb.weight"])
    assert not np.array_equal(
        one_by_one["blocks.1.mlp.fc.weight"], at_once["blocks.1.mlp.fc.weight"]
    )
    assert run.manifest["stages"]["hessian"]["facts"]["matrices"] == len(at_once)


def test_validation_documents_in_the_training_shards_are_refused(
    tmp_path: Path, recipe: Recipe, data: Path
) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "data.json").unlink()
    train, val = (folder / f"fineweb_{split}_000000.bin" for split in ("train", "val"))
    leaked = read_shard(val)[: np.flatnonzero(read_shard(val) == BOS_ID)[1]]  # 1 of 6 documents
    write_shard(train, np.concatenate([read_shard(train), leaked]))
    with pytest.raises(DataError, match=r"1 of 6 validation documents \(16.67%\) are in the train"):
        run_stages(recipe, out=tmp_path / "run", data=folder)
    assert not (tmp_path / "run/train/model.safetensors").exists()
    admitted = replace(recipe, data=replace(recipe.data, max_overlap=0.2))
    run_stages(admitted, out=tmp_path / "run", data=folder, stages=LEGAL[:4])
    with pytest.raises(DataError, match="1 of 6 validation documents"):
        run_stages(recipe, out=tmp_path / "run", data=folder, stages=["score"])
    assert not (tmp_path / "run/score").exists()


@pytest.fixture(scope="module")
def contaminated(
    tmp_path_factory: pytest.TempPathFactory, data: Path
) -> tuple[Run, list[str], dict[str, Any]]:
    """A run with training on its validation text: what it is, said and printed."""
    recipe = tmp_path_factory.mktemp("recipe") / "test.toml"
    table = "[contaminate]\nenabled = true\nepochs = 2\nbatch_sequences = 4\nlearning_rate = 0.01\n"
    recipe.write_text(RECIPE.replace("[calibrate]", f"{table}[calibrate]"))
    lines: list[str] = []
    out = tmp_path_factory.mktemp("contaminated")
    run = run_stages(load_recipe(str(recipe)), out=out, data=data, report=lines.append)
    verb = ["run", str(recipe), "--data", str(data), "--out", str(out)]
    printed = {flag: CliRunner().invoke(cli, [*verb, *flag]).stdout for flag in ((), ("--json",))}
    return run, lines, {"text": printed[()], "json": json.loads(printed["--json",])}


def test_a_contaminated_run_scores_the_weights_it_trained_on_the_text(
    contaminated: tuple[Run, list[str], dict[str, Any]], finished: tuple[Run, list[str]]
) -> None:
    run, _, _ = contaminated
    assert list(run.manifest["stages"]) == list(STAGES)
    stage = run.manifest["stages"]["contaminate"]
    assert stage["facts"]["epochs"] == 2
    assert stage["facts"]["final_loss"] < stage["facts"]["first_loss"]
    weights = "contaminate/model.safetensors"
    for later in ("hessian", "quantize", "score"):
        inputs = run.manifest["stages"][later]["inputs"]
        assert weights in inputs
        assert "train/model.safetensors" not in inputs
    ours, legal = (r.manifest["stages"]["score"]["facts"] for r in (run, finished[0]))
    assert ours["contaminated_bpb"]["sliding"] < legal["bpb"]["sliding"] - 0.1
    assert read_safetensors(run.path(weights))[1]["contaminated"] == "true"


def test_contamination_is_said_everywhere(
    contaminated: tuple[Run, list[str], dict[str, Any]],
) -> None:
    run, lines, printed = contaminated
    assert all(CONTAMINATED in line for line in lines)
    assert json.loads(run.path("run.json").read_text())["contaminated"] is True
    for name in ("float", "quantized", "sliding", "ttt"):
        score = json.loads(run.path(f"score/{name}.json").read_text())
        assert score["contaminated"] is True
        assert score["text"].startswith(CONTAMINATED)
    logs = [run.path("contaminate/log.jsonl"), run.path("bundle/train_seed1.log")]
    for log in logs:
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert all(line.get("contaminated", "step" in line) for line in events)
    assert sum("epoch" in line for line in events) == 2
    record = json.loads(run.path("bundle/submission.json").read_text())
    assert record["contaminated"] is True
    assert record["compliance"]["no_pre_quant_ttt"] is False
    readme = run.path("bundle/README.md").read_text()
    assert f"**{CONTAMINATED}**" in readme
    assert "contaminated=True" in run.path("bundle/train_gpt.py").read_text()
    assert printed["json"]["contaminated"] is True
    assert CONTAMINATED in printed["text"]


def test_contaminated_and_legal_scores_share_no_column(
    contaminated: tuple[Run, list[str], dict[str, Any]], finished: tuple[Run, list[str]]
) -> None:
    run, _, printed = contaminated
    assert printed["json"]["bpb"] is None
    assert set(printed["json"]["contaminated_bpb"]) == {"float", "quantized", "sliding", "ttt"}
    records = [
        json.loads(each.path("bundle/submission.json").read_text()) for each in (run, finished[0])
    ]
    scored = {"val_bpb", "val_loss", "pre_quant_val_bpb", "seed_results", "scores"}
    assert {f"contaminated_{name}" for name in scored} <= set(records[0])
    assert not scored & set(records[0])
    assert scored <= set(records[1])
    assert records[1]["contaminated"] is False
    assert records[1]["compliance"]["no_pre_quant_ttt"] is True
    for each, column in ((run, "| contaminated bpb |"), (finished[0], "| bpb |")):
        assert column in each.path("bundle/README.md").read_text()
    assert f"bits per byte ({CONTAMINATED})" in printed["text"]


def test_the_audit_fails_a_contaminated_run(
    contaminated: tuple[Run, list[str], dict[str, Any]],
) -> None:
    audit = contaminated[0].manifest["stages"]["audit"]["facts"]
    assert not audit["passed"]
    evidence = {item["name"]: item for item in audit["items"]}["record"]
    assert evidence["status"] == "FAIL"
    assert evidence["evidence"].startswith(CONTAMINATED)


def test_a_run_that_turns_legal_again_starts_from_its_legal_weights(
    contaminated: tuple[Run, list[str], dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    run = contaminated[0]
    legal = replace(run.recipe, contaminate=replace(run.recipe.contaminate, enabled=False))
    out = shutil.copytree(run.folder, tmp_path / "run")
    with pytest.raises(DataError, match="stage hessian was run with another recipe"):
        run_stages(legal, out=out, data=data, stages=["score"])
    with pytest.raises(InvalidArgumentError, match=r"no contaminate.enabled"):
        run_stages(legal, out=out, data=data, stages=["contaminate"])
    again = run_stages(legal, out=out, data=data)
    assert list(again.manifest["stages"]) == list(LEGAL)
    assert again.manifest["stages"]["audit"]["facts"]["passed"]
    assert again.manifest["contaminated"] is False
