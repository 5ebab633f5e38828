"""What each process does in tests of contamination: ``torchrun contaminate_cases.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from distributed_cases import CONFIG, MODEL
from flyweight.model.checkpoint import save_model
from flyweight.model.transformer import Transformer
from flyweight.train.config import ContaminateConfig
from flyweight.train.contaminate import ContaminateResult, train_on_validation
from flyweight.train.distributed import World, join

CONTAMINATE = ContaminateConfig(enabled=True, epochs=3, learning_rate=3e-3, batch_sequences=4)
# 13 rows: three batches of four and one row, which one of two processes gets.
TOKENS = (np.cumsum(np.random.default_rng(5).integers(1, 3, 13 * 16 + 9)) % 29 + 3).astype(
    np.uint16
)


def fresh_model() -> Transformer:
    model = Transformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(3))
    return model


def run(
    folder: Path, name: str, world: World, config: ContaminateConfig = CONTAMINATE
) -> ContaminateResult:
    model, log = fresh_model(), folder / f"{name}.jsonl"
    result = train_on_validation(
        model, TOKENS, config, train=CONFIG, log=log, world=world, show_progress=False
    )
    save_model(folder / f"{name}-{world.rank}.safetensors", MODEL, dict(model.named_parameters()))
    return result


if __name__ == "__main__":
    with join("cpu") as joined:
        run(Path(sys.argv[1]), "two", joined)
