"""How a stream is scored; no torch is needed to read or check it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flyweight.errors import InvalidArgumentError

__all__ = ["AdaptConfig", "LoraConfig", "NgramConfig", "ScoreConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    """What learns from a chunk that was scored, and how.

    Raises
    ------
    InvalidArgumentError
        A value is out of its range.
    """

    learn: tuple[str, ...] = ("*",)
    """Parameters that learn, by patterns: ``blocks.9.*``, where ``*`` is any characters."""
    freeze: tuple[str, ...] = ()
    """Parameters that do not, although ``learn`` names them."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW without decay, or SGD with momentum; the state is kept from chunk to chunk."""
    learning_rate: float = 1e-4
    """At the first chunk."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Over the chunks that are learned from, to zero at the last of them, or not at all."""
    momentum: float = 0.9
    """Of SGD; of AdamW its first beta."""
    second_beta: float = 0.999
    """Of AdamW."""
    epochs: int = 3
    """Passes over a scored chunk."""
    sequences: int = 64
    """Sequences of ``seq_len`` in one optimizer step."""
    clip_norm: float = 1.0
    """Largest norm of a gradient."""
    ema_decay: float = 0.0
    """Scores are those of an average of the weights, ``ema = d ema + (1 - d) weights`` once a
    chunk; 0 scores with the weights themselves."""
    max_chunks: int = 0
    """Chunks that are learned from, the first ones; 0 is all."""

    def __post_init__(self) -> None:
        _check_choice("adapt.optimizer", self.optimizer, ("adamw", "sgd"))
        _check_choice("adapt.schedule", self.schedule, ("cosine", "constant"))
        _check_positive("adapt", self, ("learning_rate", "epochs", "sequences", "clip_norm"))
        for name in ("momentum", "second_beta", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidArgumentError(
                    f"score: adapt.{name}={getattr(self, name)}, expected 0 or more, below 1"
                )
        if self.max_chunks < 0:
            raise InvalidArgumentError(
                f"score: adapt.max_chunks={self.max_chunks}, expected 0 or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramConfig:
    """Hints from what followed the last tokens before.

    Raises
    ------
    InvalidArgumentError
        A value is out of its range.
    """

    orders: tuple[int, ...] = (2, 3, 4, 6)
    """Tokens of a context; the longest that is known names the hint."""
    table_bits: int = 20
    """log2 of the contexts that are kept, of each order."""

    def __post_init__(self) -> None:
        if not self.orders or any(not 1 <= order <= 64 for order in self.orders):
            raise InvalidArgumentError(f"score: ngram.orders={self.orders}, expected 1 to 64 each")
        if not 1 <= self.table_bits <= 28:
            raise InvalidArgumentError(
                f"score: ngram.table_bits={self.table_bits}, expected 1 to 28"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank additions of each document, and how they learn.

    Raises
    ------
    InvalidArgumentError
        A value is out of its range.
    """

    match: tuple[str, ...] = ("blocks.*.attn.*", "blocks.*.mlp.*")
    """Linears that get an addition, by patterns, where ``*`` is any characters."""
    rank: int = 8
    """Of an addition."""
    scale: float = 2.0
    """Of an addition."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    momentum: float = 0.0
    """Its first beta."""
    second_beta: float = 0.99
    """Its second beta."""
    weight_decay: float = 0.0
    """Of AdamW."""
    step_targets: int = 48
    """Targets of a document that are scored under one state, and then learned from."""
    documents: int = 64
    """Documents side by side."""

    def __post_init__(self) -> None:
        names = ("rank", "scale", "learning_rate", "step_targets", "documents")
        _check_positive("lora", self, names)
        for name in ("momentum", "second_beta", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidArgumentError(
                    f"score: lora.{name}={getattr(self, name)}, expected 0 or more, below 1"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """One scoring protocol, complete: the same config and model give the same scores.

    Raises
    ------
    InvalidArgumentError
        A value is out of its range, or a table belongs to another protocol.
    """

    protocol: Literal["plain", "sliding", "score-first", "per-document"] = "sliding"
    """Blocks without overlap; windows that overlap; windows with training on what was scored;
    steps of each document with training that ends with it."""
    seq_len: int = 1024
    """Tokens that the model sees at once."""
    stride: int = 64
    """Targets that a window adds, 1 to ``seq_len``; plain blocks add ``seq_len``."""
    rolling: bool = False
    """sliding and score-first: no windows; each token is read once, and in every layer attends to
    the last ``seq_len`` tokens. ``stride`` has no meaning then, and nothing of scoring compiles."""
    batch_windows: int = 0
    """Windows in one forward pass; 0 is as many as memory holds."""
    chunk_targets: int = 32768
    """Targets scored under one frozen state and written to the ledger at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; losses are float32 and their sums float64 in either case."""
    compile: Literal[False, True, "auto"] = False
    """Compile the usual shapes of scoring and learning, before the clock starts; others run as they
    are: the first window, what is left at the end, windows of a document that still grow. ``auto``
    does where that ends sooner: not for a short text where the operations are fused already."""
    adapt: AdaptConfig | None = None
    """score-first: the training."""
    lora: LoraConfig | None = None
    """per-document: the additions and their training."""
    ngram: NgramConfig | None = None
    """sliding and score-first: hints from what was scored, over the whole vocabulary."""

    def __post_init__(self) -> None:
        protocols = ("plain", "sliding", "score-first", "per-document")
        _check_choice("protocol", self.protocol, protocols)
        _check_choice("precision", self.precision, ("float32", "bfloat16"))
        _check_choice("compile", self.compile, (False, True, "auto"))
        _check_positive("", self, ("seq_len", "stride", "chunk_targets"))
        if self.batch_windows < 0:
            raise InvalidArgumentError(
                f"score: batch_windows={self.batch_windows}, expected 0 or more"
            )
        if self.has_windows and self.stride > self.seq_len:
            raise InvalidArgumentError(
                f"score: stride={self.stride} would skip targets, expected at most "
                f"seq_len={self.seq_len}"
            )
        for name, owner in (("adapt", "score-first"), ("lora", "per-document")):
            if (getattr(self, name) is not None) != (self.protocol == owner):
                raise InvalidArgumentError(
                    f"score: {name}={getattr(self, name)} with protocol {self.protocol!r}: a table "
                    f"{name} belongs to {owner}, and that needs one"
                )
        if self.lora is not None and self.lora.step_targets > self.seq_len:
            raise InvalidArgumentError(
                f"score: lora.step_targets={self.lora.step_targets}, expected at most "
                f"seq_len={self.seq_len}"
            )
        if self.rolling and not self.has_windows:
            raise InvalidArgumentError(
                f"score: rolling does not go with protocol {self.protocol!r}"
            )
        if self.ngram is not None and self.rolling:
            raise InvalidArgumentError("score: a table ngram does not go with rolling")
        if self.ngram is not None and not self.has_windows:
            raise InvalidArgumentError(
                f"score: a table ngram does not go with protocol {self.protocol!r}"
            )

    @property
    def has_windows(self) -> bool:
        """Whether windows overlap, and add ``stride`` targets each."""
        return self.protocol in ("sliding", "score-first")

    @property
    def method(self) -> str:
        """The protocol, and what it scores with: what an engine is chosen by."""
        if self.rolling:
            return f"{self.protocol} with rolling context"
        return self.protocol if self.ngram is None else f"{self.protocol} with hints"

    @classmethod
    def from_table(cls, values: Mapping[str, Any]) -> ScoreConfig:
        """The config that `dataclasses.asdict` made a table of."""
        tables: dict[str, Any] = {}
        for name, kind in _TABLES.items():
            table = values.get(name)
            if table is not None:
                lists = {k: tuple(v) for k, v in table.items() if isinstance(v, list)}
                tables[name] = kind(**{**table, **lists})
        return cls(**{**values, **tables})


_TABLES: dict[str, Any] = {"adapt": AdaptConfig, "lora": LoraConfig, "ngram": NgramConfig}


def _check_choice(name: str, value: str | bool, choices: tuple[str | bool, ...]) -> None:
    if value not in choices:
        expected = " or ".join(map(str, choices))
        raise InvalidArgumentError(f"score: {name}={value!r}, expected {expected}")


def _check_positive(table: str, config: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if not (value > 0 and math.isfinite(value)):
            where = f"{table}.{name}" if table else name
            raise InvalidArgumentError(f"score: {where}={value}, expected more than 0")
