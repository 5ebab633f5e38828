"""The static scan: known mistakes, looked for in the source, without running it.

References
----------
openai/parameter-golf issue 1017 (conditions), PR #779 and #886 (hashed n-gram caches keyed by the
target), PR #1804 (three wrong byte tables), issue #897 (``▁`` that is no piece of its own).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from flyweight.submission.subject import Status
from flyweight.submission.taint import tainted_backwards
from flyweight.submission.unpack_script import Source, parse_source

__all__ = ["Finding", "scan_source"]

_TARGET = re.compile(r"^(tgt|target|targets|tgt_\w+|target_\w+|\w+_tgt|\w+_target|next_tokens?)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that a rule of the scan found."""

    rule: str
    """Which one."""
    status: Status
    """``WARN`` where only a person can tell."""
    line: int
    """In the layer that was scanned; 0 for what is missing from it."""
    evidence: str
    """What is there."""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{self.rule}: {where}{self.evidence}"


def scan_source(source: Source) -> list[Finding]:
    """All findings in one layer of a script.

    Raises
    ------
    DataError
        It is not Python.
    """
    tree = parse_source(source.text, source.name)
    return [*_order(tree), *_lookup_keys(tree), *_byte_tables(tree)]


def _order(tree: ast.Module) -> Iterator[Finding]:
    for found in tainted_backwards(tree):
        where = f"{found.function}() trains on validation tokens"
        if found.scored_line is None:
            evidence = f"{where}, and nothing is scored before in a loop around it"
            yield Finding(
                rule="train before score", status="FAIL", line=found.line, evidence=evidence
            )
        else:
            evidence = (
                f"{where}, after the scoring at line {found.scored_line}; that both are of the "
                "same chunk cannot be told from the source"
            )
            yield Finding(
                rule="train after score", status="WARN", line=found.line, evidence=evidence
            )


def _lookup_keys(tree: ast.Module) -> Iterator[Finding]:
    """A hash that mixes in the target; looked up it decides the score, stored it only counts."""
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        keys: dict[str, int] = {}
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and _mixes_target(node.value)
            ):
                keys[node.targets[0].id] = node.lineno
        for name, line in keys.items():
            loads = [
                node.lineno
                for node in ast.walk(function)
                if isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Load)
                and any(isinstance(p, ast.Name) and p.id == name for p in ast.walk(node.slice))
            ]
            evidence = f"{function.name}() hashes the target into {name!r}"
            if loads:
                evidence += f" and looks it up at line {loads[0]}"
            yield Finding(
                rule="target in a lookup key",
                status="FAIL" if loads else "WARN",
                line=line,
                evidence=evidence,
            )


def _mixes_target(value: ast.expr) -> bool:
    """An exclusive or (with a product, a mask or a remainder) of which one part is the target."""
    mixes = any(
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor) for node in ast.walk(value)
    )
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
    return mixes and any(_TARGET.match(name) for name in names)


def _byte_tables(tree: ast.Module) -> Iterator[Finding]:
    """The mistakes of PR #1804 in what builds a byte table, and a space mark nobody asks for."""
    builders = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and {"is_byte", "is_control"} & _called(node)
    ]
    adds_space = any(
        isinstance(node, (ast.Name, ast.Attribute, ast.arg))
        and "leading_space" in (getattr(node, "id", "") or getattr(node, "attr", "") or "")
        for node in ast.walk(tree)
    )
    for builder in builders:
        yield from _counted_spaces(builder, adds_space=adds_space)
        yield from _counted_letters(builder)
        if "is_unused" not in _called(builder):
            yield _byte_table("FAIL", builder, f"{builder.name}() counts unused ids like text")
    if builders and "▁" not in _asked_pieces(tree):
        evidence = "nothing asserts that '▁' is a piece of its own; without it bytes are inflated"
        yield _byte_table("WARN", None, evidence)


def _counted_spaces(builder: ast.FunctionDef, *, adds_space: bool) -> Iterator[Finding]:
    """``len(piece.encode()) + 1``."""
    for node in ast.walk(builder):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            sides = (node.left, node.right)
            adds_one = any(isinstance(side, ast.Constant) and side.value == 1 for side in sides)
            if adds_one and any({"encode", "len"} <= _called(side) for side in sides):
                evidence = "the leading space is counted in the table"
                if adds_space:
                    evidence += ", and again at evaluation: bytes are x1.1671 on SP8192"
                yield _byte_table("FAIL" if adds_space else "WARN", node, evidence)


def _counted_letters(builder: ast.FunctionDef) -> Iterator[Finding]:
    """``if is_byte(i): n = len(piece.encode())``."""
    for node in ast.walk(builder):
        if isinstance(node, ast.If) and "is_byte" in _called(node.test):
            for statement in node.body:
                if isinstance(statement, ast.Assign) and "encode" in _called(statement.value):
                    evidence = "a byte token counts the letters of its name, <0xE2>, not 1"
                    yield _byte_table("FAIL", statement, evidence)


def _byte_table(status: Status, where: ast.expr | ast.stmt | None, evidence: str) -> Finding:
    line = where.lineno if where is not None else 0
    return Finding(rule="byte table", status=status, line=line, evidence=evidence)


def _called(tree: ast.AST) -> set[str]:
    """Names of all functions and methods that are called."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}


def _asked_pieces(tree: ast.AST) -> set[object]:
    """Literals that ``piece_to_id`` or a comparison with ``in`` asks for."""
    return {
        argument.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "").lower() == "piece_to_id"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
