"""Byte counts and bits per byte, checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flyweight.data.byte_counts import ByteTable
from flyweight.errors import InvalidArgumentError
from flyweight.evaluate.bpb import Score, score_targets

# 0 control, 1 "a", 2 "▁bc", 3 "▁" alone, 4 a byte piece, 5 "é"
TABLE = ByteTable(
    base=np.array([0, 1, 2, 0, 1, 2]),
    has_space=np.array([False, False, True, True, False, False]),
    is_boundary=np.array([True, False, False, False, False, False]),
)


def test_a_space_counts_unless_a_boundary_is_before_it() -> None:
    tokens = np.array([0, 2, 2, 3, 3, 4, 5, 0, 3, 1], dtype=np.uint16)
    counts = TABLE.count(tokens[:-1], tokens[1:])
    assert counts.dtype == np.int64
    assert counts.tolist() == [2, 3, 1, 1, 1, 2, 0, 0, 1]


def test_total_is_the_sum_in_any_chunks() -> None:
    tokens = np.random.default_rng(0).integers(0, 6, 1000).astype(np.uint16)
    expected = int(TABLE.count(tokens[:-1], tokens[1:]).sum())
    assert TABLE.total([tokens]) == expected
    assert TABLE.total(np.array_split(tokens, 77)) == expected
    assert TABLE.total([tokens[:1]]) == TABLE.total([]) == 0


@pytest.mark.parametrize("longest", [64, 126, 127, 32766])
def test_codes_hold_the_table(longest: int) -> None:
    table = ByteTable(
        base=np.append(TABLE.base, longest),
        has_space=np.append(TABLE.has_space, True),
        is_boundary=np.append(TABLE.is_boundary, False),
    )
    codes = table.to_codes()
    assert codes.dtype == (np.uint8 if longest <= 126 else np.uint16)
    again = ByteTable.from_codes(codes)
    for name in ("base", "has_space", "is_boundary"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


def test_a_piece_too_long_for_codes_is_refused() -> None:
    table = ByteTable(
        base=np.array([0, 32767]),
        has_space=np.array([False, True]),
        is_boundary=np.array([True, False]),
    )
    with pytest.raises(InvalidArgumentError, match="token 1 has 32767 bytes"):
        table.to_codes()


def test_raw_bytes_of_tokens_count_as_they_are() -> None:
    pieces = [None, b"a", b" bc", b"\xe2", b"\xe2\x82", b""]  # the fourth and fifth are no text
    table = ByteTable.from_token_bytes(pieces)
    tokens = np.array([1, 0, 2, 3, 4, 5, 2], dtype=np.uint16)
    assert table.count(tokens[:-1], tokens[1:]).tolist() == [0, 3, 1, 2, 0, 3]
    assert ByteTable.from_codes(table.to_codes()).total([tokens]) == 9


@pytest.mark.parametrize(
    ("base", "has_space", "is_boundary"),
    [([1, 2], [False], [False, False]), ([-1], [False], [False]), ([1], [False], [True])],
)
def test_tables_that_make_no_sense(
    base: list[int], has_space: list[bool], is_boundary: list[bool]
) -> None:
    with pytest.raises(InvalidArgumentError, match="byte table"):
        ByteTable(
            base=np.array(base), has_space=np.array(has_space), is_boundary=np.array(is_boundary)
        )


def test_the_table_is_a_read_only_copy() -> None:
    base = np.array([0, 1])
    flags = np.zeros(2, dtype=bool)
    table = ByteTable(base=base, has_space=flags, is_boundary=flags)
    base[1] = 5
    assert table.base[1] == 1
    with pytest.raises(ValueError, match="read-only"):
        table.base[1] = 5


def test_ids_outside_of_the_vocabulary_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match="current token 1 is id 6, expected 0 to 5"):
        TABLE.count(np.array([0, 1]), np.array([1, 6]))
    with pytest.raises(InvalidArgumentError, match="previous token 0 is id -1"):
        TABLE.count(np.array([-1]), np.array([1]))
    with pytest.raises(InvalidArgumentError, match="2,"):
        TABLE.count(np.array([0, 1]), np.array([1]))


def test_score_by_hand() -> None:
    tokens = np.array([0, 2, 1, 0, 5])
    score = score_targets(np.log([2.0, 4.0, 8.0, 16.0]), tokens, TABLE)
    assert (score.targets, score.text_bytes) == (4, 2 + 1 + 0 + 2)
    assert score.bits == pytest.approx(10.0, abs=1e-12)
    assert score.bpb == pytest.approx(2.0, abs=1e-12)
    assert score.nats_per_token == pytest.approx(2.5 * math.log(2.0), abs=1e-12)


def test_the_text_form_carries_numerator_and_denominator() -> None:
    score = Score(nats=10 * math.log(2.0), targets=4, text_bytes=5)
    assert str(score) == (
        "2.00000000 bpb = 10.000 bits / 5 bytes (4 targets, 1.73286795 nats per token)"
    )


def test_the_sum_does_not_depend_on_order() -> None:
    rng = np.random.default_rng(1)
    nats = rng.exponential(2.0, 5000) * 10.0 ** rng.integers(-8, 8, 5000)
    tokens = np.ones(5001, dtype=np.uint16)
    scores = {score_targets(rng.permutation(nats), tokens, TABLE).nats for _ in range(5)}
    assert scores == {math.fsum(nats)}


def test_scores_of_disjoint_targets_add_up() -> None:
    a = Score(nats=1.5, targets=2, text_bytes=3)
    b = Score(nats=2.5, targets=1, text_bytes=4)
    assert a + b == Score(nats=4.0, targets=3, text_bytes=7)


def test_what_cannot_be_a_score() -> None:
    tokens = np.array([0, 1, 2])
    with pytest.raises(InvalidArgumentError, match="1 scores for 3 tokens, expected 2"):
        score_targets(np.zeros(1), tokens, TABLE)
    with pytest.raises(InvalidArgumentError, match="target 1 has no finite score"):
        score_targets(np.array([0.0, np.nan]), tokens, TABLE)
    with pytest.raises(InvalidArgumentError, match="0 bytes"):
        _ = Score(nats=1.0, targets=1, text_bytes=0).bpb
    with pytest.raises(InvalidArgumentError, match="no targets"):
        _ = Score(nats=0.0, targets=0, text_bytes=0).nats_per_token
