"""Where validation tokens reach ``backward()``, by names and calls alone.

A name is *tainted* when it is called like validation tokens, or assigned from what is; a function's
parameter is when a call passes it something tainted, its result when a ``return`` does. That says
nothing of values: what is found is for a person to confirm.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["TaintedBackward", "tainted_backwards"]

_SEED = re.compile(r"^_?val(id|idation)?_(tokens?|data|seqs?|ids|stream|loader)$")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_NO_GRAD = ("no_grad", "inference_mode")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaintedBackward:
    """A ``backward()`` that validation tokens reach."""

    line: int
    """Of the call."""
    function: str
    """That it is in."""
    scored_line: int | None
    """A scoring under ``no_grad`` before it in the same loop, or None."""


def tainted_backwards(tree: ast.Module) -> list[TaintedBackward]:
    """Every ``backward()`` of a script whose operand depends on validation tokens."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)}
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    tainted: dict[str, set[str]] = {name: set() for name in functions}
    returning: set[str] = set()
    for _ in range(8):  # rounds until nothing is new; calls are rarely deeper
        before = (sum(map(len, tainted.values())), len(returning))
        for name, function in functions.items():
            _spread(function, tainted, returning, functions)
            values = [n.value for n in _own(function) if isinstance(n, ast.Return) and n.value]
            if any(_is_tainted(value, tainted[name], returning) for value in values):
                returning.add(name)
        if before == (sum(map(len, tainted.values())), len(returning)):
            break
    return [
        TaintedBackward(
            line=call.lineno,
            function=name,
            scored_line=_scored_before(call, function, functions, parents),
        )
        for name, function in functions.items()
        for call, operand in _backwards(function)
        if _is_tainted(operand, tainted[name], returning)
    ]


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a function without those of functions inside of it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, _FUNCTIONS):
            yield node
            yield from _own(node)


def _name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _is_tainted(node: ast.AST, names: set[str], returning: set[str]) -> bool:
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and (part.id in names or _SEED.match(part.id)):
            return True
        if isinstance(part, ast.Attribute) and _SEED.match(part.attr):
            return True
        if isinstance(part, ast.Call) and _name_of(part.func) in returning:
            return True
    return False


def _spread(
    function: ast.FunctionDef | ast.AsyncFunctionDef,
    tainted: dict[str, set[str]],
    returning: set[str],
    functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef],
) -> None:
    names = tainted[function.name]
    for node in _own(function):
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        match node:
            case ast.Assign():
                targets, value = node.targets, node.value
            case ast.AugAssign() | ast.AnnAssign() | ast.NamedExpr():
                targets, value = [node.target], node.value
            case ast.For() | ast.comprehension():
                targets, value = [node.target], node.iter
            case ast.Call() if _name_of(node.func) in functions:
                _pass_on(node, names, tainted, returning, functions)
        if value is not None and _is_tainted(value, names, returning):
            for target in targets:
                if not isinstance(target, (ast.Attribute, ast.Subscript)):
                    names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}


def _pass_on(
    call: ast.Call,
    names: set[str],
    tainted: dict[str, set[str]],
    returning: set[str],
    functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef],
) -> None:
    """Arguments to the parameters of the function of that name."""
    callee = functions[_name_of(call.func)]
    parameters = [a.arg for a in (*callee.args.posonlyargs, *callee.args.args)]
    if isinstance(call.func, ast.Attribute) and parameters[:1] == ["self"]:
        parameters = parameters[1:]
    pairs = list(zip(parameters, call.args, strict=False))
    pairs += [(k.arg, k.value) for k in call.keywords if k.arg]
    tainted[callee.name] |= {name for name, v in pairs if _is_tainted(v, names, returning)}


def _backwards(function: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Calls of ``x.backward()`` and ``torch.autograd.backward(x)`` or ``grad(x)``, each with x."""
    for node in _own(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner.endswith("autograd") and node.func.attr in ("backward", "grad") and node.args:
                yield node, node.args[0]
            elif node.func.attr == "backward":
                yield node, node.func.value


def _scored_before(
    node: ast.AST,
    function: ast.AST,
    functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef],
    parents: dict[ast.AST, ast.AST],
    depth: int = 0,
) -> int | None:
    """Line of a scoring that comes earlier in a loop around a node, here or in a caller."""
    line: int = getattr(node, "lineno", 0)
    above = node
    while above is not function and above in parents:
        above = parents[above]
        if isinstance(above, (ast.For, ast.While)):
            lines = [at for at in _scorings(above, functions) if at < line]
            if lines:
                return max(lines)
    if depth < 3 and isinstance(function, _FUNCTIONS):
        for caller in functions.values():
            for call in _own(caller):
                if isinstance(call, ast.Call) and _name_of(call.func) == function.name:
                    found = _scored_before(call, caller, functions, parents, depth + 1)
                    if found is not None:
                        return found
    return None


def _scorings(
    loop: ast.AST, functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef]
) -> Iterator[int]:
    """Lines where something runs without gradients, in a block or in a function called."""
    for node in ast.walk(loop):
        if isinstance(node, ast.With) and _lacks_gradients(node):
            yield node.lineno
        elif isinstance(node, ast.Call) and _name_of(node.func) in functions:
            callee = functions[_name_of(node.func)]
            decorated = any(w in ast.unparse(d) for d in callee.decorator_list for w in _NO_GRAD)
            if decorated or any(
                isinstance(inner, ast.With) and _lacks_gradients(inner) for inner in _own(callee)
            ):
                yield node.lineno


def _lacks_gradients(node: ast.With) -> bool:
    """Whether a block is under ``no_grad`` and runs something: zeroing a buffer is no scoring."""
    headers = [ast.unparse(item.context_expr) for item in node.items]
    calls = sum(
        isinstance(part, ast.Call) for statement in node.body for part in ast.walk(statement)
    )
    return calls > 0 and any(word in header for header in headers for word in _NO_GRAD)
