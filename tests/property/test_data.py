"""Shards and byte accounting on anything."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_samples import write_model
from flyweight.data.shards import (
    ShardWriter,
    iter_token_documents,
    list_shards,
    read_shard,
    write_shard,
)
from flyweight.data.tokenizer import Tokenizer

TOKENS = arrays(np.uint16, st.integers(1, 200))


@given(tokens=TOKENS)
@settings(max_examples=50, deadline=None)
def test_a_shard_comes_back(tokens):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.bin")
        write_shard(path, tokens)
        np.testing.assert_array_equal(read_shard(path), tokens)
        assert path.stat().st_size == 1024 + 2 * tokens.size


@given(parts=st.lists(TOKENS, max_size=5), shard_tokens=st.integers(50, 300))
@settings(max_examples=50, deadline=None)
def test_a_stream_comes_back_from_full_shards(parts, shard_tokens):
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(folder, "train", shard_tokens=shard_tokens) as writer:
            for part in parts:
                writer.append(part)
        if not parts:
            assert not writer.paths
            return
        shards = [read_shard(path) for path in list_shards(folder, "train")]
        np.testing.assert_array_equal(np.concatenate(shards), np.concatenate(parts))
        assert all(shard.size == shard_tokens for shard in shards[:-1])


@given(chunks=st.lists(arrays(np.uint16, st.integers(0, 20), elements=st.integers(0, 3))))
def test_documents_tile_the_stream(chunks):
    documents = list(iter_token_documents(chunks))
    stream = np.concatenate([np.empty(0, np.uint16), *chunks])
    assert np.array_equal(np.concatenate([stream[:0], *documents]), stream)
    assert all(d.size and not (d[1:] == 1).any() for d in documents)
    assert all(d[0] == 1 for d in documents[1:])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")
    return Tokenizer(write_model(tmp_path_factory.mktemp("model")))


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \u2581\n")))
)
@settings(max_examples=200, deadline=None)
def test_table_bytes_are_those_of_the_decoded_text(tokenizer, texts):
    encoded = tokenizer.encode(texts)
    decoded = [len(text.encode()) for text in tokenizer.decode(encoded)]
    assert tokenizer.document_bytes(encoded).tolist() == decoded
    assert tokenizer.byte_table.total(encoded) == sum(decoded)
