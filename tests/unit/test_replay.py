"""A ledger replayed: the same score to the last bit, or a reason why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flyweight.data.byte_counts import ByteSidecar, ByteTable
from flyweight.errors import DataError, InvalidArgumentError
from flyweight.evaluate.bpb import score_targets
from flyweight.evaluate.ledger import Ledger
from flyweight.evaluate.replay import replay_ledger

RNG = np.random.default_rng(2)
TOKENS = RNG.integers(0, 5, 301).astype(np.uint16)
NATS = RNG.exponential(2.0, 300)
BINDING = bytes(range(32))
TABLE = ByteTable(
    base=np.array([0, 1, 2, 3, 4]),
    has_space=np.array([False, True, False, True, False]),
    is_boundary=np.array([True, False, False, False, False]),
)
CHUNKS = ((0, 100), (100, 250), (250, 300))


def write(path: Path, chunks: tuple[tuple[int, int], ...] = CHUNKS) -> str:
    with Ledger(path, targets=300, binding=BINDING) as ledger:
        for first, stop in chunks:
            ledger.append(first, NATS[first:stop])
        return ledger.chain


def test_the_score_comes_out_again(tmp_path: Path) -> None:
    chain = write(tmp_path / "x.ledger")
    found = replay_ledger(tmp_path / "x.ledger", TOKENS, TABLE, binding=BINDING, chain=chain)
    assert found == score_targets(NATS, TOKENS, TABLE)
    other = write(tmp_path / "y.ledger", ((0, 1), (1, 300)))
    assert other != chain
    assert replay_ledger(tmp_path / "y.ledger", TOKENS, TABLE) == found  # whatever the chunks


@pytest.mark.parametrize(
    ("chunks", "match"),
    [
        (CHUNKS[:2], "50 of 300 targets have no score, the first is 250"),
        ((CHUNKS[0], CHUNKS[2]), "150 of 300 targets have no score, the first is 100"),
        ((CHUNKS[1], CHUNKS[0], CHUNKS[2]), "target 100 was scored when 0 was next"),
        ((), "300 of 300 targets have no score"),
    ],
)
def test_unfinished_or_out_of_order(
    tmp_path: Path, chunks: tuple[tuple[int, int], ...], match: str
) -> None:
    write(tmp_path / "x.ledger", chunks)
    with pytest.raises(DataError, match=match):
        replay_ledger(tmp_path / "x.ledger", TOKENS, TABLE)


def test_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    chain = write(path)
    with pytest.raises(DataError, match="another model or another config"):
        replay_ledger(path, TOKENS, TABLE, binding=bytes(32))
    with pytest.raises(DataError, match=f"ends in {chain}, the score was published with 00"):
        replay_ledger(path, TOKENS, TABLE, chain="00")
    with pytest.raises(DataError, match="ledger of 300 targets, expected 299"):
        replay_ledger(path, TOKENS[:-1], TABLE)
    with pytest.raises(InvalidArgumentError, match="300 counts for 301 tokens"):
        replay_ledger(path, TOKENS, ByteSidecar(counts=np.ones(300, dtype=np.uint8)))
    with pytest.raises(InvalidArgumentError, match="token .* is id .*, expected 0 to 4"):
        replay_ledger(path, TOKENS + 5, TABLE)


def test_no_change_of_the_file_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    chain = write(path)
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(DataError) as error:
            replay_ledger(path, TOKENS, TABLE, chain=chain)
        assert "remove" not in str(error.value)  # advice for who scores
    for length in range(0, len(data), 11):
        path.write_bytes(data[:length])
        with pytest.raises(DataError):
            replay_ledger(path, TOKENS, TABLE, chain=chain)


def test_a_forger_who_makes_all_hashes_anew_is_found_by_the_published_chain(tmp_path: Path) -> None:
    chain = write(tmp_path / "x.ledger")
    with Ledger(tmp_path / "y.ledger", targets=300, binding=BINDING) as ledger:
        ledger.append(0, NATS * 0.9)
    assert replay_ledger(tmp_path / "y.ledger", TOKENS, TABLE).nats < NATS.sum()
    with pytest.raises(DataError, match="published with"):
        replay_ledger(tmp_path / "y.ledger", TOKENS, TABLE, chain=chain)
