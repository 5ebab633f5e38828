"""English prose that every CPython carries: language topics and standard library docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from flyweight.data.shards import Split
from flyweight.data.text import HELD_OUT_BYTES, Document
from flyweight.errors import DataError

__all__ = ["EmbeddedCorpus"]

_VERSION = 1  # raise it when the rules below change what is gathered
_TOPICS = Path("pydoc_data", "topics.py")
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
)
_MIN_DOCUMENT_CHARACTERS = 200
_MIN_DOCSTRING_CHARACTERS = 20
_LONG_PARAGRAPH_CHARACTERS = 60
_GRAM_WORDS = 13
_MIN_ASCII_SHARE = 0.97
_RULER = re.compile(r"[\W_]*")
"""A line without letters and digits: a title's underline, a table's border, nothing."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_STATEMENT_FIELDS = ("body", "handlers", "orelse", "finalbody", "cases")

_Document = tuple[str, list[str]]


class EmbeddedCorpus:
    """The prose of one Python installation, read from its sources without importing them.

    A document is one topic of ``help()`` or the docstrings of one module, its paragraphs joined
    by spaces. Documents are ordered by the hash of their name: the first ones are validation, up
    to ``HELD_OUT_BYTES`` of UTF-8 where the last one is cut, and the others training text.

    Parameters
    ----------
    library : folder of the standard library's sources, by default that of the running Python

    Raises
    ------
    DataError
        The sources are not there, as in some containers that ship compiled files only.

    Notes
    -----
    A long paragraph is kept once over the whole corpus, and a training paragraph that has 13
    consecutive words in common with validation text is dropped, so that a comparison with a
    compressor that sees the validation text alone is honest. White space is a single space
    throughout, as the tokenizers make it: text bytes and scored bytes agree.
    """

    def __init__(self, library: Path | None = None) -> None:
        self._library = library or Path(sysconfig.get_path("stdlib"))
        if not (self._library / _TOPICS).is_file():
            raise DataError(
                f"{self._library}: this Python has no source of its standard library "
                f"({_TOPICS} is missing); use a full CPython or name text files of your own"
            )

    @property
    def drops_overlap(self) -> bool:
        """The splits are separate by construction."""
        return False

    def documents(self, split: Split) -> Iterator[Document]:
        """Documents of one split, in hash order."""
        return iter(self._splits[split])

    def describe(self) -> dict[str, Any]:
        """The Python that carries the text, and a hash of the names and sizes of its sources."""
        sources = [(p.as_posix(), (self._library / p).stat().st_size) for p in self._paths()]
        digest = _hash(repr(sources))
        return {"kind": "embedded", "rules": _VERSION, "python": sys.version, "sources": digest}

    def _paths(self) -> list[Path]:
        """Sources to read, relative to the library."""
        paths = (path.relative_to(self._library) for path in self._library.rglob("*.py"))
        return sorted(path for path in paths if not _SKIPPED_FOLDERS.intersection(path.parts))

    @cached_property
    def _splits(self) -> dict[Split, list[Document]]:
        gathered = list(_read_topics(self._library / _TOPICS))
        gathered += [_read_module(self._library, path) for path in self._paths()]
        documents = sorted(_without_repetition(gathered), key=lambda d: _hash(d[0]))
        val: list[_Document] = []
        size = 0
        while documents and size < HELD_OUT_BYTES:
            name, paragraphs = documents.pop(0)
            text = " ".join(paragraphs).encode()[: HELD_OUT_BYTES - size]
            val.append((name, [text.decode(errors="ignore").rstrip()]))
            size += len(text)
        return {"train": _as_documents(_unseen(documents, val)), "val": _as_documents(val)}


def _read_topics(path: Path) -> Iterator[_Document]:
    for node in _parse(path).body:
        if isinstance(node, ast.Assign):
            topics: dict[str, str] = ast.literal_eval(node.value)
            for name, text in sorted(topics.items()):
                yield f"topics/{name}", _paragraphs(text)


def _read_module(library: Path, path: Path) -> _Document:
    docstrings = _docstrings(_parse(library / path))
    return path.as_posix(), [p for text in docstrings for p in _paragraphs(text)]


def _parse(path: Path) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in somebody else's code
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and sources of other Pythons
        return ast.Module(body=[], type_ignores=[])
    except OSError as error:
        raise DataError(f"{path}: cannot read the source: {error.strerror}") from error


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module and all it defines, in source order; expressions are not searched."""
    if isinstance(node, _DOCUMENTED):
        docstring = ast.get_docstring(node, clean=False) or ""
        if len(docstring) >= _MIN_DOCSTRING_CHARACTERS and _is_english(docstring):
            yield docstring
    for field in _STATEMENT_FIELDS:
        for child in getattr(node, field, ()):
            yield from _docstrings(child)


def _is_english(text: str) -> bool:
    return len(text.encode("ascii", errors="ignore")) >= _MIN_ASCII_SHARE * len(text)


def _paragraphs(text: str) -> list[str]:
    lines = unicodedata.normalize("NFKC", inspect.cleandoc(text)).splitlines()
    blocks = "\n".join("" if _RULER.fullmatch(line) else line.strip() for line in lines)
    flowing = (" ".join(block.split()) for block in blocks.split("\n\n"))
    return [paragraph for paragraph in flowing if paragraph]


def _without_repetition(documents: Iterable[_Document]) -> Iterator[_Document]:
    seen: set[str] = set()
    for name, paragraphs in documents:
        kept = []
        for paragraph in paragraphs:
            if len(paragraph) < _LONG_PARAGRAPH_CHARACTERS or paragraph not in seen:
                seen.add(paragraph)
                kept.append(paragraph)
        if sum(map(len, kept)) >= _MIN_DOCUMENT_CHARACTERS:
            yield name, kept


def _unseen(documents: Iterable[_Document], val: Iterable[_Document]) -> Iterator[_Document]:
    """Training documents without the paragraphs that share a word sequence with validation."""
    seen = {gram for _, paragraphs in val for text in paragraphs for gram in _grams(text)}
    for name, paragraphs in documents:
        kept = [text for text in paragraphs if seen.isdisjoint(_grams(text))]
        if kept:
            yield name, kept


def _grams(text: str) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return zip(*(words[start:] for start in range(_GRAM_WORDS)), strict=False)


def _as_documents(documents: Iterable[_Document]) -> list[Document]:
    return [Document(" ".join(paragraphs), name) for name, paragraphs in documents]


def _hash(name: str) -> str:
    return sha256(name.encode()).hexdigest()
