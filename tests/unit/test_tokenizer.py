"""Tokenizers: training, import, byte tables."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from data_samples import TEXTS, VOCAB_SIZE, model_bytes, write_model
from flyweight.data.byte_counts import ByteTable
from flyweight.data.tokenizer import Tokenizer, byte_table, import_tokenizer, train_tokenizer
from flyweight.errors import DataError, InvalidArgumentError, MissingDependencyError

pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")


@pytest.fixture
def tokenizer(tmp_path):
    return Tokenizer(write_model(tmp_path))


def test_training_gives_the_same_bytes(tmp_path):
    made = train_tokenizer(iter(TEXTS), tmp_path / "a.model", vocab_size=VOCAB_SIZE)
    assert made.path.read_bytes() == model_bytes()
    assert made.vocab_size == VOCAB_SIZE


def test_training_reads_the_first_bytes_only(tmp_path):
    def texts():
        yield TEXTS[0]
        yield TEXTS[1]
        raise AssertionError("read on")

    train_tokenizer(texts(), tmp_path / "a.model", vocab_size=300, max_bytes=len(TEXTS[0]) + 1)


@pytest.mark.parametrize("vocab_size", [259, 65537])
def test_training_checks_the_vocabulary_size(tmp_path, vocab_size):
    with pytest.raises(InvalidArgumentError, match="260"):
        train_tokenizer(TEXTS, tmp_path / "a.model", vocab_size=vocab_size)


def test_training_needs_text_and_room_for_its_characters(tmp_path):
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", " \n"], tmp_path / "a.model", vocab_size=300)
    with pytest.raises(DataError, match="cannot train a tokenizer of 260 ids"):
        train_tokenizer(TEXTS, tmp_path / "a.model", vocab_size=260)
    assert not list(tmp_path.iterdir())


def test_documents_open_with_bos_and_come_back_normalised(tokenizer):
    [ids] = tokenizer.encode(["A bee,\n  12 ﬁnches\t"])
    assert ids.dtype == np.uint16
    assert ids[0] == 1
    assert tokenizer.decode([ids]) == ["A bee, 12 finches"]


def test_threads_do_not_change_ids(tokenizer):
    one, four = (tokenizer.encode(TEXTS, threads=threads) for threads in (1, 4))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bytes_of_a_document_are_those_of_its_text(tokenizer):
    texts = [*TEXTS, "", "日本 😀", "\u2581mark", "<s>not control</s>"]
    encoded = tokenizer.encode(texts)
    expected = [len(text.encode()) for text in tokenizer.decode(encoded)]
    assert tokenizer.document_bytes(encoded).tolist() == expected


def test_a_wrong_byte_table_is_found(tokenizer):
    tokenizer.byte_table = ByteTable(
        base=tokenizer.byte_table.base + ~tokenizer.byte_table.is_boundary,
        has_space=tokenizer.byte_table.has_space,
        is_boundary=tokenizer.byte_table.is_boundary,
    )
    with pytest.raises(DataError, match="byte table counts"):
        tokenizer.document_bytes(tokenizer.encode(TEXTS[:1]))


class _Processor:
    """A made-up vocabulary: control, unknown, unused, byte, and pieces with and without mark."""

    pieces = ("<s>", "<unk>", "<unused>", "<0xE2>", "\u2581", "\u2581a", "é", "\u2581\u2581")

    def vocab_size(self):
        return len(self.pieces)

    def is_control(self, token):
        return token == 0

    def is_unknown(self, token):
        return token == 1

    def is_unused(self, token):
        return token == 2

    def is_byte(self, token):
        return token == 3

    def id_to_piece(self, token):
        return self.pieces[token]


def test_byte_table_follows_the_rules():
    table = byte_table(_Processor())
    assert table.base.tolist() == [0, 0, 0, 1, 0, 1, 2, 3]
    assert table.has_space.tolist() == [False] * 4 + [True, True, False, True]
    assert table.is_boundary.tolist() == [True] * 3 + [False] * 5
    prev = np.array([[0, 5, 3], [1, 6, 2]])
    cur = np.array([[5, 5, 0], [4, 4, 6]])
    counts = table.count(prev, cur)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 2, 0], [0, 1, 2]]


def test_byte_table_total_crosses_chunks():
    table = byte_table(_Processor())
    stream = np.array([0, 6, 5, 5, 4, 0, 5, 3], dtype=np.uint16)
    whole = int(table.count(stream[:-1], stream[1:]).sum())
    for cut in range(1, stream.size):
        assert table.total([stream[:cut], stream[cut:]]) == whole
    assert table.total([]) == 0


def test_byte_table_refuses_foreign_ids():
    table = byte_table(_Processor())
    with pytest.raises(InvalidArgumentError, match="expected 0 to 7"):
        table.count(np.array([0]), np.array([8]))


def test_import_copies_what_passes(tmp_path):
    source = write_model(tmp_path)
    made = import_tokenizer(source, tmp_path / "copy" / "tokenizer.model")
    assert made.path.read_bytes() == source.read_bytes()


def test_another_bos_is_refused(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path / "odd.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_writer=file,
            model_type="bpe",
            vocab_size=60,
            bos_id=2,
            eos_id=1,
            minloglevel=2,
        )
    with pytest.raises(DataError, match=r"must open with id 1, .* bos_id=2"):
        Tokenizer(path)


def test_a_model_without_the_space_mark_is_refused(tmp_path, monkeypatch):
    path = write_model(tmp_path)
    found = SimpleNamespace(
        vocab_size=lambda: 300, bos_id=lambda: 1, unk_id=lambda: 3, piece_to_id=lambda piece: 3
    )
    found.LoadFromSerializedProto = lambda data: None
    fake = SimpleNamespace(SentencePieceProcessor=lambda: found)
    monkeypatch.setattr("flyweight.data.tokenizer._sentencepiece", lambda: fake)
    with pytest.raises(DataError, match="not a piece of its own"):
        Tokenizer(path)


def test_mutated_models_are_refused_by_name_or_read(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "mutated.model"
    refused = []
    for _ in range(200):
        data = bytearray(model_bytes())
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        try:
            Tokenizer(path)
        except DataError as error:
            refused.append(str(error))
    assert all(message.startswith(f"{path}: ") for message in refused)
    assert refused


def test_a_piece_that_is_not_utf8(tmp_path, monkeypatch):
    path = write_model(tmp_path)
    monkeypatch.setattr("flyweight.data.tokenizer.byte_table", lambda _: b"\xff".decode())
    with pytest.raises(DataError, match=r"\.model: a piece is not UTF-8"):
        Tokenizer(path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = write_model(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingDependencyError, match=r"flyweight\[train\]"):
        Tokenizer(path)
