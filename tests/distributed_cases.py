"""What each process does in tests of several: ``torchrun distributed_cases.py CASE FOLDER``."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.data.shards import write_shard
from flyweight.errors import DataError, FlyweightError
from flyweight.model.config import ModelConfig
from flyweight.train import trainer
from flyweight.train.config import OptimConfig, TrainConfig
from flyweight.train.distributed import World, join
from flyweight.train.trainer import TrainResult, train

MODEL = ModelConfig(
    vocab_size=32,
    num_layers=3,  # stacks of odd length
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=32,
    seq_len=16,
    rope_dims=4,
    smear_gate=True,
    unet_skips=True,
    resid_mix=True,
    branch_scales=True,
    bigram_buckets=64,
    bigram_dim=8,
)
CONFIG = TrainConfig(
    batch_sequences=8,
    max_steps=12,
    shuffle=True,
    ema_decay=0.9,
    grad_clip=0.3,
    device="cpu",
    log_steps=1,
    checkpoint_seconds=0.0,
    optim=OptimConfig(momentum_warmup_steps=5),
)
CUT = 7


def write_data(folder: Path) -> None:
    """A noisy walk through the vocabulary."""
    steps = np.random.default_rng(0).integers(1, 3, size=1500)
    folder.mkdir()
    write_shard(folder / "fineweb_train_000000.bin", (np.cumsum(steps) % 29 + 3).astype(np.uint16))


def run(folder: Path, name: str, world: World | None = None, **changes: Any) -> TrainResult:
    config = dataclasses.replace(CONFIG, **changes)
    data = folder / "data"
    return train(MODEL, config, data, folder / name, seed=7, progress=False, world=world)


def run_until_cut(folder: Path, name: str, world: World | None = None) -> None:
    """A run that ends before its eighth step, as if the power had gone."""
    real_step = trainer._step

    def step(state: Any, *rest: Any) -> Any:
        if state.step == CUT:
            raise InterruptedError
        return real_step(state, *rest)

    trainer._step = step
    try:
        run(folder, name, world)
    except InterruptedError:
        trainer._step = real_step


def agree(folder: Path, world: World) -> None:
    """All that must come out as with one process."""
    run(folder, "two", world)
    run(folder, "two-accumulated", world, accumulation_steps=4)
    run_until_cut(folder, "two-then-one", world)
    run(folder, "one-then-two", world)


def fail(folder: Path, world: World, case: str) -> None:
    """Something happens in the last process at its fifth step."""
    real_step = trainer._step
    trainer.why_not_finite = lambda model, batch, loss: f"{len(batch)} rows were looked at"

    def step(state: Any, *rest: Any) -> Any:
        if case == "interrupt":
            time.sleep(0.1)
        if state.step == 4 and world.is_first and case == "kill-unnoticed":
            time.sleep(60)  # torchrun sees it first
        if state.step == 4 and not world.is_first:
            if case == "error":
                raise DataError("a bad shard")
            if case.startswith("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if case == "nan":
                state.model.tok_emb.weight.data.fill_(math.nan)
        return real_step(state, *rest)

    trainer._step = step
    run(folder, case, world, max_steps=200)


def main(case: str, folder: Path) -> None:
    try:
        with join("cpu") as world:
            if case == "agree":
                agree(folder, world)
            else:
                fail(folder, world, case)
    except FlyweightError as error:
        sys.exit(f"flyweight: {error}")
    except KeyboardInterrupt as error:
        sys.exit(f"flyweight: interrupted: {error}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
