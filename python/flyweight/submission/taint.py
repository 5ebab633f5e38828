"""Where validation tokens reach ``backward()``, by names and calls alone.

A name is *tainted* when it is called like validation tokens, or assigned from what is; a function's
parameter is when a call passes it something tainted, its result when a ``return`` is whatever is
passed. A call ``f()`` may mean every function ``f``, and ``x.f()`` every method ``f`` of any class.
That says nothing of values: what is found is for a person to confirm.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["TaintedBackward", "tainted_backwards"]

_SEED = re.compile(r"^_?val(id|idation)?_(tokens?|data|seqs?|ids|stream|loader)$")
_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_Scope: TypeAlias = ast.Module | _Function
_NO_GRAD = ("no_grad", "inference_mode")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaintedBackward:
    """A ``backward()`` that validation tokens reach."""

    line: int
    """Of the call."""
    function: str
    """That it is in; ``<module>`` outside of any."""
    scored_line: int | None
    """A scoring under ``no_grad`` before it in the same loop, or None."""


def tainted_backwards(tree: ast.Module) -> list[TaintedBackward]:
    """Every ``backward()`` of a script whose operand depends on validation tokens."""
    flow = _Flow(tree)
    return [
        TaintedBackward(
            line=call.lineno,
            function=scope.name if isinstance(scope, _Function) else "<module>",
            scored_line=flow.scored_before(call, scope),
        )
        for scope in flow.scopes
        for call, operand in _backwards(scope)
        if flow.is_tainted(operand, scope)
    ]


class _Flow:
    """Where validation tokens go in a script.

    Parameters
    ----------
    tree : of the script; its top level is a scope like any function

    Attributes
    ----------
    scopes : the top level, and every function, also where several have one name
    """

    def __init__(self, tree: ast.Module) -> None:
        self._parents = {c: node for node in ast.walk(tree) for c in ast.iter_child_nodes(node)}
        functions = [node for node in ast.walk(tree) if isinstance(node, _Function)]
        self.scopes: list[_Scope] = [tree, *functions]
        self._callees: dict[tuple[str, bool], list[_Function]] = defaultdict(list)
        for function in functions:
            is_method = isinstance(self._parents[function], ast.ClassDef)
            self._callees[function.name, is_method].append(function)
        self._callers: dict[_Function, list[tuple[ast.Call, _Scope]]] = defaultdict(list)
        for scope in self.scopes:
            calls = [node for node in _own(scope) if isinstance(node, ast.Call)]
            for call in calls:
                for callee in self._called(call):
                    self._callers[callee].append((call, scope))
        self._names: dict[_Scope, set[str]] = {scope: set() for scope in self.scopes}
        self._returning: set[_Function] = set()
        # What comes back tainted only for a tainted argument is seen by that argument: helpers that
        # training and scoring share taint neither.
        for passes_on in (False, True):
            for _ in range(8):  # rounds until nothing is new; calls are rarely deeper
                before = self._size()
                for scope in self.scopes:
                    self._spread(scope, passes_on=passes_on)
                if before == self._size():
                    break

    def _size(self) -> int:
        return sum(map(len, self._names.values())) + len(self._returning)

    def _called(self, call: ast.Call) -> list[_Function]:
        """What a call may mean."""
        name, is_method = _name_of(call.func), isinstance(call.func, ast.Attribute)
        return self._callees.get((name, is_method), [])

    def is_tainted(self, node: ast.AST, scope: _Scope) -> bool:
        """Whether an expression of a scope has validation tokens in it."""
        for part in ast.walk(node):
            match part:
                case ast.Name(id=name) if name in self._names[scope] or _SEED.match(name):
                    return True
                case ast.Attribute(attr=name) if _SEED.match(name):
                    return True
                case ast.Call() if not self._returning.isdisjoint(self._called(part)):
                    return True
        return False

    def _spread(self, scope: _Scope, *, passes_on: bool) -> None:
        """Taint what a scope assigns, and what it passes on; else what it returns by itself."""
        for node in _own(scope):
            match node:
                case ast.Assign():
                    self._assign(node.targets, node.value, scope)
                case ast.AugAssign() | ast.AnnAssign() | ast.NamedExpr():
                    self._assign([node.target], node.value, scope)
                case ast.For() | ast.comprehension():
                    self._assign([node.target], node.iter, scope)
                case ast.Call() if passes_on:
                    self._pass_on(node, scope)
                case ast.Return(value=ast.expr() as value) if not passes_on:
                    if isinstance(scope, _Function) and self.is_tainted(value, scope):
                        self._returning.add(scope)

    def _assign(self, targets: list[ast.expr], value: ast.expr | None, scope: _Scope) -> None:
        if value is None or not self.is_tainted(value, scope):
            return
        for target in targets:
            if not isinstance(target, (ast.Attribute, ast.Subscript)):
                found = {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
                self._names[scope] |= found

    def _pass_on(self, call: ast.Call, scope: _Scope) -> None:
        """Arguments to the parameters of what is called."""
        for callee in self._called(call):
            parameters = [a.arg for a in (*callee.args.posonlyargs, *callee.args.args)]
            if parameters[:1] == ["self"]:
                parameters = parameters[1:]
            pairs = list(zip(parameters, call.args, strict=False))
            pairs += [(k.arg, k.value) for k in call.keywords if k.arg]
            self._names[callee] |= {name for name, v in pairs if self.is_tainted(v, scope)}

    def scored_before(self, node: ast.AST, scope: _Scope, depth: int = 0) -> int | None:
        """Line of a scoring that comes earlier in a loop around a node, here or in a caller."""
        line: int = getattr(node, "lineno", 0)
        above = node
        while above is not scope:
            above = self._parents[above]
            if isinstance(above, (ast.For, ast.While)):
                lines = [at for at in self._scorings(above) if at < line]
                if lines:
                    return max(lines)
        if isinstance(scope, _Function) and depth < 3:
            for call, caller in self._callers[scope]:
                found = self.scored_before(call, caller, depth + 1)
                if found is not None:
                    return found
        return None

    def _scorings(self, loop: ast.AST) -> Iterator[int]:
        """Lines where something runs without gradients, in a block or in a function called."""
        for node in ast.walk(loop):
            match node:
                case ast.With() if _lacks_gradients(node):
                    yield node.lineno
                case ast.Call() if any(map(_scores, self._called(node))):
                    yield node.lineno


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a scope without those of functions inside of it."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, _Function):
            yield node
            yield from _own(node)


def _name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _backwards(scope: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Calls of ``x.backward()`` and ``torch.autograd.backward(x)`` or ``grad(x)``, each with x."""
    for node in _own(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner.endswith("autograd") and node.func.attr in ("backward", "grad") and node.args:
                yield node, node.args[0]
            elif node.func.attr == "backward":
                yield node, node.func.value


def _scores(function: _Function) -> bool:
    """Whether a function runs something without gradients, by a decorator or in a block."""
    decorated = any(word in ast.unparse(d) for d in function.decorator_list for word in _NO_GRAD)
    return decorated or any(isinstance(n, ast.With) and _lacks_gradients(n) for n in _own(function))


def _lacks_gradients(node: ast.With) -> bool:
    """Whether a block is under ``no_grad`` and runs something: zeroing a buffer is no scoring."""
    headers = [ast.unparse(item.context_expr) for item in node.items]
    calls = sum(
        isinstance(part, ast.Call) for statement in node.body for part in ast.walk(statement)
    )
    return calls > 0 and any(word in header for header in headers for word in _NO_GRAD)
