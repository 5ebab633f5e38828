"""Recipes from TOML: complete runs, every key known, every value checked."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from flyweight.errors import InvalidArgumentError, RecipeError
from flyweight.recipes.schema import Recipe

__all__ = ["build", "load_recipe", "recipe_names", "resolve"]

T = TypeVar("T")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files("flyweight.recipes")
    return sorted(f.name[: -len(".toml")] for f in folder.iterdir() if f.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by name, or by path where ``name`` ends in ``.toml``.

    Raises
    ------
    RecipeError
        There is no such recipe, or a key is unknown, missing, of the wrong type or out of range;
        the message names it.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"{name}: no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{name}: not valid TOML: not UTF-8: {error.reason}") from error
    elif name in recipe_names():
        text = (files("flyweight.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise RecipeError(
            f"no recipe {name!r}; there are {', '.join(recipe_names())}, or a path that ends in "
            ".toml"
        )
    try:
        return build(Recipe, tomllib.loads(text), where=name)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"{name}: nested too deeply for a recipe") from error


def resolve(config: Any) -> Any:
    """A config as plain dictionaries, lists and numbers, defaults filled in."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: resolve(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [resolve(item) for item in config]
    return config


def build(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """A config dataclass from a mapping; the inverse of :func:`resolve`."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise RecipeError(
            f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(fields))}"
        )
    arguments = {}
    for name, value in values.items():
        arguments[name] = _convert(hints[name], value, f"{where}: {name}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in arguments:
            raise RecipeError(f"{where}: key {name!r} is missing")
    try:
        return cls(**arguments)
    except InvalidArgumentError as error:
        raise RecipeError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not types.NoneType]
        return None if value is None else _convert(options[0], value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            expected = ", ".join(map(repr, typing.get_args(hint)))
            raise RecipeError(f"{where} must be one of {expected}, got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where} must be a table, got {value!r}")
        return build(hint, value, where=where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{where} must be a list, got {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise RecipeError(f"{where} must be finite, got a number too large") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where} must be finite, got {value}")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecipeError(f"{where} must be {hint.__name__}, got {value!r}")
    return value
