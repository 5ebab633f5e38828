"""Documents in both splits are found wherever shards cut them, and a run refuses them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flyweight.data.facts import DataInfo, ShardInfo, SplitInfo
from flyweight.data.overlap import Overlap, overlapping_documents, remembered_overlap
from flyweight.data.shards import BOS_ID, ShardWriter, Tokens
from flyweight.errors import DataError

RNG = np.random.default_rng(3)


def documents(count: int, longest: int = 60) -> list[Tokens]:
    return [
        np.concatenate([[BOS_ID], RNG.integers(2, 500, RNG.integers(1, longest))]).astype(np.uint16)
        for _ in range(count)
    ]


def write(folder: Path, split: str, docs: list[Tokens], shard_tokens: int = 1000) -> list[Path]:
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, split, shard_tokens=shard_tokens) as writer:  # type: ignore[arg-type]
        for document in docs:
            writer.append(document)
    return writer.paths


@pytest.mark.parametrize("shard_tokens", [7, 64, 100_000])
@pytest.mark.parametrize("chunk_tokens", [5, 50, 1 << 22])
def test_shared_documents_are_found_across_shards_and_chunks(
    tmp_path: Path, shard_tokens: int, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flyweight.data.shards._CHUNK_TOKENS", chunk_tokens)
    val, train = documents(20), documents(40)
    train[7], train[8], train[39] = val[3], val[3], val[19]
    write(tmp_path, "val", val, shard_tokens)
    write(tmp_path, "train", train, shard_tokens)
    found = overlapping_documents(tmp_path, tmp_path)
    assert (found.val_documents, found.shared_val, found.shared_train) == (20, 2, 3)
    begin = sum(document.size for document in train[:7])
    shard, token = divmod(begin, shard_tokens)
    assert found.first == f"token {token} of fineweb_train_{shard:06d}.bin"
    assert found.share == 0.1


def test_separate_splits_share_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a", "val", documents(5))
    write(tmp_path / "b", "train", [*documents(5), documents(1)[0][:1]])
    found = overlapping_documents(tmp_path / "b", tmp_path / "a")
    assert found == Overlap(val_documents=5, shared_val=0, shared_train=0, first="")
    found.refuse_above(0.0, tmp_path)


def test_repetitions_within_validation_count_each(tmp_path: Path) -> None:
    val = documents(3)
    write(tmp_path, "val", [*val, val[0], val[0]])
    write(tmp_path, "train", [val[0]])
    found = overlapping_documents(tmp_path, tmp_path)
    assert (found.val_documents, found.shared_val, found.shared_train) == (5, 3, 1)


def test_what_is_refused(tmp_path: Path) -> None:
    found = Overlap(val_documents=1000, shared_val=8, shared_train=9, first="token 5 of x.bin")
    found.refuse_above(0.01, tmp_path)
    with pytest.raises(
        DataError, match=r"8 of 1,000 .*\(0.80%\) .* token 5 of x.bin: scores would"
    ):
        found.refuse_above(0.005, tmp_path)


def facts_of(folder: Path, train: list[Path], val: list[Path]) -> DataInfo:
    def split(paths: list[Path]) -> SplitInfo:
        shards = tuple(ShardInfo(name=path.name, tokens=1, sha256=None) for path in paths)
        return SplitInfo(
            documents=None, tokens=1, scored_bytes=None, text_bytes=None, shards=shards
        )

    return DataInfo(
        folder=folder,
        tokenizer_path=folder,
        tokenizer_sha256="",
        vocab_size=500,
        source={},
        train=split(train),
        val=split(val),
    )


def test_shards_are_compared_once_until_one_changes(tmp_path: Path) -> None:
    val = documents(4)
    paths = [write(tmp_path, split, val[:2]) for split in ("train", "val")]
    info, cache, lines = facts_of(tmp_path, *paths), tmp_path / "overlap.json", []
    for _ in range(2):
        assert remembered_overlap(info, cache, report=lines.append).shared_val == 2
    assert len(lines) == 1
    time.sleep(0.01)
    write(tmp_path, "train", val[2:])
    assert remembered_overlap(info, cache, report=lines.append).shared_val == 0
    other = replace(info.train.shards[0], sha256="0")
    changed = replace(info, train=replace(info.train, shards=(other,)))
    assert remembered_overlap(changed, cache, report=lines.append).shared_val == 0
    assert len(lines) == 3
    for damage in (b"", b"[]", b"{}", b"\xff"):
        cache.write_bytes(damage)
        assert remembered_overlap(info, cache).shared_val == 0


def test_ten_million_tokens_take_seconds(tmp_path: Path) -> None:
    docs = documents(20_000, longest=100)
    write(tmp_path, "val", docs[:100])
    write(tmp_path, "train", docs * 10, shard_tokens=10**8)
    started = time.perf_counter()
    assert overlapping_documents(tmp_path, tmp_path).shared_train == 1000
    assert time.perf_counter() - started < 10  # 1 s where the machine is quiet
