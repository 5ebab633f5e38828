"""Everything that flyweight raises on purpose, one tree.

The C++ extension throws the same kinds; ``csrc/bindings/module.cpp`` maps them once. A message says
what is wrong, what was expected, what was found and where.
"""

from __future__ import annotations

__all__ = [
    "BudgetExceededError",
    "CorruptStreamError",
    "DataError",
    "FlyweightError",
    "InvalidArgumentError",
    "MissingDependencyError",
    "PeerError",
    "RecipeError",
    "UnsupportedError",
]


class FlyweightError(Exception):
    """Base of every error that flyweight raises on purpose."""


class InvalidArgumentError(FlyweightError, ValueError):
    """An argument has a wrong value, shape or range."""


class CorruptStreamError(FlyweightError, ValueError):
    """Coded bytes break a rule of ``docs/format.md``: truncated, flipped or lying about sizes."""


class UnsupportedError(FlyweightError, RuntimeError):
    """The bytes are well formed, but of a version, codec or layout that this build cannot read."""


class BudgetExceededError(FlyweightError, RuntimeError):
    """What was asked for does not fit into the byte budget or the buffer."""


class DataError(FlyweightError, ValueError):
    """A file the user gave (shard, tokenizer, checkpoint, run folder) is not what it should be."""


class RecipeError(FlyweightError, ValueError):
    """A recipe has an unknown key, a wrong type or a value out of range."""


class MissingDependencyError(FlyweightError, ImportError):
    """An optional package is not installed; the message says how to get it."""


class PeerError(FlyweightError, RuntimeError):
    """Another process of a run of several ended, and with it this one."""
