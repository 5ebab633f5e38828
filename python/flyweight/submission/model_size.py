"""Whether a model is as large as its file says, told before memory for it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from flyweight.errors import DataError
from flyweight.model.config import ModelConfig
from flyweight.submission.claim import ARTIFACT_FILE

__all__ = ["check_model_size"]

_MOST = {"num_layers": 1024, "recur_passes": 64, "seq_len": 1 << 18}
"""Of what a model has no tensors of its own for."""


def check_model_size(tensors: Mapping[str, NDArray[Any]], fields: Mapping[int, object]) -> None:
    """Refuse a config that makes another model than that of the tensors; imports torch.

    Parameters
    ----------
    tensors, fields : what `decode_fly` returns

    Raises
    ------
    DataError
        Names or shapes are not those of the config, or it asks for more than any model has.
    """
    import torch

    from flyweight.model.transformer import Transformer

    config = ModelConfig.from_fields(fields)
    for name, most in _MOST.items():
        if getattr(config, name) > most:
            value = getattr(config, name)
            raise DataError(f"{ARTIFACT_FILE}: its config has {name}={value}, more than {most}")
    try:
        with torch.device("meta"):  # shapes without memory
            state = Transformer(config).state_dict()
    except (RuntimeError, OverflowError) as error:
        raise DataError(f"{ARTIFACT_FILE}: no model has its config: {error}") from error
    expected = {name: tuple(value.shape) for name, value in state.items()}
    found = {name: array.shape for name, array in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DataError(
                f"{ARTIFACT_FILE}: tensor {name!r} has shape {found.get(name)}, the model's config "
                f"wants {expected.get(name)}"
            )
