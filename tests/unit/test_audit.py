"""The auditor: an honest folder passes, and each kind of damage fails the check that is for it."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="scoring is in the extra [train]")
pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")

from click.testing import CliRunner

import flyweight
from flyweight.artifact import pack
from flyweight.cli.audit import command
from flyweight.data.shards import read_validation
from flyweight.errors import DataError
from flyweight.evaluate.ledger import Ledger, read_ledger
from flyweight.evaluate.stream import score_binding
from flyweight.format.container import FlyFile
from flyweight.manifest import sha256
from flyweight.model.config import ModelConfig
from flyweight.submission.audit import audit_folder
from flyweight.submission.digest import weights_sha256
from submission_samples import SEED, SUITE, bundle, finished_run, make_data, make_run

CHECKS = [
    *("files", "sizes", "record", "container", "imports", "script"),
    *("round trip", "clocks", "probes"),
    *(
        "documents",
        "byte accounting",
        "ledgers",
        "data",
        "paid prefix",
        "statistics",
        "static scan",
    ),
]
FOR_A_PERSON = ["statistics"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, data, _, _ = finished_run(tmp_path_factory.getbasetemp())
    return folder / "bundle", data


@pytest.fixture
def folder(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made[0], tmp_path / "bundle")


def statuses(report):
    return {item.name: item.status for item in report.items}


def evidence(report, name):
    return next(item.evidence for item in report.items if item.name == name)


def edit_record(folder, **changes):
    path = folder / "submission.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_in_script(folder, old, new):
    path = folder / "train_gpt.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_honest_folder_passes(made):
    folder, data = made
    report = audit_folder(folder, data=data.folder, ledgers=folder.parent / "score")
    assert report.passed, report.to_markdown()
    expected = dict.fromkeys(CHECKS, "PASS") | dict.fromkeys(FOR_A_PERSON, "WARN")
    assert statuses(report) == expected
    assert "4 ledgers replayed: " in evidence(report, "ledgers")
    assert "the rules want 3" in evidence(report, "statistics")
    assert "C1 causality holds" in evidence(report, "probes")
    assert "C1 permutation holds" in evidence(report, "documents")
    assert "difference 0.0e+00" in evidence(report, "round trip")
    assert f"{data.val.scored_bytes:,} bytes" in evidence(report, "byte accounting")
    assert "no self-extractor" in evidence(report, "sizes")
    facts = json.loads(json.dumps(report.to_json()))
    assert facts["passed"] is True
    assert [item["name"] for item in facts["items"]] == CHECKS
    assert report.to_markdown().count("\n") == len(CHECKS) + 3
    assert report.to_markdown().endswith(f"passed; all {len(CHECKS)} items were checked")
    assert facts["unchecked"] == []


def test_without_data_scores_are_left_open(made):
    report = audit_folder(made[0])
    assert report.passed
    left_open = [
        *("round trip", "probes", "documents", "byte accounting", "ledgers", "data"),
        "paid prefix",
    ]
    assert report.unchecked == left_open == report.to_json()["unchecked"]
    assert {statuses(report)[name] for name in left_open} == {"WARN"}
    assert report.verdict == (
        f"passed; 7 of {len(CHECKS)} items not checked ({', '.join(left_open)}: no validation data "
        "was given (--data))"
    )


def test_reasons_for_open_checks_are_told_apart(made, folder):
    edit_record(folder, bytes_code=1)
    report = audit_folder(folder, data=made[1].folder, timeout_seconds=0.01)
    assert report.unchecked == ["ledgers"]
    assert report.verdict.startswith("FAILED sizes, record, ")
    assert report.verdict.endswith("not checked (ledgers: no ledgers were given (--ledgers))")


def test_a_flipped_byte_names_its_tensor(made, folder):
    file = FlyFile((folder / "model.fly").read_bytes())
    name = "blocks.1.mlp.fc.weight"
    at = file._offsets[name] + file.sections[name].length // 2
    data = bytearray((folder / "model.fly").read_bytes())
    data[at] ^= 1
    (folder / "model.fly").write_bytes(data)
    report = audit_folder(folder, data=made[1].folder)
    touched = ["container", "round trip", "probes", "documents", "byte accounting"]
    assert report.failed == touched
    assert name in evidence(report, "container")
    assert "damaged" in evidence(report, "round trip")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_layers": 10**7}, "num_layers=10000000, more than 1024"),
        ({"seq_len": 10**10}, "seq_len=10000000000, more than 262144"),
        ({"recur_passes": 10**10}, "recur_passes=10000000000, more than 64"),
        ({"mlp_hidden": 2**60}, "no model has its config"),
        ({"mlp_hidden": 10**10}, "the model's config wants (10000000000, 32)"),
    ],
)
def test_a_config_of_a_giant_model_takes_no_memory(made, folder, changes, match):
    file = FlyFile((folder / "model.fly").read_bytes())
    config = replace(ModelConfig.from_fields(file.config()), **changes)
    tensors = {name: file[name] for name in file}
    (folder / "model.fly").write_bytes(pack(tensors, config=config.to_fields(), codec="ans"))
    report = audit_folder(folder, data=made[1].folder)
    for name in ("round trip", "probes", "documents"):
        assert statuses(report)[name] == "FAIL"
        assert match in evidence(report, name)


def test_an_edited_score_fails(made, folder):
    record = json.loads((folder / "submission.json").read_text())
    edit_record(folder, val_bpb=record["val_bpb"] - 1e-3)
    log = folder / f"train_seed{SEED}.log"
    text = log.read_text()
    report = audit_folder(folder)
    assert report.failed == ["record"]
    assert f"{record['val_bpb']} in train_seed{SEED}.log" in evidence(report, "record")
    log.write_text(text.replace(f'"val_bpb": {record["val_bpb"]!r}, "val_loss"', '"val_bpb": 0'))
    assert audit_folder(folder).failed == ["record"]


def forge(folder, **changes):
    """Replace numbers of the headline score wherever they are."""
    record = json.loads((folder / "submission.json").read_text())
    known = {**record["scores"]["ttt"], **record}
    for path in (folder / "submission.json", folder / f"train_seed{SEED}.log"):
        text = path.read_text()
        for name, value in changes.items():
            text = text.replace(repr(known[name]), repr(value))
        path.write_text(text)


def test_a_score_forged_everywhere_fails_the_round_trip(made, folder):
    score = json.loads((folder / "submission.json").read_text())["scores"]["ttt"]
    bits = 1.25 * score["bytes"]
    nats = bits * math.log(2.0)
    loss = nats / score["targets"]
    forge(folder, bpb=bits / score["bytes"], bits=nats / math.log(2.0), nats=nats, val_loss=loss)
    report = audit_folder(folder, data=made[1].folder)
    assert report.failed == ["round trip"]
    assert "recorded 1.25" in evidence(report, "round trip")


def test_a_deadline_may_only_have_made_a_score_worse(tmp_path):
    data = make_data(tmp_path)
    manifest = make_run(tmp_path, data, deadline=0.0)
    folder = tmp_path / "bundle"
    bundle(folder, tmp_path, data, manifest)
    report = audit_folder(folder, data=data.folder, ledgers=tmp_path / "score")
    assert report.passed, report.to_markdown()
    assert "; deadline of 0.0 s made it worse by as much" in evidence(report, "round trip")
    score = json.loads((folder / "submission.json").read_text())["scores"]["ttt"]
    nats = score["nats"] * 0.9
    bits = nats / math.log(2.0)
    changes = {"bpb": bits / score["bytes"], "bits": bits, "val_loss": nats / score["targets"]}
    forge(folder, **changes, nats=nats)
    report = audit_folder(folder, data=data.folder)
    assert report.failed == ["round trip"]
    assert "better than without its deadline of 0.0 s" in evidence(report, "round trip")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"val_bpb": 1.25}, "scores.ttt.bpb is 1.25, the rest of the record and the script give"),
        ({"val_loss": 1.25}, "val_loss is 1.25"),
        ({"nats": 1.25}, "scores.ttt.bits is"),
        ({"nats": -1.25}, "scores.ttt.nats is -1.25, expected more than 0"),
        ({"pre_quant_val_bpb": 1.25}, "scores.float.bpb is 1.25"),
    ],
)
def test_numbers_that_contradict_others_fail(folder, changes, match):
    forge(folder, **changes)
    report = audit_folder(folder)
    assert "record" in report.failed
    assert match in evidence(report, "record")


@pytest.mark.parametrize(
    ("event", "old", "new", "match"),
    [
        ("score", '"targets": 265', '"targets": 266', "float.targets is 266, 265 in submission.js"),
        ("score", '"name": "sliding"', '"name": "other"', "scores ['float', 'quantized', 'other'"),
        ("run", f'"seed": {SEED}', '"seed": 8', f"seed is 8, expected {SEED}"),
        (
            "run",
            '"contaminated": false',
            '"contaminated": true',
            "contaminated is True, expected Fa",
        ),
        ("score", '"contaminated": false', '"contaminated": true', "float.contaminated is True"),
        ("run", '"event": "run"', '"event": "walk"', "0 lines with the event 'run'"),
        ("run", '"torch": "', '"torch": "0.', "versions.torch is '0."),
        ("step", '"loss": 5.5', '"seconds": 0.752', "trains until seconds 0.752, submission.json"),
        ("step", '"step": 1', '"step": 2', "trains until step 2, submission.json until 1"),
        ("record", '"event": "record"', '"event": "step"', "its last line has no event 'record'"),
    ],
)
def test_a_log_whose_other_lines_say_otherwise_fails(folder, event, old, new, match):
    log = folder / f"train_seed{SEED}.log"
    lines = log.read_text().splitlines(keepends=True)
    kinds = [json.loads(line).get("event", "step") for line in lines]
    edited = [
        line.replace(old, new) if kind == event else line
        for line, kind in zip(lines, kinds, strict=True)
    ]
    assert edited != lines
    log.write_text("".join(edited))
    report = audit_folder(folder)
    assert report.failed == ["record"]
    assert match in evidence(report, "record")


def test_hints_that_the_record_hides_are_in_the_script(folder):
    replace_in_script(folder, "ngram=None)}", "ngram=NgramConfig())}")
    report = audit_folder(folder)
    assert "record" in report.failed
    assert "scores.ttt.method is 'score-first', the rest of the record and the script give " in (
        evidence(report, "record")
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"val_protocol": "plain"}, "val_protocol is 'plain'"),
        ({"tokenizer_sha256": "0"}, "tokenizer_sha256 is '0'"),
        ({"compliance": {"three_seeds": True}}, "compliance.three_seeds is true, and is not so"),
        ({"compliance": 1}, "compliance is 1"),
    ],
)
def test_claims_that_are_in_no_log_are_checked_too(folder, changes, match):
    edit_record(folder, **changes)
    assert match in evidence(audit_folder(folder), "record")


def test_a_contaminated_bundle_fails_for_that_alone(tmp_path):
    data = make_data(tmp_path)
    manifest = make_run(tmp_path, data)
    manifest["contaminated"] = True
    manifest["stages"]["contaminate"] = {"facts": {"seconds": 1.0}}
    for result in manifest["stages"]["score"]["facts"]["results"].values():
        result["contaminated"] = True
    bundle(tmp_path / "bundle", tmp_path, data, manifest)
    report = audit_folder(tmp_path / "bundle")
    failed = [name for name, status in statuses(report).items() if status == "FAIL"]
    assert failed == ["record", "statistics"]
    for name in failed:
        assert "contaminated" in evidence(report, name)


def test_a_contamination_that_the_record_hides_is_in_the_script(folder):
    replace_in_script(folder, "contaminated=False", "contaminated=True")
    report = audit_folder(folder)
    assert "contaminated is False, the rest" in evidence(report, "record")
    assert "record" in report.failed


def test_seeds_that_were_never_run_fail(folder):
    log = folder / f"train_seed{SEED}.log"
    record = json.loads((folder / "submission.json").read_text())
    results = {str(seed): record["seed_results"][str(SEED)] for seed in (SEED, 8, 9)}
    old, new = (
        json.dumps({"seed_results": each})[1:-1] for each in (record["seed_results"], results)
    )
    log.write_text(log.read_text().replace(old, new))
    for seed in (8, 9):
        text = log.read_text().replace(f'"seed": {SEED},', f'"seed": {seed},')
        (folder / f"train_seed{seed}.log").write_text(text)
    edit_record(folder, seeds=[SEED, 8, 9], seed_results=results)
    report = audit_folder(folder)
    assert report.failed == ["record"]
    assert "3 seeds, but the artifact of one run" in evidence(report, "record")


@pytest.mark.parametrize(
    ("changes", "check", "match"),
    [
        ({"bytes_model": 1}, "sizes", "bytes_model is 1, found"),
        ({"bytes_total": 1}, "sizes", "bytes_total is 1, found"),
        ({"weights_sha256": "0"}, "container", "weights_sha256 is 0"),
        ({"artifact_sha256": "0"}, "container", "artifact_sha256 is 0"),
        ({"val_bpb": "low"}, "record", "val_bpb is low"),
        ({"seeds": 3}, "files", "field seeds is 3"),
        ({"seeds": [1]}, "files", "missing: train_seed1.log"),
        ({"seed_results": {"1": 2}}, "sizes", "artifact_bytes is missing"),
        ({"seed_results": {}}, "record", "seed_results has []"),
        ({"seeds": []}, "files", "seeds is [], expected one or more ints"),
        ({"seeds": [], "seed_results": {}}, "record", "seeds is []"),
        ({"seeds": [True]}, "files", "seeds is [True]"),
        ({"seeds": ["a\0b"]}, "files", "expected one or more ints"),
        ({"bytes_code": "many"}, "sizes", "bytes_code is 'many'"),
        ({"bytes_code": {}}, "sizes", "bytes_code is {}"),
        ({"bytes_code": [1]}, "sizes", "bytes_code is [1]"),
    ],
)
def test_edited_fields_fail_where_they_are_checked(folder, changes, check, match):
    edit_record(folder, **changes)
    report = audit_folder(folder)
    assert check in report.failed
    assert match in evidence(report, check)


@pytest.mark.parametrize("name", ["submission.json", f"train_seed{SEED}.log"])
def test_a_field_that_is_there_twice_is_read_as_neither(folder, name):
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace('"targets": 265', '"targets": 1, "targets": 265'))
    report = audit_folder(folder)
    assert "record" in report.failed
    assert evidence(report, "record") == f"{name}: field targets is there twice"


@pytest.mark.parametrize("name", ["submission.json", f"train_seed{SEED}.log"])
@pytest.mark.parametrize("depth", [*range(800, 1000, 20), 100_000])
def test_deeply_nested_json_is_a_finding(folder, name, depth):
    nested = '{"seeds": ' + depth * "[" + depth * "]" + "}"
    (folder / name).write_text(nested)
    assert "record" in audit_folder(folder).failed


@pytest.mark.parametrize("text", [100_000 * "-" + "1", 900 * "-" + "1", 5_000 * "(" + 5_000 * ")"])
def test_deeply_nested_scripts_are_a_finding(folder, text):
    (folder / "train_gpt.py").write_text(text)
    assert "sizes" in audit_folder(folder).failed


def test_a_script_in_an_unknown_encoding_is_a_finding(folder):
    script = folder / "train_gpt.py"
    script.write_bytes(b"# coding: klingon\n" + script.read_bytes())
    report = audit_folder(folder)
    assert {"record", "imports", "script", "static scan"} <= set(report.failed)
    assert "unknown encoding: klingon" in evidence(report, "script")


def test_602_seconds_fail(folder):
    results = json.loads((folder / "submission.json").read_text())["seed_results"]
    for field, seconds in (("train_data_seconds", 602.048), ("eval_seconds", -1.0)):
        late = {seed: {**result, field: seconds} for seed, result in results.items()}
        edit_record(folder, seed_results=late)
        report = audit_folder(folder)
        assert "clocks" in report.failed
        assert f"{field} {seconds:.3f}" in evidence(report, "clocks")


def test_over_the_budget(folder):
    report = audit_folder(folder, budget_bytes=50_000)
    assert report.failed == ["sizes"]
    assert "OVER" in evidence(report, "sizes") or "seed" in evidence(report, "sizes")


@pytest.mark.parametrize(
    "name", ["train_gpt.py", "model.fly", "submission.json", "requirements.txt", "README.md"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    report = audit_folder(folder)
    assert "files" in report.failed
    assert name in evidence(report, "files")


@pytest.mark.parametrize("name", ["cache", "model.fly"])
def test_links_lead_out_of_the_folder(made, folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(made[1].folder if name == "cache" else made[0] / name)
    report = audit_folder(folder)
    assert report.failed == ["files"]
    assert f"not counted: {name}" in evidence(report, "files")


def test_a_pipe_is_not_waited_for(folder):
    (folder / "train_gpt.py").unlink()
    os.mkfifo(folder / "train_gpt.py")
    with pytest.raises(DataError, match=r"train_gpt.py: neither a file nor a folder"):
        audit_folder(folder)


def test_surplus_files_are_for_a_person_to_judge(folder):
    (folder / "helper.py").write_text("x = 1")
    report = audit_folder(folder)
    assert report.passed
    assert "helper.py (5 bytes)" in evidence(report, "files")


@pytest.mark.parametrize("name", ["cache.bin", "README.md"])
def test_validation_tokens_in_a_file_are_a_paid_prefix(made, folder, name):
    kept = read_validation(made[1].folder)[5:].tobytes()
    with (folder / name).open("ab") as file:
        file.write(b"odd" + kept)
    report = audit_folder(folder, data=made[1].folder, timeout_seconds=0.01)
    assert "paid prefix" in report.failed
    assert f"a paid prefix: {name} has validation tokens" in evidence(report, "paid prefix")


def test_a_script_that_imports_flyweight(folder):
    replace_in_script(folder, "import argparse\n", "import argparse\nimport flyweight\n")
    report = audit_folder(folder)
    assert "imports" in report.failed
    replace_in_script(folder, "import flyweight\n", "import sentencepiece\n")
    assert statuses(audit_folder(folder))["imports"] == "WARN"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("weights-of-mine", "weights-of-mine"),
        ("torch @ https://example.org/torch.whl", "torch @ https://example.org/torch.whl"),
        ("--extra-index-url https://example.org", "--extra-index-url https://example.org"),
        ("-r more.txt", "-r more.txt"),
        ("numpy==2.1.0 # pinned", ""),
        ("torch >= 2.11, < 3", ""),
        ("# comment", ""),
        ("", ""),
    ],
)
def test_requirements_that_the_script_does_not_import(folder, line, named):
    with (folder / "requirements.txt").open("a") as file:
        file.write(f"{line}\n")
    report = audit_folder(folder)
    assert statuses(report)["imports"] == ("WARN" if named else "PASS")
    assert not named or evidence(report, "imports").endswith(f"not counted: {named}")


def test_a_self_extractor_is_seen_without_running_it(folder):
    (folder / "train_gpt.py").write_text("import zlib\nexec(zlib.decompress(b''))\n")
    assert "bytes_code is" in evidence(audit_folder(folder), "sizes")
    size = (folder / "train_gpt.py").stat().st_size
    total = size + (folder / "model.fly").stat().st_size
    edit_record(folder, bytes_code=size, bytes_total=total)
    assert f"wrapped: {size}" in evidence(audit_folder(folder), "sizes")


@pytest.mark.parametrize(
    ("damage", "match"), [("'!", "byte table is damaged"), ("1 + '", "claim cannot be read")]
)
def test_a_wrong_byte_table(made, folder, damage, match):
    replace_in_script(folder, "byte_codes='", f"byte_codes={damage}")
    report = audit_folder(folder, data=made[1].folder, timeout_seconds=0.01)
    assert match in evidence(report, "byte accounting")


def test_a_scoring_that_takes_too_long_is_stopped(made, folder):
    report = audit_folder(folder, data=made[1].folder, timeout_seconds=0.3)
    assert "train_gpt.py did not end within" in evidence(report, "round trip")


@pytest.mark.parametrize(
    ("lie", "name"),
    [
        ("def describe_facts(facts):\n    return 'cheaper'\n", "describe_facts"),
        ("Path('run.txt').write_text('run')\n", "Path('run.txt').write_text('run')"),
        ("read_val_tokens = __import__('cheap').read\n", "read_val_tokens = __import__('cheap')"),
    ],
)
def test_a_changed_script_is_named_and_not_run(made, folder, lie, name):
    replace_in_script(folder, "\nCLAIM = Claim(", f"\n{lie}\nCLAIM = Claim(")
    report = audit_folder(folder, data=made[1].folder)
    assert statuses(report)["script"] == "WARN"
    assert f"other statements: {name}" in evidence(report, "script")
    assert not (folder / "run.txt").exists()
    assert "by flyweight's script for its claim" in evidence(report, "round trip")
    assert statuses(report)["round trip"] == "PASS"  # the artifact is as good as was said


def test_a_script_that_prints_the_number_it_wants_fails(made, folder):
    forge(folder, val_bpb=1.25)
    replace_in_script(
        folder, "options.out.write_text(", "facts['score']['bpb'] = 1.25; options.out.write_text("
    )
    report = audit_folder(folder, data=made[1].folder)
    assert "round trip" in report.failed
    assert "other statements: main" in evidence(report, "script")


def test_a_comment_alone_is_no_other_statement(made, folder):
    with (folder / "train_gpt.py").open("a") as file:
        file.write("# more\n")
    report = audit_folder(folder)
    assert statuses(report)["script"] == "PASS"
    assert "statement for statement" in evidence(report, "script")
    replace_in_script(folder, "import math\nimport", "import math\nimport math\nimport")
    report = audit_folder(folder)
    assert statuses(report)["script"] == "WARN"
    assert "none, but their order or number" in evidence(report, "script")


def test_a_script_of_another_version_is_said_to_be_one(made, folder):
    version = flyweight.__version__
    replace_in_script(folder, f"Written by flyweight {version}\n", "Written by flyweight 0.0.7\n")
    assert "statement for statement" in evidence(audit_folder(folder), "script")
    replace_in_script(folder, "def describe_facts(facts)", "def describe_facts(facts, more=None)")
    report = audit_folder(folder)
    assert statuses(report)["script"] == "WARN"
    assert f"flyweight 0.0.7 wrote it, as it says, and this is {version}; other statements: " in (
        evidence(report, "script")
    )
    replace_in_script(folder, "\n    headline=", "\n    head=")
    report = audit_folder(folder)
    assert statuses(report)["script"] == "FAIL"
    assert f"flyweight 0.0.7 wrote it, as it says, and this is {version}: the script's claim" in (
        evidence(report, "script")
    )


def test_a_folder_that_is_no_submission(tmp_path):
    with pytest.raises(DataError, match="no submission folder"):
        audit_folder(tmp_path)


def test_digest_in_the_record_is_the_reader_s(made):
    file = FlyFile((made[0] / "model.fly").read_bytes())
    record = json.loads((made[0] / "submission.json").read_text())
    assert record["weights_sha256"] == weights_sha256({name: file[name] for name in file})


def test_ledgers_give_the_recorded_scores_again(made, folder, tmp_path):
    ledgers = shutil.copytree(made[0].parent / "score", tmp_path / "score")

    def ledger_evidence():
        report = audit_folder(folder, data=made[1].folder, ledgers=ledgers, timeout_seconds=0.01)
        return statuses(report)["ledgers"], evidence(report, "ledgers")

    assert ledger_evidence()[0] == "PASS"
    scores = json.loads((folder / "submission.json").read_text())["scores"]
    better = {**scores["ttt"], "nats": scores["ttt"]["nats"] - 1}
    edit_record(folder, scores={**scores, "ttt": better})
    assert ledger_evidence()[0] == "FAIL"
    assert "its ledger gives" in ledger_evidence()[1]
    edit_record(folder, scores={**scores, "../x": scores["ttt"]})
    assert ledger_evidence() == ("FAIL", "'../x' is not the name of a score")
    edit_record(folder, scores={**scores, "ttt": {"bpb": 1.0}})
    assert "ttt.chain is missing" in ledger_evidence()[1]
    edit_record(folder, scores=scores)
    (ledgers / "sliding.ledger").write_bytes((ledgers / "ttt.ledger").read_bytes())
    assert "sliding.ledger: this ledger is of other tokens" in ledger_evidence()[1]
    (ledgers / "sliding.ledger").unlink()
    assert "no readable ledger" in ledger_evidence()[1]


@pytest.mark.parametrize("other", ["model", "config", "text"])
def test_a_ledger_of_something_else_is_found_whatever_the_record_says(
    made, folder, tmp_path, other
):
    ledgers = shutil.copytree(made[0].parent / "score", tmp_path / "score")
    tokens, config = read_validation(made[1].folder), SUITE["sliding"]
    model = sha256(folder / "model.fly")
    bindings = {
        "model": score_binding(tokens, config, model_sha256="0" * 64),
        "config": score_binding(tokens, replace(config, stride=4), model_sha256=model),
        "text": score_binding(tokens[::-1], config, model_sha256=model),
    }
    path = ledgers / "sliding.ledger"
    entries = read_ledger(path).nats
    path.unlink()
    with Ledger(path, targets=entries.size, binding=bindings[other]) as ledger:
        ledger.append(0, entries)
        chain = ledger.chain
    scores = json.loads((folder / "submission.json").read_text())["scores"]
    edit_record(folder, scores={**scores, "sliding": {**scores["sliding"], "chain": chain}})
    report = audit_folder(folder, data=made[1].folder, ledgers=ledgers, timeout_seconds=0.01)
    assert statuses(report)["ledgers"] == "FAIL"
    assert "sliding.ledger: this ledger is of other" in evidence(report, "ledgers")


def test_command_line(folder):
    good = CliRunner().invoke(command, [str(folder), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["passed"] is True
    bad = CliRunner().invoke(command, [str(folder), "--budget", "1000"])
    assert "| sizes | FAIL |" in bad.stdout
    assert isinstance(bad.exception, DataError)
    assert "failed sizes" in str(bad.exception)
