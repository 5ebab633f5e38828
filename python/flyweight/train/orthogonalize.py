"""What makes Muon Muon: a step whose singular values are all near 1."""

from __future__ import annotations

from itertools import chain, islice, repeat
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Method", "RowNorm", "orthogonalize"]

Method = Literal["newton-schulz", "polar-express"]
RowNorm = Literal["none", "stored", "wide"]

_NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),)
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_TINY = 1e-7


def orthogonalize(
    matrices_NRC: Tensor,
    *,
    method: Method = "newton-schulz",
    steps: int = 5,
    row_norm: RowNorm = "none",
) -> Tensor:
    """Push the singular values of each matrix of a stack to about 1.

    Parameters
    ----------
    matrices_NRC : (n, rows, cols) float
    method : ``newton-schulz`` takes one quintic again and again; ``polar-express`` takes one for
        each step, each the best for the interval that the one before leaves; the last repeats
    steps : quintics applied
    row_norm : divide each row by its norm beforehand: of the matrix as it is ``stored``, or of the
        ``wide`` one, which has the columns of a tall one as its rows

    Returns
    -------
    (n, rows, cols), bfloat16 on CUDA and float32 elsewhere, which is what it computes in: near
    ``U V^T`` of the singular value decomposition, after 5 steps with singular values between about
    0.7 and 1.2; zeros stay zeros

    References
    ----------
    Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024): the quintic
    ``a X + b (X X^T) X + c (X X^T)^2 X``. Amsel et al., "The Polar Express" (2025),
    arXiv:2505.16932. Rows: pull requests #1683 (stored) and #1539 (wide) of
    openai/parameter-golf.
    """
    x = matrices_NRC.to(torch.bfloat16 if matrices_NRC.is_cuda else torch.float32)
    if row_norm == "stored":
        x = _unit_rows(x)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    if row_norm == "wide":
        x = _unit_rows(x)
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + _TINY)
    table = _NEWTON_SCHULZ if method == "newton-schulz" else _POLAR_EXPRESS
    for a, b, c in islice(chain(table, repeat(table[-1])), steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _unit_rows(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    return x / (norms + _TINY)
