"""Source text of a tree, the same bytes under every Python, which any from 3.11 on can read.

`ast.unparse` of Python 3.12 and later writes f-strings that repeat their own quotes inside of a
field. Python 3.11 cannot read these, and a script has to have the same bytes wherever it is written
again. All other statements that are shipped come out alike under 3.11, 3.12 and 3.13.
"""

from __future__ import annotations

import ast
import copy
import re

from flyweight.errors import InvalidArgumentError

__all__ = ["unparse"]

_QUOTES = ("'", '"', "'''", '"""')
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "{": "{{", "}": "}}"}


def unparse(node: ast.AST) -> str:
    """Like `ast.unparse`, but for f-strings.

    Raises
    ------
    InvalidArgumentError
        An f-string needs a backslash or all kinds of quotes inside of its fields.
    """
    names = _StandIns()
    text = ast.unparse(names.visit(copy.deepcopy(node)))
    return re.sub(r"\b_fstring_\d+_\b", lambda found: names.texts[found[0]], text)


class _StandIns(ast.NodeTransformer):
    """Puts a name in the place of each f-string.

    Attributes
    ----------
    texts : name to f-string
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Name:
        name = f"_fstring_{len(self.texts)}_"
        self.texts[name] = _write(node)
        return ast.Name(id=name, ctx=ast.Load())


def _write(node: ast.JoinedStr) -> str:
    parts = _parts(node)
    letters = "".join(text for text, is_field in parts if not is_field)
    fields = "".join(text for text, is_field in parts if is_field)
    fitting = [quote for quote in _QUOTES if quote not in fields]
    if "\\" in fields or not fitting:
        raise InvalidArgumentError(
            f"script: line {node.lineno}: an f-string that Python 3.11 cannot read: {fields}"
        )
    quote = min(fitting, key=lambda each: (len(each), letters.count(each)))
    text = "".join(
        text if is_field else text.replace(quote[0], f"\\{quote[0]}") for text, is_field in parts
    )
    return f"f{quote}{text}{quote}"


def _parts(node: ast.JoinedStr) -> list[tuple[str, bool]]:
    """Each part's text, and whether it is a field."""
    parts = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            parts.append((_field(part), True))
        elif isinstance(part, ast.Constant):
            parts.append(("".join(_ESCAPES.get(char, char) for char in str(part.value)), False))
    return parts


def _field(part: ast.FormattedValue) -> str:
    value = unparse(part.value)
    if isinstance(part.value, ast.Lambda):  # its colon would begin the format
        value = f"({value})"
    space = " " if value.startswith("{") else ""
    conversion = f"!{chr(part.conversion)}" if part.conversion > 0 else ""
    spec = ""
    if isinstance(part.format_spec, ast.JoinedStr):
        spec = ":" + "".join(text for text, _ in _parts(part.format_spec))
    return f"{{{space}{value}{conversion}{spec}}}"
