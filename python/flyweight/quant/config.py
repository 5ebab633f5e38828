"""How a checkpoint is quantized: one rule per kind of tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Literal

from flyweight.errors import InvalidArgumentError
from flyweight.quant.grid import Grid
from flyweight.quant.scale_rules import SCALE_RULES

__all__ = ["DEFAULT_K", "QuantConfig", "QuantRule"]

DEFAULT_K = {4: 5.0, 5: 8.0, 6: 12.85, 7: 15.0, 8: 20.0}
"""SDClip's ``k`` where a user names only the bits: 6 and 8 as in the challenge's pull request 1394,
7 as in 1626; 4 and 5 continue the row of steps (about 0.71 and 0.53 standard deviations)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantRule:
    """A grid and a scale rule for the tensors whose name matches."""

    match: str
    """Shell-style pattern over tensor names, such as ``blocks.*.mlp.*``."""
    bits: int | None = None
    """Nominal bits of an integer grid, 2 to 8; ``levels`` instead for fewer codes."""
    levels: Literal["ternary", "pentanary"] | None = None
    """Codes -1 to 1, or -2 to 2, instead of ``bits``."""
    scale: str = "sdclip"
    """Name of the scale rule, one of ``SCALE_RULES`` (quant/scale_rules.py)."""
    k: float | None = None
    """Of SDClip: where the grid clips, in standard deviations of a row; it sets the coded size."""
    group_size: int = 0
    """Columns that share a scale; 0 means the whole row."""
    is_symmetric: bool = True
    """Codes ``-(2**(bits-1)-1) .. 2**(bits-1)-1`` without zero-points; else all ``2**bits`` codes
    with zero-points, which only the scale rule ``min-max`` finds."""

    def __post_init__(self) -> None:
        try:
            self._check()
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"rule {self.match!r}: {error}") from error

    def _check(self) -> None:
        if (self.bits is None) == (self.levels is None):
            raise InvalidArgumentError("takes either bits or levels")
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise InvalidArgumentError(f"bits must be 2 to 8, got {self.bits}")
        if self.scale not in SCALE_RULES:
            known = ", ".join(SCALE_RULES)
            raise InvalidArgumentError(f"no scale rule {self.scale!r}; there are {known}")
        rule, grid = SCALE_RULES[self.scale], self.build_grid()
        if rule.takes_k != (self.k is not None):
            needs = "needs k" if rule.takes_k else f"has no k, got {self.k}"
            raise InvalidArgumentError(f"scale rule {self.scale!r} {needs}")
        if self.k is not None and not 0 < self.k < math.inf:
            raise InvalidArgumentError(f"k must be positive, got {self.k}")
        if rule.is_symmetric != self.is_symmetric:
            kind = "symmetric" if rule.is_symmetric else "affine"
            raise InvalidArgumentError(f"scale rule {self.scale!r} is for {kind} grids")
        if grid.hi > rule.max_code:
            raise InvalidArgumentError(
                f"scale rule {self.scale!r} is for codes up to {rule.max_code}, got {grid.hi}"
            )

    def build_grid(self) -> Grid:
        """What the codes of a matching tensor mean."""
        if self.levels is not None and not self.is_symmetric:
            raise InvalidArgumentError(f"{self.levels} grids are symmetric")
        if self.levels is not None:
            build = Grid.ternary if self.levels == "ternary" else Grid.pentanary
            return build(group_size=self.group_size)
        assert self.bits is not None  # checked when the rule was made
        build_integer = Grid.symmetric if self.is_symmetric else Grid.affine
        return build_integer(self.bits, group_size=self.group_size)


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

    def grid_settings(self) -> dict[str, object]:
        """What says which tensors are put on which grids, in plain types: all but the solver's."""
        return {"rules": [asdict(rule) for rule in self.rules], "min_elements": self.min_elements}

    def rule_for_array(self, name: str, shape: tuple[int, ...]) -> QuantRule | None:
        """The rule that puts a float tensor on a grid; None where it is kept in float."""
        is_wanted = len(shape) >= 2 and math.prod(shape) >= max(self.min_elements, 1)
        return self.rule_for(name) if is_wanted else None
