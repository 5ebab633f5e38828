"""The composer of ``train_gpt.py``: modules of flyweight, one after the other, in one file.

The result needs torch, NumPy and the standard library. It is readable source: statements are
written out by `unparse`; docstrings, comments and types of functions stay behind in the
package. What the entry point does not reach is left out: definitions by their name, methods where
no code that is shipped has an attribute or a text of their name.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

import flyweight
from flyweight.errors import DataError, InvalidArgumentError
from flyweight.evaluate.config import ScoreConfig
from flyweight.submission.claim import Claim
from flyweight.submission.unparse import unparse

__all__ = ["MODULES", "changed_statements", "compose", "read_claim", "read_version", "write_script"]

MODULES = (
    "flyweight.errors",
    "flyweight.submission.decode_streams",
    "flyweight.submission.decoder",
    "flyweight.submission.digest",
    "flyweight.data.byte_counts",
    "flyweight.model.config",
    "flyweight.model.embeddings",
    "flyweight.model.attention",
    "flyweight.model.cross_entropy",
    "flyweight.model.blocks",
    "flyweight.model.transformer",
    "flyweight.evaluate.config",
    "flyweight.evaluate.bpb",
    "flyweight.evaluate.window",
    "flyweight.evaluate.ledger",
    "flyweight.evaluate.nonfinite",
    "flyweight.evaluate.pace",
    "flyweight.evaluate.scorer",
    "flyweight.evaluate.engine",
    "flyweight.evaluate.adapters",
    "flyweight.evaluate.ngram",
    "flyweight.evaluate.lora",
    "flyweight.evaluate.rolling",
    "flyweight.evaluate.stream",
    "flyweight.submission.claim",
    "flyweight.submission.entry",
)
"""What is shipped, in order: each imports only from those before it."""

ENGINE_NAMES = {
    "plain": "Plain",
    "sliding": "Sliding",
    "score-first": "ScoreFirst",
    "per-document": "PerDocument",
    "sliding with hints": "NgramSliding",
    "score-first with hints": "NgramScoreFirst",
    "sliding with rolling context": "Rolling",
    "score-first with rolling context": "RollingScoreFirst",
}
"""Class of each method of a `ScoreConfig`; only those that a claim needs are shipped."""

_SCRIPT = """\
# Scores model.fly: python train_gpt.py --data FOLDER [--out FILE]. Written by flyweight {version}
# out of its own modules, whose documentation is in that package. License: Apache-2.0.

{modules}

CLAIM = Claim(
{values})
ENGINES = {{{engines}}}

if __name__ == "__main__":
    sys.exit(main(CLAIM, ENGINES, Path(__file__).resolve().parent))
"""

_Definition = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign | ast.AugAssign


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """One module, taken apart."""

    module: str
    definitions: list[_Definition]
    """Statements that bind names, in order."""
    imports: dict[str, tuple[str, str | None]]
    """Bound name to module and, for ``from`` imports, the name in it."""


def write_script(claim: Claim) -> bytes:
    """Bytes of a ``train_gpt.py`` that makes this claim."""
    # ascii, since which characters repr escapes depends on the Unicode version of each Python
    values = "".join(f"    {f.name}={getattr(claim, f.name)!a},\n" for f in fields(claim))
    used = {config.method: ENGINE_NAMES[config.method] for config in claim.protocols.values()}
    entries = ("main", "Claim", *used.values())
    modules = compose({name: _module_text(name) for name in MODULES}, entries=entries)
    script = _SCRIPT.format(
        version=flyweight.__version__,
        modules=modules,
        values=values,
        engines=", ".join(f"{name!r}: {engine}" for name, engine in used.items()),
    )
    return script.encode()


def read_version(script: bytes) -> str:
    """The version of flyweight that a script says wrote it; empty if it says none."""
    found = re.search(rb"^# .* Written by flyweight ([\w.+!-]{1,40})$", script, re.MULTILINE)
    return found[1].decode() if found else ""


def read_claim(script: ast.Module) -> Claim:
    """The claim in a script that `write_script` wrote, which is not run.

    Raises
    ------
    DataError
        There is no such claim, there are several, or it is not made of literals.
    """
    calls = [
        node.value
        for node in script.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CLAIM"
    ]
    if len(calls) != 1 or not isinstance(calls[0], ast.Call):
        raise DataError(f"the script has {len(calls)} claims `CLAIM = Claim(...)`, expected one")
    try:
        values = _read_value(calls[0])
        tables = values["protocols"]
        protocols = {name: ScoreConfig.from_table(table) for name, table in tables.items()}
        claim = Claim(**{**values, "protocols": protocols})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"the script's claim cannot be read: {error}") from error
    for name in ("weights_sha256", "tokenizer_sha256", "byte_codes", "headline"):
        if not isinstance(getattr(claim, name), str):
            raise DataError(f"the script's claim: {name} is not a string")
    return claim


def changed_statements(script: ast.Module, other: ast.Module) -> list[str]:
    """Names of the top-level statements that only one of two scripts has; none if all are equal.

    A definition is called by its name, any other statement by its first line. Layout and comments
    are no statements.
    """
    first, second = ({ast.dump(node): node for node in tree.body} for tree in (script, other))
    odd = [node for key, node in (first | second).items() if (key in first) != (key in second)]
    return list(dict.fromkeys(map(_statement_name, odd)))


def _statement_name(node: ast.stmt) -> str:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    return ast.unparse(node).partition("\n")[0][:40]


def _read_value(node: ast.AST) -> Any:
    """A literal; a call is the table of its keywords."""
    if isinstance(node, ast.Call):
        return {str(each.arg): _read_value(each.value) for each in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) if key else None for key in node.keys]
        return dict(zip(keys, map(_read_value, node.values), strict=True))
    return ast.literal_eval(node)


def compose(sources: dict[str, str], *, entries: Sequence[str]) -> str:
    """One source text of several modules that import from each other.

    Parameters
    ----------
    sources : module name to text; a module may import from the ones before it
    entries : the definitions that are needed; what they do not reach is dropped

    Returns
    -------
    Imports of other packages, merged, then the definitions, a comment before those of each module

    Raises
    ------
    InvalidArgumentError
        A name is defined twice or imported with two meanings, a module imports from one that is not
        shipped, or has statements other than imports and definitions.

    Notes
    -----
    The text is a function of the sources alone, not of the Python version; see `unparse`.
    """
    known: dict[str, str] = {}
    parsed = []
    for module, text in sources.items():
        source = _take_apart(module, text, known)
        for name in {name: None for node in source.definitions for name in _bound_names(node)}:
            if name in known:
                raise InvalidArgumentError(
                    f"script: {name} is defined in {known[name]} and in {module}; rename one"
                )
            known[name] = module
        parsed.append(source)
    imports = _merge_imports(parsed, known)
    definitions = [node for source in parsed for node in source.definitions]
    kept, attributes = _reachable(definitions, entries)
    blocks = [_write_imports({k: v for k, v in imports.items() if k in kept})]
    for source in parsed:
        chosen = [node for node in source.definitions if kept.intersection(_bound_names(node))]
        if chosen:
            needed = [_without_docstrings(_needed(node, attributes)) for node in chosen]
            texts = [_narrow(unparse(node)) for node in needed]
            blocks.append("\n\n".join([f"# --- {source.module} ---", *texts]))
    return "\n\n".join(blocks)


def _narrow(text: str) -> str:
    """Indent by one space instead of four: a twelfth of the counted bytes.

    `unparse` writes every string but docstrings, which are gone, on one line.
    """
    return re.sub(r"^(?:    )+", lambda found: " " * (len(found[0]) // 4), text, flags=re.MULTILINE)


def _module_text(module: str) -> str:
    *packages, name = module.split(".")
    return files(".".join(packages)).joinpath(f"{name}.py").read_text(encoding="utf-8")


def _take_apart(module: str, text: str, known: dict[str, str]) -> _Source:
    definitions: list[_Definition] = []
    imports: dict[str, tuple[str, str | None]] = {}
    for node in ast.parse(text, filename=module).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flyweight"):
            _check_shipped(module, node, known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imports[alias.asname or alias.name] = (node.module or "", alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                imports[alias.asname or alias.name] = (alias.name, None)
        elif isinstance(node, _Definition):
            if "__all__" not in _bound_names(node):
                _refuse_inner_imports(module, node)
                definitions.append(_without_hints(node))
        elif not _is_docstring(node):
            raise InvalidArgumentError(
                f"script: {module} line {node.lineno}: only imports and definitions can be shipped"
            )
    return _Source(module=module, definitions=definitions, imports=imports)


def _without_hints(node: _Definition) -> _Definition:
    """Functions without the types of what they take and give, which are for readers."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef):
            inner.returns = None
        elif isinstance(inner, ast.arg):
            inner.annotation = None
    return node


def _check_shipped(module: str, node: ast.ImportFrom, known: dict[str, str]) -> None:
    for alias in node.names:
        if known.get(alias.name) != node.module or alias.asname is not None:
            raise InvalidArgumentError(
                f"script: {module} imports {alias.name} from {node.module} which is not shipped "
                "before it under that name"
            )


def _refuse_inner_imports(module: str, node: _Definition) -> None:
    for inner in ast.walk(node):
        names = [alias.name for alias in inner.names] if isinstance(inner, ast.Import) else []
        names += [inner.module or ""] if isinstance(inner, ast.ImportFrom) else []
        if any(name.startswith("flyweight") for name in names):
            raise InvalidArgumentError(
                f"script: {module} imports flyweight inside of a definition, which is not shipped"
            )


def _bound_names(node: _Definition) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    inner = [node for target in targets for node in ast.walk(target)]
    return [node.id for node in inner if isinstance(node, ast.Name)]


def _merge_imports(
    sources: list[_Source], known: dict[str, str]
) -> dict[str, tuple[str, str | None]]:
    merged: dict[str, tuple[str, str | None]] = {}
    for source in sources:
        for name, origin in source.imports.items():
            if merged.setdefault(name, origin) != origin or name in known:
                raise InvalidArgumentError(
                    f"script: {source.module} imports {name}, which means something else elsewhere"
                )
    return merged


def _write_imports(imports: dict[str, tuple[str, str | None]]) -> str:
    plain = [
        f"import {module}" + (f" as {name}" if name != module else "")
        for name, (module, inner) in imports.items()
        if inner is None
    ]
    grouped: dict[str, list[str]] = {}
    for name, (module, inner) in imports.items():
        if inner is not None:
            alias = inner if inner == name else f"{inner} as {name}"
            grouped.setdefault(module, []).append(alias)
    future = grouped.pop("__future__", [])
    lines = [f"from {module} import {', '.join(sorted(grouped[module]))}" for module in grouped]
    head = [f"from __future__ import {', '.join(future)}"] if future else []
    return "\n".join([*head, *sorted(plain), *sorted(lines)])


def _reachable(definitions: list[_Definition], entries: Sequence[str]) -> tuple[set[str], set[str]]:
    """Names of definitions that are needed, and of attributes, directly or through others."""
    names = {"annotations", "sys", "Path", *entries}
    attributes = {"forward", "backward"}  # of torch
    count = 0
    while count != len(names) + len(attributes):
        count = len(names) + len(attributes)
        for node in definitions:
            if names.intersection(_bound_names(node)):
                for inner in ast.walk(_needed(node, attributes)):
                    if isinstance(inner, ast.Name):
                        names.add(inner.id)
                    elif isinstance(inner, ast.Attribute):
                        attributes.add(inner.attr)
                    elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                        attributes.add(inner.value)  # for getattr
    return names, attributes


def _needed(node: _Definition, attributes: set[str]) -> _Definition:
    """The node, or a class without the methods that nobody asks for."""
    if not isinstance(node, ast.ClassDef):
        return node
    node = copy.copy(node)
    node.body = [
        each
        for each in node.body
        if not isinstance(each, ast.FunctionDef)
        or each.name in attributes
        or each.name.startswith("__")
    ] or [ast.Pass()]
    return node


def _without_docstrings(node: _Definition) -> _Definition:
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef):
            inner.body = [each for each in inner.body if not _is_docstring(each)] or [ast.Pass()]
    return node


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
