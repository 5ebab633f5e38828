"""What each process does in tests of scoring: ``torchrun scoring_cases.py CASE FOLDER``."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from torch import nn

from flyweight.errors import FlyweightError
from flyweight.evaluate import sharded
from flyweight.evaluate.config import AdaptConfig, LoraConfig, NgramConfig, ScoreConfig
from flyweight.evaluate.scorer import WindowScorer
from flyweight.evaluate.sharded import Together, check_agreement, open_shared_ledger
from flyweight.evaluate.stream import StreamResult
from flyweight.evaluate.ttt import score_stream
from flyweight.train.distributed import World, join
from tiny_model import VOCAB, TinyModel, tiny_transformer

TOKENS = np.random.default_rng(11).integers(0, VOCAB, 459).astype(np.uint16)
CONFIGS = {
    name: ScoreConfig(
        protocol=protocol,  # type: ignore[arg-type]
        seq_len=16,
        stride=8,
        batch_windows=0 if name == "sliding-unequal-memory" else 3,
        chunk_targets=chunk_targets,
        adapt=AdaptConfig(
            learn=("blocks.1.*", "blocks.2.*"), epochs=2, learning_rate=1e-2, sequences=sequences
        )
        if protocol == "score-first"
        else None,
        lora=LoraConfig(match=("blocks.*.qkv",), step_targets=8, documents=2)
        if protocol == "per-document"
        else None,
        ngram=NgramConfig(orders=(1, 2), table_bits=10) if name == "hints" else None,
        rolling=name.startswith("rolling"),
    )
    for name, protocol, chunk_targets, sequences in (
        ("plain", "plain", 64, 1),
        ("sliding", "sliding", 64, 1),
        ("sliding-small-chunks", "sliding", 8, 1),  # fewer batches than processes
        ("sliding-unequal-memory", "sliding", 64, 1),
        ("hints", "sliding", 64, 1),
        ("rolling", "sliding", 200, 1),
        ("rolling-score-first", "score-first", 64, 3),
        ("per-document", "per-document", 200, 1),
        ("score-first", "score-first", 64, 3),
        ("score-first-single", "score-first", 64, 1),  # fewer sequences than processes
    )
}
CUT = ("score-first", "hints")
"""Have a ledger, and a journal, that an earlier life left."""


def model_of(name: str) -> nn.Module:
    return tiny_transformer() if CONFIGS[name].rolling else TinyModel()


def score(folder: Path, name: str, world: World, model: TinyModel | None = None) -> StreamResult:
    path = folder / f"{name}.ledger"
    WindowScorer.most_windows = {"cpu": 3 + world.rank}  # as if the second device held more
    targets = TOKENS.size - 1
    with open_shared_ledger(path, targets=targets, binding=bytes(32), world=world) as ledger:
        result = score_stream(
            model or model_of(name), TOKENS, ledger, CONFIGS[name], peers=Together(world)
        )
        check_agreement(ledger, world)
    np.save(folder / f"{name}-{world.rank}.npy", result.nats)
    return result


def fail(folder: Path, case: str, world: World) -> None:
    model = TinyModel()
    if case == "nan" and not world.is_first:
        model.head.weight.data.fill_(math.nan)
    if case == "forged" and not world.is_first:
        gathered = sharded.gather_in_order
        sharded.gather_in_order = lambda own, world: gathered(own, world) + 1e-9
    score(folder, "sliding", world, model)


def main(case: str, folder: Path) -> None:
    try:
        with join("cpu") as world:
            if case == "all":
                for name in CONFIGS:
                    score(folder, name, world)
            else:
                fail(folder, case, world)
    except FlyweightError as error:
        sys.exit(f"flyweight: {error}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
