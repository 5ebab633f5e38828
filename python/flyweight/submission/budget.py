"""Byte counts of a submission against the cap.

References
----------
openai/parameter-golf: code bytes plus compressed model bytes, at most 16,000,000, decimal.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

__all__ = ["CAP_BYTES", "ByteBudget", "CodeReadings", "read_code"]

CAP_BYTES = 16_000_000
"""The challenge's cap on code and model together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteBudget:
    """What a submission weighs."""

    code_bytes: int
    """Bytes of ``train_gpt.py`` as shipped."""
    model_bytes: int
    """Bytes of the artifact."""
    budget_bytes: int = CAP_BYTES
    """What both together may have."""

    @property
    def total_bytes(self) -> int:
        """Code and model."""
        return self.code_bytes + self.model_bytes

    @property
    def margin_bytes(self) -> int:
        """What is left of the budget; negative if it is exceeded."""
        return self.budget_bytes - self.total_bytes

    def __str__(self) -> str:
        state = "under" if self.margin_bytes >= 0 else "OVER"
        return (
            f"{self.code_bytes:,} code + {self.model_bytes:,} model = {self.total_bytes:,} bytes, "
            f"{abs(self.margin_bytes):,} {state} the budget of {self.budget_bytes:,}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeReadings:
    """The three ways in which entries of the challenge counted their code."""

    shipped: int
    """Bytes of the script in the folder; the one that flyweight counts."""
    wrapped: int | None
    """The same where the script is a self-extractor, None where it is plain source."""
    computed: int | None
    """What the record says; some count a wrapper that is only built in memory."""

    @property
    def agree(self) -> bool:
        """Whether all that are known are one number."""
        return {self.wrapped, self.computed} <= {self.shipped, None}

    def __str__(self) -> str:
        wrapped = "no self-extractor" if self.wrapped is None else f"{self.wrapped:,}"
        computed = "not in the record" if self.computed is None else f"{self.computed:,}"
        return f"code as shipped {self.shipped:,}, wrapped: {wrapped}, as recorded: {computed}"


def read_code(script: ast.Module, *, size: int, recorded: int | None) -> CodeReadings:
    """The readings of one script, without running it.

    Parameters
    ----------
    script : the parsed script; a call of ``exec`` makes it a self-extractor
    size : bytes of the file
    recorded : what the record counts
    """
    extracts = any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "exec"
        for node in ast.walk(script)
    )
    return CodeReadings(shipped=size, wrapped=size if extracts else None, computed=recorded)
