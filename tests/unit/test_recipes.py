"""Recipes are complete, and every mistake in one is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flyweight.errors import InvalidArgumentError, RecipeError
from flyweight.recipes.load import build, load_recipe, recipe_names, resolve
from flyweight.recipes.schema import Recipe


def demo() -> dict:
    """The demo recipe as plain values, to be broken."""
    return resolve(load_recipe("demo"))


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_survive_being_resolved(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description.endswith(".")
    assert build(Recipe, resolve(recipe), where=name) == recipe


@pytest.mark.parametrize("name", ["flyweight", "pr578", "pr585", "pr1683"])
def test_calibration_on_training_text_fits_the_clock_of_600_seconds(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.calibrate.source == "train"
    assert recipe.calibrate.max_seconds > 0
    # A step and a batch over, and the stage around the batches.
    assert recipe.train.max_seconds + recipe.calibrate.max_seconds <= 595


def test_names() -> None:
    assert {"demo", "flyweight", "tiny-sp1024"} <= set(recipe_names())
    message = r"no recipe 'nothing'; there are demo, flyweight.*, or a path that ends in \.toml"
    with pytest.raises(RecipeError, match=message):
        load_recipe("nothing")
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe("nothing.toml")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("modle",), {}, "unknown key 'modle'"),
        (("model", "layers"), 3, "demo: model: unknown key 'layers'; known are"),
        (("model", "num_layers"), "3", "demo: model: num_layers must be int, got '3'"),
        (("model", "num_layers"), True, "num_layers must be int, got True"),
        (("model", "num_layers"), 0, "num_layers=0"),
        (("model", "softcap"), "30", "softcap must be float"),
        (("model", "vocab_size"), 512, "vocab_size 1024 differs from model.vocab_size 512"),
        (("train", "optim", "momentum"), 1.5, "momentum"),
        (("train", "max_steps"), -1, "max_steps"),
        (("quantize", "rules"), {}, "rules must be a list"),
        (("quantize", "rules", 0, "bits"), 9, r"rules\[0\]: rule 'tok_emb.weight': bits must be"),
        (("quantize", "rules", 0, "scale"), "best", "no scale rule 'best'; there are row-max"),
        (("quantize", "rules", 0, "levels"), "senary", "levels must be one of 'ternary', 'pent"),
        (("quantize", "rules", 0, "levels"), "ternary", "takes either bits or levels"),
        (("quantize", "rules", 0, "is_symmetric"), 0, "is_symmetric must be bool"),
        (("quantize", "passthrough_dtype"), "int8", "passthrough_dtype"),
        (("code", "effort"), "some", "effort must be one of 'default', 'max'"),
        (("score", "plain", "protocol"), "sliding", "score.plain must have protocol 'plain'"),
        (("score", "sliding", "stride"), 0, "stride=0"),
        (("calibrate", "batches"), 0, "batches"),
        (("calibrate", "source"), "test", "source must be one of 'train', 'generate'"),
        (("calibrate", "temperature"), 0.5, "temperature needs source 'generate'"),
        (("calibrate", "temperature"), -1.0, "temperature must be above 0"),
        (("calibrate", "max_seconds"), -1.0, "max_seconds must be 0 or more"),
        (("budget_bytes",), 0, "budget_bytes"),
        (("seed",), -1, "seed must be 0 to"),
        (("seed",), 1 << 63, "seed must be 0 to"),
        (("code", "codec"), "zip", "no codec 'zip'; there are"),
        (("score", "ttt", "seq_len"), 512, "score.ttt.seq_len 512 is more than model.seq_len 256"),
        (("quantize", "damp_ratio"), float("nan"), "damp_ratio must be finite"),
        (("quantize", "rules", 0, "k"), float("inf"), "k must be finite"),
        (("quantize", "rules", 0, "k"), 10**400, "k must be finite"),
        (("data",), 3, "data must be a table"),
        (("train", "checkpoint_seconds"), float("inf"), "checkpoint_seconds must be finite"),
        (("train", "grad_clip"), float("nan"), "grad_clip must be finite"),
    ],
)
def test_mistakes_are_named(path: tuple, value: object, message: str) -> None:
    values = demo()
    target = values
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(RecipeError, match=message):
        build(Recipe, values, where="demo")


def test_rules_of_every_grid() -> None:
    values = demo()
    values["quantize"]["rules"] = [
        {"match": "a", "levels": "pentanary", "scale": "threshold", "group_size": 64},
        {"match": "b", "bits": 4, "scale": "min-max", "is_symmetric": False},
        {"match": "c", "bits": 6, "k": 12.85},
    ]
    recipe = build(Recipe, values, where="demo")
    grids = [rule.build_grid() for rule in recipe.quantize.rules]
    assert [grid.alphabet_size for grid in grids] == [5, 16, 63]
    assert build(Recipe, resolve(recipe), where="demo") == recipe


def test_missing_keys_are_named() -> None:
    values = demo()
    del values["model"]["num_layers"]
    with pytest.raises(RecipeError, match="demo: model: key 'num_layers' is missing"):
        build(Recipe, values, where="demo")


def test_whole_numbers_stand_for_floats() -> None:
    values = demo()
    values["model"]["softcap"] = 30
    assert build(Recipe, values, where="demo").model.softcap == 30.0


def test_broken_toml(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("name = ")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(str(path))
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(str(path))
    path.write_text("name = " + "[" * 100_000)
    with pytest.raises(RecipeError, match="nested too deeply"):
        load_recipe(str(path))


def test_sequential_calibration_is_for_grids_by_rule() -> None:
    recipe = load_recipe("tiny-sp1024")
    with pytest.raises(InvalidArgumentError, match="neither sensitivities nor max_seconds"):
        replace(recipe.calibrate, sequential=True)
    calibrate = replace(recipe.calibrate, sequential=True, sensitivities=False)
    with pytest.raises(InvalidArgumentError, match="fit chooses all steps jointly"):
        replace(recipe, calibrate=calibrate)
