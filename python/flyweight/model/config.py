"""What a transformer is made of: one frozen record, stored in every artifact as numbered fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from typing import Any

from flyweight.errors import CorruptStreamError, InvalidArgumentError, UnsupportedError

__all__ = ["BOS_TOKEN", "ModelConfig"]

BOS_TOKEN = 1
"""Id of the token that opens every document in the challenge's shards."""

_FIELD_TYPES = {"int": int, "float": float, "bool": bool}
_NEEDED = {
    "smear_document_mask": "smear_gate",
    "smear_first": "smear_gate",
    "skip_gates": "unet_skips",
    "ve_own_proj": "ve_layers",
    "ve_zero_init": "ve_layers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and features of a :class:`~flyweight.model.transformer.Transformer`.

    Raises
    ------
    InvalidArgumentError
        A value is out of range, or two values contradict each other.

    Notes
    -----
    Ids are never reused. A field that holds its default is not stored, so the defaults are part of
    the file format: they stay as they are, and the default of a new feature is "off".
    """

    vocab_size: int = field(metadata={"id": 1})
    """Number of token ids."""
    num_layers: int = field(metadata={"id": 2})
    """Number of blocks."""
    model_dim: int = field(metadata={"id": 3})
    """Width of the residual stream."""
    num_heads: int = field(metadata={"id": 4})
    """Query heads; each is ``model_dim / num_heads`` wide."""
    num_kv_heads: int = field(metadata={"id": 5})
    """Key and value heads; each serves ``num_heads / num_kv_heads`` query heads."""
    mlp_hidden: int = field(metadata={"id": 6})
    """Hidden units of each MLP."""
    seq_len: int = field(metadata={"id": 7})
    """Tokens of context in training, and the longest window in scoring."""
    rope_dims: int = field(default=16, metadata={"id": 8})
    """Leading dimensions of each head that rotary positions turn; 0 leaves out positions."""
    rope_base: float = field(default=10000.0, metadata={"id": 9})
    """Base of the rotary frequencies."""
    rope_train_length: int = field(default=0, metadata={"id": 10})
    """Length that ``rope_base`` was made for; a longer ``seq_len`` stretches the base, 0 never."""
    qk_gain_init: float = field(default=1.5, metadata={"id": 11})
    """Start of the learned gain per query head, applied after QK norm and rotation."""
    softcap: float = field(default=30.0, metadata={"id": 12})
    """Logits are ``softcap * tanh(logits / softcap)``; 0 leaves them alone."""
    leaky_slope: float = field(default=0.0, metadata={"id": 13})
    """The MLP computes ``leaky_relu(x, leaky_slope) ** 2``; 0 is relu squared."""
    smear_gate: bool = field(default=False, metadata={"id": 14})
    """Mix each embedding with the one before it by a learned gate per channel."""
    smear_document_mask: bool = field(default=False, metadata={"id": 15})
    """Let the first token of a document (``BOS_TOKEN``) see nothing of the one before it."""
    unet_skips: bool = field(default=False, metadata={"id": 16})
    """Add outputs of the first half of the blocks, last one first, to inputs of the second."""
    resid_mix: bool = field(default=False, metadata={"id": 17})
    """Let each block start from a learned mix of the residual stream and the embedding."""
    ln_scale: bool = field(default=False, metadata={"id": 18})
    """Scale the normalized input of block l (from 0) by ``1 / sqrt(l + 1)``."""
    branch_scales: bool = field(default=False, metadata={"id": 19})
    """Learned scales per channel on the output of each attention and MLP."""
    tied_embeddings: bool = field(default=True, metadata={"id": 20})
    """Use the token embedding as output head."""
    embed_init_std: float = field(default=0.005, metadata={"id": 21})
    """Standard deviation of the initial embedding (and of an untied head)."""
    xsa_layers: int = field(default=0, metadata={"id": 22})
    """Last layers whose attention outputs lose their part along the position's own value (XSA)."""
    bigram_buckets: int = field(default=0, metadata={"id": 23})
    """Rows of a table for hashed pairs of tokens, added to the embedding; 0 is none."""
    bigram_dim: int = field(default=0, metadata={"id": 24})
    """Width of that table."""
    ve_layers: int = field(default=0, metadata={"id": 25})
    """Last layers that add a shared value embedding of the token to their values."""
    ve_dim: int = field(default=0, metadata={"id": 26})
    """Width of its table."""
    value_residual: bool = field(default=False, metadata={"id": 27})
    """Mix the values of each attention with those of the first, by two learned numbers."""
    gated_attention: bool = field(default=False, metadata={"id": 28})
    """Multiply each head's output by a learned sigmoid of the attention's input."""
    recur_first: int = field(default=0, metadata={"id": 29})
    """First of the blocks that run again, in order, after the last of them has run."""
    recur_last: int = field(default=0, metadata={"id": 30})
    """Last of them."""
    recur_passes: int = field(default=0, metadata={"id": 31})
    """How many times they run again; 0 is no recurrence."""
    skip_gates: bool = field(default=False, metadata={"id": 32})
    """Let a learned gate per channel choose between stream and skip, instead of adding the skip."""
    skip_init: float = field(default=1.0, metadata={"id": 33})
    """Start of the learned weights of the skips."""
    lanes_from: int = field(default=0, metadata={"id": 34})
    """First block from which on attentions and MLPs are two chains apart; 0 is one chain."""
    smear_first: bool = field(default=False, metadata={"id": 35})
    """Smear the token embedding before pairs and norm; what has none before it meets itself."""
    ve_own_proj: bool = field(default=False, metadata={"id": 36})
    """Project value embeddings by layer, and add them behind the value residual."""
    ve_zero_init: bool = field(default=False, metadata={"id": 37})
    """Start the shared projection of value embeddings at zero."""
    document_mask: bool = field(default=False, metadata={"id": 38})
    """Attend only within a document, which ``BOS_TOKEN`` opens; rotary positions restart there."""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_positions()
        self._check_lookups()
        self._check_order()
        for name in ("softcap", "qk_gain_init", "embed_init_std"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(0 <= self.leaky_slope < 1, "leaky_slope", self.leaky_slope, "from 0 to below 1")
        _require(isfinite(self.skip_init), "skip_init", self.skip_init, "a finite number")
        for name, other in _NEEDED.items():
            if getattr(self, name) and not getattr(self, other):
                raise InvalidArgumentError(f"{name}=True needs {other}")
        if self.ve_own_proj and self.ve_zero_init:
            raise InvalidArgumentError(
                "ve_zero_init=True is for a shared projection: with ve_own_proj=True scales start "
                "at 0, and projections at 0 would never learn"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.model_dim // self.num_heads

    @property
    def num_skips(self) -> int:
        """Steps of the second half that receive an output of the first."""
        return self.num_layers // 2 if self.unet_skips else 0

    def layer_order(self, *, recur: bool = True) -> tuple[int, ...]:
        """Blocks in the order in which they run, those that recur again after the last of them.

        Parameters
        ----------
        recur : False gives the order of a training that has not begun to recur
        """
        again = range(self.recur_first, self.recur_last + 1)
        passes = self.recur_passes if recur else 0
        behind = self.recur_last + 1
        return (*range(behind), *(tuple(again) * passes), *range(behind, self.num_layers))

    @property
    def stretched_rope_base(self) -> float:
        """Base of the rotary frequencies at ``seq_len``.

        Notes
        -----
        It depends on the configured length alone, so that a shorter window in scoring meets the
        same function of its tokens (NTK-aware rescaling: ``base * ratio ** (d / (d - 2))``).
        """
        if not 0 < self.rope_train_length < self.seq_len:
            return self.rope_base
        ratio = self.seq_len / self.rope_train_length
        return self.rope_base * float(ratio ** (self.rope_dims / (self.rope_dims - 2)))

    def to_fields(self) -> dict[int, int | float | bool]:
        """Numbered fields, ids rising; fields that hold their default are left out."""
        items = {f.metadata["id"]: getattr(self, f.name) for f in fields(self)}
        defaults = {f.metadata["id"]: f.default for f in fields(self)}
        return {key: items[key] for key in sorted(items) if items[key] != defaults[key]}

    @classmethod
    def from_fields(cls, values: Mapping[int, object]) -> ModelConfig:
        """The config that :meth:`to_fields` described.

        Raises
        ------
        UnsupportedError
            An id that this version does not know.
        CorruptStreamError
            A required field is missing, or a value has a wrong type or range.
        """
        known = {f.metadata["id"]: f for f in fields(cls)}
        for key in values:
            if key not in known:
                raise UnsupportedError(
                    f"model config: unknown field id {key}, this version knows 1 to {max(known)}"
                )
        for key, item in known.items():
            if item.default is MISSING and key not in values:
                raise CorruptStreamError(f"model config: field {item.name} (id {key}) is missing")
        named: dict[str, Any] = {}
        for key, value in values.items():
            name, kind = known[key].name, _FIELD_TYPES[str(known[key].type)]
            if type(value) is not kind:
                raise CorruptStreamError(
                    f"model config: field {name} (id {key}) holds {value!r}, expected a "
                    f"{kind.__name__}"
                )
            named[name] = value
        try:
            return cls(**named)
        except InvalidArgumentError as error:
            raise CorruptStreamError(f"model config: {error}") from error

    def _check_sizes(self) -> None:
        for name in ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_hidden"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.seq_len >= 1, "seq_len", self.seq_len, "at least 1")
        _require(1 <= self.vocab_size <= 65536, "vocab_size", self.vocab_size, "1 to 65536")
        if self.model_dim % self.num_heads:
            raise InvalidArgumentError(
                f"model_dim={self.model_dim} is not a multiple of num_heads={self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise InvalidArgumentError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )

    def _check_positions(self) -> None:
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_dim:
            raise InvalidArgumentError(
                f"rope_dims={self.rope_dims}, expected an even number from 0 to the head width "
                f"{self.head_dim}"
            )
        _require(self.rope_base > 1, "rope_base", self.rope_base, "above 1")
        _require(self.rope_train_length >= 0, "rope_train_length", self.rope_train_length, ">= 0")
        if self.rope_train_length and self.rope_dims < 4:
            raise InvalidArgumentError(
                f"rope_train_length={self.rope_train_length} needs rope_dims of at least 4, got "
                f"{self.rope_dims}"
            )

    def _check_lookups(self) -> None:
        for name in ("xsa_layers", "ve_layers"):
            value = getattr(self, name)
            _require(0 <= value <= self.num_layers, name, value, f"0 to {self.num_layers}, layers")
        buckets = self.bigram_buckets
        _require(buckets == 0 or buckets >= 2, "bigram_buckets", buckets, "0, or 2 and more")
        for size, width in (("bigram_buckets", "bigram_dim"), ("ve_layers", "ve_dim")):
            if (getattr(self, size) > 0) != (getattr(self, width) > 0) or getattr(self, width) < 0:
                raise InvalidArgumentError(
                    f"{size}={getattr(self, size)} with {width}={getattr(self, width)}, expected "
                    "both positive or both 0"
                )

    def _check_order(self) -> None:
        first, last, passes = self.recur_first, self.recur_last, self.recur_passes
        is_off = (first, last, passes) == (0, 0, 0)
        if not is_off and not (0 <= first <= last < self.num_layers and passes >= 1):
            raise InvalidArgumentError(
                f"recur_first={first}, recur_last={last}, recur_passes={passes}: expected blocks "
                f"of the {self.num_layers} in order and 1 pass or more, or all 0"
            )
        lowest = max(self.num_layers // 2, last + 1)
        if self.lanes_from and not lowest <= self.lanes_from < self.num_layers:
            raise InvalidArgumentError(
                f"lanes_from={self.lanes_from}, expected 0 or a block of the second half "
                f"({self.num_layers // 2} to {self.num_layers - 1}) behind recur_last={last}"
            )


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise InvalidArgumentError(f"{name}={value!r}, expected {expected}")
