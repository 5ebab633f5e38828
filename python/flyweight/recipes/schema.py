"""What a recipe is made of: the configs of their owners, composed, plus the glue of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import flyweight.codecs.select  # noqa: F401 - its codecs register themselves
from flyweight.codecs.codec import codec_by_name
from flyweight.errors import InvalidArgumentError
from flyweight.evaluate.config import ScoreConfig
from flyweight.fitting import FitConfig
from flyweight.model.config import ModelConfig
from flyweight.quant.config import QuantConfig
from flyweight.train.config import ContaminateConfig, TrainConfig

__all__ = ["CalibrationConfig", "CodeConfig", "DataConfig", "Recipe", "ScoreSuite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the tokens come from."""

    source: Literal["folder", "embedded"]
    """``folder``: what ``--data`` names; ``embedded``: the prose that Python itself carries."""
    vocab_size: int
    """Ids of the tokenizer; the data must have as many."""
    max_overlap: float = 0.0
    """Largest share of the validation documents that the training shards may hold too, token for
    token. Shards that `flyweight data build` made share none; published web text repeats a page
    now and then."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_overlap <= 1:
            raise InvalidArgumentError(f"max_overlap must be 0 to 1, got {self.max_overlap}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """Tokens that Hessians are collected from, and what else is."""

    batches: int
    """Forward passes."""
    batch_sequences: int
    """Sequences of the model's ``seq_len`` in each."""
    source: Literal["train", "generate"] = "train"
    """Training tokens, or tokens that the model draws itself."""
    temperature: float = 1.0
    """What logits are divided by where the model draws."""
    sensitivities: bool = False
    """Also run backward, for what an error in each row costs."""
    max_seconds: float = 0.0
    """No further batch is begun after that long, one is always counted; 0 is no limit."""
    sequential: bool = False
    """Block by block, from a model whose earlier blocks are quantized already; it takes a pass over
    the batches for each block and gains next to nothing (docs/experiments.md)."""

    def __post_init__(self) -> None:
        if self.batches < 1 or self.batch_sequences < 1:
            raise InvalidArgumentError(
                "batches and batch_sequences must be 1 or more, got "
                f"{self.batches} and {self.batch_sequences}"
            )
        if not self.temperature > 0:
            raise InvalidArgumentError(f"temperature must be above 0, got {self.temperature}")
        if self.temperature != 1.0 and self.source != "generate":
            raise InvalidArgumentError("temperature needs source 'generate'")
        if self.max_seconds < 0:
            raise InvalidArgumentError(f"max_seconds must be 0 or more, got {self.max_seconds}")
        if self.sequential and (self.sensitivities or self.max_seconds):
            raise InvalidArgumentError("sequential goes with neither sensitivities nor max_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeConfig:
    """How codes become bytes."""

    codec: str = "auto"
    """``auto``, or the name of one codec for everything."""
    effort: Literal["default", "max"] = "default"
    """How many candidates are tried."""

    def __post_init__(self) -> None:
        if self.codec != "auto":
            codec_by_name(self.codec)  # raises with the names that there are


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSuite:
    """The protocols a run reports."""

    plain: ScoreConfig
    """Blocks without overlap: the float model and the artifact, so that the two compare."""
    sliding: ScoreConfig
    """The artifact with overlapping windows."""
    ttt: ScoreConfig | None = None
    """The artifact with test-time training, score-first or per document."""

    def __post_init__(self) -> None:
        expected = {
            "plain": ("plain",),
            "sliding": ("sliding",),
            "ttt": ("score-first", "per-document"),
        }
        for name, protocols in expected.items():
            config = getattr(self, name)
            if config is not None and config.protocol not in protocols:
                raise InvalidArgumentError(
                    f"score.{name} must have protocol {' or '.join(map(repr, protocols))}, got "
                    f"{config.protocol!r}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A complete run."""

    name: str
    """What the run is called."""
    description: str
    """One sentence."""
    seed: int
    """Of weights and data order, unless the command line names another."""
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    calibrate: CalibrationConfig
    quantize: QuantConfig | None = None
    """Grids by rule; or ``fit``, which chooses steps for the budget."""
    fit: FitConfig | None = None
    """Steps of equal slope for what ``budget_bytes`` leaves."""
    contaminate: ContaminateConfig | None = None
    """Training on the validation text before it is scored, for no legal run."""
    code: CodeConfig = CodeConfig()
    score: ScoreSuite
    budget_bytes: int = 16_000_000
    """Model and code together must not exceed this; the audit checks it."""

    @property
    def is_contaminated(self) -> bool:
        """Whether all that the run comes to is of a model that was trained on the scored text."""
        return self.contaminate is not None and self.contaminate.enabled

    def __post_init__(self) -> None:
        frozen_blocks = self.contaminate.frozen_blocks if self.contaminate else 0
        if frozen_blocks > self.model.num_layers:
            raise InvalidArgumentError(
                f"contaminate.frozen_blocks {frozen_blocks} is more than "
                f"model.num_layers {self.model.num_layers}"
            )
        if self.data.vocab_size != self.model.vocab_size:
            raise InvalidArgumentError(
                f"data.vocab_size {self.data.vocab_size} differs from "
                f"model.vocab_size {self.model.vocab_size}"
            )
        for name in ("plain", "sliding", "ttt"):
            config = getattr(self.score, name)
            if config is not None and config.seq_len > self.model.seq_len:
                raise InvalidArgumentError(
                    f"score.{name}.seq_len {config.seq_len} is more than "
                    f"model.seq_len {self.model.seq_len}"
                )
        if (self.quantize is None) == (self.fit is None):
            raise InvalidArgumentError("a recipe has either a table quantize or a table fit")
        if self.fit is not None and self.train.qat is not None:
            raise InvalidArgumentError("train.qat rounds to the grids of quantize, not of fit")
        if self.fit is not None and self.calibrate.sequential:
            raise InvalidArgumentError(
                "calibrate.sequential quantizes block by block, fit chooses all steps jointly"
            )
        if not 0 <= self.seed < 1 << 63:
            raise InvalidArgumentError(f"seed must be 0 to 2**63 - 1, got {self.seed}")
        if self.budget_bytes < 1:
            raise InvalidArgumentError(f"budget_bytes must be positive, got {self.budget_bytes}")
