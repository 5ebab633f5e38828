"""f-strings of Python 3.12 as Python 3.11 can parse them, for scripts that are only looked at."""

from __future__ import annotations

import re

__all__ = ["downgrade_fstrings"]

_TOKEN = re.compile(
    r"#[^\n]*|\b(?P<prefix>[rRbBuU]?[fF][rR]?)(?P<quote>\"\"\"|'''|\"|')"
    r"|(?:\b[rRbBuU]{1,2})?(?P<plain>\"\"\"|'''|\"|')"
)
_OTHER = {'"': "'", "'": '"'}


def downgrade_fstrings(source: str) -> str:
    """Quotes of the literal itself inside of its fields become the other kind; lines stay.

    Notes
    -----
    A backslash in a field, which 3.11 refuses too, is dropped. The result is for reading: strings
    in fields may have changed.

    References
    ----------
    PEP 701.
    """
    out, at = [], 0
    while match := _TOKEN.search(source, at):
        out.append(source[at : match.end()])
        at = match.end()
        if quote := match["quote"]:
            end, text = _literal(source, at, quote)
        elif quote := match["plain"]:
            end = _plain_end(source, at, quote)
            text = source[at:end]
        else:
            continue
        out.append(text)
        at = end
    return "".join([*out, source[at:]])


def _plain_end(source: str, at: int, quote: str) -> int:
    while at < len(source) and not source.startswith(quote, at):
        at += 2 if source[at] == "\\" else 1
    return min(at + len(quote), len(source))


def _literal(source: str, at: int, quote: str) -> tuple[int, str]:
    """End of an f-string whose text begins at a position, and the text with its end quote."""
    depth = 0
    out: list[str] = []
    while at < len(source):
        char = source[at]
        if depth == 0 and source.startswith(quote, at):
            return at + len(quote), "".join([*out, quote])
        if depth == 0 and source[at : at + 2] in ("{{", "}}"):
            out.append(source[at : at + 2])
            at += 2
            continue
        if depth == 0 and char == "\\":
            out.append(source[at : at + 2])
            at += 2
            continue
        depth += (char == "{") - (char == "}")
        if depth and char == quote[0]:
            char = _OTHER[char]
        out.append("" if depth and char == "\\" else char)
        at += 1
    return at, "".join(out)
