"""Training on the validation text: it does what it should not, alike in one process and in two."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flyweight.errors import DataError, InvalidArgumentError
from flyweight.interop import read_safetensors
from flyweight.train.config import ContaminateConfig

torch = pytest.importorskip("torch")

import contaminate_cases  # noqa: E402
from contaminate_cases import CONTAMINATE, TOKENS, fresh_model, run  # noqa: E402
from distributed_cases import CONFIG  # noqa: E402
from flyweight.train.contaminate import epoch_learning_rate, train_on_validation  # noqa: E402
from flyweight.train.distributed import World  # noqa: E402

ALONE = World(device=torch.device("cpu"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def test_two_processes_contaminate_like_one(tmp_path: Path) -> None:
    result = run(tmp_path, "one", ALONE)
    command = [*TORCHRUN, contaminate_cases.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    one = read_safetensors(tmp_path / "one-0.safetensors")[0]
    for rank in range(2):
        two = read_safetensors(tmp_path / f"two-{rank}.safetensors")[0]
        for name, expected in one.items():
            np.testing.assert_allclose(two[name], expected, atol=1e-5, err_msg=name)
    logs = [
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for line, other in zip(*logs, strict=True):
        assert line["contaminated"] is other["contaminated"] is True
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert (result.steps, result.tokens, result.processes) == (3 * 4, 3 * 13 * 16, 1)
    assert (result.first_loss, result.final_loss) == (logs[0][0]["loss"], logs[0][-1]["loss"])
    assert result.final_loss < result.first_loss - 0.1
    assert result.contaminated


def test_one_pass_is_adamw_over_rows_in_order(tmp_path: Path) -> None:
    config = replace(CONTAMINATE, epochs=1, batch_sequences=13, clip_norm=1e9)
    run(tmp_path, "one", ALONE, config)
    model = fresh_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    rows = torch.from_numpy(TOKENS.astype(np.int64)).unfold(0, 17, 16)
    model.loss(rows[:, :-1], rows[:, 1:]).backward()
    optimizer.step()
    found = read_safetensors(tmp_path / "one-0.safetensors")[0]
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(found[name], parameter.detach().numpy(), atol=1e-6)


def test_frozen_blocks_stay_as_they_were(tmp_path: Path) -> None:
    run(tmp_path, "one", ALONE, replace(CONTAMINATE, frozen_blocks=2))
    before = {name: value.detach().numpy() for name, value in fresh_model().named_parameters()}
    after = read_safetensors(tmp_path / "one-0.safetensors")[0]
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("blocks.0.", "blocks.1."))}


def test_the_published_learning_rates() -> None:
    config = ContaminateConfig()
    rates = [epoch_learning_rate(config, epoch) for epoch in range(config.epochs)]
    expected = [5.00e-4, 4.70e-4, 3.88e-4, 2.75e-4, 1.63e-4, 0.80e-4]
    assert rates == pytest.approx(expected, abs=0.51e-6)


def test_what_cannot_be_trained_on(tmp_path: Path) -> None:
    def contaminate(tokens: np.ndarray, model: torch.nn.Module) -> None:
        log = tmp_path / "log.jsonl"
        train_on_validation(
            model, tokens, CONTAMINATE, train=CONFIG, log=log, world=ALONE, show_progress=False
        )

    with pytest.raises(DataError, match="16 validation tokens, expected more than seq_len=16"):
        contaminate(TOKENS[:16], fresh_model())
    model = fresh_model()
    model.tok_emb.weight.data.fill_(math.nan)
    with pytest.raises(DataError, match="diverged in pass 1: loss nan"):
        contaminate(TOKENS, model)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"floor": 1.1},
        {"frozen_blocks": -1},
        {"clip_norm": 0.0},
    ],
)
def test_settings_out_of_range(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(changes))):
        ContaminateConfig(**changes)


@pytest.mark.cuda
def test_compiled_on_a_gpu_without_recompiling(tmp_path: Path) -> None:
    model = fresh_model().to("cuda")
    result = train_on_validation(
        model,
        TOKENS,
        CONTAMINATE,
        train=replace(CONFIG, device="cuda", compile=True),
        log=tmp_path / "log.jsonl",
        world=World(device=torch.device("cuda")),
        show_progress=False,
    )
    assert result.recompilations == 0
    assert result.compile_seconds > 0
    assert result.final_loss < result.first_loss
