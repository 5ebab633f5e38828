"""Byte sidecars: they replace the byte table, and must be of their shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("sentencepiece", reason="tokenizers are in the extra [train]")

from data_samples import TEXTS, write_model, write_texts
from flyweight.data.build import build_data
from flyweight.data.byte_counts import ByteSidecar, ByteTable
from flyweight.data.facts import DataInfo
from flyweight.data.info import load_data_info, verify_data
from flyweight.data.shards import BOS_ID, list_shards, read_shard, write_shard
from flyweight.data.sidecar import read_sidecar, sidecar_path, validation_counter, write_sidecar
from flyweight.data.text import FileCorpus
from flyweight.errors import DataError, InvalidArgumentError

LOWERED = "{}\N{COMBINING ENCLOSING CIRCLE}"


def lower(text: str) -> str:
    """A transform that can be undone: a capital becomes its small letter, with a mark behind it."""
    return "".join(LOWERED.format(c.lower()) if c.isupper() else c for c in text)


def surface_counts(data: DataInfo) -> NDArray[np.uint16]:
    """Bytes of the text before `lower`, token by token: a mark stands for none."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(data.tokenizer_path))
    table = validation_counter(data)
    assert isinstance(table, ByteTable)
    tokens = np.concatenate([read_shard(path) for path in list_shards(data.folder, "val")])
    counts = table.count(tokens[:-1], tokens[1:])
    mark = LOWERED.format("").encode()
    pending = 0
    for index, token in enumerate(tokens[1:].tolist()):  # a mark may be a piece, or three bytes
        piece = processor.id_to_piece(token)
        if processor.is_byte(token):
            value = int(piece[1:-1], 16)
            pending = pending + 1 if value == mark[pending % 3] else 0
            if pending == 3:
                counts[index - 2 : index + 1] = 0
                pending = 0
        else:
            counts[index] -= len(mark) * piece.encode().count(mark)
    return np.concatenate([[0], counts]).astype(np.uint16)


@pytest.fixture
def transformed(tmp_path: Path) -> DataInfo:
    """Shards of transformed text, two for validation, as another program would export them."""
    train = write_texts(tmp_path, [lower(text) for text in TEXTS[:-3]], "train")
    val = write_texts(tmp_path, [lower(f"{text} Ends HERE.") for text in TEXTS[-3:]], "val")
    corpus = FileCorpus([train], [val])
    made = build_data(
        corpus, tmp_path / "data", tokenizer=write_model(tmp_path), threads=1, shard_tokens=300
    )
    assert len(made.val.shards) > 1
    (made.folder / "data.json").unlink()
    return load_data_info(made.folder)


@pytest.fixture
def with_sidecars(transformed: DataInfo) -> DataInfo:
    counts = surface_counts(transformed)
    for path in list_shards(transformed.folder, "val"):
        size = read_shard(path).size
        write_sidecar(path, counts[:size])
        counts = counts[size:]
    return load_data_info(transformed.folder)


def original_bytes() -> int:
    """Of the validation text as it was, with its breaks made spaces as the tokenizer does."""
    return sum(len(f"{text} Ends HERE.".replace("\n", " ").encode()) for text in TEXTS[-3:])


def test_sidecars_count_the_original_text(transformed: DataInfo, with_sidecars: DataInfo) -> None:
    assert transformed.val.byte_counts == ()
    assert transformed.val.scored_bytes is not None
    assert with_sidecars.val.scored_bytes == original_bytes() < transformed.val.scored_bytes
    assert with_sidecars.val.shards == transformed.val.shards  # they are no shards themselves
    names = [sidecar.name for sidecar in with_sidecars.val.byte_counts]
    assert names[:2] == ["fineweb_val_bytes_000000.bin", "fineweb_val_bytes_000001.bin"]
    counter = validation_counter(with_sidecars)
    assert isinstance(counter, ByteSidecar)
    assert counter.counts.dtype == np.uint16


def test_facts_with_sidecars_survive_the_disk(with_sidecars: DataInfo) -> None:
    with_sidecars.write()
    loaded = load_data_info(with_sidecars.folder)
    assert loaded == with_sidecars
    assert verify_data(loaded).val == with_sidecars.val


def first_shard(info: DataInfo) -> Path:
    return info.folder / info.val.shards[0].name


def test_a_changed_count_is_found(with_sidecars: DataInfo) -> None:
    with_sidecars.write()
    path = sidecar_path(first_shard(with_sidecars))
    counts = read_shard(path).copy()
    counts[5] += 1
    write_shard(path, counts)
    with pytest.raises(DataError, match=r"fineweb_val_bytes_000000.bin: sha256"):
        verify_data(load_data_info(with_sidecars.folder))
    without_hashes = replace(
        with_sidecars,
        val=replace(
            with_sidecars.val,
            byte_counts=tuple(replace(s, sha256=None) for s in with_sidecars.val.byte_counts),
        ),
    )
    with pytest.raises(DataError, match=r"val scored_bytes is \d+, the shards have"):
        verify_data(without_hashes)


def test_sidecars_must_be_of_their_shards(with_sidecars: DataInfo) -> None:
    folder, shard = with_sidecars.folder, first_shard(with_sidecars)
    path, counts = sidecar_path(shard), read_shard(sidecar_path(shard)).copy()
    size = counts.size
    write_shard(path, counts[:-1])
    with pytest.raises(DataError, match=f"{size - 1} byte counts for {size} tokens; take shards"):
        load_data_info(folder)
    counts[0] = 2
    write_shard(path, counts)
    with pytest.raises(DataError, match="2 bytes for token 0, which opens a document"):
        load_data_info(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"000000.bin: this byte sidecar is missing, where other"):
        load_data_info(folder)


def test_sidecars_that_data_json_does_not_know_or_misses(
    transformed: DataInfo, with_sidecars: DataInfo
) -> None:
    transformed.write()
    with pytest.raises(DataError, match=r"000000.bin: this byte sidecar is not in data.json"):
        load_data_info(transformed.folder)
    with_sidecars.write()
    for shard in with_sidecars.val.shards:
        sidecar_path(with_sidecars.folder / shard.name).unlink()
    with pytest.raises(DataError, match=r"this byte sidecar is missing; build or fetch"):
        load_data_info(with_sidecars.folder)


def test_a_sidecar_without_a_shard(with_sidecars: DataInfo) -> None:
    extra = with_sidecars.folder / "fineweb_val_bytes_000999.bin"
    write_shard(extra, np.ones(3, dtype=np.uint16))
    with pytest.raises(DataError, match=r"000999.bin: this byte sidecar has no shard"):
        load_data_info(with_sidecars.folder)


@pytest.mark.parametrize(("change", "match"), [(-1, "from -1 to"), (1 << 16, "to 65536")])
def test_counts_that_do_not_fit_are_not_written(
    transformed: DataInfo, change: int, match: str
) -> None:
    shard = first_shard(transformed)
    counts = np.zeros(read_shard(shard).size, dtype=np.int64)
    counts[1] = change
    with pytest.raises(DataError, match=match):
        write_sidecar(shard, counts)
    with pytest.raises(DataError, match="byte counts for"):
        write_sidecar(shard, counts[2:])


def test_a_sidecar_of_another_stream_is_refused() -> None:
    sidecar = ByteSidecar(counts=np.array([0, 3, 4], dtype=np.uint8))
    tokens = np.array([BOS_ID, 5, 6], dtype=np.uint16)
    assert sidecar.total([tokens]) == sidecar.total([tokens[:1], tokens[1:]]) == 7
    with pytest.raises(InvalidArgumentError, match="3 counts for 2 tokens"):
        sidecar.total([tokens[:2]])
    for wrong in (np.array([-1]), np.array([1.5]), np.array([[1]])):
        with pytest.raises(InvalidArgumentError, match="byte sidecar: expected"):
            ByteSidecar(counts=wrong)


def test_the_sum_does_not_overflow() -> None:
    counts = np.full(70_000, 65_535, dtype=np.uint16)
    assert ByteSidecar(counts=counts).total([counts]) == 69_999 * 65_535


def test_a_sidecar_is_read_in_the_order_of_the_shards(with_sidecars: DataInfo) -> None:
    shards = with_sidecars.val.shards
    whole = read_sidecar(with_sidecars.folder, shards).counts
    parts = [read_sidecar(with_sidecars.folder, [shard]).counts for shard in shards]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
