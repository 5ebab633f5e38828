"""A model as a safetensors file, whose header has its config, and as an artifact."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from flyweight.errors import CorruptStreamError, DataError, UnsupportedError
from flyweight.format.container import open as open_fly
from flyweight.interop import read_safetensors, write_safetensors
from flyweight.model.config import ModelConfig
from flyweight.model.transformer import Transformer
from flyweight.typing import AnyArray

__all__ = ["load_artifact", "load_model", "load_weights", "save_model"]


def save_model(
    path: str | os.PathLike[str],
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Write weights and config, atomically; same input, same bytes.

    Parameters
    ----------
    labels : further entries of the header
    """
    arrays = {name: weight.detach().cpu().numpy() for name, weight in weights.items()}
    header = json.dumps(dataclasses.asdict(config), sort_keys=True)
    write_safetensors(path, arrays, metadata={"model_config": header, **(labels or {})})


def load_model(path: str | os.PathLike[str]) -> Transformer:
    """The model that :func:`save_model` wrote, on the CPU.

    Raises
    ------
    DataError
        Not such a file, or its tensors do not fit its config, or a weight is not finite.
    """
    arrays, metadata = read_safetensors(path)
    try:
        config = ModelConfig(**json.loads(metadata["model_config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no usable model_config in the header: {error}") from error
    model = Transformer(config)
    load_weights(model, arrays, source=os.fspath(path))
    return model


def load_artifact(path: str | os.PathLike[str]) -> tuple[Transformer, dict[str, AnyArray]]:
    """The model that a .fly file holds, on the CPU, and its tensors as they were decoded.

    Raises
    ------
    CorruptStreamError
        The file is damaged, or no .fly file, or its config lacks a field.
    UnsupportedError
        Its config has a field that this version does not know.
    DataError
        Its tensors do not fit its config, or a weight is not finite.
    """
    file = open_fly(path)
    file.verify()
    tensors = {name: file[name] for name in file}
    try:
        config = ModelConfig.from_fields(file.config())
    except (CorruptStreamError, UnsupportedError) as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error
    model = Transformer(config)
    load_weights(model, tensors, source=os.fspath(path))
    return model, tensors


@torch.no_grad()
def load_weights(model: Transformer, arrays: Mapping[str, AnyArray], *, source: str) -> None:
    """Copy arrays into the parameters of the same names.

    Parameters
    ----------
    source : where the arrays come from, for the error message

    Raises
    ------
    DataError
        A tensor is missing, unknown, of another shape, or not finite.
    """
    parameters = dict(model.named_parameters())
    for name in sorted(parameters.keys() ^ arrays.keys()):
        kind = "lacks" if name in parameters else "has an unknown"
        raise DataError(f"{source}: {kind} tensor {name!r}")
    for name, parameter in parameters.items():
        array = arrays[name]
        if array.shape != parameter.shape:
            raise DataError(
                f"{source}: tensor {name!r} has shape {array.shape}, expected "
                f"{tuple(parameter.shape)}"
            )
        if not np.isfinite(array).all():
            raise DataError(f"{source}: tensor {name!r} holds a value that is not finite")
        # torch does not know the bfloat16 of ml_dtypes.
        parameter.copy_(torch.tensor(array.astype(np.float32, copy=False)))
