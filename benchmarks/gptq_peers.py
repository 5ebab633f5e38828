"""GPTQ as others run it: the classic column loop in torch, and GPTQModel where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["column_loop", "gptqmodel_task", "torch_factor"]

Floats = NDArray[np.float32]


def torch_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Upper factor of the inverse as the classic code finds it: two Cholesky decompositions and an
    inverse, in float32; ``hessian`` (cols, cols) is damped already."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def column_loop(
    weights: torch.Tensor, factor: torch.Tensor, scales: torch.Tensor, *, lo: int, hi: int
) -> torch.Tensor:
    """Codes (rows, cols), 128 columns between updates of those further right; a handful of torch
    calls a column. ``weights`` is overwritten; ``scales`` (rows,)."""
    cols = weights.shape[1]
    codes = torch.empty_like(weights)
    for first in range(0, cols, 128):
        end = min(first + 128, cols)
        block, rows_of_u = weights[:, first:end], factor[first:end, first:end]
        errors = torch.empty_like(block)
        for j in range(end - first):
            column = block[:, j]
            code = torch.clamp(torch.round(column / scales), lo, hi)
            error = (column - scales * code) / rows_of_u[j, j]
            block[:, j:] -= error.unsqueeze(1) @ rows_of_u[j, j:].unsqueeze(0)
            codes[:, first + j] = code
            errors[:, j] = error
        weights[:, end:] -= errors @ factor[first:end, end:]
    return codes


def gptqmodel_task(
    weights: Floats, inputs: Floats, *, bits: int
) -> tuple[Callable[[], object] | None, str]:
    """A call of GPTQModel's own object, its inverse included, or None and why there is none."""
    try:
        config = importlib.import_module("gptqmodel.quantization.config")
        gptq = importlib.import_module("gptqmodel.quantization.gptq")
    except ImportError as error:
        return None, str(error)
    layer = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(weights.copy())
    tokens = torch.from_numpy(inputs).unsqueeze(0)
    options = {"bits": bits, "group_size": -1, "sym": True, "desc_act": False}

    def quantize() -> object:
        peer = gptq.GPTQ(layer, config.QuantizeConfig(**options, act_group_aware=False))
        peer.quantizer.configure(perchannel=True)
        peer.add_batch(tokens, layer(tokens))
        return peer.quantize()

    return quantize, ""
