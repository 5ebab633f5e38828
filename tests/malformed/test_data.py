"""Broken shards, tokenizers, texts and facts: one clear error each."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zstandard

from data_samples import TEXTS, VOCAB_SIZE, write_texts
from flyweight.data.build import build_data
from flyweight.data.info import load_data_info, verify_data
from flyweight.data.shards import read_shard, write_shard
from flyweight.data.text import FileCorpus, iter_documents
from flyweight.data.tokenizer import Tokenizer, train_tokenizer
from flyweight.errors import DataError


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard.bin"
    write_shard(path, np.arange(100, dtype=np.uint16))
    return path


def patch(path, position, value):
    data = bytearray(path.read_bytes())
    data[position : position + 4] = np.array(value, dtype="<i4").tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("size", [0, 1, 4, 1022, 1023])
def test_shard_shorter_than_its_header(shard, size):
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"shard\.bin: {size} bytes are too few"):
        read_shard(shard)


@pytest.mark.parametrize("size", [1024, 1025, 1222, 1223, 1225, 1226])
def test_shard_of_another_length(shard, size):
    shard.write_bytes(shard.read_bytes()[:size].ljust(size, b"\0"))
    with pytest.raises(DataError, match=rf"expected 1224 bytes for 100 tokens, found {size}"):
        read_shard(shard)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 20240521, "starts with 20240521, expected 20240520"),
        (4, 2, "version 2 at byte 4"),
        (8, 0, "counts 0 tokens"),
        (8, -1, "counts -1 tokens"),
        (8, 2**31 - 1, "expected 4294968318 bytes for 2147483647 tokens, found 1224"),
    ],
)
def test_shard_with_a_lying_header(shard, position, value, message):
    patch(shard, position, value)
    with pytest.raises(DataError, match=message):
        read_shard(shard)


def test_shard_that_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="cannot read the shard"):
            read_shard(path)


@pytest.mark.parametrize("data", [b"", b"no model", bytes(100)])
def test_tokenizer_that_is_none(tmp_path, data):
    pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")
    path = tmp_path / "a.model"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.model: not a SentencePiece model"):
        Tokenizer(path)
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        Tokenizer(tmp_path / "b.model")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"[]", "field 'text'"),
        (b'{"txt": "a"}', "field 'text'"),
        (b'{"text": null}', "field 'text'"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
        (rb'{"text": "a\ud800"}', "surrogate pair at character 1"),
    ],
)
def test_line_of_text(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl line 2: .*{message}"):
        list(iter_documents([path]))


def test_text_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 at byte 3"):
        list(iter_documents([path]))


def test_every_truncation_of_a_compressed_text(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    whole = zstandard.compress(b'{"text": "fine"}\n' * 9)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.jsonl\.zst"):
            list(iter_documents([path]))


def test_compressed_text_that_is_none(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b'{"text": "fine"}\n')
    with pytest.raises(DataError, match="damaged zstd data"):
        list(iter_documents([path]))


@pytest.fixture
def built(tmp_path):
    pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")
    corpus = FileCorpus([write_texts(tmp_path)], val_bytes=300)
    return build_data(corpus, tmp_path / "data", vocab_size=VOCAB_SIZE, shard_tokens=200)


def test_tokenizer_of_other_shards(built, tmp_path):
    train_tokenizer(TEXTS[:9], tmp_path / "other.model", vocab_size=VOCAB_SIZE)
    with pytest.raises(DataError, match="tokenizer does not match the shards"):
        load_data_info(built.folder, tmp_path / "other.model")
    (tmp_path / "other.model").replace(built.tokenizer_path)
    with pytest.raises(DataError, match="tokenizer does not match the shards"):
        load_data_info(built.folder)


def test_ids_outside_the_vocabulary(built):
    path = built.folder / built.val.shards[0].name
    write_shard(path, np.where(np.arange(read_shard(path).size) == 3, 999, read_shard(path)))
    with pytest.raises(DataError, match=r"val_000000.*does not match the shards: token id 999"):
        load_data_info(built.folder)


def test_shards_missing_surplus_or_of_another_length(built):
    path = built.folder / built.train.shards[0].name
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="this shard is missing"):
        load_data_info(built.folder)
    write_shard(path, np.ones(7, np.uint16))
    with pytest.raises(DataError, match=r"7 tokens, data\.json names 200"):
        load_data_info(built.folder)
    path.write_bytes(data)
    surplus = built.folder / "fineweb_train_000099.bin"
    surplus.write_bytes(data)
    with pytest.raises(DataError, match=r"is not in data\.json"):
        load_data_info(built.folder)


def test_a_flipped_token_is_found_by_verification(built):
    path = built.folder / built.val.shards[0].name
    data = bytearray(path.read_bytes())
    data[1040] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="sha256"):
        verify_data(load_data_info(built.folder))


def test_false_counts_are_found_by_verification(built):
    facts = json.loads((built.folder / "data.json").read_bytes())
    facts["val"]["scored_bytes"] += 1
    (built.folder / "data.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="val scored_bytes is"):
        verify_data(load_data_info(built.folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: [], "not a description"),
        (lambda facts: {}, "KeyError"),
        (lambda facts: facts | {"schema": 2}, "schema 2, only 1"),
        (lambda facts: facts | {"vocab_size": True}, "vocab_size is True"),
        (lambda facts: facts | {"val": []}, "val is"),
        (lambda facts: facts | {"val": facts["val"] | {"shards": [3]}}, "not a description"),
        (lambda facts: facts | {"val": facts["val"] | {"tokens": 7}}, "not add up to 7 tokens"),
        (
            lambda facts: (
                facts
                | {
                    "val": facts["val"]
                    | {"shards": [{"name": "../x", "tokens": 1, "sha256": None}]}
                }
            ),
            "'../x' is not the name of a shard",
        ),
    ],
)
def test_facts_of_a_wrong_kind(built, change, message):
    path = built.folder / "data.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with pytest.raises(DataError, match=message):
        load_data_info(built.folder)
    path.write_bytes(b"{")
    with pytest.raises(DataError, match="not a description"):
        load_data_info(built.folder)
