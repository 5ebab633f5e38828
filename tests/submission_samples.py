"""A submission folder of a model with random weights, made the way a run makes it."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from data_samples import TEXTS, write_model, write_texts
from flyweight.artifact import pack, unpack
from flyweight.data.build import build_data
from flyweight.data.facts import DataInfo
from flyweight.data.text import FileCorpus
from flyweight.evaluate.config import AdaptConfig, ScoreConfig
from flyweight.evaluate.score import score_data
from flyweight.format.inspect import inspect
from flyweight.manifest import sha256
from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer
from flyweight.submission.bundle import write_bundle
from flyweight.submission.digest import weights_sha256

SEED = 7
SUITE = {
    "plain": ScoreConfig(protocol="plain", seq_len=32),
    "sliding": ScoreConfig(protocol="sliding", seq_len=32, stride=8),
    "ttt": ScoreConfig(
        protocol="score-first",
        seq_len=32,
        stride=8,
        chunk_targets=128,
        adapt=AdaptConfig(learning_rate=0.01),
    ),
}


@cache
def finished_run(base: Path) -> tuple[Path, DataInfo, dict[str, Any], dict[str, Any]]:
    """Folder, data, manifest and bundle facts of a run, made once below a base folder."""
    folder = base / "finished-run"
    folder.mkdir()
    data = make_data(folder)
    manifest = make_run(folder, data)
    return folder, data, manifest, bundle(folder / "bundle", folder, data, manifest)


def make_data(folder: Path) -> DataInfo:
    """Shards and tokenizer of two small sets of documents."""
    train = write_texts(folder, TEXTS[:-3], "train")
    val = write_texts(folder, [f"{text} In the end." for text in TEXTS[-3:]], "val")
    corpus = FileCorpus([train], [val])
    return build_data(corpus, folder / "data", tokenizer=write_model(folder), threads=1)


def make_run(folder: Path, data: DataInfo, deadline: float | None = None) -> dict[str, Any]:
    """An artifact ``model.fly``, a training log, and the manifest of a run that made them."""
    config = ModelConfig(
        vocab_size=data.vocab_size,
        num_layers=2,
        model_dim=32,
        num_heads=4,
        num_kv_heads=2,
        mlp_hidden=64,
        seq_len=32,
        rope_dims=4,
        smear_gate=True,
        unet_skips=True,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        for block in model.blocks:
            block.get_submodule("mlp.proj").weight.normal_(std=0.1)
    arrays = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    (folder / "model.fly").write_bytes(pack(arrays, config=config.to_fields(), codec="ans"))
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 5.5}\n')
    tensors = unpack(folder / "model.fly")
    quantized = Transformer(config)
    quantized.load_state_dict({name: torch.tensor(tensors[name]) for name in tensors})
    jobs = {"float": (model, "plain"), "quantized": (quantized, "plain")}
    jobs |= {"sliding": (quantized, "sliding"), "ttt": (quantized, "ttt")}
    results = {
        name: score_data(
            scored,
            data,
            SUITE[protocol],
            name=name,
            model_sha256=sha256(folder / "model.fly") if scored is quantized else "0" * 64,
            folder=folder / "score",
            deadline=deadline,
            show_progress=False,
        )
        for name, (scored, protocol) in jobs.items()
    }
    return {
        "recipe": {
            "name": "sample",
            "description": "Random weights | for tests.",
            "budget_bytes": 16_000_000,
            "calibrate": {"source": "train"},
            "score": {name: asdict(each) for name, each in SUITE.items()},
        },
        "seed": SEED,
        "data": {"tokenizer_sha256": data.tokenizer_sha256, "val_targets": data.val.tokens - 1},
        "versions": {"torch": torch.__version__},
        "machine": {"gpus": [], "cores": 2, "processor": "x86_64"},
        "stages": {
            "train": {"facts": {"steps": 1, "seconds": 0.5, "device": "cpu"}},
            "hessian": {"seconds": 0.25, "facts": {}},
            "code": {"facts": {"by_class": inspect(folder / "model.fly").by_class}},
            "score": {
                "finished": "2026-01-02T03:04:05+00:00",
                "facts": {"results": results, "weights_sha256": weights_sha256(tensors)},
            },
        },
    }


def bundle(out: Path, run: Path, data: DataInfo, manifest: dict[str, Any]) -> dict[str, Any]:
    """The submission folder of a run that `make_run` made."""
    return write_bundle(
        out,
        artifact=run / "model.fly",
        data=data,
        manifest=manifest,
        train_logs=[run / "log.jsonl"],
    )
