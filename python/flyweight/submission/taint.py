"""Where validation tokens reach ``backward()``, by names and calls alone.

A name is *tainted* when it is called like validation tokens, or assigned from what is; a function's
parameter is when a call passes it something tainted, its result when a ``return`` is whatever is
passed. A function sees the names around it, and a method what its class has in ``self``, also from
its constructor. A call ``f()`` may mean every function ``f``, and ``x.f()`` every method ``f`` of
any class. That says nothing of values: what is found is for a person to confirm.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from flyweight.submission.scopes import Function, Scope, Scopes, is_field, name_of, own_nodes

__all__ = ["TaintedBackward", "tainted_backwards"]

_SEED = re.compile(r"^_?val(id|idation)?_(tokens?|data|seqs?|ids|stream|loader)$")
_NO_GRAD = ("no_grad", "inference_mode")
_MOST_ROUNDS = 32
"""Until nothing is new; calls are rarely deeper."""


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
            function=scope.name if isinstance(scope, Function) else "<module>",
            scored_line=flow.scored_before(call, scope),
        )
        for scope in flow.scopes.all
        for call, operand in _backwards(scope)
        if flow.is_tainted(operand, scope)
    ]


class _Flow:
    """Where validation tokens go in a script.

    Parameters
    ----------
    tree : of the script

    Attributes
    ----------
    scopes : of the script
    """

    def __init__(self, tree: ast.Module) -> None:
        self.scopes = Scopes(tree)
        self._callers: dict[Function, list[tuple[ast.Call, Scope]]] = defaultdict(list)
        for scope in self.scopes.all:
            for call in self.scopes.nodes[scope]:
                if isinstance(call, ast.Call):
                    for callee in [*self.scopes.called(call), *self._constructors(call)]:
                        self._callers[callee].append((call, scope))
        self._names: dict[Scope, set[str]] = {scope: set() for scope in self.scopes.all}
        self._fields: dict[ast.ClassDef, set[str]] = defaultdict(set)
        self._returning: set[Function] = set()
        self._returning_fields: set[Function] = set()
        # What comes back tainted only for a tainted argument is seen by that argument: helpers that
        # training and scoring share taint neither. For the same reason what an object got when it
        # was made counts in its own methods alone; elsewhere the object's name tells.
        for stage in ("returns", "objects", "arguments"):
            for _ in range(_MOST_ROUNDS):
                before = self._size()
                for scope in self.scopes.all:
                    self._spread(scope, stage)
                if before == self._size():
                    break

    def _size(self) -> int:
        named = sum(map(len, self._names.values())) + sum(map(len, self._fields.values()))
        return named + len(self._returning) + len(self._returning_fields)

    def is_tainted(self, node: ast.AST, scope: Scope) -> bool:
        """Whether an expression of a scope has validation tokens in it."""
        for part in ast.walk(node):
            match part:
                case ast.Name(id=name) if _SEED.match(name) or self._has(name, scope):
                    return True
                case ast.Attribute(attr=name) if _SEED.match(name) or (
                    is_field(part) and self._has_field(name, scope)
                ):
                    return True
                case ast.Call() if not self._returning.isdisjoint(self.scopes.called(part)):
                    return True
                case ast.Call() if not self._returning_fields.isdisjoint(
                    self.scopes.own_methods(part, scope)
                ):
                    return True
        return False

    def _has(self, name: str, scope: Scope) -> bool:
        return name in self._names[self.scopes.owner(name, scope)]

    def _has_field(self, name: str, scope: Scope) -> bool:
        owner = self.scopes.class_of(scope)
        return owner is not None and any(
            name in self._fields[each] for each in self.scopes.related[owner]
        )

    def _spread(self, scope: Scope, stage: str) -> None:
        """Taint what a scope assigns and passes on, and note whether it returns any."""
        if isinstance(scope, Function):
            named = [*scope.args.posonlyargs, *scope.args.args]
            defaults = [*zip(reversed(named), reversed(scope.args.defaults), strict=False)]
            for argument, default in zip(
                scope.args.kwonlyargs, scope.args.kw_defaults, strict=True
            ):
                defaults += [(argument, default)] if default else []
            outer = self.scopes.outer(scope)
            self._names[scope] |= {a.arg for a, v in defaults if self.is_tainted(v, outer)}
        for node in self.scopes.nodes[scope]:
            match node:
                case ast.Assign():
                    self._assign(node.targets, node.value, scope, stage)
                case ast.AugAssign() | ast.AnnAssign() | ast.NamedExpr():
                    self._assign([node.target], node.value, scope, stage)
                case ast.For() | ast.comprehension():
                    self._assign([node.target], node.iter, scope, stage)
                case ast.Call() if stage != "returns":
                    self._make(node, scope)
                    if stage == "arguments":
                        for callee in self.scopes.called(node):
                            self._pass_on(node, callee, scope)
                case ast.Return(value=ast.expr() as value) if stage != "arguments":
                    if isinstance(scope, Function) and self.is_tainted(value, scope):
                        by_itself = stage == "returns"
                        (self._returning if by_itself else self._returning_fields).add(scope)

    def _assign(
        self, targets: list[ast.expr], value: ast.expr | None, scope: Scope, stage: str
    ) -> None:
        if value is None or not self.is_tainted(value, scope):
            return
        owner = self.scopes.class_of(scope)
        for target, part in (pair for each in targets for pair in _matched(each, value)):
            if part is not value and not self.is_tainted(part, scope):
                continue
            if isinstance(target, ast.Name):
                self._names[self.scopes.owner(target.id, scope)].add(target.id)
            elif is_field(target) and owner is not None and stage != "returns":
                self._fields[owner].add(name_of(target))

    def _constructors(self, call: ast.Call) -> list[Function]:
        """The ``__init__`` that a call runs, its own or inherited, of each class it may mean."""
        found = []
        for made in self.scopes.constructed(call):
            methods = [node for each in self.scopes.bases(made) for node in each.body]
            inits = [m for m in methods if isinstance(m, Function) and m.name == "__init__"]
            found += inits[:1]
        return found

    def _make(self, call: ast.Call, scope: Scope) -> None:
        """Arguments to the parameters of what makes an object, or to the fields of a dataclass."""
        constructors = self._constructors(call)
        for constructor in constructors:
            self._pass_on(call, constructor, scope)
        for made in self.scopes.constructed(call) if not constructors else ():
            fields = [
                node.target.id
                for each in reversed(self.scopes.bases(made))
                for node in each.body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            ]
            self._fields[made] |= self._tainted_parameters(call, fields, scope)

    def _pass_on(self, call: ast.Call, callee: Function, scope: Scope) -> None:
        """Arguments to the parameters of what is called."""
        parameters = [a.arg for a in (*callee.args.posonlyargs, *callee.args.args)]
        if parameters[:1] == ["self"]:
            parameters = parameters[1:]
        self._names[callee] |= self._tainted_parameters(call, parameters, scope)

    def _tainted_parameters(self, call: ast.Call, names: list[str], scope: Scope) -> set[str]:
        pairs = list(zip(names, call.args, strict=False))
        pairs += [(k.arg, k.value) for k in call.keywords if k.arg]
        return {name for name, value in pairs if self.is_tainted(value, scope)}

    def scored_before(self, node: ast.AST, scope: Scope, depth: int = 0) -> int | None:
        """Line of a scoring that comes earlier in a loop around a node, here or in a caller."""
        line: int = getattr(node, "lineno", 0)
        above = node
        while above is not scope:
            above = self.scopes.parents[above]
            if isinstance(above, (ast.For, ast.While)):
                lines = [at for at in self._scorings(above) if at < line]
                if lines:
                    return max(lines)
        if isinstance(scope, Function) and depth < 3:
            for call, caller in self._callers[scope]:
                found = self.scored_before(call, caller, depth + 1)
                if found is not None:
                    return found
            if not self._callers[scope]:  # what is passed on to be called, where it is defined
                return self.scored_before(scope, self.scopes.outer(scope), depth + 1)
        return None

    def _scorings(self, loop: ast.AST) -> Iterator[int]:
        """Lines where something runs without gradients, in a block or in a function called."""
        for node in ast.walk(loop):
            match node:
                case ast.With() if _lacks_gradients(node):
                    yield node.lineno
                case ast.Call() if any(map(_scores, self.scopes.called(node))):
                    yield node.lineno


def _matched(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Each single target of an assignment, with what is known to be assigned to it."""
    match target, value:
        case ast.Starred(), _:
            yield from _matched(target.value, value)
        case ast.Tuple() | ast.List(), _:
            values = getattr(value, "elts", [])
            parts = [*target.elts, *values]
            if len(values) != len(target.elts) or any(isinstance(p, ast.Starred) for p in parts):
                values = [value] * len(target.elts)
            for inner, part in zip(target.elts, values, strict=True):
                yield from _matched(inner, part)
        case _:
            yield target, value


def _backwards(scope: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Calls of ``x.backward()`` and ``torch.autograd.backward(x)`` or ``grad(x)``, each with x."""
    for node in own_nodes(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner.endswith("autograd") and node.func.attr in ("backward", "grad") and node.args:
                yield node, node.args[0]
            elif node.func.attr == "backward":
                yield node, node.func.value


def _scores(function: Function) -> bool:
    """Whether a function runs something without gradients, by a decorator or in a block."""
    decorated = any(word in ast.unparse(d) for d in function.decorator_list for word in _NO_GRAD)
    return decorated or any(
        isinstance(node, ast.With) and _lacks_gradients(node) for node in own_nodes(function)
    )


def _lacks_gradients(node: ast.With) -> bool:
    """Whether a block is under ``no_grad`` and runs something: zeroing a buffer is no scoring."""
    headers = [ast.unparse(item.context_expr) for item in node.items]
    calls = sum(
        isinstance(part, ast.Call) for statement in node.body for part in ast.walk(statement)
    )
    return calls > 0 and any(word in header for header in headers for word in _NO_GRAD)
