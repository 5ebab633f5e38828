"""All that a training run needs to go on after it was stopped, in one safetensors file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from flyweight.errors import DataError
from flyweight.interop import read_safetensors, write_safetensors
from flyweight.model.checkpoint import load_weights
from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer
from flyweight.quant.config import QuantConfig
from flyweight.train.averaging import Average, new_average
from flyweight.train.config import HOW_NOT_WHAT, TrainConfig
from flyweight.train.distributed import World
from flyweight.train.optim import Muon, build_optimizers, parameters_of
from flyweight.typing import AnyArray

__all__ = ["TrainState", "load_state", "new_state", "save_state", "settings_of"]

_FREE_TO_CHANGE = HOW_NOT_WHAT | {"device"}
"""Fields of TrainConfig that a resumed run may have other values for. The budget is not one of
them: the schedule follows it."""
_MODEL, _AVERAGE, _OPTIMIZER, _COUNTERS = "model.", "average.", "optimizer.", "counters"


@dataclass(slots=True, kw_only=True)
class TrainState:
    """What changes while a model is trained.

    Notes
    -----
    There is no random state: after the initial weights nothing is drawn, and the order of the data
    is a function of seed and step.
    """

    model: Transformer
    """The weights being trained, float32."""
    muon: Muon
    """Trains the matrices."""
    adamw: AdamW
    """Trains everything else."""
    average: Average
    """What is exported instead of the last weights."""
    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Training clock."""
    loss: float = float("nan")
    """Loss of the last step that was looked at, nats per token."""


def new_state(
    model_config: ModelConfig, config: TrainConfig, *, seed: int, world: World
) -> TrainState:
    """The start of a run; initial weights are drawn on the CPU, so the device does not matter."""
    model = Transformer(model_config)
    model.init_weights(torch.Generator().manual_seed(seed))
    model.to(world.device)
    muon, adamw = build_optimizers(model, config.optim, world)
    average = new_average(config, dict(model.named_parameters()))
    return TrainState(model=model, muon=muon, adamw=adamw, average=average)


def settings_of(
    model: ModelConfig,
    config: TrainConfig,
    quantize: QuantConfig | None,
    *,
    seed: int,
    data: Sequence[str | int],
) -> str:
    """What must be equal for a run to be the same run, as JSON.

    Parameters
    ----------
    quantize : counts under ``config.qat`` alone, by its grids
    data : what tells each training shard from others
    """
    fields = dataclasses.asdict(config)
    training = {name: value for name, value in fields.items() if name not in _FREE_TO_CHANGE}
    whole = {
        "model": dataclasses.asdict(model),
        "train": training,
        "seed": seed,
        "data": list(data),
    }
    if config.qat is not None and quantize is not None:
        whole["quantize"] = quantize.grid_settings()
    return json.dumps(whole, sort_keys=True)


def save_state(
    path: str | os.PathLike[str], state: TrainState, *, settings: str, world: World
) -> None:
    """Write the state, atomically.

    Parameters
    ----------
    settings : describes the run, from :func:`settings_of`; :func:`load_state` refuses a state of
        another one
    world : all processes must call this at the same time; the first one writes. What it writes
        does not depend on how many there are
    """
    all_momentum = state.muon.momentum()
    if not world.is_first:
        return
    tensors: dict[str, Tensor] = {_MODEL + n: p for n, p in state.model.named_parameters()}
    tensors |= {_AVERAGE + name: value for name, value in state.average.state().items()}
    names = _names(state.model)
    for parameter, momentum in all_momentum.items():
        tensors[f"{_OPTIMIZER}{names[parameter]}.momentum"] = momentum.float()
    for parameter in parameters_of(state.adamw):
        for key, value in state.adamw.state[parameter].items():
            tensors[f"{_OPTIMIZER}{names[parameter]}.{key}"] = value
    arrays: dict[str, AnyArray] = {n: t.detach().cpu().numpy() for n, t in tensors.items()}
    arrays[_COUNTERS] = np.array([state.step, state.seconds, state.loss], dtype=np.float64)
    write_safetensors(path, arrays, metadata={"settings": settings, "step": str(state.step)})


@torch.no_grad()
def load_state(path: str | os.PathLike[str], state: TrainState, *, settings: str) -> None:
    """Replace a new state by the one that :func:`save_state` wrote.

    Raises
    ------
    DataError
        The file is damaged or belongs to a run with other settings.
    """
    arrays, metadata = read_safetensors(path)
    if metadata.get("settings") != settings:
        raise DataError(
            f"{path}: belongs to a run with another model, training config, budget, seed or data"
        )

    def saved(key: str, like: Tensor) -> Tensor:
        if key not in arrays:
            raise DataError(f"{path}: lacks tensor {key!r}")
        found = torch.tensor(arrays[key])
        if found.shape != like.shape or not found.isfinite().all():
            raise DataError(
                f"{path}: tensor {key!r} has shape {tuple(found.shape)}, expected "
                f"{tuple(like.shape)} and finite values"
            )
        return found

    load_weights(state.model, _under(arrays, _MODEL), source=os.fspath(path))
    for name, value in state.average.state().items():
        value.copy_(saved(_AVERAGE + name, value))
    names = _names(state.model)
    keys = {p: f"{_OPTIMIZER}{names[p]}.momentum" for p in parameters_of(state.muon)}
    state.muon.load_momentum({p: saved(key, p) for p, key in keys.items()})
    adamw = state.adamw.state_dict()
    for index, parameter in enumerate(parameters_of(state.adamw)):
        prefix = f"{_OPTIMIZER}{names[parameter]}."
        if _under(arrays, prefix):  # else it had no gradient yet
            like = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            adamw["state"][index] = {key: saved(prefix + key, t) for key, t in like.items()}
    state.adamw.load_state_dict(adamw)
    step, state.seconds, state.loss = saved(_COUNTERS, torch.zeros(3)).tolist()
    state.step = int(step)


def _names(model: Transformer) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _under(arrays: Mapping[str, AnyArray], prefix: str) -> dict[str, AnyArray]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
