"""Several modules in one: what is kept, what is dropped, what is refused."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest

from flyweight.errors import DataError, InvalidArgumentError
from flyweight.evaluate.config import AdaptConfig, NgramConfig, ScoreConfig
from flyweight.submission.claim import Claim
from flyweight.submission.script import compose, read_claim, write_script

BASE = '''"""Docstring."""
from __future__ import annotations
import math
import zlib
from typing import Any
__all__ = ["half"]
LIMITS = {1: "a"}
LIMITS |= {2: "b"}
class Thing:
    """Docstring."""
def half(x: Any) -> Any:
    """Docstring."""
    return math.floor(x / len(LIMITS))
def unused():
    return zlib.crc32(b"")
'''
USER = """from __future__ import annotations
from typing import Literal
from flyweight.base import Thing, half
def main() -> Literal[3]:
    return half(6), Thing
"""


def test_only_what_is_reached_is_kept():
    text = compose({"flyweight.base": BASE, "flyweight.user": USER}, entries=["main"])
    scope = {}
    exec(text, scope)
    assert scope["main"]() == (3, scope["Thing"])
    assert "unused" not in text
    assert "zlib" not in text
    assert "Docstring" not in text
    assert "__all__" not in text
    assert "from typing" not in text
    assert "\n    return" not in text  # counted bytes: indented by one space
    assert text.startswith("from __future__ import annotations\nimport math\n")


def test_methods_are_kept_where_something_has_their_name():
    base = """
class Thing:
    def __init__(self): self.value = self.first()
    def first(self): return 1
    def by_text(self): return 2
    def forward(self): return 3
    def unused(self): return helper(self.unused_too())
    def unused_too(self): return 4
class Other(Thing):
    def unused(self): return 5
def helper(x): return x
def main(): return Thing().value, getattr(Other(), "by_text")()
"""
    text = compose({"flyweight.base": base}, entries=["main"])
    scope = {}
    exec(text, scope)
    assert scope["main"]() == (1, 2)
    assert scope["Other"]().forward() == 3
    assert "unused" not in text
    assert "helper" not in text


@pytest.mark.parametrize(
    ("second", "match"),
    [
        ("def half(): pass", "half is defined in flyweight.base and in flyweight.user"),
        ("from cmath import pi as math", "imports math, which means something else"),
        ("from os import path as half", "imports half, which means something else"),
        ("from flyweight.other import x", "x from flyweight.other which is not shipped"),
        ("from flyweight.base import half as h", "under that name"),
        ("def main():\n    import flyweight.base", "inside of a definition"),
        ("print()", "line 1: only imports and definitions"),
    ],
)
def test_what_cannot_be_composed_is_named(second, match):
    with pytest.raises(InvalidArgumentError, match=match):
        compose({"flyweight.base": BASE, "flyweight.user": second}, entries=["main"])


CLAIM = Claim(
    weights_sha256="ab",
    tokenizer_sha256="cd",
    byte_codes=":4'=2",
    protocols={
        "sliding": ScoreConfig(ngram=NgramConfig(orders=(2,))),
        "score-first": ScoreConfig(protocol="score-first", adapt=AdaptConfig(learn=("a", "b"))),
    },
    headline="score-first",
)


def test_the_bytes_do_not_depend_on_the_python_version(monkeypatch):
    """Pythons write f-strings differently, and characters that are new in Unicode."""
    plain = ast.unparse

    def unparse(node):
        assert not any(isinstance(inner, ast.JoinedStr) for inner in ast.walk(node))
        return plain(node)

    monkeypatch.setattr(ast, "unparse", unparse)
    script = write_script(replace(CLAIM, byte_codes=":\u03b1"))
    assert rb":\u03b1" in script


def test_a_claim_is_read_back_without_running_it():
    assert read_claim(ast.parse(write_script(CLAIM))) == CLAIM


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x = 1", "has 0 claims"),
        (f"CLAIM = {CLAIM}\nCLAIM = {CLAIM}", "has 2 claims"),
        ("CLAIM = Claim(headline='x')", "cannot be read"),
        ("CLAIM = Claim(protocols=open('x'))", "cannot be read"),
        (f"CLAIM = {CLAIM}".replace("2,)", "99,)"), "cannot be read.*orders"),
        (f"CLAIM = {CLAIM}".replace("'ab'", "7"), "weights_sha256 is not a string"),
    ],
)
def test_no_claim_that_can_be_read(text, match):
    with pytest.raises(DataError, match=match):
        read_claim(ast.parse(text))
