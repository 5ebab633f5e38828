"""Shard files: layout, rotation, listing."""

from __future__ import annotations

import numpy as np
import pytest

from flyweight.data.shards import (
    ShardWriter,
    iter_chunks,
    iter_token_documents,
    list_shards,
    read_shard,
    write_shard,
)
from flyweight.errors import DataError, InvalidArgumentError


def test_layout_is_the_official_one(tmp_path):
    path = tmp_path / "fineweb_val_000000.bin"
    write_shard(path, np.array([1, 258, 65535], dtype=np.uint16))
    data = path.read_bytes()
    header = np.frombuffer(data[:1024], dtype="<i4")
    assert header[:3].tolist() == [20240520, 1, 3]
    assert not header[3:].any()
    assert data[1024:] == bytes([1, 0, 2, 1, 255, 255])


def test_read_maps_the_file_read_only(tmp_path):
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(10, dtype=np.uint16))
    tokens = read_shard(path)
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable
    np.testing.assert_array_equal(tokens, np.arange(10))


@pytest.mark.parametrize("ids", [[1, 2], np.array([1], np.int32), np.ones((1, 1), np.uint16)])
def test_write_takes_only_flat_uint16(tmp_path, ids):
    with pytest.raises(TypeError, match="uint16"):
        write_shard(tmp_path / "a.bin", np.asarray(ids))
    assert not list(tmp_path.iterdir())


def test_write_refuses_an_empty_shard(tmp_path):
    with pytest.raises(InvalidArgumentError, match="got 0"):
        write_shard(tmp_path / "a.bin", np.empty(0, np.uint16))


def test_writer_lets_a_document_run_across_shards(tmp_path):
    with ShardWriter(tmp_path, "train", shard_tokens=4) as writer:
        writer.append(np.arange(3, dtype=np.uint16))
        writer.append(np.arange(3, 9, dtype=np.uint16))
    paths = list_shards(tmp_path, "train")
    assert paths == writer.paths
    assert [p.name for p in paths] == [f"fineweb_train_{i:06d}.bin" for i in range(3)]
    assert [read_shard(p).tolist() for p in paths] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_writer_that_fails_leaves_complete_shards_only(tmp_path):
    def interrupted():
        with ShardWriter(tmp_path, "val", shard_tokens=4) as writer:
            writer.append(np.arange(6, dtype=np.uint16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["fineweb_val_000000.bin"]


def test_writer_without_tokens_writes_nothing(tmp_path):
    with ShardWriter(tmp_path, "val") as writer:
        writer.append(np.empty(0, np.uint16))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shard_tokens", [0, 2**31])
def test_writer_checks_the_shard_size(tmp_path, shard_tokens):
    with pytest.raises(InvalidArgumentError, match="shard_tokens"):
        ShardWriter(tmp_path, "val", shard_tokens=shard_tokens)


def test_listing_is_sorted_and_skips_side_files(tmp_path):
    for name in ("val_000001", "val_000000", "val_bytes_000000", "train_000000"):
        write_shard(tmp_path / f"fineweb_{name}.bin", np.ones(1, np.uint16))
    names = [p.name for p in list_shards(tmp_path, "val")]
    assert names == ["fineweb_val_000000.bin", "fineweb_val_000001.bin"]


def test_listing_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"no fineweb_val_000000\.bin .* `flyweight data build`"):
        list_shards(tmp_path, "val")
    with pytest.raises(DataError, match="cannot list"):
        list_shards(tmp_path / "none", "val")


def test_documents_are_put_together_across_shards(tmp_path):
    with ShardWriter(tmp_path, "val", shard_tokens=4) as writer:
        writer.append(np.array([1, 5, 6, 1, 7, 8, 9, 9, 9, 1], dtype=np.uint16))
    documents = iter_token_documents(iter_chunks(writer.paths))
    assert [d.tolist() for d in documents] == [[1, 5, 6], [1, 7, 8, 9, 9, 9], [1]]
