"""``flyweight recipe``: list the recipes, or show one resolved."""

from __future__ import annotations

import json

import click

from flyweight.cli.output import emit, json_option, table
from flyweight.recipes.load import load_recipe, recipe_names, resolve

__all__ = ["command"]


@click.group(epilog="Example: flyweight recipe show demo")
def command() -> None:
    """List the recipes that come with the package, or show one resolved."""


@command.command("list", epilog="Example: flyweight recipe list")
@json_option
def list_recipes(as_json: bool) -> None:
    """Names and purposes of all recipes."""
    recipes = [load_recipe(name) for name in recipe_names()]
    rows = [(recipe.name, recipe.description) for recipe in recipes]
    emit({"recipes": dict(rows)}, table(("recipe", "purpose"), rows), as_json=as_json)


@command.command("show", epilog="Example: flyweight recipe show demo --json")
@click.argument("name")
@json_option
def show_recipe(name: str, as_json: bool) -> None:
    """A recipe, by name or TOML file, with every default, and its parameters by component."""
    from flyweight.model.parameters import parameter_counts

    recipe = load_recipe(name)
    parameters = parameter_counts(recipe.model)
    rows = [*parameters.items(), ("total", sum(parameters.values()))]
    text = json.dumps(resolve(recipe), indent=1)
    emit(
        {"recipe": resolve(recipe), "parameters": dict(rows)},
        f"{text}\n\n{table(('component', 'parameters'), rows)}",
        as_json=as_json,
    )
