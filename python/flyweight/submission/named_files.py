"""Which files a script names or imports, and so may read when it is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from flyweight.submission.unpack_script import Source, parse_source

__all__ = ["files_named_by", "opened_files"]

_SUFFIXES = (".bin", ".model", ".json", ".py", ".npy", ".npz", ".pt", ".so", ".c", ".txt", ".pkl")


def opened_files(source: Source) -> list[str]:
    """Names with a file's suffix that a script has as literals, and so may open; sorted.

    Raises
    ------
    DataError
        It is not Python.
    """
    names = {
        node.value
        for node in ast.walk(parse_source(source.text, source.name))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return sorted(n for n in names if n.endswith(_SUFFIXES) and len(n) < 200 and "\n" not in n)


def files_named_by(source: Source, root: Path) -> list[str]:
    """Files of a folder that a script imports or has as literals; sorted.

    Raises
    ------
    DataError
        It is not Python.
    """
    names = {*opened_files(source), *_imported(parse_source(source.text, source.name))}
    plain = [n for n in names if "\0" not in n and not n.startswith("/") and ".." not in n]
    return sorted(name for name in plain if (root / name).is_file())


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = [node.module] if node.module else []
            modules = parent + [".".join([*parent, alias.name]) for alias in node.names]
        for module in modules:
            path = module.replace(".", "/")
            yield from (f"{path}.py", f"{path}/__init__.py")
