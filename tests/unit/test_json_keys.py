"""docs/json.md says what ``--json`` prints: its tables are held to the program."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from data_samples import TEXTS, VOCAB_SIZE, write_texts
from flyweight.cli.main import STAGE_VERBS, VERBS, flyweight
from flyweight.cli.summary import run_facts
from flyweight.interop import write_safetensors
from flyweight.recipes.load import load_recipe
from flyweight.stages import STAGES, Run

HOW_SCORED: dict[str, Any] = {
    "coverage": 1.0,
    "chunks": 3,
    "adapted_chunks": 2,
    "plain_chunks": 0,
    "seconds": 1.0,
    "was_resumed": False,
    "phases": dict.fromkeys(("compile", "score", "plain", "adapt"), 0.0),
    "recompilations": 0,
    "deadline": None,
}
PAGE = Path(__file__).parents[2] / "docs" / "json.md"
INHERITS = re.compile(r"[Tt]he object of `([a-z ]+)`")


def documented() -> dict[str, set[str]]:
    """Verb to the key paths of its table and of the table that it builds on."""
    verbs: dict[str, set[str]] = {}
    for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        paths = set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))
        base = INHERITS.search(text)
        if base is not None:
            paths |= verbs[base.group(1)]
        verbs |= dict.fromkeys(re.findall("`([^`]+)`", heading), paths)
    return verbs


def assert_documented(verb: str, printed: dict[str, Any]) -> None:
    """The keys are those of the page, at the top and below every path that the page goes into."""
    paths = documented()[verb]
    assert set(printed) == {path for path in paths if not re.search(r"[.\[]", path)}
    assert printed["schema"] == 1
    for parent in {path.rpartition(".")[0] for path in paths if "." in path}:
        keys = {path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] == parent}
        for found in values_at(printed, parent):
            assert set(found) == keys, parent


def values_at(printed: dict[str, Any], path: str) -> list[dict[str, Any]]:
    found: list[Any] = [printed]
    for step in path.split("."):
        found = [value[step.removesuffix("[]")] for value in found]
        if step.endswith("[]"):
            found = [item for items in found for item in items]
    return found


def printed_by(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(flyweight, [*map(str, arguments), "--json"])
    assert (result.exit_code == 0) == (exit_code == 0), result.output
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def test_every_verb_has_its_table() -> None:
    verbs = set()
    for verb in VERBS:
        command = flyweight.get_command(None, verb)  # type: ignore[arg-type]
        inner = command.commands if isinstance(command, click.Group) else {}
        verbs |= {f"{verb} {name}" for name in inner} or {verb}
    assert set(documented()) == verbs


def test_pack_inspect_unpack(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source, fly, back = (tmp_path / name for name in ("m.safetensors", "m.fly", "b.safetensors"))
    weights = rng.normal(size=(96, 128)).astype(np.float32)
    write_safetensors(source, {"w": weights, "bias": weights[0]})
    assert_documented("pack", printed_by("pack", source, "-o", fly))
    assert_documented("fit", printed_by("fit", source, "--budget", 9000, "--dry-run"))
    assert_documented("unpack", printed_by("unpack", fly, "-o", back))
    assert_documented("inspect", printed_by("inspect", fly, "--losers"))
    for model in (source, fly):
        assert_documented("bench", printed_by("bench", model, "--codecs", "ans,store"))


def test_recipes() -> None:
    assert_documented("recipe list", printed_by("recipe", "list"))
    pytest.importorskip("torch", reason="parameters are counted on the model")
    assert_documented("recipe show", printed_by("recipe", "show", "demo"))


def test_doctor() -> None:
    assert_documented("doctor", printed_by("doctor"))


def test_a_failed_audit_is_printed(tmp_path: Path) -> None:
    (tmp_path / "model.fly").write_bytes(b"")
    printed = printed_by("audit", tmp_path, exit_code=1)
    assert_documented("audit", printed)
    names = [item["name"] for item in printed["items"]]
    assert ", ".join(f"`{name}`" for name in names) in PAGE.read_text(encoding="utf-8")


def test_stats() -> None:
    assert_documented("stats", printed_by("stats", "1.07,1.08,1.06", "1.1,1.11"))


def test_data(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")
    texts = write_texts(tmp_path, TEXTS)
    model, folder = tmp_path / "m.model", tmp_path / "data"
    trained = printed_by("data", "tokenizer", texts, "--vocab-size", VOCAB_SIZE, "-o", model)
    assert_documented("data tokenizer", trained)
    options = ("--tokenizer", model, "--val-bytes", 300, "--out", folder)
    assert_documented("data build", printed_by("data", "build", texts, *options))
    assert_documented("data info", printed_by("data", "info", folder))


def test_runs() -> None:
    scores = dict.fromkeys(("float", "quantized", "sliding", "ttt"), 1.0)
    facts: dict[str, Any] = {stage: {} for stage in STAGES} | {
        "train": dict.fromkeys(
            (
                *("steps", "tokens", "seconds", "compile_seconds", "stall_seconds"),
                *("recompilations", "final_loss", "tokens_per_second"),
            )
        )
        | {"exported": "ema", "device": "cpu", "processes": 1},
        "code": {"model_bytes": 1, "by_class": {}},
        "score": {"bpb": scores, "results": dict.fromkeys(scores, HOW_SCORED)},
        "bundle": {"code_bytes": 1, "total_bytes": 2},
        "audit": {"passed": True, "verdict": "passed", "unchecked": [], "items": []},
    }
    stages = {stage: {"seconds": 0.0, "facts": facts[stage]} for stage in STAGES}
    run = Run(
        recipe=load_recipe("demo"),
        seed=1,
        folder=Path("run"),
        data=None,  # type: ignore[arg-type]
        report=print,
        manifest={"stages": stages},
    )
    for verb in ("run", *STAGE_VERBS):
        assert_documented(verb, {"schema": 1, **run_facts(run)})
    assert_documented("demo", {"schema": 1, **run_facts(run), "compressors": {}})
