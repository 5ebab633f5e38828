"""The corpus that every Python carries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flyweight.data.embedded import EmbeddedCorpus
from flyweight.errors import DataError

PROSE = "This sentence number {0} of module {1} speaks about {1} and {0} at some more length. "


@pytest.fixture(scope="module")
def corpus():
    try:
        return EmbeddedCorpus()
    except DataError as error:
        pytest.skip(str(error))


def make_library(root: Path, *, modules: int = 3, sentences: int = 8) -> Path:
    (root / "pydoc_data").mkdir(parents=True)
    topics = {"b": "Title\n*****\n\n" + PROSE.format("b", "topic") * 4, "a": "tiny"}
    (root / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n")
    for module in range(modules):
        docstrings = [PROSE.format(n, f"m{module}") * 3 for n in range(sentences)]
        functions = [f"def f{n}():\n    {text!r}\n" for n, text in enumerate(docstrings)]
        (root / f"m{module}.py").write_text("\n".join(functions))
    return root


def all_texts(corpus):
    return {d.place: d.text for split in ("val", "train") for d in corpus.documents(split)}


def test_size_and_shape_of_the_real_corpus(corpus):
    train, val = list(corpus.documents("train")), list(corpus.documents("val"))
    val_bytes = sum(len(document.text.encode()) for document in val)
    assert 262_140 <= val_bytes <= 262_144
    assert 1_000_000 < sum(len(document.text.encode()) for document in train) < 4_000_000
    assert len(val) >= 20
    assert not {d.place for d in train} & {d.place for d in val}


def test_no_long_paragraph_of_validation_is_in_train(corpus):
    train = "\n".join(document.text for document in corpus.documents("train"))
    for document in corpus.documents("val"):
        sentences = re.split(r"(?<=[.:]) ", document.text)
        assert not [s for s in sentences if len(s.split()) > 30 and s in train]


def test_text_is_single_spaced(corpus):
    assert all(" ".join(text.split()) == text for text in all_texts(corpus).values())


def test_gathering_is_deterministic_and_imports_nothing(tmp_path):
    library = make_library(tmp_path / "lib")
    (library / "m9.py").write_text(f"'''{PROSE * 4}'''\nraise SystemExit\n")
    first, second = all_texts(EmbeddedCorpus(library)), all_texts(EmbeddedCorpus(library))
    assert list(first.items()) == list(second.items())
    assert "m9.py" in first


def test_description_follows_the_sources(tmp_path):
    library = make_library(tmp_path / "lib")
    first = EmbeddedCorpus(library).describe()
    assert first == EmbeddedCorpus(library).describe()
    (library / "m1.py").write_text("'Another text.'\n")
    assert first != EmbeddedCorpus(library).describe()


def test_what_is_left_out(tmp_path):
    library = make_library(tmp_path / "lib", modules=1)
    (library / "broken.py").write_text("def f(:\n")
    (library / "short.py").write_text("'''Too short to be a document of its own.'''\n")
    (library / "cyrillic.py").write_text(f"'''{'Это не английский текст. ' * 20}'''\n")
    (library / "copy.py").write_text((library / "m0.py").read_text())
    for folder in ("test", "site-packages"):
        (library / folder).mkdir()
        (library / folder / "m5.py").write_text(f"'''{PROSE * 4}'''\n")
    found = all_texts(EmbeddedCorpus(library))
    assert set(found) == {"topics/b", "copy.py"}
    assert "*" not in found["topics/b"]


def test_docstrings_come_in_source_order(tmp_path):
    library = make_library(tmp_path / "lib", modules=1)
    text = all_texts(EmbeddedCorpus(library))["m0.py"]
    assert re.findall(r"sentence number (\d)", text) == [str(n) for n in range(8) for _ in "123"]


def test_train_loses_paragraphs_that_repeat_validation(tmp_path, monkeypatch):
    monkeypatch.setattr("flyweight.data.embedded.HELD_OUT_BYTES", 500)
    library = make_library(tmp_path / "lib", modules=6)
    common = "one two three four five six seven eight nine ten eleven twelve thirteen"
    for module in range(6):
        path = library / f"m{module}.py"
        path.write_text(f"'''{common} {module}.'''\n" + path.read_text())
    corpus = EmbeddedCorpus(library)
    [val] = [d for d in corpus.documents("val") if d.place.startswith("m")]
    assert common in val.text
    train = [d.text for d in corpus.documents("train")]
    assert train
    assert not [text for text in train if common in text]


def test_a_python_without_sources_is_named(tmp_path):
    with pytest.raises(DataError, match="no source of its standard library"):
        EmbeddedCorpus(tmp_path)
