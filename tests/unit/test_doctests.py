"""Examples in docstrings are run: every module that has one is found."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import flyweight

PACKAGE = Path(flyweight.__file__).parent


def modules_with_examples() -> list[str]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__init__"))
    return found


def test_there_are_examples() -> None:
    assert {"flyweight.artifact", "flyweight.kernels.rans"} <= set(modules_with_examples())


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run(name: str) -> None:
    failures: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for session in doctest.DocTestFinder().find(import_module(name)):
        runner.run(session, out=failures.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(failures)
