"""`flyweight data`: its JSON, its examples, its wrong uses."""

from __future__ import annotations

import json
import shlex

import pytest
from click.testing import CliRunner

from data_samples import TEXTS, VOCAB_SIZE, write_model, write_texts
from flyweight.cli.data import command
from flyweight.errors import DataError

pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = " ".join(f"word{n}{letter}" for n in range(40) for letter in "abcdefghij")
    lines = [json.dumps({"text": f"{number} {text} {words}"}) for number, text in enumerate(TEXTS)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


def run_json(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["schema"] == 1
    return facts


def test_build_and_info_say_the_same(here):
    texts = write_texts(here)
    options = ("--vocab-size", VOCAB_SIZE, "--val-bytes", 300, "--out", "data")
    built = run_json("build", texts, *options)
    assert {"verified": False, "shared_documents": None} | built == run_json("info", "data")
    assert run_json("info", "data", "--verify")["shared_documents"] == 0
    text = run("info", "data", "--verify")
    assert f"{VOCAB_SIZE} ids, source 'files'" in text.stdout
    assert "documents in both splits: 0" in text.stdout


def test_bytes_that_the_normalizer_dropped_are_shown(here):
    spaced = [json.dumps({"text": f"{n}  two   spaces \n a break"}) for n in range(40)]
    (here / "spaced.jsonl").write_text("\n".join(spaced), encoding="utf-8")
    options = ("--tokenizer", write_model(here), "--val-bytes", 300, "--out")
    facts = run_json("build", "spaced.jsonl", *options, "spaced")["val"]
    assert facts["scored_bytes"] < facts["text_bytes"]
    said = f"{facts['scored_bytes']:,} scored bytes of {facts['text_bytes']:,} in the source"
    assert said in run("info", "spaced").stdout


def test_tokenizer_trains_and_imports(here):
    trained = run_json("tokenizer", "text.jsonl", "--vocab-size", 320, "-o", "a.model")
    imported = run_json("tokenizer", "--import", "a.model", "-o", "b.model")
    assert imported == trained | {"path": "b.model"}


@pytest.mark.parametrize("verb", ["tokenizer", "build"])
def test_examples_of_the_help_run(here, verb):
    result = run(verb, "--help")
    [example] = [line for line in result.stdout.splitlines() if "Example:" in line]
    program, group, *arguments = shlex.split(example.partition("Example:")[2])
    assert (program, group) == ("flyweight", "data")
    assert arguments[0] == verb
    arguments += ["--val-bytes", "10000"] if verb == "build" else []
    assert run(*arguments).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["tokenizer", "-o", "x"],
        ["tokenizer", "--vocab-size", "300", "-o", "x"],
        ["tokenizer", "text.jsonl", "--import", "x.model", "-o", "x"],
        ["build", "--out", "x", "--vocab-size", "300"],
        ["build", "text.jsonl", "--embedded", "--out", "x", "--vocab-size", "300"],
        ["build", "text.jsonl", "--out", "x"],
        ["build", "text.jsonl", "--vocab-size", "300"],
        ["build", "text.jsonl", "--vocab-size", "300", "--out", "x", "--shard-tokens", "0"],
        ["fetch", "sp77", "--out", "x"],
        ["info"],
    ],
)
def test_wrong_uses_exit_with_2(here, arguments):
    assert run(*arguments).exit_code == 2
    assert not (here / "x").exists()


def test_bad_data_is_a_flyweight_error(here):
    with pytest.raises(DataError, match="cannot list"):
        run("info", "nowhere")


def test_names_are_escaped(here):
    write_model(here)
    result = run("tokenizer", "--import", "sample.model", "-o", "odd\x1b[2Jname.model")
    assert "odd\\x1b[2Jname.model" in result.stdout
