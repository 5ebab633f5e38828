"""Byte counts against text that was put together by hand, token by token."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.byte_counts import ByteTable

PIECES = ["", "a", "\u2581a", "\u2581", "\u2581né", "\u65e5", "\u2581\u65e5\u672c"]  # 0 is control


def bytes_of(previous: int, current: int) -> int:
    piece = PIECES[current]
    space = " " if previous != 0 else ""
    return len(piece.replace("\u2581", space, 1).encode())


TABLE = ByteTable(
    base=np.array([len(piece.removeprefix("\u2581").encode()) for piece in PIECES]),
    has_space=np.array([piece.startswith("\u2581") for piece in PIECES]),
    is_boundary=np.array([not piece for piece in PIECES]),
)


@given(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=200))
def test_counts_are_the_bytes_of_the_decoded_text(ids: list[int]) -> None:
    tokens = np.array(ids, dtype=np.uint16)
    expected = [bytes_of(a, b) for a, b in pairwise(ids)]
    assert TABLE.count(tokens[:-1], tokens[1:]).tolist() == expected
    assert ByteTable.from_codes(TABLE.to_codes()).total([tokens]) == sum(expected)


@given(st.lists(st.none() | st.binary(max_size=9), min_size=1, max_size=40), st.data())
def test_raw_bytes_add_up_to_the_joined_bytes(
    pieces: list[bytes | None], data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, len(pieces) - 1), min_size=1, max_size=100))
    table = ByteTable.from_token_bytes(pieces)
    joined = b"".join(pieces[token] or b"" for token in ids[1:])
    assert table.total([np.array(ids)]) == len(joined)
