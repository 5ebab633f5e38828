"""Small texts and a tokenizer made from them, for the tests of `flyweight.data`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from flyweight.data.tokenizer import train_tokenizer

TEXTS = tuple(
    f"Document {number}: {animal}s are small, and a small {animal} weighs {number * 7} grams.\n"
    f"It costs 3 €, it is called “Zoë”, and {animal}s like it."
    for number, animal in enumerate(("mouse", "bee", "wren", "shrew", "bat", "newt") * 3)
)
VOCAB_SIZE = 320


@cache
def model_bytes() -> bytes:
    """A SentencePiece model of about ``VOCAB_SIZE`` ids, trained on ``TEXTS``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sample.model")
        train_tokenizer(TEXTS, path, vocab_size=VOCAB_SIZE)
        return path.read_bytes()


def write_model(folder: Path) -> Path:
    path = folder / "sample.model"
    path.write_bytes(model_bytes())
    return path


def write_texts(folder: Path, texts: Sequence[str] = TEXTS, name: str = "texts") -> Path:
    """A folder of ``.txt`` files, one per document, in order."""
    out = folder / name
    out.mkdir()
    for number, text in enumerate(texts):
        (out / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return out
