"""Fit the best language model into the fewest bytes.

Importing this package loads no torch and touches no GPU: the names below are looked up in their
modules when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "fit": "flyweight.fitting",
    "pack": "flyweight.artifact",
    "unpack": "flyweight.artifact",
    "inspect": "flyweight.format.inspect",
    "open": "flyweight.format.container",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'flyweight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
