"""Who owns a name in a parsed script: scopes of functions, and classes with what they inherit."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from typing import TypeAlias

__all__ = ["Function", "Scope", "Scopes", "is_field", "name_of", "own_nodes"]

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Scope: TypeAlias = ast.Module | Function


class Scopes:
    """The scopes of a script, and what a name or a call in one of them may mean.

    Parameters
    ----------
    tree : of the script; its top level is a scope like any function

    Attributes
    ----------
    all : the top level, and every function, also where several have one name
    nodes : scope to its nodes without those of functions inside of it
    parents : node to the node around it
    related : class to itself, what it inherits from, and what inherits from it
    """

    def __init__(self, tree: ast.Module) -> None:
        self.parents = {c: node for node in ast.walk(tree) for c in ast.iter_child_nodes(node)}
        functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
        self.all: list[Scope] = [tree, *functions]
        self.nodes = {scope: [*own_nodes(scope)] for scope in self.all}
        self._bound = {scope: _bound_names(nodes) for scope, nodes in self.nodes.items()}
        self._functions: dict[tuple[str, bool], list[Function]] = defaultdict(list)
        for function in functions:
            is_method = isinstance(self.parents[function], ast.ClassDef)
            self._functions[function.name, is_method].append(function)
        self._classes: dict[str, list[ast.ClassDef]] = defaultdict(list)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self._classes[node.name].append(node)
        classes = [each for named in self._classes.values() for each in named]
        bases = {each: self.bases(each) for each in classes}
        self.related = {
            each: {*bases[each], *(heir for heir in classes if each in bases[heir])}
            for each in classes
        }

    def outer(self, scope: Scope) -> Scope:
        """The scope around a function; the top level is its own."""
        above: ast.AST = scope
        while above in self.parents:
            above = self.parents[above]
            if isinstance(above, Scope):
                return above
        return scope

    def owner(self, name: str, scope: Scope) -> Scope:
        """The scope that binds a name which another one uses; the top level if none does."""
        while name not in self._bound[scope] and scope in self.parents:
            scope = self.outer(scope)
        return scope

    def class_of(self, scope: Scope) -> ast.ClassDef | None:
        """The class whose ``self`` a method, or a function inside of one, sees."""
        above: ast.AST = scope
        while above in self.parents:
            above = self.parents[above]
            if isinstance(above, ast.ClassDef):
                return above
        return None

    def bases(self, owner: ast.ClassDef) -> list[ast.ClassDef]:
        """A class and those of the script that it inherits from, the nearest first."""
        found = [owner]
        for each in found:  # grows while it is gone through
            names = [name_of(base) for base in each.bases]
            found += [c for name in names for c in self._classes.get(name, ()) if c not in found]
        return found

    def called(self, call: ast.Call) -> list[Function]:
        """What a call may mean: functions of its name, or methods of any class."""
        return self._functions.get((name_of(call.func), isinstance(call.func, ast.Attribute)), [])

    def constructed(self, call: ast.Call) -> list[ast.ClassDef]:
        """The classes that a call may make an object of."""
        return self._classes.get(call.func.id, []) if isinstance(call.func, ast.Name) else []

    def own_methods(self, call: ast.Call, scope: Scope) -> list[Function]:
        """What ``self.method()`` means in a scope."""
        owner = self.class_of(scope)
        if owner is None or not is_field(call.func):
            return []
        related = self.related[owner]
        return [method for method in self.called(call) if self.parents[method] in related]


def is_field(node: ast.AST) -> bool:
    """Whether an expression is ``self.name``."""
    return isinstance(node, ast.Attribute) and name_of(node.value) == "self"


def name_of(node: ast.AST) -> str:
    """Name or last attribute; empty for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a scope without those of functions inside of it."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, Function):
            yield node
            yield from own_nodes(node)


def _bound_names(nodes: list[ast.AST]) -> set[str]:
    """Parameters, also of lambdas, and what is assigned, but for ``global`` and ``nonlocal``."""
    bound, elsewhere = set(), set()
    for node in nodes:
        match node:
            case ast.Name(ctx=ast.Store()):
                bound.add(node.id)
            case ast.arg():
                bound.add(node.arg)
            case ast.Global() | ast.Nonlocal():
                elsewhere.update(node.names)
    return bound - elsewhere
