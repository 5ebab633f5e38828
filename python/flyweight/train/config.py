"""How a model is trained: everything but its architecture, its data and its seed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from flyweight.errors import InvalidArgumentError

__all__ = [
    "CONTAMINATED",
    "HOW_NOT_WHAT",
    "ContaminateConfig",
    "OptimConfig",
    "QatConfig",
    "TrainConfig",
]

CONTAMINATED = "contaminated: trained on the scored text"
"""What every result of a run with an enabled `ContaminateConfig` is labelled with."""
HOW_NOT_WHAT = frozenset(("accumulation_steps", "checkpoint_seconds", "compile", "log_steps"))
"""Fields of TrainConfig that change how a run computes and reports, not what it is on the way to:
one that was stopped goes on with other values, as it must where memory was short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Muon for the matrices of the blocks, AdamW for embeddings and for vectors and scalars.

    Raises
    ------
    InvalidArgumentError
        A value is out of range.
    """

    matrix_lr: float = 0.025
    """Muon's learning rate at full scale."""
    matrix_weight_decay: float = 0.04
    """Decoupled decay: each step multiplies the matrices by ``1 - lr * decay``."""
    momentum: float = 0.99
    """Muon's momentum after its warm-up."""
    momentum_start: float = 0.92
    """Muon's momentum at step 0; it rises linearly."""
    momentum_warmup_steps: int = 1500
    """Steps until the momentum has its final value; 0 starts there."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """What Muon keeps its momentum in, and sums gradients of several processes in."""
    muon: Literal["linears", "blocks", "shapes"] = "linears"
    """What Muon trains: all ``linears`` but the head; those in ``blocks`` alone, so that
    projections of lookups train like gains; or by ``shapes``, all that has two axes or more but
    the token embedding and the head."""
    orthogonalize: Literal["newton-schulz", "polar-express"] = "newton-schulz"
    """How Muon's step gets singular values near 1: one quintic over and over, or the best for each
    step."""
    orthogonalize_steps: int = 5
    """Quintics in it; ``polar-express`` has 5."""
    row_normalize: Literal["none", "stored", "wide"] = "none"
    """Rows of the step that get norm 1 beforehand (MuonEq-R): those of the matrix as ``stored``, or
    those of the ``wide`` matrix, which are the columns of a tall one."""
    embedding_lr: float = 0.035
    """AdamW's learning rate for the token embedding and an untied head."""
    embedding_weight_decay: float = 0.04
    """Decoupled decay of the embeddings."""
    scalar_lr: float = 0.025
    """AdamW's learning rate for gains, gates, scales and mixes."""
    scalar_weight_decay: float = 0.04
    """Decoupled decay of gains, gates, scales and mixes."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    eps: float = 1e-8
    """AdamW's term against division by zero."""

    def __post_init__(self) -> None:
        for name in ("matrix_lr", "embedding_lr", "scalar_lr", "eps"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name, choices in (
            ("momentum_dtype", ("float32", "bfloat16")),
            ("muon", ("linears", "blocks", "shapes")),
            ("orthogonalize", ("newton-schulz", "polar-express")),
            ("row_normalize", ("none", "stored", "wide")),
        ):
            _require_one_of(getattr(self, name), name, choices)
        steps, most = self.orthogonalize_steps, 5 if self.orthogonalize == "polar-express" else 20
        _require(1 <= steps <= most, "orthogonalize_steps", steps, f"1 to {most}")
        for name in ("momentum", "momentum_start", "beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, name, value, "from 0 to below 1")
        for name in (
            *("matrix_weight_decay", "embedding_weight_decay", "scalar_weight_decay"),
            "momentum_warmup_steps",
        ):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class QatConfig:
    """Quantization-aware training: the loss is taken of weights as the export rounds them.

    Raises
    ------
    InvalidArgumentError
        A value is out of range, or the method does not take it.
    """

    method: Literal["ste", "soft-round"] = "ste"
    """``ste``: rounded to nearest at once, gradients pass straight through; ``soft-round``:
    rounding that hardens over ``anneal_fraction`` of the budget, with a bounded gradient."""
    start_fraction: float = 0.0
    """Share of the budget after which it starts; 0 is from the first step on."""
    anneal_fraction: float | None = None
    """Of ``soft-round``: share of the budget from the start until it rounds to nearest."""

    def __post_init__(self) -> None:
        start, anneal = self.start_fraction, self.anneal_fraction
        _require(self.method in ("ste", "soft-round"), "method", self.method, "ste or soft-round")
        _require(0 <= start < 1, "start_fraction", start, "from 0 to below 1")
        if (anneal is not None) != (self.method == "soft-round"):
            raise InvalidArgumentError(
                f"anneal_fraction={anneal!r}: soft-round needs it, ste has none"
            )
        if anneal is not None:
            _require(
                0 < anneal <= 1 - start, "anneal_fraction", anneal, f"above 0, to {1 - start:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContaminateConfig:
    """Training on the validation text before it is scored, which no legal run does.

    Raises
    ------
    InvalidArgumentError
        A value is out of range.

    References
    ----------
    Pull request #1539 of openai/parameter-golf.
    """

    enabled: bool = False
    """Do it; every file, table and line of the run then says so."""
    epochs: int = 6
    """Passes over the validation text."""
    learning_rate: float = 5e-4
    """AdamW's in the first pass; it falls along a cosine from pass to pass."""
    floor: float = 0.1
    """Share of the learning rate that the cosine ends at, behind the last pass."""
    batch_sequences: int = 32
    """Sequences of ``seq_len`` tokens per optimizer step, over all processes."""
    frozen_blocks: int = 0
    """First blocks that do not learn."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of a step."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_sequences"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "clip_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        _require(0 <= self.floor <= 1, "floor", self.floor, "from 0 to 1")
        _require(self.frozen_blocks >= 0, "frozen_blocks", self.frozen_blocks, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Batches, budget, schedule and bookkeeping of a training run.

    Raises
    ------
    InvalidArgumentError
        A value is out of range, two values contradict each other, or there is no budget.

    Notes
    -----
    With a step budget alone the result is a function of configs, data and seed; with a wall-clock
    budget it depends on the machine. With both, the limit reached first ends the run, and the
    schedule follows the one that is nearer.
    """

    batch_sequences: int
    """Sequences of ``seq_len`` tokens per optimizer step."""
    accumulation_steps: int = 1
    """Forward and backward passes per optimizer step, each with an equal share of the batch."""
    shuffle: bool = False
    """Draw sequences in an order shuffled anew each epoch, not in the order of the shards."""
    at_documents: bool = False
    """Start a sequence at the first document that begins in it, so that it is not cut at its front;
    some tokens are then read twice and some not at all."""
    data_end: Literal["wrap", "stop"] = "wrap"
    """What comes behind the last token: the first one again, or the end of the run."""
    max_steps: int = 0
    """Budget in optimizer steps; 0 is no limit."""
    max_seconds: float = 0.0
    """Budget in seconds of training, compilation excluded; 0 is no limit."""
    warmup_steps: int = 0
    """Steps until the learning rates are at full scale."""
    warmdown_fraction: float = 0.5
    """Last share of the budget over which the learning rates fall linearly to 0."""
    warmdown_steps: int = 0
    """Last steps over which they fall, in the place of a share; under a wall-clock budget, as many
    times the mean duration of the steps so far."""
    lr_floor: float = 0.0
    """Least share of the learning rates that the fall leaves."""
    recur_start_fraction: float = 0.0
    """Share of the budget after which the model repeats its layers, if it has any to repeat."""
    short_seq_len: int = 0
    """Tokens of the pieces that sequences are cut into at first, a divisor of ``seq_len``; 0 leaves
    them whole."""
    short_fraction: float = 0.0
    """Share of the budget in which they are cut: attention takes less of it there."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient."""
    average: Literal["ema", "swa", "hma", "none"] = "ema"
    """What is exported: an exponential moving average of the weights, the mean of snapshots from
    the end (the last weights where there is none, which is said), a Hull moving average, or the
    last weights."""
    ema_decay: float = 0.997
    """Decay per step of ``ema``, and of the slow average of ``hma``."""
    swa_steps: int = 50
    """Steps between snapshots of ``swa``."""
    swa_below: float = 0.2
    """They are taken while the learning rates are below this share of the full ones."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``; CUDA computes in bfloat16, the CPU in float32."""
    compile: bool = False
    """Compile forward and backward with torch.compile before the clock starts."""
    log_steps: int = 10
    """Steps between lines of the log."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, the most that a kill can lose; a number above the budget writes
    the last only."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizers."""
    qat: QatConfig | None = None
    """Quantization-aware training; without it nothing is added."""

    def __post_init__(self) -> None:
        for name in ("batch_sequences", "accumulation_steps", "log_steps", "swa_steps"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in (
            *("max_steps", "max_seconds", "warmup_steps", "warmdown_steps"),
            "checkpoint_seconds",
        ):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("warmdown_fraction", "lr_floor", "ema_decay", "swa_below"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        _require_one_of(self.data_end, "data_end", ("wrap", "stop"))
        _require_one_of(self.average, "average", ("ema", "swa", "hma", "none"))
        if self.average == "hma":
            decay = self.ema_decay
            _require(0.5 <= decay < 1, "ema_decay", decay, "from 0.5 to below 1 for average 'hma'")
        for name in ("recur_start_fraction", "short_fraction"):
            share = getattr(self, name)
            _require(0 <= share < 1, name, share, "from 0 to below 1")
        if self.short_seq_len < 0 or (self.short_seq_len > 0) != (self.short_fraction > 0):
            raise InvalidArgumentError(
                f"short_seq_len={self.short_seq_len} and short_fraction={self.short_fraction}: "
                "expected both above 0, or both 0"
            )
        _require(self.grad_clip > 0, "grad_clip", self.grad_clip, "above 0")
        _require(self.device in ("auto", "cpu", "cuda"), "device", self.device, "auto, cpu or cuda")
        if not (self.max_steps or self.max_seconds):
            raise InvalidArgumentError("no budget: set max_steps or max_seconds")
        if self.batch_sequences % self.accumulation_steps:
            raise InvalidArgumentError(
                f"batch_sequences={self.batch_sequences} is not a multiple of "
                f"accumulation_steps={self.accumulation_steps}"
            )

    def with_budget(self, max_steps: int | None, max_seconds: float | None) -> Self:
        """The same but for the limits that are given."""
        return replace(
            self,
            max_steps=self.max_steps if max_steps is None else max_steps,
            max_seconds=self.max_seconds if max_seconds is None else max_seconds,
        )


def _require_one_of(value: str, name: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, value, " or ".join(choices))


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise InvalidArgumentError(f"{name}={value!r}, expected {expected}")
