"""Submission folders: everything in them follows from the run."""

from __future__ import annotations

import ast
import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="scoring is in the extra [train]")
pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")

from flyweight.artifact import pack, unpack
from flyweight.errors import DataError
from flyweight.evaluate.ttt import ENGINES
from flyweight.submission import entry
from flyweight.submission.bundle import list_requirements, make_claim
from flyweight.submission.claim import read_byte_codes, write_byte_codes
from flyweight.submission.digest import weights_sha256
from flyweight.submission.record import describe_score
from submission_samples import SEED, SUITE, bundle, finished_run, make_data, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def record(run):
    return json.loads((run[0] / "bundle/submission.json").read_text())


def results(manifest):
    return manifest["stages"]["score"]["facts"]["results"]


def test_folder_has_what_the_challenge_asks_for(run):
    folder, _, _, facts = run
    sizes = {path.name: path.stat().st_size for path in (folder / "bundle").iterdir()}
    assert sizes == facts["files"]
    assert set(sizes) == {
        "README.md",
        "model.fly",
        "requirements.txt",
        "submission.json",
        "train_gpt.py",
        f"train_seed{SEED}.log",
    }
    assert facts["code_bytes"] == sizes["train_gpt.py"] < 100_000
    assert facts["model_bytes"] == sizes["model.fly"]
    assert facts["margin_bytes"] == 16_000_000 - facts["total_bytes"]
    assert (folder / "bundle/model.fly").read_bytes() == (folder / "model.fly").read_bytes()


def test_record_is_what_was_measured(run, record):
    _, _, manifest, facts = run
    best = results(manifest)["ttt"]
    assert record["val_bpb"] == best["bpb"]
    assert record["val_loss"] == best["nats"] / best["targets"]
    assert record["val_protocol"] == "score-first"
    assert record["pre_quant_val_bpb"] == results(manifest)["float"]["bpb"]
    assert record["bytes_total"] == facts["total_bytes"]
    assert record["seeds"] == [SEED]
    assert record["seed_results"][str(SEED)]["train_data_seconds"] == 0.75
    assert record["author"] == record["github_id"] == ""
    assert record["date"] == "2026-01-02"
    assert record["compliance"] == {
        "artifact_under_16mb": True,
        "train_under_600s": True,
        "eval_under_600s": True,
        "full_coverage": True,
        "score_first_ttt": True,
        "no_pre_quant_ttt": True,
        "three_seeds": False,
    }


def test_readme_and_log_tell_the_same_numbers(run, record):
    folder = run[0] / "bundle"
    readme = (folder / "README.md").read_text()
    for score in record["scores"].values():
        assert f"| {score['bpb']:.8f} | {score['bits']:.3f} | {score['bytes']:,} |" in readme
    assert f"| code | {record['bytes_code']:,} |" in readme
    lines = (folder / f"train_seed{SEED}.log").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert [line.get("event") for line in log] == ["run", None, *4 * ["score"], "record"]
    assert log[1] == {"step": 1, "loss": 5.5}
    assert all(record[name] == value for name, value in log[-1].items() if name != "event")


def test_script_imports_nothing_of_flyweight(run):
    tree = ast.parse((run[0] / "bundle/train_gpt.py").read_bytes(), feature_version=(3, 11))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names)
    assert foreign == {"torch", "numpy", "brotli", "zstandard"}
    requirements = (run[0] / "bundle/requirements.txt").read_text()
    assert requirements == "numpy>=1.26\ntorch>=2.11\n"


def test_script_repeats_every_score_in_a_fresh_process(run, tmp_path):
    folder, data, manifest, _ = run
    out = tmp_path / "out.json"
    command = [sys.executable, "-P", folder / "bundle/train_gpt.py", "--data", data.folder]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [*command, "--out", out, "--device", "cpu"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(out.read_text()), results(manifest)["ttt"]
    assert found["weights_sha256"] == weights_sha256(unpack(folder / "model.fly"))
    for name in ("bpb", "bits", "nats", "targets", "bytes"):
        assert found["score"][name] == expected[name]
    assert found["coverage"] == 1.0
    assert f"{expected['bpb']:.8f} bpb" in done.stdout


@pytest.mark.parametrize(("protocol", "name"), [("plain", "quantized"), ("sliding", "sliding")])
def test_other_protocols(run, protocol, name):
    folder, data, manifest, _ = run
    claim = make_claim(manifest, data)
    found = entry.score_folder(claim, ENGINES, folder, data.folder, protocol=protocol, device="cpu")
    assert found["score"]["nats"] == results(manifest)[name]["nats"]
    assert claim.protocols[protocol] == SUITE[protocol]


def test_headline_without_test_time_training(run):
    folder, data, manifest, _ = run
    manifest = copy.deepcopy(manifest)
    manifest["recipe"]["score"]["ttt"] = None
    del results(manifest)["ttt"]
    bundle(folder / "second", folder, data, manifest)
    record = json.loads((folder / "second/submission.json").read_text())
    assert record["val_protocol"] == make_claim(manifest, data).headline == "sliding"
    assert not record["compliance"]["score_first_ttt"]


@pytest.mark.parametrize("codec", ["brotli", "zstd"])
def test_a_codec_library_is_required_only_where_it_is_used(codec):
    weights = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    base = ["numpy>=1.26", "torch>=2.11"]
    assert list_requirements(pack({"w": weights}, codec="ans")) == base
    package = {"brotli": "brotli>=1.2", "zstd": "zstandard>=0.22"}[codec]
    assert list_requirements(pack({"w": weights}, codec=codec)) == [*base, package]


def test_same_run_same_bytes(run, tmp_path):
    folder, data, manifest, _ = run
    bundle(tmp_path / "again", folder, data, manifest)
    for path in (folder / "bundle").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_bundle_is_replaced_as_a_whole_or_not_at_all(run, tmp_path, monkeypatch):
    folder, data, manifest, _ = run
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("precious")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full_disk)
        with pytest.raises(OSError, match="No space"):
            bundle(out, folder, data, manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "old").read_text() == "precious"
    bundle(out, folder, data, manifest)
    assert not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_removed(run, tmp_path):
    folder, data, manifest, _ = run
    (tmp_path / ".out.abc.tmp" / "new").mkdir(parents=True)
    (tmp_path / ".outer.abc.tmp").mkdir()
    bundle(tmp_path / "out", folder, data, manifest)
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".outer.abc.tmp"}


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_an_unfinished_run_is_refused(run, tmp_path):
    folder, data, manifest, _ = run
    unfinished = copy.deepcopy(manifest)
    del unfinished["stages"]["hessian"]
    with pytest.raises(DataError, match="'hessian' is missing"):
        bundle(tmp_path / "out", folder, data, unfinished)
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused(run, tmp_path):
    folder, data, manifest, _ = run
    other = copy.deepcopy(manifest)
    other["data"]["tokenizer_sha256"] = 64 * "0"
    with pytest.raises(DataError, match="the run was scored with 0000"):
        bundle(tmp_path / "out", folder, data, other)


@pytest.mark.parametrize("size", [0, 1, 300, 65536])
@pytest.mark.parametrize("high", [2, 64, 65536])
def test_byte_codes_survive_their_text_form(size, high):
    codes = np.random.default_rng(size).integers(0, high, size).astype(np.uint16)
    text = write_byte_codes(codes)
    assert ast.literal_eval(repr(text).encode().decode()) == text
    np.testing.assert_array_equal(read_byte_codes(text), codes)


def test_byte_codes_as_text():
    assert write_byte_codes(np.array([0, 0, 0, 1, 3, 3], dtype=np.uint8)) == ":3;=2"
    assert write_byte_codes(np.full(65536, 24, dtype=np.uint8)) == "R65536"


@pytest.mark.parametrize("text", ["3:", "!", ":99999", ":60000;60000", ":123456", "\U0010ffff"])
def test_damaged_byte_codes(text):
    with pytest.raises(DataError, match="byte table is damaged"):
        read_byte_codes(text)


def test_weights_digest_is_of_values_not_of_storage():
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    digest = weights_sha256({"a": values, "b": values[0]})
    widened = {"b": values[0].astype(np.float32), "a": np.asfortranarray(values, dtype=np.float32)}
    assert weights_sha256(widened) == digest
    assert weights_sha256({**widened, "a": values.reshape(3, 2)}) != digest
    assert weights_sha256({**widened, "b": -values[0]}) != digest
    assert weights_sha256({"a": values}) != digest


# --- the script's own error messages --------------------------------------------------------------


def copy_data(data, folder):
    folder.mkdir()
    for path in data.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def fails(run, data, capsys, match):
    folder, info, manifest, _ = run
    claim = make_claim(manifest, info)
    assert entry.main(claim, ENGINES, folder, ["--data", str(data), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1


def test_shards_of_another_tokenizer(run, tmp_path, capsys):
    data = copy_data(run[1], tmp_path / "data")
    (data / "data.json").unlink()
    with (data / "tokenizer.model").open("ab") as file:
        file.write(b"x")
    fails(run, data, capsys, "this submission is for")


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [(0, 9, "magic"), (4, 9, "version"), (8, 9, "counts"), (1030, 255, "token")],
)
def test_damaged_shard(run, tmp_path, capsys, at, value, match):
    data = copy_data(run[1], tmp_path / "data")
    shard = bytearray((data / "fineweb_val_000000.bin").read_bytes())
    shard[at : at + 2] = [value, value]
    (data / "fineweb_val_000000.bin").write_bytes(shard)
    fails(run, data, capsys, match)


def test_no_shards(run, tmp_path, capsys):
    fails(run, tmp_path, capsys, "no fineweb_val_000000.bin")


def test_weights_of_another_run(run, capsys):
    folder, data, manifest, _ = run
    other = copy.deepcopy(manifest)
    other["stages"]["score"]["facts"]["weights_sha256"] = 64 * "0"
    fails((folder, data, other, None), data.folder, capsys, "this script is for 0000")


def test_tensors_that_do_not_fit_the_config(run):
    tensors = unpack(run[0] / "model.fly")
    fields = {1: run[1].vocab_size, 2: 2, 3: 32, 4: 4, 5: 2, 6: 65, 7: 32, 8: 4, 14: True, 16: True}
    with pytest.raises(DataError, match=r"'blocks.0.mlp.fc.weight' has shape"):
        entry.build_model(tensors, fields)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("float", {"method": "plain", "deadline": 1.0}, "float weights, plain blocks"),
        ("quantized", {"method": "plain"}, "artifact, plain blocks"),
        ("sliding", {}, "artifact, sliding windows"),
        ("sliding", {"method": "sliding with hints"}, "artifact, sliding windows with hints"),
        ("ttt", {"method": "score-first"}, "artifact, score-first TTT"),
        (
            "sliding",
            {"deadline": 12.0},
            "artifact, sliding windows; deadline 12 s: 25% of it in plain blocks",
        ),
        (
            "ttt",
            {"method": "per-document", "deadline": 0.0, "plain_chunks": 8, "adapted_chunks": 0},
            "artifact, per-document TTT; deadline 0 s: 100% of it in plain blocks, 0% learned from",
        ),
    ],
)
def test_how_a_score_was_made_is_said(name, changes, expected):
    usual = {"chunks": 8, "adapted_chunks": 6, "plain_chunks": 2, "deadline": None}
    assert describe_score(name, {"method": "sliding", **usual, **changes}) == expected


def test_calibration_on_drawn_tokens_reads_no_training_text(tmp_path):
    data = make_data(tmp_path)
    manifest = make_run(tmp_path, data)
    manifest["recipe"]["calibrate"]["source"] = "generate"
    bundle(tmp_path / "bundle", tmp_path, data, manifest)
    record = json.loads((tmp_path / "bundle/submission.json").read_text())
    assert record["seed_results"][str(SEED)]["train_data_seconds"] == 0.5


def test_what_a_deadline_took_away_is_in_the_record(tmp_path):
    data = make_data(tmp_path)
    manifest = make_run(tmp_path, data, deadline=0.0)
    bundle(tmp_path / "bundle", tmp_path, data, manifest)
    score = json.loads((tmp_path / "bundle/submission.json").read_text())["scores"]["ttt"]
    assert score["method"] == "score-first"
    assert (score["plain_chunks"], score["adapted_chunks"]) == (score["chunks"], 0)
    assert "TTT; deadline 0 s: 100% of it" in (tmp_path / "bundle/README.md").read_text()
