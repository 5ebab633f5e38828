"""The auditor on folders of others: only read, never run, each known mistake found by its check."""

from __future__ import annotations

import base64
import json
import lzma
import math

import pytest
from click.testing import CliRunner

from flyweight.cli.audit import command
from flyweight.submission.audit import audit_folder
from flyweight.submission.foreign import ANCHORS
from flyweight.submission.published import read_claims, read_log, read_runs

TARGETS, BYTES = 40_540_160, 151_078_222
SCRIPT = """
import sentencepiece as spm
raise SystemExit("this must never run")
"""
LOG = """gptq_reserve_seconds: {reserve}
train_shards: {shards}
val_tokens: {tokens}
100/20000 val_loss: 2.9000 val_bpb: 1.1300
stopping_early: wallclock_cap train_time: {train_ms}ms step: 4557/20000
GPTQ:collected 67 Hessians in {hessians}s
pre-quantization post-ema val_loss:2.70000000 val_bpb:1.04000000 eval_time:7438ms
Serialized model: 135431033 bytes
Code size: {code} bytes
Serialized model quantized+brotli: {model} bytes
Total submission size quantized+brotli: {total} bytes
quantized val_loss:2.84000000 val_bpb:1.10000000 eval_time:25390ms
quantized_ttt val_loss:{loss:.8f} val_bpb:{bpb:.8f} eval_time:{eval_ms}ms
"""


def bpb_of(loss, text_bytes=BYTES):
    return loss / math.log(2.0) * TARGETS / text_bytes


def make_folder(folder, *, script=SCRIPT, text_bytes=BYTES, record=None, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "train_gpt.py").write_text(script)
    (folder / "README.md").write_text("# An entry\n")
    results = {}
    size = len(script.encode())
    for seed, loss in ((42, 2.790), (314, 2.792), (999, 2.795)):
        values = {
            "reserve": 12.0, "shards": 80, "tokens": TARGETS, "train_ms": 588000, "hessians": 11.0,
            "code": size, "model": 15_000_000, "total": 15_000_000 + size, "loss": loss,
            "bpb": bpb_of(loss, text_bytes), "eval_ms": 368000, **changes,
        }  # fmt: skip
        (folder / f"train_seed{seed}.log").write_text(LOG.format(**values))
        results[str(seed)] = {"val_bpb": round(values["bpb"], 5), "artifact_bytes": values["total"]}
    mean = sum(result["val_bpb"] for result in results.values()) / 3
    facts = {"val_bpb": mean, "seeds": [42, 314, 999], "seed_results": results, **(record or {})}
    (folder / "submission.json").write_text(json.dumps(facts))
    return folder


def audited(folder, **options):
    report = audit_folder(folder, **options)
    return {item.name: (item.status, item.evidence) for item in report.items}


NAMES = [
    *("files", "sizes", "record", "round trip", "clocks", "probes", "documents"),
    *("byte accounting", "data", "paid prefix", "statistics", "static scan"),
]


def test_an_honest_entry(tmp_path):
    items = audited(make_folder(tmp_path / "entry"))
    assert list(items) == NAMES
    statuses = {name: status for name, (status, _) in items.items()}
    left_open = dict.fromkeys(("round trip", "probes", "documents", "data", "paid prefix"), "WARN")
    assert statuses == dict.fromkeys(NAMES, "PASS") | left_open
    assert "3 seeds of submission.json equal their logs" in items["record"][1]
    assert "588.000 + 11.0 Hessians" in items["clocks"][1]
    assert "151,078,222 bytes, SP8192 has 151,080,891" in items["byte accounting"][1]


def test_the_script_is_never_run_even_with_data_given(tmp_path):
    result = CliRunner().invoke(command, [str(make_folder(tmp_path / "entry")), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["passed"] is True


@pytest.mark.parametrize(
    ("changes", "check", "status", "match"),
    [
        ({"eval_ms": 602048}, "clocks", "FAIL", "evaluates for 602.048 s"),
        ({"hessians": 15.2}, "clocks", "FAIL", "reads training data until 603.200 s"),
        ({"hessians": 12.7}, "clocks", "WARN", "600.700 s in train_seed"),
        ({"total": 16_058_494}, "sizes", "FAIL", "-58,494 to the cap"),
        ({"shards": 1499}, "data", "FAIL", "1499 training shards"),
        ({"tokens": 9_662_464}, "data", "FAIL", "9,662,464 validation tokens"),
        ({"tokens": 63_779_840}, "byte accounting", "WARN", "no known text"),
        ({"text_bytes": 176_332_748}, "byte accounting", "FAIL", "x1.1671, corrected 1.08"),
        ({"record": {"val_bpb": 1.0}}, "statistics", "WARN", "not the mean of its seeds"),
        ({"record": {"seed_results": {"42": {"val_bpb": 1.05}}}}, "record", "FAIL", "is not in"),
        ({"record": {"seed_results": {"7": {"val_bpb": 1.05}}}}, "record", "WARN", "of seed 7"),
        ({"record": {"seed_results": {}}}, "record", "PASS", "no scores by seed"),
        ({"record": {"seed_results": {}, "val_bpb": 1.5}}, "record", "FAIL", "neither in a log"),
        ({"code": 31_999}, "sizes", "WARN", "as recorded: 31,999"),
    ],
)  # fmt: skip
def test_each_mistake_is_found_by_its_check(tmp_path, changes, check, status, match):
    found = audited(make_folder(tmp_path / "entry", **changes))[check]
    assert found[0] == status, found
    assert match in found[1]


def test_sizes_that_differ_between_record_and_log(tmp_path):
    folder = make_folder(tmp_path / "entry")
    record = json.loads((folder / "submission.json").read_text())
    record["seed_results"]["42"]["artifact_bytes"] -= 1
    (folder / "submission.json").write_text(json.dumps(record))
    assert audited(folder)["record"][0] == "FAIL"


def test_a_rerun_does_not_hide_the_log_that_agrees(tmp_path):
    folder = make_folder(tmp_path / "entry")
    text = (folder / "train_seed42.log").read_text().replace("368000ms", "602048ms")
    (folder / "train_seed42_rerun.log").write_text(text.replace("val_bpb:1.0", "val_bpb:1.9"))
    items = audited(folder)
    assert items["record"][0] == "PASS"
    assert "train_seed42_rerun.log evaluates for 602.048 s" in items["clocks"][1]


def test_raw_source_over_the_cap_and_packed_source_under_it(tmp_path):
    filler = "x = '" + "".join(chr(97 + i * i % 26) for i in range(120_000)) + "'\n"
    items = audited(make_folder(tmp_path / "raw", script=filler, code=30_000, model=15_900_000,
                                total=15_930_000))  # fmt: skip
    assert items["sizes"][0] == "WARN"
    assert "over the cap if the model and code as shipped count" in items["sizes"][1]
    packed = base64.b85encode(lzma.compress(filler.encode())).decode()
    script = f"import lzma, base64\nexec(lzma.decompress(base64.b85decode({packed!r})))\n"
    items = audited(make_folder(tmp_path / "packed", script=script))
    assert f"wrapped: {len(script):,}" in items["sizes"][1]
    assert items["sizes"][0] == "PASS"
    assert "lzma.decompress (120,007)" in items["static scan"][1]


def test_helpers_that_are_not_counted(tmp_path):
    script = "import helper\nexec(open(__file__.replace('train_gpt.py', 'real.py')).read())\n"
    folder = make_folder(tmp_path / "entry", script=script)
    (folder / "helper.py").write_text("y = 1\n")
    (folder / "real.py").write_text("x = 1\n")
    items = audited(folder)
    assert items["files"][0] == "WARN"
    assert "not counted: helper.py, real.py" in items["sizes"][1]


def test_training_before_scoring_in_a_packed_script(tmp_path):
    source = (
        "def f(model, val_tokens):\n    for e in range(30):\n        model(val_tokens).backward()\n"
    )
    packed = base64.b85encode(lzma.compress(source.encode())).decode()
    script = f"import lzma, base64\nexec(lzma.decompress(base64.b85decode({packed!r})))\n"
    items = audited(make_folder(tmp_path / "entry", script=script))
    assert items["static scan"][0] == "FAIL"
    assert "train before score: line 3" in items["static scan"][1]


@pytest.mark.parametrize("name", ["README.md", "train_gpt.py", "submission.json"])
def test_missing_parts(tmp_path, name):
    folder = make_folder(tmp_path / "entry")
    (folder / name).unlink()
    assert audited(folder)["files"] == ("FAIL", f"missing: {name}")


def test_logs_in_other_dialects():
    first = read_log(
        "step:13780/20000 val_loss:2.0606 val_bpb:1.2172 train_time:600038ms step_avg:43.54ms\n"
        "Total submission size int8+zlib: 15,863,489 bytes\n"
        "val_loader:shards pattern=./x/fineweb_val_*.bin tokens:62021632\n"
        "final_int8_zlib_roundtrip val_loss:2.0727 val_bpb:1.2244 eval_time:1401ms\n"
        "final_int8_zlib_roundtrip_exact val_loss:2.07269931 val_bpb:1.22436570\n"
        '        f"val_loss:{q_val_loss:.4f} val_bpb:{q_val_bpb:.4f} "\n' + "x" * 2000
    )
    assert (first.val_loss, first.val_bpb) == (2.07269931, 1.2243657)
    assert (first.train_seconds, first.eval_seconds) == (600.038, 1.401)
    assert (first.total_bytes, first.val_tokens) == (15_863_489, 62_021_632)
    assert len(first.scores) == 2
    other = read_log(
        "ttt_sliding:done val_loss=1.889768 val_bpb=1.119230 elapsed=409.8s\n"
        "Code size (uncompressed): 157868 bytes\nCode size (compressed): 31999 bytes\n"
        "diagnostic quantized val_loss:2.35 val_bpb:1.07 eval_time:1ms\ntotal_eval_time:455.1s\n"
    )
    assert (other.label, other.eval_seconds) == ("ttt_sliding:done", 455.1)
    assert (other.code_compressed_bytes, other.code_uncompressed_bytes) == (31_999, 157_868)


def test_records_in_other_dialects():
    as_map = {"seeds": {"0": {"val_bpb": 1.5, "bytes_total": 9, "ttt_time_ms": 2000}, "1": 1.25}}
    claims = read_claims(as_map)
    assert [(c.seed, c.val_bpb, c.artifact_bytes, c.eval_seconds) for c in claims] == [
        ("0", 1.5, 9, 2.0),
        ("1", 1.25, None, None),
    ]
    scores = {"seeds": [1, 2], "seed_scores": [1.5, 1.25]}
    assert read_runs(scores, name="x").bpb == (1.5, 1.25)
    odd = {"seed_results": {"1": {"val_bpb": True, "val_loss": "2", "artifact_bytes": 10**400}}}
    assert read_claims(odd)[0].val_bpb is None
    assert read_runs({"val_bpb": None}, name="x").bpb == ()


def test_numbers_that_are_none_are_left_out(tmp_path):
    folder = make_folder(tmp_path / "entry", tokens=int("9" * 400), total=int("8" * 400), eval_ms=0)
    assert audited(folder)["byte accounting"][0] == "WARN"
    zeros = {"seed_results": {"1": {"val_bpb": 0, "val_loss": 0}}}
    assert read_runs(zeros, name="x").bytes_per_token is None


def test_anchors_are_those_of_the_validation_text():
    assert {text_bytes for _, text_bytes in ANCHORS.values()} == {151_080_891}


@pytest.mark.parametrize("line", ["exec(b'\\xff')", "exec(unknown['not Python'])", "exec('def')"])
def test_what_cannot_be_unpacked_does_not_hide_the_layer_around_it(tmp_path, line):
    script = f"def adapt(val_tokens):\n    model(val_tokens).backward()\n{line}\n"
    items = audited(make_folder(tmp_path / "entry", script=script))
    assert items["static scan"][0] == "FAIL"
    assert "train before score: line 2" in items["static scan"][1]


def test_a_script_in_an_unknown_encoding_is_a_finding(tmp_path):
    items = audited(make_folder(tmp_path / "entry", script="# coding: klingon\nx = 1\n"))
    assert items["static scan"][0] == "FAIL"
    assert "unknown encoding: klingon" in items["static scan"][1]


@pytest.mark.parametrize(
    ("script", "helper"),
    [
        ("from trainer import adapt\nadapt()\n", "trainer.py"),
        ("from lib import trainer\ntrainer.adapt()\n", "lib/trainer.py"),
        ("import lib.trainer\n", "lib/trainer.py"),
        ("import lib\n", "lib/__init__.py"),
        ("import runpy\nrunpy.run_path('other.py')\n", "other.py"),
    ],
)
def test_helpers_are_scanned_too(tmp_path, script, helper):
    folder = make_folder(tmp_path / "entry", script=script)
    (folder / helper).parent.mkdir(exist_ok=True)
    (folder / helper).write_text("import more\n")
    (folder / "more.py").write_text("def adapt(val_tokens):\n    model(val_tokens).backward()\n")
    items = audited(folder)
    assert items["static scan"][0] == "FAIL"
    assert "more.py (56)" in items["static scan"][1]
    (folder / "more.py").write_bytes(b"x = '\xff'")
    assert audited(folder)["static scan"][0] == "WARN"
    assert "more.py: not text that Python can read" in audited(folder)["static scan"][1]
