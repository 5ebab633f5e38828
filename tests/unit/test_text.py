"""Documents from text files."""

from __future__ import annotations

import json

import pytest
import zstandard

from flyweight.data.text import FileCorpus, expand_sources, iter_documents
from flyweight.errors import DataError


def lines(*texts):
    return "".join(json.dumps({"text": text, "source": "x"}) + "\n" for text in texts).encode()


def texts(documents):
    return [document.text for document in documents]


def test_kinds_and_order(tmp_path):
    (tmp_path / "b.txt").write_text("one\n\ntwo", encoding="utf-8")
    (tmp_path / "c.jsonl").write_bytes(lines("three", "vier — €"))
    frames = zstandard.compress(lines("five")) + zstandard.compress(lines("six"))
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    (tmp_path / "readme.md").write_text("no")
    found = list(iter_documents(expand_sources([tmp_path])))
    assert texts(found) == ["five", "six", "one\n\ntwo", "three", "vier — €"]
    assert found[4].place == f"{tmp_path / 'c.jsonl'} line 2"


def test_blank_lines_and_blank_documents_are_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one", "", " \n") + b"\n  \n" + lines("two").rstrip())
    found = list(iter_documents([path]))
    assert texts(found) == ["one", "two"]
    assert found[1].place.endswith("line 6")


def test_lines_longer_than_one_read(tmp_path):
    path = tmp_path / "a.jsonl"
    long = "word " * 10_000
    path.write_bytes(lines("short", long, "end"))
    assert texts(iter_documents([path])) == ["short", long, "end"]


def test_sources_that_are_none(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match="unknown kind of text"):
        expand_sources([tmp_path / "a.csv"])
    with pytest.raises(DataError, match="no such file"):
        expand_sources([tmp_path / "b.txt"])
    with pytest.raises(DataError, match="in this folder"):
        expand_sources([tmp_path])


def test_one_document_cannot_be_both_splits(tmp_path):
    (tmp_path / "input.txt").write_text("All of it in one file.")
    corpus = FileCorpus([tmp_path / "input.txt"])
    for split in ("val", "train"):
        with pytest.raises(DataError, match=r"input.txt: its only document is held out"):
            corpus.documents(split)


@pytest.mark.parametrize(("val_bytes", "held_out"), [(1, 1), (4, 1), (8, 2), (11, 2), (12, 3)])
def test_the_last_documents_are_held_out(tmp_path, val_bytes, held_out):
    path = tmp_path / "a.jsonl"
    everything = ["aaaa", "bbbb", "cccc", "dddd"]
    path.write_bytes(lines(*everything))
    corpus = FileCorpus([path], val_bytes=val_bytes)
    assert texts(corpus.documents("train")) == everything[:-held_out]
    assert texts(corpus.documents("val")) == everything[-held_out:]
    assert corpus.drops_overlap


def test_named_validation_and_description(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    corpus = FileCorpus([tmp_path / "a.txt"], [tmp_path / "b.txt"])
    assert texts(corpus.documents("train")) == ["a.txt"]
    assert texts(corpus.documents("val")) == ["b.txt"]
    assert not corpus.drops_overlap
    described = corpus.describe()
    assert [file["name"] for file in described["train"] + described["val"]] == ["a.txt", "b.txt"]
    (tmp_path / "a.txt").write_text("A.txt")
    assert corpus.describe() != described
