"""How a checkpoint is quantized: one rule per kind of tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

from flyweight.errors import InvalidArgumentError

__all__ = ["DEFAULT_K", "QuantConfig", "QuantRule"]

DEFAULT_K = {4: 5.0, 5: 8.0, 6: 12.85, 7: 15.0, 8: 20.0}
"""SDClip's ``k`` where a user names only the bits: 6 and 8 as in the challenge's pull request 1394,
7 as in 1626; 4 and 5 continue the row of steps (about 0.71 and 0.53 standard deviations)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantRule:
    """A grid for the tensors whose name matches."""

    match: str
    """Shell-style pattern over tensor names, such as ``blocks.*.mlp.*``."""
    bits: int
    """Nominal bits, 2 to 8: codes ``-(2**(bits-1)-1) .. 2**(bits-1)-1``."""
    k: float
    """Where the grid clips, in standard deviations of a row (SDClip); it sets the coded size."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InvalidArgumentError(f"rule {self.match!r}: bits must be 2 to 8, got {self.bits}")
        if not 0 < self.k < math.inf:
            raise InvalidArgumentError(f"rule {self.match!r}: k must be positive, got {self.k}")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """Rules in order, the first match wins; what none matches is kept in float."""

    rules: tuple[QuantRule, ...]
    """Grids for float tensors of two or more axes."""
    min_elements: int = 4096
    """Smaller tensors are kept in float whatever their name."""
    passthrough_dtype: str = "float16"
    """Float tensors that are kept are stored so; ``source`` stores them as they come."""
    damp_ratio: float = 0.01
    """Share of the mean diagonal added to each Hessian."""
    act_order: bool = True
    """Columns by falling Hessian diagonal."""
    block_cols: int = 128
    """Columns updated lazily together."""

    def __post_init__(self) -> None:
        if self.passthrough_dtype not in ("float16", "source"):
            raise InvalidArgumentError(
                f"passthrough_dtype must be float16 or source, got {self.passthrough_dtype!r}"
            )
        if not 0 <= self.damp_ratio < math.inf or self.block_cols < 1 or self.min_elements < 0:
            raise InvalidArgumentError(
                "damp_ratio and min_elements must be 0 or more and block_cols 1 or more, got "
                f"{self.damp_ratio}, {self.min_elements}, {self.block_cols}"
            )

    @classmethod
    def uniform(cls, bits: int) -> QuantConfig:
        """One grid for every matrix, with the default ``k`` of its bits (4 to 8)."""
        if bits not in DEFAULT_K:
            raise InvalidArgumentError(f"bits must be 4 to 8, got {bits}")
        return cls(rules=(QuantRule(match="*", bits=bits, k=DEFAULT_K[bits]),))

    def rule_for(self, name: str) -> QuantRule | None:
        """The first rule whose pattern matches the tensor's name."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.match)), None)
