"""Text from a model, token by token, with the keys and values of earlier positions kept.

Shapes: B sequences, T tokens, D model_dim, G key and value heads, K head_dim, V vocab_size,
L length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flyweight.errors import InvalidArgumentError
from flyweight.model.attention import Positions, document_ids, positions_in_documents
from flyweight.model.config import BOS_TOKEN
from flyweight.model.transformer import Transformer

__all__ = ["Continuation", "generate"]

_EMBED_CONTEXT = 3
"""Tokens that an embedding depends on: SmearGate takes that of the token before, whose bigram takes
the one before that."""


class Continuation:
    """Sequences that grow by one token at a time.

    Parameters
    ----------
    model : not compiled; runs under the caller's autocast, if any
    sequences : B
    length : L, most tokens of a sequence
    """

    def __init__(self, model: Transformer, *, sequences: int, length: int) -> None:
        self._model = model
        device = model.tok_emb.weight.device
        self._tokens_BL = torch.zeros(sequences, length, dtype=torch.int64, device=device)
        self._rope = model.rope_tables(length)
        self._caches = [_Cache(length) for _ in model.config.layer_order()]
        self._count = 0

    @property
    def tokens(self) -> Tensor:
        """Tokens so far, (B, T) int64."""
        return self._tokens_BL[:, : self._count]

    @torch.no_grad()
    def append(self, tokens_B: Tensor) -> Tensor:
        """Take one more token of each sequence.

        Parameters
        ----------
        tokens_B : (B,) int64, on the model's device

        Returns
        -------
        (B, V) float32 logits of the next one: those of the model's forward at the last position, up
        to rounding

        Raises
        ------
        InvalidArgumentError
            The sequences are full.
        """
        at = self._count
        if at == self._tokens_BL.shape[1]:
            raise InvalidArgumentError(f"the sequences already have their {at} tokens")
        self._tokens_BL[:, at] = tokens_B
        self._count = at + 1
        recent = self._tokens_BL[:, max(0, at + 1 - _EMBED_CONTEXT) : at + 1]
        x_B1D = self._model.embed(recent)[:, -1:]
        hidden_B1D = self._model.run_blocks(x_B1D, recent[:, -1:], self._newest(), self._caches)
        return self._model.logits(hidden_B1D)[:, 0]

    def _newest(self) -> Positions:
        """Where the newest tokens stand, whose documents may have begun at different columns."""
        tokens_BT, (cos_LR, sin_LR) = self.tokens, self._rope
        if not self._model.config.document_mask:
            newest = slice(self._count - 1, self._count)
            return Positions(cos_LR[newest], sin_LR[newest])
        ids_BT = document_ids(tokens_BT)
        places_BT = positions_in_documents(tokens_BT)[:, -1:]
        mask_B11T = (ids_BT == ids_BT[:, -1:])[:, None, None]
        return Positions(cos_LR[places_BT], sin_LR[places_BT], mask_B11T)


class _Cache:
    """Keys and values of one layer, at one of the times that it runs."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._count = 0
        self._kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        batch, groups, new, width = k_BGTK.shape
        if self._kept is None:
            shape = (batch, groups, self._length, width)
            self._kept = k_BGTK.new_empty(shape), v_BGTK.new_empty(shape)
        self._count += new
        for kept_BGLK, x_BGTK in zip(self._kept, (k_BGTK, v_BGTK), strict=True):
            kept_BGLK[:, :, self._count - new : self._count] = x_BGTK
        keys_BGLK, values_BGLK = self._kept
        return keys_BGLK[:, :, : self._count], values_BGLK[:, :, : self._count]


@torch.no_grad()
def generate(
    model: Transformer,
    *,
    sequences: int,
    length: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw sequences from a model, each opening with a document.

    Parameters
    ----------
    model : not compiled; runs under the caller's autocast, if any
    sequences : B
    length : L tokens of each, the opening ``BOS_TOKEN`` included
    temperature : above 0; what logits are divided by
    generator : on the model's device; equal ones give equal tokens on one machine

    Returns
    -------
    (B, L) int64 on the model's device

    Raises
    ------
    InvalidArgumentError
        A number is out of range.
    """
    if sequences < 1 or length < 1 or not temperature > 0:
        raise InvalidArgumentError(
            f"sequences={sequences}, length={length}, temperature={temperature}: expected 1 or "
            "more sequences and tokens, and a temperature above 0"
        )
    text = Continuation(model, sequences=sequences, length=length)
    device = model.tok_emb.weight.device
    next_B = torch.full((sequences,), BOS_TOKEN, dtype=torch.int64, device=device)
    for _ in range(length - 1):
        probabilities_BV = torch.softmax(text.append(next_B) / temperature, dim=-1)
        next_B = torch.multinomial(probabilities_BV, 1, generator=generator).squeeze(1)
    return torch.cat((text.tokens, next_B[:, None]), dim=1)
