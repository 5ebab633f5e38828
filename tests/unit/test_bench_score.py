"""Both sides of the scoring benchmark on sizes for a CPU; the script is a stand-in."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks are not in packages")

SCRIPT = """\
import time, torch
class Hyperparameters:
    train_seq_len = 1
class GPT(torch.nn.Module):
    def __init__(self, vocab_size, **sizes):
        super().__init__()
        self.ids = vocab_size
    def load_state_dict(self, state):
        self.state = state
    def forward(self, x, y):
        pass
def _rebank_state_dict(state, layers, template):
    assert "smear_gate" in state
    return state
def restore_low_dim_params_to_fp32(model):
    pass
def eval_val_sliding(args, model, rank, size, device, tokens, a, b, c, stride, batch_seqs,
                     eval_seq_len):
    assert args.train_seq_len == eval_seq_len == 32
    time.sleep(len(tokens) / 2000)
    return 6.0, 0.0
def eval_val_sliding_ttt(args, model, rank, size, device, tokens, a, b, c, stride, **rest):
    assert rest["ttt_chunk_tokens"] == 128
    return 6.5, 0.0
def eval_val_fused_ttt_sliding(args, model, rank, size, device, tokens, a, b, c, stride, log0):
    assert args.ngram_max_n == 0
    return 7.0, 0.0
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module("bench_score")
    for name in set(sys.modules) - before:
        if FOLDER.name in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def smaller(recipe: Any) -> Any:
    """The recipe's features in a model of a few thousand weights."""
    model = replace(
        recipe.model,
        vocab_size=64,
        num_layers=13 if recipe.name == "pr1683" else 11,
        model_dim=16,
        num_heads=2,
        num_kv_heads=2 if recipe.model.num_kv_heads == 8 else 1,
        mlp_hidden=16,
        seq_len=32,
        rope_dims=4,
        bigram_buckets=16,
        bigram_dim=4,
        ve_dim=4,
        rope_train_length=16,
    )
    changed = {"seq_len": 32, "chunk_targets": 128, "compile": False, "precision": "float32"}
    score = replace(
        recipe.score,
        plain=replace(recipe.score.plain, **changed),
        sliding=replace(recipe.score.sliding, stride=32, **changed),
        ttt=replace(recipe.score.ttt, stride=32, **changed),
    )
    data = replace(recipe.data, vocab_size=64)
    return replace(recipe, data=data, model=model, score=score)


@pytest.mark.parametrize(("case", "loss"), [("sliding", 6.0), ("pr585", 6.5), ("pr1683", 7.0)])
def test_both_sides_are_measured(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, loss: float
) -> None:
    monkeypatch.setitem(bench.CASES, case, (*bench.CASES[case][:2], 16))
    (tmp_path / "script.py").write_text(SCRIPT)
    options = argparse.Namespace(
        pr585=tmp_path / "script.py",
        pr1683=tmp_path / "script.py",
        data=None,
        checkpoint585=None,
        targets=320,
        short=64,
        device="cpu",
    )
    row = bench.measure(case, options, smaller)
    assert row["theirs"]["nats_per_token"] == loss
    assert row["nats_above"] == pytest.approx(row["ours"]["nats_per_token"] - loss)
    assert row["ratio"] > 0
    assert row["ours"]["recompilations"] == 0
    assert (row["ours"]["phases"]["adapt"] > 0) == (case != "sliding")
    options.pr585 = options.pr1683 = None
    keys = {"case", "ours"} | ({"auto", "rolling"} if case == "sliding" else set())
    assert set(bench.measure(case, options, smaller)) == keys


def test_goals_of_scoring(bench: Any) -> None:
    rows = [
        {
            "case": case,
            "ours": {"targets_per_second": 1e4, "phases": {"compile": 40.0}, "recompilations": 0},
            "theirs": {"targets_per_second": 1e4 / ratio},
            "ratio": ratio,
            "nats_above": 0.001,
        }
        for case, ratio in (("sliding", 4.5), ("pr585", 2.5))
    ]
    settings = {"device": "a GPU", "torch": "2.11", "targets": 100}
    record: dict[str, Any] = {
        "date": "2026-01-01",
        "fingerprint": {"commit": "abc"},
        "settings": settings,
        "rows": rows,
    }
    goals = importlib.import_module("reach").score_goals(record)
    assert [goal.verdict for goal in goals] == ["reached", "missed", "open", "open", "reached"]
    page = "\n".join(importlib.import_module("report_models").score(record))
    assert "| pr585 | 10,000 | 4,000 | 2.50x | +0.0010 | 40 | 0 |" in page
