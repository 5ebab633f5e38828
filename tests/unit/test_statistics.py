"""Significance: Student's tail against tables, Welch by hand, every reading and its assumptions."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner

from flyweight.cli.main import flyweight
from flyweight.errors import DataError
from flyweight.submission.statistics import MARGIN_NATS, Runs, compare, student_tail


@pytest.mark.parametrize(
    ("t", "degrees", "tail"),
    [  # tables of the t distribution, upper critical values
        (0.0, 3, 0.5),
        (1.0, 1, 0.25),
        (31.820515953774, 1, 0.01),
        (6.964556734283, 2, 0.01),
        (4.540702858568, 3, 0.01),
        (2.763769458112, 10, 0.01),
        (2.353363434801, 3, 0.05),
        (0.740697084081, 4, 0.25),
        (2.326785312, 100_000, 0.0099911),
    ],
)
def test_student_tail_against_tables(t, degrees, tail):
    assert student_tail(t, degrees) == pytest.approx(tail, rel=2e-3 if degrees > 1000 else 1e-9)
    assert student_tail(-t, degrees) == pytest.approx(1.0 - tail, rel=2e-3)


def test_student_tail_in_closed_form():
    for t in (0.1, 0.7, 3.0, 40.0):
        assert student_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-11)
        assert student_tail(t, 2) == pytest.approx(0.5 * (1 - t / math.sqrt(2 + t * t)), rel=1e-9)


NEW = Runs(name="new", bpb=(1.07, 1.071, 1.072), loss=(2.760, 2.763, 2.766), bytes_per_token=3.72)
OLD = Runs(name="old", bpb=(1.08, 1.082, 1.084), loss=(2.790, 2.795, 2.800), bytes_per_token=3.72)


def test_welch_by_hand():
    first = compare(NEW, OLD).tests[0]
    # means 1.071 and 1.082, variances 1e-6 and 4e-6, three each
    error = math.sqrt(5e-6 / 3)
    assert first.kind == "Welch"
    assert first.gain == pytest.approx(0.011)
    assert first.t == pytest.approx(0.011 / error)
    assert first.degrees == pytest.approx((5e-6) ** 2 / ((1e-6) ** 2 / 2 + (4e-6) ** 2 / 2))
    assert first.passes == {"README, p < 0.01": True, "frontier practice, p < 0.25": True}


def test_every_reading_is_there():
    tests = compare(NEW, OLD).tests
    assert {test.unit for test in tests} == {
        "bpb, margin 0",
        "bpb, margin 0.005 nats per byte",
        "bpb, margin 0.005 nats per token of the new record",
        "bpb, margin 0.005 bpb, as some wrote",
        "nats per byte",
        "nats per token",
    }
    margins = {test.margin for test in tests if test.unit == "nats per token"}
    assert margins == {0.0, MARGIN_NATS}
    unknown = compare(Runs(name="x", bpb=NEW.bpb), Runs(name="y", bpb=OLD.bpb)).tests
    found = {t.unit: t.margin for t in unknown}
    assert found["bpb, margin 0.005 nats per SP1024 token"] == pytest.approx(0.00296, abs=5e-6)
    assert found["bpb, margin 0.005 nats per SP8192 token"] == pytest.approx(0.00194, abs=5e-6)
    assert found["bpb, margin 0.005 nats per CaseOps token"] == pytest.approx(0.00228, abs=6e-6)
    assert found["bpb, margin 0.005 nats per byte"] == pytest.approx(0.00721, abs=5e-6)


def test_only_the_old_mean_is_known():
    comparison = compare(NEW, Runs(name="old", bpb=(1.0735,)))
    first = comparison.tests[0]
    assert first.kind == "one-sample"
    assert first.t == pytest.approx(0.0025 / math.sqrt(1e-6 / 3))
    assert first.degrees == pytest.approx(2)
    assert any("mean without error" in line for line in comparison.assumptions)
    assert any("old: 1 seed," in line for line in comparison.assumptions)


def test_too_few_seeds_and_other_tokenizers():
    comparison = compare(Runs(name="new", bpb=(1.0,)), OLD)
    assert comparison.tests[0].p is None
    assert not any(comparison.tests[0].passes.values())
    other = Runs(name="o", bpb=OLD.bpb, loss=OLD.loss, bytes_per_token=3.157)
    assert any("mean nothing here" in line for line in compare(NEW, other).assumptions)
    with pytest.raises(DataError, match="no scores"):
        compare(NEW, Runs(name="old"))


def test_command_line(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    results = {
        str(i): {"val_bpb": b, "val_loss": n}
        for i, (b, n) in enumerate(zip(NEW.bpb, NEW.loss, strict=True))
    }
    (folder / "submission.json").write_text(json.dumps({"val_bpb": 1.071, "seed_results": results}))
    (tmp_path / "old.json").write_text(json.dumps({"val_bpb": 1.082}))
    run = CliRunner().invoke(
        flyweight, ["stats", str(folder), str(tmp_path / "old.json"), "1.08,1.082,1.084", "--json"]
    )
    assert run.exit_code == 0, run.output
    printed = json.loads(run.stdout)
    assert [each["old"]["name"] for each in printed["comparisons"]] == [
        str(tmp_path / "old.json"),
        "1.08,1.082,1.084",
    ]
    assert printed["comparisons"][0]["tests"][0]["kind"] == "one-sample"
    text = CliRunner().invoke(flyweight, ["stats", str(folder), "1.08,1.082,1.084"])
    assert "Welch" in text.stdout
    assert "assumes" in text.stdout
    bad = CliRunner().invoke(flyweight, ["stats", str(folder), str(tmp_path / "none")])
    assert "neither a record nor numbers" in str(bad.exception)
    one = CliRunner().invoke(flyweight, ["stats", str(folder)])
    assert one.exit_code == 2


def test_contaminated_records_are_refused(tmp_path):
    record = {"contaminated": True, "contaminated_val_bpb": 1.05, "val_bpb": 1.05}
    (tmp_path / "submission.json").write_text(json.dumps(record))
    result = CliRunner().invoke(flyweight, ["stats", str(tmp_path / "submission.json"), "1.08"])
    assert isinstance(result.exception, DataError)
    assert "contaminated: trained on the scored text" in str(result.exception)
