"""Stored totals are verified before anything is scored, and follow a submission to its script."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")

from flyweight.data.facts import DataInfo  # noqa: E402
from flyweight.data.info import load_data_info  # noqa: E402
from flyweight.data.shards import read_shard, read_validation, write_shard  # noqa: E402
from flyweight.data.sidecar import validation_counter, write_sidecar  # noqa: E402
from flyweight.data.tokenizer import train_tokenizer  # noqa: E402
from flyweight.errors import DataError  # noqa: E402
from flyweight.evaluate.config import ScoreConfig  # noqa: E402
from flyweight.evaluate.score import check_totals, score_data  # noqa: E402
from flyweight.submission.audit import audit_folder  # noqa: E402
from flyweight.submission.checks import BUNDLE_CHECKS  # noqa: E402
from flyweight.submission.subject import Subject  # noqa: E402
from submission_samples import bundle, make_data, make_run  # noqa: E402


@pytest.fixture
def data(tmp_path: Path) -> DataInfo:
    return make_data(tmp_path)


class NeverRun(torch.nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model ran before the totals were verified")


def score(data: DataInfo, folder: Path) -> None:
    config = ScoreConfig(protocol="plain", seq_len=32)
    score_data(NeverRun(), data, config, name="x", model_sha256="0" * 64, folder=folder)


class Flat(torch.nn.Module):
    """Every token is as likely as any other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = torch.nn.Parameter(torch.zeros(1)), 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.zeros(*tokens.shape, 1024)


def test_a_score_of_another_config_is_kept_and_taken_up_again(
    data: DataInfo, tmp_path: Path
) -> None:
    model = Flat()

    def run(seq_len: int) -> dict[str, Any]:
        config = ScoreConfig(protocol="plain", seq_len=seq_len, batch_windows=4)
        return score_data(
            model, data, config, name="x", model_sha256="0" * 64, folder=tmp_path / "score"
        )

    first, second = run(32), run(16)
    assert not second["was_resumed"]
    assert len(list((tmp_path / "score").glob("x-*.ledger"))) == 1
    calls = model.calls
    again = run(32)
    assert again["was_resumed"]
    assert again["chain"] == first["chain"]
    assert run(16)["chain"] == second["chain"]
    assert model.calls == calls
    assert len(list((tmp_path / "score").glob("x-*.ledger"))) == 1


def test_an_interrupt_says_what_is_kept(data: DataInfo, tmp_path: Path) -> None:
    class Interrupted(Flat):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().forward(tokens)

    config = ScoreConfig(protocol="plain", seq_len=32, batch_windows=1, chunk_targets=32)
    with pytest.raises(
        KeyboardInterrupt, match=r"x.ledger holds 64 of \d+ scores; the same command"
    ):
        score_data(Interrupted(), data, config, name="x", model_sha256="0" * 64, folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scored_bytes": 1}, r"val scored_bytes is \d+, data.json says 1;"),
        ({"tokens": 7}, r"val scored_targets is \d+, data.json says 6;"),
    ],
)
def test_other_totals_stop_a_score_before_it_begins(
    data: DataInfo, tmp_path: Path, changes: dict[str, int], match: str
) -> None:
    with pytest.raises(DataError, match=match):
        score(replace(data, val=replace(data.val, **changes)), tmp_path / "score")
    assert not (tmp_path / "score").exists()


def test_a_tokenizer_too_small_for_the_shards_is_named(data: DataInfo, tmp_path: Path) -> None:
    path = data.folder / data.val.shards[0].name
    tokens = np.array(read_shard(path))
    tokens[tokens.size // 2] = data.vocab_size
    write_shard(path, tokens)
    with pytest.raises(DataError, match=r"tokenizer or sidecar and shards do not match: .* is id"):
        score(data, tmp_path / "score")


def test_changed_tokens_of_as_many_bytes_are_found(data: DataInfo, tmp_path: Path) -> None:
    path = data.folder / data.val.shards[0].name
    tokens = np.array(read_shard(path))
    inner = next(i for i in range(2, tokens.size) if 1 not in tokens[i - 1 : i + 2])
    tokens[[inner, inner + 1]] = tokens[[inner + 1, inner]]
    write_shard(path, tokens)
    message = rf"{path.name}: sha256 \w+, expected \w+; build or fetch it again"
    with pytest.raises(DataError, match=message):
        score(data, tmp_path / "score")
    assert not (tmp_path / "score").exists()
    audited = Subject(tmp_path, data=data, budget_bytes=1, timeout_seconds=1.0)
    with pytest.raises(DataError, match=message):
        BUNDLE_CHECKS["data"](audited)


def test_totals_that_nobody_counted_are_not_held_against_the_data(data: DataInfo) -> None:
    uncounted = replace(data, val=replace(data.val, scored_bytes=None))
    check_totals(uncounted, read_validation(data.folder), validation_counter(data))


def test_a_submission_on_transformed_text_counts_by_sidecars(
    data: DataInfo, tmp_path: Path
) -> None:
    (data.folder / "data.json").unlink()
    for shard in data.val.shards:
        tokens = read_shard(data.folder / shard.name)
        write_sidecar(data.folder / shard.name, np.where(tokens == 1, 0, 2))
    data = load_data_info(data.folder)
    data.write()
    targets, documents = data.val.scored_targets, data.val.documents
    assert documents is not None
    assert data.val.scored_bytes == 2 * (targets - (documents - 1))
    manifest = make_run(tmp_path, data)
    for result in manifest["stages"]["score"]["facts"]["results"].values():
        assert result["bytes"] == data.val.scored_bytes
        assert result["bpb"] == result["bits"] / result["bytes"]
    bundle(tmp_path / "bundle", tmp_path, data, manifest)
    report = audit_folder(tmp_path / "bundle", data=data.folder)
    assert report.passed, report.to_markdown()
    assert any("byte sidecars;" in item.evidence for item in report.items)
    (data.folder / "fineweb_val_bytes_000000.bin").unlink()
    script = [sys.executable, tmp_path / "bundle" / "train_gpt.py", "--data", data.folder]
    done = subprocess.run([*map(str, script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no fineweb_val_bytes_000000.bin" in done.stderr


def test_facts_on_disk_have_the_totals(data: DataInfo) -> None:
    facts = json.loads((data.folder / "data.json").read_text())["val"]
    tokens = read_validation(data.folder)
    assert facts["scored_targets"] == tokens.size - 1
    assert facts["scored_bytes"] == validation_counter(data).total([tokens])
    assert facts["byte_counts"] == []


def test_another_tokenizer_of_as_many_ids_is_found(data: DataInfo) -> None:
    (data.folder / "data.json").unlink()
    assert load_data_info(data.folder).val.scored_bytes == data.val.scored_bytes
    words = [f"{a}{b} {b}{a}{b}" for a in "qwertzuiop" for b in "yxcvbnmasdf"]
    other = train_tokenizer(words, data.folder / "other.model", vocab_size=data.vocab_size)
    assert other.vocab_size == data.vocab_size
    with pytest.raises(DataError, match=r"other.model: tokenizer does not match .* encodes 2 to"):
        load_data_info(data.folder, data.folder / "other.model")
