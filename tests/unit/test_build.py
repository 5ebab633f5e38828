"""Text to a data folder, and the checks when it is opened."""

from __future__ import annotations

import errno
import json

import pytest

from data_samples import TEXTS, VOCAB_SIZE, write_model, write_texts
from flyweight.data.build import build_data
from flyweight.data.info import load_data_info, verify_data
from flyweight.data.overlap import overlapping_documents
from flyweight.data.shards import ShardWriter, iter_chunks, iter_token_documents, list_shards
from flyweight.data.text import FileCorpus
from flyweight.data.tokenizer import Tokenizer
from flyweight.errors import DataError, InvalidArgumentError

pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")


@pytest.fixture
def built(tmp_path):
    corpus = FileCorpus([write_texts(tmp_path)], val_bytes=300)
    return build_data(corpus, tmp_path / "data", vocab_size=VOCAB_SIZE, shard_tokens=200)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_holds_what_its_facts_say(built):
    assert built.source["kind"] == "files"
    assert len(built.train.shards) > 1
    assert built.train.documents + built.val.documents == len(TEXTS)
    assert built.train.scored_targets == built.train.tokens - 1
    assert verify_data(built) == built
    assert overlapping_documents(built.folder, built.folder).shared_train == 0
    assert load_data_info(built.folder) == built
    facts = json.loads((built.folder / "data.json").read_bytes())
    assert facts["schema"] == 1
    assert facts["val"]["scored_targets"] == built.val.scored_targets


def test_shards_decode_to_the_text(built):
    tokenizer = Tokenizer(built.tokenizer_path)
    stream = iter_chunks(list_shards(built.folder, "train"))
    decoded = tokenizer.decode(list(iter_token_documents(stream)))
    assert decoded == [" ".join(text.split()) for text in TEXTS[: built.train.documents]]
    assert sum(len(text.encode()) for text in decoded) == built.train.scored_bytes


def test_building_again_gives_the_same_bytes(built, tmp_path):
    corpus = FileCorpus([tmp_path / "texts"], val_bytes=300)
    options = {"vocab_size": VOCAB_SIZE, "shard_tokens": 200}
    again = build_data(corpus, tmp_path / "again", threads=3, **options)
    assert files(again.folder) == files(built.folder)
    before = {path: path.stat().st_mtime_ns for path in built.folder.iterdir()}
    assert build_data(corpus, built.folder, **options) == built
    assert before == {path: path.stat().st_mtime_ns for path in built.folder.iterdir()}


def test_a_folder_with_something_else_is_left_alone(built, tmp_path):
    before = files(built.folder)
    corpus = FileCorpus([tmp_path / "texts"], val_bytes=301)
    with pytest.raises(DataError, match="something else"):
        build_data(corpus, built.folder, vocab_size=VOCAB_SIZE, shard_tokens=200)
    assert files(built.folder) == before
    with pytest.raises(DataError, match="something else"):
        build_data(corpus, tmp_path / "texts", vocab_size=VOCAB_SIZE)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot use as a data folder"):
        build_data(corpus, tmp_path / "file", vocab_size=VOCAB_SIZE)


def test_an_empty_folder_and_a_given_tokenizer(tmp_path):
    model = write_model(tmp_path)
    (tmp_path / "data").mkdir()
    corpus = FileCorpus([write_texts(tmp_path)], val_bytes=300)
    seen = []
    info = build_data(corpus, tmp_path / "data", tokenizer=model, progress=seen.append)
    assert info.tokenizer_path.read_bytes() == model.read_bytes()
    assert sum(seen) == sum(len(text.encode()) for text in TEXTS)
    assert info.train.text_bytes + info.val.text_bytes == sum(seen)


def test_exactly_one_way_to_a_tokenizer(tmp_path):
    corpus = FileCorpus([write_texts(tmp_path)])
    for options in ({}, {"tokenizer": "a.model", "vocab_size": 300}):
        with pytest.raises(InvalidArgumentError, match="either"):
            build_data(corpus, tmp_path / "data", **options)


def test_a_document_in_both_splits_is_refused(tmp_path):
    train = write_texts(tmp_path, TEXTS[:5])
    val = write_texts(tmp_path, ["something new", TEXTS[3].replace("\n", "  ")], "val")
    with pytest.raises(DataError, match=r"003\.txt: this training .*001\.txt"):
        build_data(FileCorpus([train], [val]), tmp_path / "data", tokenizer=write_model(tmp_path))
    assert not (tmp_path / "data").exists()


def test_repetitions_of_held_out_documents_are_dropped(tmp_path):
    corpus = FileCorpus([write_texts(tmp_path, [*TEXTS[:5], TEXTS[1], TEXTS[5]])], val_bytes=260)
    info = build_data(corpus, tmp_path / "data", tokenizer=write_model(tmp_path))
    assert (info.train.documents, info.val.documents) == (4, 2)
    assert overlapping_documents(info.folder, info.folder).shared_train == 0


def test_documents_without_a_token_are_left_out(tmp_path):
    texts = write_texts(tmp_path, ["\u200b", *TEXTS[:5], "\ufeff\u200b"])
    info = build_data(FileCorpus([texts], val_bytes=200), tmp_path / "d", vocab_size=VOCAB_SIZE)
    assert info.train.documents + info.val.documents == 5


def test_an_empty_split_is_refused(tmp_path):
    blank, val = write_texts(tmp_path, [" "], "blank"), write_texts(tmp_path, TEXTS[:1])
    corpus = FileCorpus([blank], [val])
    with pytest.raises(DataError, match="train split"):
        build_data(corpus, tmp_path / "data", tokenizer=write_model(tmp_path))


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), DataError), (KeyboardInterrupt(),) * 2],
)
def test_a_full_disk_or_an_interrupt_leaves_nothing(tmp_path, monkeypatch, failure, raised):
    def fail(self, tokens):
        raise failure

    corpus = FileCorpus([write_texts(tmp_path)], val_bytes=300)
    monkeypatch.setattr(ShardWriter, "append", fail)
    kind = raised if isinstance(raised, type) else type(raised)
    with pytest.raises(kind):
        build_data(corpus, tmp_path / "data", vocab_size=VOCAB_SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_published_shards_need_no_facts_file(built, tmp_path):
    tree = tmp_path / "published"
    folder = tree / "datasets" / f"fineweb10B_sp{VOCAB_SIZE}"
    folder.parent.mkdir(parents=True)
    built.folder.rename(folder)
    (folder / "data.json").unlink()
    (tree / "tokenizers").mkdir()
    model = tree / "tokenizers" / f"fineweb_{VOCAB_SIZE}_bpe.model"
    (folder / "tokenizer.model").rename(model)
    info = load_data_info(folder)
    assert info.tokenizer_path == model
    assert info.val == type(built.val)(
        documents=built.val.documents,
        tokens=built.val.tokens,
        scored_bytes=built.val.scored_bytes,
        text_bytes=None,
        shards=built.val.shards,
    )
    assert info.train.tokens == built.train.tokens
    assert info.train.scored_bytes is None
    assert verify_data(info).train.scored_bytes == built.train.scored_bytes
    assert load_data_info(folder, model).vocab_size == built.vocab_size
